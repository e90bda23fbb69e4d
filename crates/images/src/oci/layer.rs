//! One layer: a tar stream whose entries add to the tree, replace parts of it, or (as whiteouts)
//! remove them (image-spec: layer).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use tar::{Entry, EntryType, Header};

use super::tree::{Attributes, Place, Tree};
use super::{OciError, OciResult, refuse};
use crate::Watch;

/// Longest path, link target or list of extended attributes of one entry, in bytes.
const EXTENSION_MAX: u64 = 1 << 20;

/// Most entries of one layer.
const ENTRIES_MAX: u64 = 4_000_000;

/// Most bytes that a layer unpacks to.
const LAYER_BYTES_MAX: u64 = 256 << 30;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

type Source = Box<dyn Read + Send>;

/// Whether data is compressed in a form that [`decompress`] knows.
pub(super) fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&[0x1f, 0x8b]) || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// Returns the plain form of a stream that is gzip, zstd or neither.
pub(super) fn decompress(mut source: Source) -> OciResult<Source> {
    let mut magic = Vec::new();
    (&mut source).take(4).read_to_end(&mut magic)?;
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let whole = BufReader::with_capacity(1 << 18, io::Cursor::new(magic.clone()).chain(source));
    if gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)));
    }
    if is_compressed(&magic) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(whole)
            .or_else(|e| refuse(format!("a zstd stream is damaged: {e}")))?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(whole))
}

/// A reader that ends with an error when the work is cancelled or grows beyond all measure.
pub(super) struct Watched<R> {
    inner: R,
    watch: Watch,
    left: u64,
}

impl<R> Watched<R> {
    pub(super) fn new(inner: R, watch: Watch) -> Self {
        Self {
            inner,
            watch,
            left: LAYER_BYTES_MAX,
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.watch.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let n = self.inner.read(out)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("a layer unpacks to more than 256 GiB"))?;
        Ok(n)
    }
}

/// What extension headers say about the entry behind them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
    fields: BTreeMap<String, Vec<u8>>,
}

/// Applies a plain layer to the tree.
pub(super) fn apply(layer: Source, tree: &Tree, watch: &Watch) -> OciResult<()> {
    let mut archive = tar::Archive::new(Watched::new(layer, watch.clone()));
    let mut layer = Layer {
        tree,
        extensions: Extensions::default(),
        added: Added::default(),
    };
    let mut entries = 0;
    for entry in archive.entries()?.raw(true) {
        watch.check().map_err(OciError::Cancelled)?;
        entries += 1;
        if entries > ENTRIES_MAX {
            return refuse(format!("a layer has more than {ENTRIES_MAX} entries"));
        }
        let mut entry = entry.or_else(|e| match watch.check() {
            Err(cancelled) => Err(OciError::Cancelled(cancelled)),
            Ok(()) => refuse(format!("a layer is damaged: {e}")),
        })?;
        layer.take(&mut entry)?;
    }
    Ok(())
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
        let header = entry.header().clone();
        let path = match &more.path {
            Some(path) => path.clone(),
            None => PathBuf::from(OsStr::from_bytes(&header.path_bytes())),
        };
        let shown = path.display().to_string();
        let wrong = |error: io::Error| describe(&shown, error);
        if more
            .fields
            .get("size")
            .is_some_and(|s| s != entry.size().to_string().as_bytes())
        {
            return refuse(format!("{shown} is larger than 8 GiB"));
        }
        let attributes = attributes(&header, more)?;
        let Some(place) = self.tree.place(&path).map_err(wrong)? else {
            return self
                .tree
                .root_attributes(&attributes)
                .map_err(|e| describe(&shown, e));
        };
        let name = place.name().as_bytes();
        if name == OPAQUE {
            let dir = plain(&path)
                .parent()
                .map(Path::to_owned)
                .unwrap_or_default();
            let cleared = place
                .parent_dir()
                .and_then(|parent| clear_lower(self.tree, &self.added, parent, &dir));
            return cleared.map_err(|e| describe(&shown, e));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return refuse(format!("{shown} is not a whiteout"));
            }
            let sibling = place.sibling(OsStr::from_bytes(hidden)).map_err(wrong)?;
            return self.tree.remove(&sibling).map_err(|e| describe(&shown, e));
        }
        self.added.insert(plain(&path));
        self.create(entry, &header, more, &place, &attributes)
            .map_err(|e| match e {
                OciError::Io(error) => describe(&shown, error),
                other => other,
            })
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
                _ => refuse("a link has no target"),
            },
        };
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                if tree.file(place, entry, attributes)? != size {
                    return refuse("a layer is cut off");
                }
            }
            EntryType::Directory => tree.directory(place, attributes)?,
            EntryType::Symlink => return Ok(tree.symlink(place, &link()?, attributes)?),
            EntryType::Link => {
                let target = tree.place(&link()?)?;
                let Some(target) = target else {
                    return refuse("a link has no target");
                };
                return Ok(tree.hard_link(place, &target)?);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let number = |value: io::Result<Option<u32>>| Ok(value?.unwrap_or(0));
                let device = (
                    number(header.device_major()).or_else(|e: io::Error| refuse(e.to_string()))?,
                    number(header.device_minor()).or_else(|e: io::Error| refuse(e.to_string()))?,
                );
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
                return refuse("a layer has a malformed pax header");
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
        return refuse("a layer has an extension header of more than 1 MiB");
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
    let id = |field: &str, value: io::Result<u64>| match more.number(field).map_or(value, Ok) {
        Ok(id) => u32::try_from(id).or_else(|_| refuse(format!("{field} {id} is too large"))),
        Err(_) => refuse(format!("a layer has a malformed {field}")),
    };
    Ok(Attributes {
        uid: id("uid", header.uid())?,
        gid: id("gid", header.gid())?,
        mode: header
            .mode()
            .or_else(|_| refuse("a layer has a malformed mode"))?
            & 0o7777,
        mtime: more
            .number("mtime")
            .unwrap_or_else(|| header.mtime().unwrap_or(0)),
    })
}

/// The path without a leading `/` or `./`.
fn plain(path: &Path) -> PathBuf {
    path.components()
        .filter(|c| matches!(c, std::path::Component::Normal(_)))
        .collect()
}

fn describe(path: &str, error: io::Error) -> OciError {
    match error.raw_os_error() {
        // No space and the like are the host's trouble, not the archive's.
        Some(_) => OciError::Io(io::Error::new(error.kind(), format!("{path}: {error}"))),
        None => OciError::Refused(format!("{path}: {error}")),
    }
}
