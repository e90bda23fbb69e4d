//! `mitose cp`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_protocol::tree::{self, Specials};
use agent_protocol::{Entry, EntryKind, Put, REQUEST_PORT, host};
use anyhow::{Context as _, bail};

use super::Context;
use crate::output;

/// Longest wait for the agent of a VM that is starting, seconds.
const AGENT_WAIT_S: u64 = 60;

/// Copy files and directories between host and guest
///
/// One of the two places is NAME:PATH with an absolute path in the guest. A directory is copied under
/// its own name into a directory that exists, else it becomes the target; DIR/. copies its content
/// alone. Named pipes, sockets and device nodes are left out, with a warning.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose cp notes.txt web1:/root/
  mitose cp web1:/var/log/syslog .
  mitose cp ./site web1:/srv/site     # /srv/site/site where /srv/site exists
  mitose cp ./site/. web1:/srv/site   # its content")]
pub struct Args {
    /// Where from: PATH or NAME:PATH
    from: String,
    /// Where to: PATH or NAME:PATH
    to: String,
}

/// One of the two places.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Host(&'a Path),
    Guest { name: &'a str, path: &'a str },
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    match (place(&args.from), place(&args.to)) {
        (Place::Host(from), Place::Guest { name, path }) => {
            upload(context, &args.from, from, name, path)?
        }
        (Place::Guest { name, path }, Place::Host(to)) => download(context, name, path, to)?,
        (Place::Host(_), Place::Host(_)) => {
            return Ok(output::usage(
                "one of the two places must be in a guest, written NAME:/PATH",
            ));
        }
        (Place::Guest { .. }, Place::Guest { .. }) => {
            return Ok(output::usage(
                "one of the two places must be on the host; copy through a file here",
            ));
        }
    }
    Ok(0)
}

/// `NAME:PATH` is a guest's unless there is a slash before the colon.
fn place(text: &str) -> Place<'_> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => {
            Place::Guest { name, path }
        }
        _ => Place::Host(Path::new(text)),
    }
}

fn connect(context: &Context, name: &str, path: &str) -> anyhow::Result<UnixStream> {
    if !path.starts_with('/') {
        bail!("the path in the guest must be absolute, such as {name}:/root/{path}");
    }
    Ok(context.client()?.vsock(name, REQUEST_PORT, AGENT_WAIT_S)?)
}

fn upload(
    context: &Context,
    source: &str,
    from: &Path,
    name: &str,
    path: &str,
) -> anyhow::Result<()> {
    let meta = fs::metadata(from).with_context(|| format!("cannot open {}", from.display()))?;
    let stream = connect(context, name, path)?;
    let mut put = Put {
        path: path.to_owned(),
        name: from.file_name().map(|n| n.to_string_lossy().into_owned()),
        mode: meta.permissions().mode() & 0o7777,
        kind: EntryKind::File,
    };
    if meta.is_dir() {
        put.kind = EntryKind::Tar;
        if tree::means_content(source) {
            put.name = None;
        }
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        let packed = from.to_owned();
        let packer = std::thread::spawn(move || tree::pack(&packed, writer, Specials::LeftOut));
        let sent = host::put(&stream, &stream, &put, reader);
        let packed = packer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("packing broke off")));
        sent?;
        let left_out = packed.with_context(|| format!("cannot read {}", from.display()))?;
        warn_of(&left_out);
        return Ok(());
    }
    let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    host::put(&stream, &stream, &put, file)?;
    Ok(())
}

/// Names what was not copied.
fn warn_of(left_out: &[PathBuf]) {
    for path in left_out {
        eprintln!("warning: {path:?} was not copied: it is neither a file, a directory nor a link");
    }
}

/// Where a download goes.
enum Sink {
    File(File),
    Tar(io::PipeWriter),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Tar(pipe) => pipe.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Tar(pipe) => pipe.flush(),
        }
    }
}

fn download(context: &Context, name: &str, path: &str, to: &Path) -> anyhow::Result<()> {
    let stream = connect(context, name, path)?;
    let mut target: Option<PathBuf> = None;
    let mut unpacker = None;
    let result = host::get(&stream, &stream, path, |entry: &Entry| match entry.kind {
        EntryKind::File => {
            let file = target_file(path, to);
            let made = File::create(&file)?;
            target = Some(file);
            Ok(Sink::File(made))
        }
        EntryKind::Tar => {
            let into = directory_target(path, to);
            let (reader, writer) = io::pipe()?;
            unpacker = Some(std::thread::spawn(move || tree::unpack(reader, &into)));
            Ok(Sink::Tar(writer))
        }
    });
    let entry = match result {
        Ok((entry, sink)) => {
            // The end of the pipe ends the unpacking.
            drop(sink);
            Ok(entry)
        }
        Err(error) => Err(error),
    };
    if let Some(unpacker) = unpacker {
        let unpacked = unpacker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("it broke off")));
        // A stream that broke off is not the unpacking's fault.
        let broken = |e: &io::Error| e.kind() == io::ErrorKind::UnexpectedEof;
        let entry = match (&unpacked, entry) {
            (Err(error), Err(_)) if !broken(error) => None,
            (_, entry) => Some(entry?),
        };
        let left_out = unpacked.with_context(|| format!("cannot unpack into {}", to.display()))?;
        warn_of(&left_out);
        debug_assert!(entry.is_none_or(|entry| entry.kind == EntryKind::Tar));
        return Ok(());
    }
    match (entry, target) {
        (Ok(entry), Some(file)) => {
            let mode = fs::Permissions::from_mode(entry.mode & 0o777);
            fs::set_permissions(&file, mode)
                .with_context(|| format!("cannot set the mode of {}", file.display()))
        }
        (Ok(_), None) => Ok(()),
        (Err(error), target) => {
            // Half a file is worse than none.
            target
                .into_iter()
                .for_each(|file| drop(fs::remove_file(file)));
            Err(error.into())
        }
    }
}

/// A file is put into an existing directory under its own name.
fn target_file(path: &str, to: &Path) -> PathBuf {
    match Path::new(path).file_name() {
        Some(name) if to.is_dir() => to.join(name),
        _ => to.to_owned(),
    }
}

/// A directory becomes one below an existing directory, unless its content alone is meant.
fn directory_target(path: &str, to: &Path) -> PathBuf {
    if tree::means_content(path) {
        return to.to_owned();
    }
    target_file(path, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_behind_a_slash_is_part_of_a_host_path() {
        assert_eq!(place("./a:b"), Place::Host(Path::new("./a:b")));
        let guest = Place::Guest {
            name: "web1",
            path: "/x:y",
        };
        assert_eq!(place("web1:/x:y"), guest);
    }

    #[test]
    fn downloads_into_a_directory_keep_their_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            target_file("/etc/hosts", dir.path()),
            dir.path().join("hosts")
        );
        let file = dir.path().join("x");
        assert_eq!(target_file("/etc/hosts", &file), file);
        assert_eq!(
            directory_target("/etc/", dir.path()),
            dir.path().join("etc")
        );
        assert_eq!(directory_target("/etc/.", dir.path()), dir.path());
        assert_eq!(directory_target("/etc", &file), file);
    }
}
