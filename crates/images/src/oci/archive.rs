//! The outer tar file of a container archive: an index of its members.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path};

use sha2::{Digest, Sha256};

use super::{OciResult, refuse};
use crate::Watch;
use crate::builder::hex;

/// Most members of an archive.
const MEMBERS_MAX: usize = 100_000;

/// Largest JSON document in an archive, in bytes.
const JSON_MAX: u64 = 8 << 20;

/// Most links that are followed from one member to another.
const LINKS_MAX: usize = 8;

#[derive(Debug, Clone)]
enum Member {
    File { at: u64, len: u64 },
    Link(String),
}

/// A member that holds a layer or a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) name: String,
    /// SHA-256 that the content must have, in hexadecimal.
    pub(super) digest: Option<String>,
}

/// An archive whose members can be read in any order.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    members: BTreeMap<String, Member>,
}

impl Archive {
    /// Reads the headers of all members.
    pub(super) fn open(file: File) -> OciResult<Self> {
        let mut members = BTreeMap::new();
        let mut tar = tar::Archive::new(&file);
        let entries = tar
            .entries_with_seek()
            .or_else(|_| refuse("it is not a tar archive"))?;
        for entry in entries.raw(true) {
            let entry = entry.or_else(|e| refuse(format!("its tar structure is damaged: {e}")))?;
            if members.len() == MEMBERS_MAX {
                return refuse(format!("it has more than {MEMBERS_MAX} members"));
            }
            let Ok(path) = entry.path() else { continue };
            let Some(name) = normal(&path) else { continue };
            let header = entry.header();
            let member = if header.entry_type().is_file() {
                Member::File {
                    at: entry.raw_file_position(),
                    len: entry.size(),
                }
            } else if header.entry_type().is_symlink() || header.entry_type().is_hard_link() {
                let Ok(Some(target)) = entry.link_name() else {
                    continue;
                };
                // Hard links count from the archive's root, others from their directory.
                let base = if header.entry_type().is_symlink() {
                    Path::new(&name)
                        .parent()
                        .unwrap_or(Path::new(""))
                        .to_owned()
                } else {
                    Default::default()
                };
                let Some(target) = normal(&base.join(target)) else {
                    continue;
                };
                Member::Link(target)
            } else {
                continue;
            };
            members.insert(name, member);
        }
        Ok(Self { file, members })
    }

    /// Whether there is a member of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Reads a JSON document whole.
    pub(super) fn json<T: for<'de> serde::Deserialize<'de>>(
        &mut self,
        blob: &Blob,
    ) -> OciResult<T> {
        let (_, len) = self.place(&blob.name)?;
        if len > JSON_MAX {
            return refuse(format!(
                "{} has {len} bytes, at most {JSON_MAX} are read",
                blob.name
            ));
        }
        self.check_digest(blob, &Watch::default())?;
        let mut text = Vec::new();
        self.reader(blob)?.read_to_end(&mut text)?;
        serde_json::from_slice(&text).or_else(|e| refuse(format!("{}: {e}", blob.name)))
    }

    /// Fails when the content is not what its digest says.
    pub(super) fn check_digest(&mut self, blob: &Blob, watch: &Watch) -> OciResult<()> {
        let Some(wanted) = &blob.digest else {
            return Ok(());
        };
        let mut hash = Sha256::new();
        let mut reader = super::compressed::Watched::new(self.reader(blob)?, watch.clone());
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        if hex(&hash.finalize()) == *wanted {
            return Ok(());
        }
        refuse(format!(
            "{} is damaged: its content does not have its digest",
            blob.name
        ))
    }

    /// Returns a reader of a member's content, with a position of its own.
    pub(super) fn reader(&mut self, blob: &Blob) -> OciResult<Box<dyn Read + Send>> {
        let (at, len) = self.place(&blob.name)?;
        let file = self.file.try_clone()?;
        Ok(Box::new(Section {
            file,
            at,
            left: len,
        }))
    }

    fn place(&mut self, name: &str) -> OciResult<(u64, u64)> {
        let mut name = name.to_owned();
        for _ in 0..LINKS_MAX {
            match self.members.get(&name) {
                Some(Member::File { at, len }) => {
                    let end = at.checked_add(*len);
                    let size = self.file.seek(SeekFrom::End(0))?;
                    if end.is_none_or(|end| end > size) {
                        return refuse(format!("it is cut off inside {name}"));
                    }
                    return Ok((*at, *len));
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => return refuse(format!("it lacks {name}")),
            }
        }
        refuse(format!("{name} is a loop of links"))
    }
}

/// Part of a file, read at its own position: the descriptor's is shared.
struct Section {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let want = out
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut out[..want], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Returns a relative path without `.` and with `..` taken out; `None` when it leaves the archive.
fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
