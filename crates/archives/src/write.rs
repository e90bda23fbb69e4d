//! Writing an archive.

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;

use tar::{Builder, Header, HeaderMode};

use crate::content::sha256;
use crate::read::{MANIFEST, MANIFEST_DIGEST};
use crate::{ArchiveError, Manifest, Part, Watch};

/// Writes an archive: the manifest, then the file that `open` gives for each of its parts. The
/// caller has digested the files before.
pub fn write(
    out: impl Write,
    manifest: &Manifest,
    open: &mut dyn FnMut(Part) -> io::Result<File>,
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
        let mut from = open(part).map_err(file)?;
        let found = from.metadata().map_err(file)?.len();
        if found != blob.bytes {
            return Err(ArchiveError::Size {
                member: name,
                expected: blob.bytes,
                found,
            });
        }
        builder.append_file(&name, &mut from).map_err(failed)?;
    }
    let mut out = builder.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
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
