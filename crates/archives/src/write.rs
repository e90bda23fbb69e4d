//! Writing an archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use tar::{Builder, Header, HeaderMode};

use crate::content::sha256;
use crate::read::{MANIFEST, MANIFEST_DIGEST};
use crate::{ArchiveError, Blob, Manifest, Part, Watch};

/// Where the content of a part comes from.
pub enum Content {
    /// A file, whose holes stay holes.
    File(File),
    /// Bytes that are made as they are read, as many as the manifest tells.
    Bytes(Box<dyn Read>),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Bytes(_) => "Bytes",
        })
    }
}

/// Writes an archive: the manifest, then what `open` gives for each of its parts. The caller has
/// digested it before.
pub fn write(
    out: impl Write,
    manifest: &Manifest,
    open: &mut dyn FnMut(Part) -> io::Result<Content>,
    watch: &mut Watch<'_>,
) -> Result<(), ArchiveError> {
    manifest.check()?;
    let cancelled = std::cell::Cell::new(false);
    let out = Watched {
        out,
        watch,
        cancelled: &cancelled,
    };
    let failed = |error: io::Error| match cancelled.get() {
        true => ArchiveError::Cancelled,
        false => ArchiveError::Write(error),
    };
    let mut builder = Builder::new(out);
    builder.mode(HeaderMode::Deterministic);
    let text = serde_json::to_vec_pretty(manifest).map_err(ArchiveError::Document)?;
    let digest = format!("{}\n", sha256(&text)).into_bytes();
    for (name, bytes) in [(MANIFEST, &text), (MANIFEST_DIGEST, &digest)] {
        let mut header = plain_header(bytes.len() as u64);
        builder
            .append_data(&mut header, name, &bytes[..])
            .map_err(failed)?;
    }
    for (part, blob) in manifest.parts() {
        let name = manifest.name_of(part);
        let file = |source| ArchiveError::File {
            action: "read",
            member: name.clone(),
            source,
        };
        let mut from = match open(part).map_err(file)? {
            Content::File(from) => from,
            Content::Bytes(from) => {
                put_bytes(&mut builder, &name, blob, from).map_err(|error| match error {
                    ArchiveError::Write(error) => failed(error),
                    error => error,
                })?;
                continue;
            }
        };
        let found = from.metadata().map_err(file)?.len();
        if found != blob.bytes {
            return Err(wrong_size(&name, blob.bytes, found));
        }
        builder.append_file(&name, &mut from).map_err(failed)?;
    }
    let mut out = builder.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
}

/// Writes a member of bytes that are made as they are read.
fn put_bytes(
    builder: &mut Builder<impl Write>,
    name: &str,
    blob: &Blob,
    from: Box<dyn Read>,
) -> Result<(), ArchiveError> {
    let mut limited = from.take(blob.bytes);
    let mut header = plain_header(blob.bytes);
    builder
        .append_data(&mut header, name, &mut limited)
        .map_err(ArchiveError::Write)?;
    match limited.limit() {
        0 => Ok(()),
        left => Err(wrong_size(name, blob.bytes, blob.bytes - left)),
    }
}

fn wrong_size(name: &str, expected: u64, found: u64) -> ArchiveError {
    ArchiveError::Size {
        member: name.to_owned(),
        expected,
        found,
    }
}

fn plain_header(bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header
}

/// Tells what is written, and stops where the caller wants.
struct Watched<'a, 'w, W> {
    out: W,
    watch: &'a mut Watch<'w>,
    cancelled: &'a std::cell::Cell<bool>,
}

impl<W: Write> Write for Watched<'_, '_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        match (self.watch)(count as u64) {
            ControlFlow::Continue(()) => Ok(count),
            ControlFlow::Break(()) => {
                self.cancelled.set(true);
                Err(io::Error::other("cancelled"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
