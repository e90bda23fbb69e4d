//! A directory tree that paths cannot leave: every parent is resolved by the kernel with the tree
//! as its root, so `..` and links in it, absolute ones included, stay inside.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, linkat,
    mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// The opened root of the tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// Owners and device files are only possible for root.
    privileged: bool,
}

/// Owner, permissions and time of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
}

/// A place for an entry: its opened parent and its name there.
#[derive(Debug)]
pub(crate) struct Place {
    parent: OwnedFd,
    name: PathBuf,
}

impl Tree {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            root,
            privileged: rustix::process::geteuid().is_root(),
        })
    }

    /// Finds where an entry belongs, making missing parents. A path without a name is the root
    /// itself and has no place.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Option<Place>> {
        let mut names: Vec<&OsStr> = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::Error::other("a path has '..' in it"));
                }
            }
        }
        let Some(name) = names.pop() else {
            return Ok(None);
        };
        let parent: PathBuf = names.iter().collect();
        let parent = match self.open_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dir(&parent, 0o755)?;
                self.open_dir(&parent)?
            }
            other => other?,
        };
        Ok(Some(Place {
            parent,
            name: PathBuf::from(name),
        }))
    }

    /// Makes a directory and its parents; one that exists is left as it is.
    pub(crate) fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let Some(place) = self.place(path)? else {
            return Ok(());
        };
        match mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // A link to a directory inside the tree serves as well.
            Err(Errno::EXIST) => return self.open_dir(path).map(drop),
            Err(error) => return Err(error.into()),
        }
        let dir = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        File::from(dir).set_permissions(Permissions::from_mode(mode))
    }

    /// Writes a file, replacing what is there without following it.
    pub(crate) fn write(&self, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let place = self.place(Path::new(path))?;
        let place = place.ok_or_else(|| io::Error::other("a path has no name"))?;
        self.remove(&place)?;
        let attributes = Attributes {
            uid: 0,
            gid: 0,
            mode,
            mtime: 0,
        };
        self.file(&place, &mut &bytes[..], &attributes).map(drop)
    }

    pub(crate) fn directory(&self, place: &Place, attributes: &Attributes) -> io::Result<()> {
        let kind = place.kind()?;
        if kind != Some(FileType::Directory) {
            self.remove(place)?;
            mkdirat(&place.parent, &place.name, Mode::from_raw_mode(0o700))?;
        }
        let dir = File::from(place.open(OFlags::RDONLY | OFlags::DIRECTORY)?);
        self.own(place, attributes)?;
        dir.set_permissions(Permissions::from_mode(attributes.mode))
    }

    /// Sets the attributes of the root itself.
    pub(crate) fn root_attributes(&self, attributes: &Attributes) -> io::Result<()> {
        let dir = openat(
            &self.root,
            ".",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        File::from(dir).set_permissions(Permissions::from_mode(attributes.mode))
    }

    /// Writes a new file and returns how many bytes it took.
    pub(crate) fn file(
        &self,
        place: &Place,
        content: &mut dyn Read,
        attributes: &Attributes,
    ) -> io::Result<u64> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(place.open(flags)?);
        let written = io::copy(content, &mut file)?;
        file.flush()?;
        self.own(place, attributes)?;
        // After the owner: changing that clears set-id bits.
        file.set_permissions(Permissions::from_mode(attributes.mode))?;
        place.set_time(attributes.mtime)?;
        Ok(written)
    }

    pub(crate) fn symlink(
        &self,
        place: &Place,
        target: &Path,
        attributes: &Attributes,
    ) -> io::Result<()> {
        symlinkat(target, &place.parent, &place.name)?;
        self.own(place, attributes)?;
        place.set_time(attributes.mtime)
    }

    /// Links to an entry that exists; the target itself is never followed.
    pub(crate) fn hard_link(&self, place: &Place, target: &Place) -> io::Result<()> {
        let (from, to) = (&target.parent, &place.parent);
        Ok(linkat(
            from,
            &target.name,
            to,
            &place.name,
            AtFlags::empty(),
        )?)
    }

    pub(crate) fn device(
        &self,
        place: &Place,
        kind: FileType,
        device: (u32, u32),
        attributes: &Attributes,
    ) -> io::Result<()> {
        let number = rustix::fs::makedev(device.0, device.1);
        mknodat(
            &place.parent,
            &place.name,
            kind,
            Mode::from_raw_mode(0o600),
            number,
        )?;
        self.own(place, attributes)?;
        let mode = Mode::from_raw_mode(attributes.mode);
        Ok(rustix::fs::chmodat(
            &place.parent,
            &place.name,
            mode,
            AtFlags::empty(),
        )?)
    }

    /// Removes an entry and everything below it; a missing one is fine.
    pub(crate) fn remove(&self, place: &Place) -> io::Result<()> {
        match unlinkat(&place.parent, &place.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                self.clear(place)?;
                Ok(unlinkat(&place.parent, &place.name, AtFlags::REMOVEDIR)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes everything below a directory.
    pub(crate) fn clear(&self, place: &Place) -> io::Result<()> {
        if place.kind()? != Some(FileType::Directory) {
            return Ok(());
        }
        let dir = place.read_dir()?;
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let parent = rustix::io::fcntl_dupfd_cloexec(&dir, 0)?;
                self.remove(&Place {
                    parent,
                    name: PathBuf::from(OsStr::from_bytes(name)),
                })?;
            }
        }
        Ok(())
    }

    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?)
    }

    fn own(&self, place: &Place, attributes: &Attributes) -> io::Result<()> {
        if !self.privileged {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(chownat(
            &place.parent,
            &place.name,
            Some(uid),
            Some(gid),
            flags,
        )?)
    }
}

impl Place {
    /// Returns the place of a name in an opened directory.
    pub(crate) fn at(dir: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let parent = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
        Ok(Self {
            parent,
            name: PathBuf::from(name),
        })
    }

    /// Returns the place of a sibling.
    pub(crate) fn sibling(&self, name: &OsStr) -> io::Result<Self> {
        Self::at(&self.parent, name)
    }

    /// Opens the directory that is here for reading.
    pub(crate) fn read_dir(&self) -> io::Result<OwnedFd> {
        self.open(OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Returns the parent directory as a descriptor that can be read.
    pub(crate) fn parent_dir(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.parent, ".", flags, Mode::empty())?)
    }

    pub(crate) fn name(&self) -> &OsStr {
        self.name.as_os_str()
    }

    /// Sets an extended attribute of a file or directory.
    pub(crate) fn set_attribute(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let file = self.open(OFlags::RDONLY)?;
        Ok(rustix::fs::fsetxattr(
            &file,
            name,
            value,
            rustix::fs::XattrFlags::empty(),
        )?)
    }

    /// Returns what is there, links not followed.
    pub(crate) fn kind(&self) -> io::Result<Option<FileType>> {
        match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(
            &self.parent,
            &self.name,
            flags,
            Mode::from_raw_mode(0o600),
        )?)
    }

    fn set_time(&self, mtime: u64) -> io::Result<()> {
        let time = Timespec {
            tv_sec: i64::try_from(mtime).unwrap_or(0),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(utimensat(
            &self.parent,
            &self.name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}
