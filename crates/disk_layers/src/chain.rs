//! Chains of files on a datastore, followed by the names in their headers.
//!
//! For the daemon: it opens paths. A name is followed only if it is relative and leads, with all
//! symbolic links resolved, to a regular file below the datastore's root; so a header can never
//! make the host read a file for a guest that the datastore does not hold.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::MAX_LAYERS;
use crate::error::LayerError;
use crate::inspect::{DiskHeader, inspect_as};
use crate::layer::DiskFormat;

/// One file of a chain, checked.
#[derive(Debug)]
pub struct LayerPath {
    /// Absolute path without symbolic links.
    pub path: PathBuf,
    /// The file, open read-only.
    pub file: File,
    /// What its header says.
    pub header: DiskHeader,
}

/// Why a chain is refused.
#[derive(Debug, Error)]
pub enum ChainError {
    /// The datastore is not usable.
    #[error("cannot open datastore {}", path.display())]
    Root {
        /// Its path.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A file of the chain does not exist.
    #[error("disk file {} is missing{}", path.display(), named_by(.overlay.as_deref()))]
    Missing {
        /// The file looked for.
        path: PathBuf,
        /// The overlay that names it as its backing file.
        overlay: Option<PathBuf>,
    },
    /// A file of the chain cannot be opened.
    #[error("cannot open disk file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// It is a directory, device or pipe.
    #[error("{} is not a regular file: disks must be files of the datastore", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It lies outside of the datastore.
    #[error(
        "disk file {} lies outside of datastore {}{}",
        path.display(), root.display(), outside_remedy(.overlay.as_deref())
    )]
    Outside {
        /// The file.
        path: PathBuf,
        /// The datastore's root.
        root: PathBuf,
        /// The overlay that names it as its backing file.
        overlay: Option<PathBuf>,
    },
    /// The backing file name is not a relative path.
    #[error(
        "{} has a backing file, {name:?}, which is not a path relative to it (field \
         backing_file_name): merge the two with `qemu-img convert -O qcow2`",
        path.display()
    )]
    BackingName {
        /// The overlay.
        path: PathBuf,
        /// The name in its header.
        name: String,
    },
    /// The header names a backing file without its format.
    #[error(
        "field backing format name of {} is missing: set it with `qemu-img rebase -u -F qcow2|raw`",
        path.display()
    )]
    BackingFormat {
        /// The overlay.
        path: PathBuf,
    },
    /// A file is its own backing file, directly or through others.
    #[error(
        "field backing_file_name of {} makes a loop back to {}: set it with `qemu-img rebase -u`",
        overlay.display(), path.display()
    )]
    Loop {
        /// The file met twice.
        path: PathBuf,
        /// The overlay that leads back to it.
        overlay: PathBuf,
    },
    /// The chain is longer than allowed.
    #[error(
        "disk chain of {} has more than {max} files: flatten it with `qemu-img convert`",
        path.display()
    )]
    TooDeep {
        /// The top.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A file is not a usable image.
    #[error("disk file {} is not usable", path.display())]
    Layer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: LayerError,
    },
}

fn named_by(overlay: Option<&Path>) -> String {
    overlay.map_or_else(String::new, |overlay| {
        format!(", named as backing file by {}", overlay.display())
    })
}

fn outside_remedy(overlay: Option<&Path>) -> String {
    overlay.map_or_else(
        || ": copy it in with `mitose image import`".to_owned(),
        |overlay| {
            format!(
                ", and {} has it as its backing file: merge the two with `qemu-img convert -O qcow2`",
                overlay.display()
            )
        },
    )
}

/// Walks the chain of `path` (of the given format, a file below `root`), top first.
pub fn verify_chain(
    root: &Path,
    path: &Path,
    format: DiskFormat,
) -> Result<Vec<LayerPath>, ChainError> {
    let store = Root::open(root)?;
    let mut layers: Vec<LayerPath> = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some((path.to_owned(), format));
    while let Some((path, format)) = next.take() {
        let overlay = layers.last().map(|layer| layer.path.clone());
        if layers.len() >= MAX_LAYERS {
            return Err(ChainError::TooDeep {
                path: layers[0].path.clone(),
                max: MAX_LAYERS,
            });
        }
        let (path, file) = store.open_file(&path, overlay.as_deref())?;
        let meta = file.metadata().map_err(|source| ChainError::Open {
            path: path.clone(),
            source,
        })?;
        if !meta.is_file() {
            return Err(ChainError::NotAFile { path });
        }
        if !seen.insert((meta.dev(), meta.ino())) {
            let overlay = overlay.unwrap_or_else(|| path.clone());
            return Err(ChainError::Loop { path, overlay });
        }
        let header = inspect_as(&file, format).map_err(|source| ChainError::Layer {
            path: path.clone(),
            source,
        })?;
        next = backing(&path, &header)?;
        layers.push(LayerPath { path, file, header });
    }
    Ok(layers)
}

/// Path and format of the backing file that a header names.
fn backing(path: &Path, header: &DiskHeader) -> Result<Option<(PathBuf, DiskFormat)>, ChainError> {
    let Some(backing) = &header.backing else {
        return Ok(None);
    };
    // QEMU takes "word:" at the start for a protocol (nbd:, json:), so no such name is a path.
    let protocol = backing
        .name
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'));
    if protocol || Path::new(&backing.name).is_absolute() {
        return Err(ChainError::BackingName {
            path: path.to_owned(),
            name: backing.name.clone(),
        });
    }
    let format = backing.format.ok_or_else(|| ChainError::BackingFormat {
        path: path.to_owned(),
    })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    Ok(Some((directory.join(&backing.name), format)))
}

struct Root {
    path: PathBuf,
    directory: File,
}

impl Root {
    fn open(root: &Path) -> Result<Root, ChainError> {
        let open = || {
            let path = root.canonicalize()?;
            let directory = File::open(&path)?;
            Ok(Root { path, directory })
        };
        open().map_err(|source| ChainError::Root {
            path: root.to_owned(),
            source,
        })
    }

    /// Opens a file below the root. A link that is put in the way after the path was resolved
    /// makes the open fail.
    fn open_file(
        &self,
        path: &Path,
        overlay: Option<&Path>,
    ) -> Result<(PathBuf, File), ChainError> {
        let resolved = path.canonicalize().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ChainError::Missing {
                path: path.to_owned(),
                overlay: overlay.map(Path::to_owned),
            },
            _ => ChainError::Open {
                path: path.to_owned(),
                source,
            },
        })?;
        let Ok(inside) = resolved.strip_prefix(&self.path) else {
            return Err(ChainError::Outside {
                path: resolved,
                root: self.path.clone(),
                overlay: overlay.map(Path::to_owned),
            });
        };
        // Non-blocking, so that a pipe in place of a file cannot hold the caller.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened =
            match rustix::fs::openat2(&self.directory, inside, flags, Mode::empty(), resolve) {
                Err(Errno::NOSYS) => rustix::fs::openat(
                    &self.directory,
                    inside,
                    flags | OFlags::NOFOLLOW,
                    Mode::empty(),
                ),
                other => other,
            };
        match opened {
            Ok(file) => Ok((resolved, file.into())),
            Err(err) => Err(ChainError::Open {
                path: resolved,
                source: err.into(),
            }),
        }
    }
}
