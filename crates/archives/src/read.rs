//! Reading an archive that somebody else may have made.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;

use tar::{Archive, Entry, EntryType};

use crate::content::{broken, sha256, take};
use crate::manifest::{MAX_MANIFEST_BYTES, check_format, cut};
use crate::pages::apply;
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
    pub fn open(mut file: File) -> Result<Self, ArchiveError> {
        file.rewind().map_err(ArchiveError::Read)?;
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
        let manifest = serde_json::from_slice::<Manifest>(&text);
        let manifest = manifest.map_err(|error| newer_form(&text, error))?;
        manifest.check()?;
        Ok(Self { file, manifest })
    }

    /// What the archive says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes every member to the empty file that `place` gives for it, and verifies it. Changes of memory are put into the file of the RAM that they
    /// start from, which is not verified as a whole. What was written before an error is the caller's
    /// to remove.
    pub fn extract(
        &self,
        place: &mut dyn FnMut(Part) -> io::Result<File>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        self.rewind()?;
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, &self.file));
        let entries = archive.entries().map_err(ArchiveError::Read)?;
        self.take_out(entries, &mut |part| place(part).map(Some), watch)
    }

    /// The same for the members that `place` gives a file for; others are neither read nor verified.
    pub fn extract_some(
        &self,
        place: &mut dyn FnMut(Part) -> io::Result<Option<File>>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        self.rewind()?;
        let mut archive = Archive::new(BufReader::with_capacity(1 << 20, &self.file));
        let entries = archive.entries_with_seek().map_err(ArchiveError::Read)?;
        self.take_out(entries, place, watch)
    }

    fn rewind(&self) -> Result<(), ArchiveError> {
        (&self.file).rewind().map_err(ArchiveError::Read)
    }

    fn take_out<R: Read>(
        &self,
        mut entries: tar::Entries<'_, R>,
        place: &mut dyn FnMut(Part) -> io::Result<Option<File>>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
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
            match (to, part) {
                (None, _) => {}
                (Some(to), Part::Changes) => {
                    let ram_bytes = self.manifest.machine.spec.memory_bytes;
                    apply(&name, &mut entry, blob, &to, ram_bytes, watch)?;
                }
                (Some(to), _) => take(&name, &mut entry, blob, &to, watch)?,
            }
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

/// Why a manifest cannot be understood: newer programs may tell more.
fn newer_form(text: &[u8], error: serde_json::Error) -> ArchiveError {
    #[derive(serde::Deserialize)]
    struct Form {
        format: u32,
    }
    let form = serde_json::from_slice::<Form>(text);
    match form.map(|form| check_format(form.format)) {
        Ok(Err(foreign)) => foreign,
        _ => ArchiveError::Document(error),
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
