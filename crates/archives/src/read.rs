//! Reading an archive that somebody else may have made.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

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
/// Most bytes that are read to find the next member: its headers, and the manifest where that is passed
/// over. The library keeps long names in memory, however long their headers say that they are.
const HEADERS_BYTES: u64 = MAX_MANIFEST_BYTES + (64 << 10);
/// A sparse member has a place for each run of content, 21 in a block of its headers; runs of files are
/// no shorter than a page.
const SPARSE_BLOCK_BYTES: u64 = 512;
const CONTENT_OF_SPARSE_BLOCK: u64 = 21 * 4096;
/// Most bytes of headers that any member has: 11 million runs.
const MAX_HEADERS_BYTES: u64 = 256 << 20;
/// Length of the member [`MANIFEST_DIGEST`]: 64 digits and the end of the line.
const DIGEST_BYTES: u64 = 65;

/// An archive whose manifest was read and is possible in itself.
#[derive(Debug)]
pub struct Reader {
    file: File,
    manifest: Manifest,
}

/// How many bytes may still be read.
#[derive(Clone, Debug)]
struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    fn unlimited() -> Self {
        Self(Rc::new(Cell::new(u64::MAX)))
    }

    /// Allows the headers of a member of `bytes`.
    fn headers(&self, bytes: u64) {
        let sparse = bytes / CONTENT_OF_SPARSE_BLOCK * SPARSE_BLOCK_BYTES;
        // Sizes are told by the archive itself.
        self.0.set(HEADERS_BYTES + sparse.min(MAX_HEADERS_BYTES));
    }

    /// Allows content, which is bounded by who takes it.
    fn content(&self) {
        self.0.set(u64::MAX);
    }
}

/// Reads what is allowed.
struct Bounded<R> {
    inner: R,
    left: Allowance,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.0.get();
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            let problem = "a header is longer than any of an archive";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let read = self.inner.read(&mut buffer[..most])?;
        if left != u64::MAX {
            self.left.0.set(left - read as u64);
        }
        Ok(read)
    }
}

impl<R: Seek> Seek for Bounded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl Reader {
    /// Reads the manifest.
    pub fn open(mut file: File) -> Result<Self, ArchiveError> {
        file.rewind().map_err(ArchiveError::Read)?;
        let (text, digest) = {
            check_form(&file)?;
            let left = Allowance::unlimited();
            let inner = BufReader::new(&file);
            let mut archive = Archive::new(Bounded {
                inner,
                left: left.clone(),
            });
            let mut entries = archive.entries().map_err(ArchiveError::Read)?;
            let text = read_text(&mut entries, MANIFEST, MAX_MANIFEST_BYTES, &left)?;
            (
                text,
                read_text(&mut entries, MANIFEST_DIGEST, DIGEST_BYTES, &left)?,
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

    /// Writes every member to the empty file that `place` gives for it, and verifies it. Changes of
    /// memory are put into the file of the RAM that they start from, which is not verified as a whole.
    /// What was written before an error is the caller's to remove.
    pub fn extract(
        &self,
        place: &mut dyn FnMut(Part) -> io::Result<File>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        self.rewind()?;
        let left = Allowance::unlimited();
        let mut archive = Archive::new(self.bounded(&left));
        let entries = archive.entries().map_err(ArchiveError::Read)?;
        self.take_out(entries, &left, &mut |part| place(part).map(Some), watch)
    }

    /// The same for the members that `place` gives a file for; others are neither read nor verified.
    pub fn extract_some(
        &self,
        place: &mut dyn FnMut(Part) -> io::Result<Option<File>>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        self.rewind()?;
        let left = Allowance::unlimited();
        let mut archive = Archive::new(self.bounded(&left));
        let entries = archive.entries_with_seek().map_err(ArchiveError::Read)?;
        self.take_out(entries, &left, place, watch)
    }

    fn bounded(&self, left: &Allowance) -> Bounded<BufReader<&File>> {
        Bounded {
            inner: BufReader::with_capacity(1 << 20, &self.file),
            left: left.clone(),
        }
    }

    fn rewind(&self) -> Result<(), ArchiveError> {
        (&self.file).rewind().map_err(ArchiveError::Read)
    }

    fn take_out<R: Read>(
        &self,
        mut entries: tar::Entries<'_, R>,
        left: &Allowance,
        place: &mut dyn FnMut(Part) -> io::Result<Option<File>>,
        watch: &mut Watch<'_>,
    ) -> Result<(), ArchiveError> {
        for name in [MANIFEST, MANIFEST_DIGEST] {
            next(&mut entries, name, 0, left)?;
        }
        for (part, blob) in self.manifest.parts() {
            let name = self.manifest.name_of(part);
            let mut entry = next(&mut entries, &name, blob.bytes, left)?;
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
        left.headers(0);
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

/// The next member, which has to be the one called `name`, of `bytes`.
fn next<'a, R: Read>(
    entries: &mut tar::Entries<'a, R>,
    name: &str,
    bytes: u64,
    left: &Allowance,
) -> Result<Entry<'a, R>, ArchiveError> {
    left.headers(bytes);
    let found = entries.next();
    left.content();
    let entry = match found {
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
    left: &Allowance,
) -> Result<Vec<u8>, ArchiveError> {
    let entry = next(entries, name, most, left)?;
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
