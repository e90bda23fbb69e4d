//! Home folders: one directory for each name below `vms/`, with links to layers.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::PathBuf;

use crate::error::StoreError;
use crate::id::LayerId;
use crate::store::{LayerStore, io_error, sync_dir};

impl LayerStore {
    /// Path of a home folder, whether it exists or not.
    pub fn home_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.root().join("vms").join(name))
    }

    /// Makes a home folder; one that exists is kept.
    pub fn create_home(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.home_path(name)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(path),
            Err(source) => Err(io_error("create", &path, source)),
            Ok(()) => Ok(path),
        }
    }

    /// Links `link` in a home folder to a layer, in place of what the link showed before. For
    /// people and tools to find the disk; tools that follow backing names need the path that the
    /// link leads to.
    pub fn link_layer(&self, home: &str, link: &str, id: LayerId) -> Result<(), StoreError> {
        check_name(link)?;
        let home = self.home_path(home)?;
        let (path, temporary) = (home.join(link), home.join(format!(".{link}.tmp")));
        let target = format!("../../layers/{}", id.file_name());
        let replace = || {
            match fs::remove_file(&temporary) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            symlink(&target, &temporary)?;
            fs::rename(&temporary, &path)
        };
        replace().map_err(|source| io_error("link", &path, source))
    }

    /// Makes the links of a home folder, and the folder itself, durable.
    pub fn sync_home(&self, name: &str) -> Result<(), StoreError> {
        sync_dir(&self.home_path(name)?)?;
        sync_dir(&self.root().join("vms"))
    }

    /// Removes a home folder with all in it; the layers it links to stay. One that does not exist
    /// is fine.
    pub fn remove_home(&self, name: &str) -> Result<(), StoreError> {
        let path = self.home_path(name)?;
        match fs::remove_dir_all(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error("remove", &path, source)),
            Ok(()) => Ok(()),
        }
    }

    /// Names of all home folders, in no order.
    pub fn homes(&self) -> Result<Vec<String>, StoreError> {
        let path = self.root().join("vms");
        let failed = |source| io_error("list", &path, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
                && check_name(&name).is_ok()
            {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts_well = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= 128 && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(StoreError::BadName {
        name: name.chars().take(200).collect(),
    })
}
