//! `mitose cp`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_protocol::tree::{self, SetIds, Specials};
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
    if args.from == "-" || args.to == "-" {
        return Ok(output::usage(
            "- is no place to copy from or to; write ./- for a file of that name, or use \
             mitose exec NAME -- cat PATH for a stream",
        ));
    }
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

/// A file that a download is written to.
struct Target {
    file: File,
    path: PathBuf,
    /// Where the bytes are until all have come; none where they go into what is there.
    partial: Option<PathBuf>,
}

impl Target {
    /// A regular file is replaced as a whole. Devices, pipes and what stands in a directory that takes no
    /// new file are written to.
    fn open(path: PathBuf) -> io::Result<Self> {
        // Writing through a link changes what it points to, as it does in every other copy tool.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let known = fs::metadata(&path).ok();
        let whole = known.as_ref().is_none_or(fs::Metadata::is_file);
        if let (true, Some(name)) = (whole, path.file_name()) {
            let number = std::process::id();
            let name: String = name.to_string_lossy().chars().take(40).collect();
            let partial = path.with_file_name(format!(".{name}.{number}.mitose-part"));
            // One of that name is of a program that is gone: the number is this one's.
            let _ = fs::remove_file(&partial);
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&partial);
            match made {
                Ok(file) => {
                    let partial = Some(partial);
                    return Ok(Self {
                        file,
                        path,
                        partial,
                    });
                }
                Err(error) if known.is_none() || !takes_no_new(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let file = OpenOptions::new().write(true).truncate(whole).open(&path)?;
        Ok(Self {
            file,
            path,
            partial: None,
        })
    }

    /// All bytes have come: the file appears with the mode of the guest's.
    fn finish(mut self, mode: u32) -> io::Result<()> {
        let Some(partial) = &self.partial else {
            return Ok(());
        };
        let mode = fs::Permissions::from_mode(mode & 0o777);
        self.file.set_permissions(mode)?;
        fs::rename(partial, &self.path)?;
        self.partial = None;
        Ok(())
    }
}

/// Whether a directory takes no new files, though one that it has may be written to.
fn takes_no_new(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

/// Where a download goes.
enum Sink {
    File(Target),
    Tar(io::PipeWriter),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(target) => target.file.write(bytes),
            Self::Tar(pipe) => pipe.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(target) => target.file.flush(),
            Self::Tar(pipe) => pipe.flush(),
        }
    }
}

fn download(context: &Context, name: &str, path: &str, to: &Path) -> anyhow::Result<()> {
    let stream = connect(context, name, path)?;
    let mut unpacker = None;
    let result = host::get(&stream, &stream, path, |entry: &Entry| match entry.kind {
        EntryKind::File => {
            let file = target_file(path, to);
            let opened = Target::open(file.clone());
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", file.display()));
            Ok(Sink::File(opened.map_err(named)?))
        }
        EntryKind::Tar => {
            let into = directory_target(path, to);
            let (reader, writer) = io::pipe()?;
            let unpack = move || tree::unpack(reader, &into, SetIds::Dropped);
            unpacker = Some(std::thread::spawn(unpack));
            Ok(Sink::Tar(writer))
        }
    });
    let (entry, target) = match result {
        Ok((entry, Sink::File(target))) => (Ok(entry), Some(target)),
        // The end of the pipe ends the unpacking.
        Ok((entry, Sink::Tar(_))) => (Ok(entry), None),
        Err(error) => (Err(error), None),
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
    let entry = entry?;
    let finished = target.map_or(Ok(()), |target| target.finish(entry.mode));
    finished.with_context(|| format!("cannot write {}", target_file(path, to).display()))
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

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("app.conf");
        fs::write(&file, "old").unwrap();
        let mut target = Target::open(file.clone()).unwrap();
        target.file.write_all(b"ne").unwrap();
        drop(target);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["app.conf"]);
        let mut target = Target::open(file.clone()).unwrap();
        target.file.write_all(b"new").unwrap();
        target.finish(0o4640).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(names(dir.path()), ["app.conf"]);
    }

    #[test]
    fn what_is_no_file_is_written_to_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let before = fs::metadata(&pipe).unwrap().permissions();
        // Its other end, so that nobody waits.
        let reader = OpenOptions::new().read(true).write(true).open(&pipe);
        let mut reader = reader.unwrap();
        for whole in [true, false] {
            let mut target = Target::open(pipe.clone()).unwrap();
            target.file.write_all(b"x").unwrap();
            if whole {
                target.finish(0o777).unwrap();
            }
            assert_eq!(fs::metadata(&pipe).unwrap().permissions(), before);
            let mut byte = [0];
            io::Read::read_exact(&mut reader, &mut byte).unwrap();
            assert_eq!(byte, *b"x");
        }
        assert_eq!(names(dir.path()), ["pipe"]);
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
