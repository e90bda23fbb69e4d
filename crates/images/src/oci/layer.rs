//! One layer: a tar stream whose entries add to the tree, replace parts of it, or (as whiteouts)
//! remove them (image-spec: layer).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType, Header};

use super::compressed::{Source, Watched};
use super::tree::{Attributes, Place, Tree};
use super::{OciError, OciResult, refuse};
use crate::Watch;
use crate::builder::hex;

/// Longest path, link target or list of extended attributes of one entry, in bytes.
const EXTENSION_MAX: u64 = 1 << 20;

/// Most entries of one layer.
const ENTRIES_MAX: u64 = 4_000_000;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What extension headers say about the entry behind them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
    fields: BTreeMap<String, Vec<u8>>,
}

/// A reader that takes the digest of all that goes through it.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    ended: bool,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hash.update(&out[..n]);
        self.ended |= n == 0 && !out.is_empty();
        Ok(n)
    }
}

/// Applies a plain layer to the tree. `diff_id` is the SHA-256 that it must have, in hexadecimal.
pub(super) fn apply(
    layer: Source,
    diff_id: Option<&str>,
    tree: &Tree,
    watch: &Watch,
) -> OciResult<()> {
    let mut archive = tar::Archive::new(Hashed {
        inner: Watched::new(layer, watch.clone()),
        hash: Sha256::new(),
        ended: false,
    });
    let mut layer = Layer {
        tree,
        extensions: Extensions::default(),
        added: Added::default(),
    };
    let damaged = |e: io::Error| match watch.check() {
        Err(cancelled) => OciError::Cancelled(cancelled),
        Ok(()) if e.raw_os_error().is_some() => OciError::Io(e),
        Ok(()) => OciError::Refused(format!("it is damaged: {e}")),
    };
    let mut entries = 0;
    for entry in archive.entries()?.raw(true) {
        watch.check().map_err(OciError::Cancelled)?;
        entries += 1;
        if entries > ENTRIES_MAX {
            return refuse(format!("it has more than {ENTRIES_MAX} entries"));
        }
        layer.take(&mut entry.map_err(damaged)?)?;
    }
    let mut rest = archive.into_inner();
    let has_mark = !rest.ended;
    io::copy(&mut rest, &mut io::sink()).map_err(damaged)?;
    match diff_id {
        Some(wanted) if hex(&rest.hash.finalize()) != *wanted => refuse(
            "its content does not have the digest that the image's configuration names \
             (rootfs.diff_ids): save the image anew",
        ),
        None if !has_mark => refuse(
            "it has no end mark, so it may be cut off, and the image's configuration has no \
             digest of it (rootfs.diff_ids) to tell: save the image anew",
        ),
        _ => Ok(()),
    }
}

/// Names that this layer itself has added: an opaque mark removes only what is from below.
type Added = BTreeSet<PathBuf>;

struct Layer<'a> {
    tree: &'a Tree,
    extensions: Extensions,
    added: Added,
}

impl Layer<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> OciResult<()> {
        match entry.header().entry_type() {
            EntryType::XHeader => {
                let records = bounded(entry)?;
                self.extensions.take_pax(&records)
            }
            // Fields of a global header are comments in all practice.
            EntryType::XGlobalHeader => Ok(()),
            EntryType::GNULongName => {
                self.extensions.path = Some(text(bounded(entry)?));
                Ok(())
            }
            EntryType::GNULongLink => {
                self.extensions.link = Some(text(bounded(entry)?));
                Ok(())
            }
            _ => {
                let extensions = std::mem::take(&mut self.extensions);
                self.put(entry, &extensions)
            }
        }
    }

    fn put<R: Read>(&mut self, entry: &mut Entry<'_, R>, more: &Extensions) -> OciResult<()> {
        let path = match &more.path {
            Some(path) => path.clone(),
            None => PathBuf::from(OsStr::from_bytes(&entry.header().path_bytes())),
        };
        self.put_at(entry, more, &path)
            .map_err(|error| match error {
                OciError::Io(error) => describe(&path, error),
                OciError::Refused(problem) => {
                    OciError::Refused(format!("{}: {problem}", path.display()))
                }
                cancelled => cancelled,
            })
    }

    fn put_at<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        more: &Extensions,
        path: &Path,
    ) -> OciResult<()> {
        let header = entry.header().clone();
        if more
            .fields
            .get("size")
            .is_some_and(|s| s != entry.size().to_string().as_bytes())
        {
            return refuse("it is larger than 8 GiB");
        }
        let attributes = attributes(&header, more)?;
        let Some(place) = self.tree.place(path)? else {
            return Ok(self.tree.root_attributes(&attributes)?);
        };
        let name = place.name().as_bytes();
        if name == OPAQUE {
            let dir = plain(path).parent().map(Path::to_owned).unwrap_or_default();
            let parent = place.parent_dir()?;
            return Ok(clear_lower(self.tree, &self.added, parent, &dir)?);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return refuse("it is not a whiteout");
            }
            let sibling = place.sibling(OsStr::from_bytes(hidden))?;
            return Ok(self.tree.remove(&sibling)?);
        }
        self.added.insert(plain(path));
        self.create(entry, &header, more, &place, &attributes)
    }

    fn create<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        header: &Header,
        more: &Extensions,
        place: &Place,
        attributes: &Attributes,
    ) -> OciResult<()> {
        let tree = self.tree;
        let kind = header.entry_type();
        if kind != EntryType::Directory {
            tree.remove(place)?;
        }
        let link = || match &more.link {
            Some(link) => Ok(link.clone()),
            None => match header.link_name_bytes() {
                Some(bytes) if !bytes.is_empty() => Ok(PathBuf::from(OsStr::from_bytes(&bytes))),
                _ => refuse("the link has no target"),
            },
        };
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                if tree.file(place, entry, attributes)? != size {
                    return refuse("the layer is cut off");
                }
            }
            EntryType::Directory => tree.directory(place, attributes)?,
            EntryType::Symlink => return Ok(tree.symlink(place, &link()?, attributes)?),
            EntryType::Link => {
                let target = tree.place(&link()?)?;
                let Some(target) = target else {
                    return refuse("the link has no target");
                };
                return Ok(tree.hard_link(place, &target)?);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = match kind {
                    FileType::Fifo => (0, 0),
                    _ => device_number(header)?,
                };
                return Ok(tree.device(place, kind, device, attributes)?);
            }
            other => return refuse(format!("entries of kind {other:?} are not supported")),
        }
        for (name, value) in &more.fields {
            let Some(name) = name.strip_prefix("SCHILY.xattr.") else {
                continue;
            };
            // The others mean something to a security module of another system.
            if name == "security.capability" || name.starts_with("user.") {
                match place.set_attribute(name, value) {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(e)
                        if e.raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

/// Removes what lower layers have in a directory, at any depth; what `added` names stays.
fn clear_lower(tree: &Tree, added: &Added, dir: OwnedFd, path: &Path) -> io::Result<()> {
    let mut names: Vec<OsString> = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    for name in names {
        let path = path.join(&name);
        let place = Place::at(&dir, &name)?;
        let kept = added
            .range(path.clone()..)
            .next()
            .is_some_and(|own| own.starts_with(&path));
        if !kept {
            tree.remove(&place)?;
        } else if place.kind()? == Some(FileType::Directory) {
            clear_lower(tree, added, place.read_dir()?, &path)?;
        }
    }
    Ok(())
}

impl Extensions {
    /// Records of `LENGTH KEY=VALUE\n` (POSIX pax).
    fn take_pax(&mut self, mut bytes: &[u8]) -> OciResult<()> {
        while !bytes.is_empty() {
            let record = pax_record(bytes);
            let Some((key, value, rest)) = record else {
                return refuse("it has a malformed pax header");
            };
            match key.as_str() {
                "path" => self.path = Some(text(value.to_vec())),
                "linkpath" => self.link = Some(text(value.to_vec())),
                "uid" | "gid" | "mtime" | "size" => drop(self.fields.insert(key, value.to_vec())),
                _ if key.starts_with("SCHILY.xattr.") => {
                    drop(self.fields.insert(key, value.to_vec()));
                }
                _ if key.starts_with("GNU.sparse.") => {
                    return refuse("sparse files in a layer are not supported");
                }
                _ => {}
            }
            bytes = rest;
        }
        Ok(())
    }

    fn number(&self, field: &str) -> Option<u64> {
        let text = std::str::from_utf8(self.fields.get(field)?).ok()?;
        text.split('.').next()?.parse().ok()
    }
}

fn pax_record(bytes: &[u8]) -> Option<(String, &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let key = String::from_utf8(record[..equals].to_vec()).ok()?;
    Some((key, &record[equals + 1..], &bytes[len..]))
}

fn bounded<R: Read>(entry: &mut Entry<'_, R>) -> OciResult<Vec<u8>> {
    if entry.size() > EXTENSION_MAX {
        return refuse("it has an extension header of more than 1 MiB");
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A path as extension headers hold it, with or without a zero at its end.
fn text(mut bytes: Vec<u8>) -> PathBuf {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn attributes(header: &Header, more: &Extensions) -> OciResult<Attributes> {
    let old = header.as_old();
    let id = |name: &str, field: &[u8], value: io::Result<u64>| {
        let value = match more.number(name) {
            Some(id) => id,
            None => number(name, field, value)?,
        };
        u32::try_from(value).or_else(|_| refuse(format!("{name} {value} is too large")))
    };
    Ok(Attributes {
        uid: id("uid", &old.uid, header.uid())?,
        gid: id("gid", &old.gid, header.gid())?,
        mode: number("mode", &old.mode, header.mode())? & 0o7777,
        mtime: more
            .number("mtime")
            .unwrap_or_else(|| header.mtime().unwrap_or(0)),
    })
}

/// Major and minor number of a device file.
fn device_number(header: &Header) -> OciResult<(u32, u32)> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (ustar.dev_major, ustar.dev_minor),
        (None, Some(gnu)) => (gnu.dev_major, gnu.dev_minor),
        (None, None) => return refuse("device files need a header with device numbers"),
    };
    let value = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
    Ok((
        number("device number", &major, value(header.device_major()))?,
        number("device number", &minor, value(header.device_minor()))?,
    ))
}

/// The value of a number field; one that is blank is 0, as other readers have it.
fn number<T: Default>(name: &str, field: &[u8], value: io::Result<T>) -> OciResult<T> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) {
        return Ok(T::default());
    }
    value.or_else(|_| refuse(format!("its {name} is malformed")))
}

/// The path without a leading `/` or `./`.
fn plain(path: &Path) -> PathBuf {
    path.components()
        .filter(|c| matches!(c, std::path::Component::Normal(_)))
        .collect()
}

fn describe(path: &Path, error: io::Error) -> OciError {
    let path = path.display();
    match error.raw_os_error() {
        // No space and the like are the host's trouble, not the archive's.
        Some(_) => OciError::Io(io::Error::new(error.kind(), format!("{path}: {error}"))),
        None => OciError::Refused(format!("{path}: {error}")),
    }
}
