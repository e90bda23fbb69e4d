//! Reading an archive that somebody else may have made.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use tar::{Archive, Entry, EntryType};

use crate::content::{broken, sha256, take};
use crate::manifest::{MAX_MANIFEST_BYTES, cut};
use crate::{ArchiveError, Blob, Manifest, Part, Watch};

/// Names of the first two members.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MANIFEST_DIGEST: &str = "manifest.sha256";
/// What every header has, and where, bytes from the start.
const MAGIC: &[u8; 5] = b"ustar";
const MAGIC_AT: u64 = 257;
/// Length of the member [`MANIFEST_DIGEST`]: 64 digits and the end of the line.
const DIGEST_BYTES: u64 = 65;

/// An archive whose manifest was read and is possible in itself.
#[derive(Debug)]
pub struct Reader {
    file: File,
    manifest: Manifest,
}

impl Reader {
    /// Reads the manifest.
    pub fn open(file: File) -> Result<Self, ArchiveError> {
        let (text, digest) = {
            check_form(&file)?;
            let mut archive = Archive::new(BufReader::new(&file));
            let mut entries = archive.entries().map_err(ArchiveError::Read)?;
            let text = read_text(&mut entries, MANIFEST, MAX_MANIFEST_BYTES)?;
            (
                text,
                read_text(&mut entries, MANIFEST_DIGEST, DIGEST_BYTES)?,
            )
        };
        if digest != format!("{}\n", sha256(&text)).as_bytes() {
            return Err(ArchiveError::Damaged {
                member: MANIFEST.to_owned(),
            });
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(ArchiveError::Document)?;
        manifest.check()?;
        Ok(Self { file, manifest })
    }

    /// What the archive says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes every member to the empty file that `place` gives for it, and verifies it. What was
    /// written before an error is the caller's to remove.
    pub fn extract(
        &self,
        place: &mut dyn FnMut(Part) -> io::Result<File>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        use std::io::Seek;
        let mut file = &self.file;
        file.rewind().map_err(ArchiveError::Read)?;
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, file));
        let mut entries = archive.entries().map_err(ArchiveError::Read)?;
        for name in [MANIFEST, MANIFEST_DIGEST] {
            next(&mut entries, name)?;
        }
        for (part, blob) in self.manifest.parts() {
            let name = self.manifest.name_of(part);
            let mut entry = next(&mut entries, &name)?;
            check_length(&name, &entry, blob)?;
            let to = place(part).map_err(|source| ArchiveError::File {
                action: "write",
                member: name.clone(),
                source,
            })?;
            take(&name, &mut entry, blob, &to, watch)?;
        }
        match entries.next() {
            None => Ok(()),
            Some(Ok(entry)) => Err(ArchiveError::Unexpected {
                expected: "the end".to_owned(),
                found: name_of(&entry),
            }),
            Some(Err(error)) => Err(ArchiveError::Read(error)),
        }
    }
}

/// Refuses a file that does not begin as an archive does, before anything of it is shown.
fn check_form(file: &File) -> Result<(), ArchiveError> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, MAGIC_AT) {
        Ok(()) if magic == *MAGIC => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(ArchiveError::Read(error))
        }
        _ => Err(ArchiveError::Foreign),
    }
}

/// The next member, which has to be the one called `name`.
fn next<'a, R: Read>(
    entries: &mut tar::Entries<'a, R>,
    name: &str,
) -> Result<Entry<'a, R>, ArchiveError> {
    let entry = match entries.next() {
        Some(entry) => entry.map_err(|error| broken(name, error))?,
        None => {
            return Err(ArchiveError::Cut {
                member: name.to_owned(),
            });
        }
    };
    if *entry.path_bytes() != *name.as_bytes() {
        return Err(ArchiveError::Unexpected {
            expected: name.to_owned(),
            found: name_of(&entry),
        });
    }
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::GNUSparse => Ok(entry),
        _ => Err(ArchiveError::NoFile {
            member: name.to_owned(),
        }),
    }
}

fn name_of<R: Read>(entry: &Entry<'_, R>) -> String {
    cut(&String::from_utf8_lossy(&entry.path_bytes()))
}

fn check_length<R: Read>(
    name: &str,
    entry: &Entry<'_, R>,
    blob: &Blob,
) -> Result<(), ArchiveError> {
    if entry.size() == blob.bytes {
        return Ok(());
    }
    Err(ArchiveError::Size {
        member: name.to_owned(),
        expected: blob.bytes,
        found: entry.size(),
    })
}

fn read_text<R: Read>(
    entries: &mut tar::Entries<'_, R>,
    name: &str,
    most: u64,
) -> Result<Vec<u8>, ArchiveError> {
    let entry = next(entries, name)?;
    let size = entry.size();
    if size > most {
        return Err(ArchiveError::Size {
            member: name.to_owned(),
            expected: most,
            found: size,
        });
    }
    let mut text = Vec::new();
    entry
        .take(most)
        .read_to_end(&mut text)
        .map_err(|error| broken(name, error))?;
    if text.len() as u64 == size {
        Ok(text)
    } else {
        Err(ArchiveError::Cut {
            member: name.to_owned(),
        })
    }
}
