//! File transfers. A file appears under its name only when it has arrived whole; directories
//! travel as tar streams.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use agent_protocol::request::DATA_MAX;
use agent_protocol::tree::{self, SetIds, Specials};
use agent_protocol::{Entry, EntryKind, FrameError, Get, Put, Reply, Request};
use anyhow::{Context, Result, bail, ensure};

use crate::Root;

/// Takes an upload and answers `DONE`.
pub(super) fn receive(root: &Root, stream: &mut File, put: &Put) -> Result<()> {
    let target = absolute(root, &put.path)?;
    let mut data = DataReader {
        stream,
        rest: Vec::new(),
        at: 0,
        ended: false,
    };
    match put.kind {
        EntryKind::File => receive_file(&mut data, &file_target(target, put)?, put.mode)?,
        EntryKind::Tar => receive_tar(&mut data, &target_in(target, put)?)?,
    }
    Reply::Done.write(stream)?;
    Ok(())
}

/// Answers a download.
pub(super) fn send(root: &Root, stream: &mut File, get: &Get) -> Result<()> {
    let path = absolute(root, &get.path)?;
    let meta = fs::metadata(&path).with_context(|| get.path.clone())?;
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_dir() {
        Reply::Stat(Entry {
            kind: EntryKind::Tar,
            size: 0,
            mode,
        })
        .write(stream)?;
        let writer = BufWriter::with_capacity(DATA_MAX, DataWriter { stream });
        tree::pack(&path, writer, Specials::Marked).with_context(|| get.path.clone())?;
    } else {
        ensure!(
            meta.is_file(),
            "{} is neither a file nor a directory",
            get.path
        );
        let mut file = File::open(&path).with_context(|| get.path.clone())?;
        Reply::Stat(Entry {
            kind: EntryKind::File,
            size: meta.len(),
            mode,
        })
        .write(stream)?;
        let mut piece = vec![0u8; DATA_MAX];
        loop {
            match file.read(&mut piece).with_context(|| get.path.clone())? {
                0 => break,
                n => Reply::Data(piece[..n].to_vec()).write(stream)?,
            }
        }
    }
    Reply::Eof.write(stream)?;
    Ok(())
}

fn absolute(root: &Root, path: &str) -> Result<PathBuf> {
    ensure!(path.starts_with('/'), "{path:?} is not an absolute path");
    ensure!(!path.contains('\0'), "{path:?} has a zero byte");
    Ok(root.path(path))
}

/// The file to write.
fn file_target(path: PathBuf, put: &Put) -> Result<PathBuf> {
    if !path.is_dir() {
        ensure!(!put.path.ends_with('/'), "{} is not a directory", put.path);
        return Ok(path);
    }
    ensure!(put.name.is_some(), "{} is a directory", put.path);
    target_in(path, put)
}

/// The path itself, or the given name inside it when it is a directory.
fn target_in(path: PathBuf, put: &Put) -> Result<PathBuf> {
    let Some(name) = put.name.as_ref().filter(|_| path.is_dir()) else {
        return Ok(path);
    };
    let plain = Path::new(name)
        .file_name()
        .is_some_and(|file| file == name.as_str());
    ensure!(plain, "{name:?} is not a file name");
    Ok(path.join(name))
}

/// Files received so far: each is written under a name of its own.
static UPLOADS: AtomicU64 = AtomicU64::new(0);

fn receive_file(data: &mut impl Read, target: &Path, mode: u32) -> Result<()> {
    // Writing through a link changes what it points to, as it does in every other copy tool.
    let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    let shown = target.display().to_string();
    let (Some(dir), Some(_)) = (target.parent(), target.file_name()) else {
        bail!("{shown} is not a file name");
    };
    if target.exists() && !target.is_file() {
        let mut device = OpenOptions::new()
            .write(true)
            .open(&target)
            .context(shown.clone())?;
        io::copy(data, &mut device).context(shown)?;
        return Ok(());
    }
    let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
    let partial = dir.join(format!(".mitose-{}-{number}.part", std::process::id()));
    let written = write_whole(data, &partial, mode)
        .and_then(|()| fs::rename(&partial, &target))
        .context(shown);
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_whole(data: &mut impl Read, path: &Path, mode: u32) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    io::copy(data, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}

fn receive_tar(data: &mut impl Read, dir: &Path) -> Result<()> {
    let shown = dir.display();
    let left_out = tree::unpack(&mut *data, dir, SetIds::Kept)
        .with_context(|| format!("cannot unpack into {shown}"))?;
    // The end of the archive comes before the end of the stream: padding follows.
    io::copy(data, &mut io::sink())?;
    ensure!(
        left_out.is_empty(),
        "{} of the entries are neither file, directory nor link, such as {}; the others are in {shown}",
        left_out.len(),
        left_out[0].display()
    );
    Ok(())
}

/// The bytes of the DATA frames up to EOF.
struct DataReader<'a> {
    stream: &'a mut File,
    rest: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for DataReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() && !self.ended {
            match Request::read(self.stream).map_err(io::Error::other)? {
                Some(Request::Data(bytes)) => (self.rest, self.at) = (bytes, 0),
                Some(Request::Eof) => self.ended = true,
                Some(other) => {
                    let got = other.name();
                    let error = FrameError::Unexpected {
                        got,
                        wanted: "data",
                    };
                    return Err(io::Error::other(error));
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = out.len().min(self.rest.len() - self.at);
        out[..n].copy_from_slice(&self.rest[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Wraps written bytes into DATA frames.
struct DataWriter<'a> {
    stream: &'a mut File,
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(DATA_MAX);
        Reply::Data(bytes[..n].to_vec())
            .write(self.stream)
            .map_err(io::Error::other)?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
