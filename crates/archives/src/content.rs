//! Content of files: digests and copies that leave holes out.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};

use crate::{ArchiveError, Blob};

/// Told of each step with the bytes that were done in it; says whether to go on.
pub type Watch<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// Bytes that are handled at once.
const STEP: usize = 1 << 20;
/// Zeros of this length and alignment stay holes.
const PAGE: usize = 4096;
pub(crate) static ZEROS: [u8; STEP] = [0; STEP];

/// Returns length and SHA-256 of a file. Holes are not read.
pub fn digest(member: &str, file: &File, watch: &mut Watch<'_>) -> Result<Blob, ArchiveError> {
    let failed = |source| ArchiveError::File {
        action: "read",
        member: member.to_owned(),
        source,
    };
    let bytes = file.metadata().map_err(failed)?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < bytes {
        // A file system that knows no holes says that all is data.
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(bytes),
            Err(rustix::io::Errno::NXIO) => bytes,
            Err(_) => at,
        };
        let end = match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if data < bytes => hole.min(bytes),
            _ => bytes,
        };
        while at < end {
            let zero = at < data;
            let stop = if zero { data } else { end };
            let count = STEP.min((stop - at) as usize);
            if zero {
                hash.update(&ZEROS[..count]);
            } else {
                file.read_exact_at(&mut buffer[..count], at)
                    .map_err(failed)?;
                hash.update(&buffer[..count]);
            }
            at += count as u64;
            proceed(watch, count)?;
        }
    }
    Ok(Blob {
        sha256: hex(&hash.finalize()),
        bytes,
    })
}

/// Copies a file to the empty file `to`, pages of zeros as holes. Says whether it was `expected`; what
/// was written otherwise is the caller's to remove.
pub fn copy_expected(
    member: &str,
    from: &File,
    expected: &Blob,
    to: &File,
    watch: &mut Watch<'_>,
) -> Result<bool, ArchiveError> {
    let mut from = Placed { file: from, at: 0 };
    match take(member, &mut from, expected, to, watch) {
        Ok(()) => Ok(true),
        Err(ArchiveError::Damaged { .. } | ArchiveError::Cut { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a file from its beginning, whatever its own position is.
struct Placed<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Placed<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(to, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Writes what `from` gives to an empty file, pages of zeros as holes; refuses it where it is not
/// `expected`.
pub(crate) fn take(
    member: &str,
    from: &mut impl Read,
    expected: &Blob,
    to: &File,
    watch: &mut Watch<'_>,
) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::File {
        action: "write",
        member: member.to_owned(),
        source,
    };
    to.set_len(expected.bytes).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < expected.bytes {
        let count = STEP.min((expected.bytes - at) as usize);
        let chunk = &mut buffer[..count];
        from.read_exact(chunk)
            .map_err(|error| broken(member, error))?;
        hash.update(&*chunk);
        for (index, page) in chunk.chunks(PAGE).enumerate() {
            if page != &ZEROS[..page.len()] {
                let place = at + (index * PAGE) as u64;
                to.write_all_at(page, place).map_err(failed)?;
            }
        }
        at += count as u64;
        proceed(watch, count)?;
    }
    if hex(&hash.finalize()) == expected.sha256 {
        Ok(())
    } else {
        Err(ArchiveError::Damaged {
            member: member.to_owned(),
        })
    }
}

/// An error of the archive below a member's content.
pub(crate) fn broken(member: &str, error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Cut {
            member: member.to_owned(),
        },
        _ => ArchiveError::Read(error),
    }
}

/// Tells of bytes that are done; ends where the caller wants.
pub(crate) fn proceed(watch: &mut Watch<'_>, bytes: usize) -> Result<(), ArchiveError> {
    match watch(bytes as u64) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ArchiveError::Cancelled),
    }
}

/// SHA-256 of bytes at hand, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
