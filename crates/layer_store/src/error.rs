//! Errors of the store.

use std::io;
use std::path::PathBuf;

use disk_layers::chain::ChainError;
use disk_layers::{CopyDiskError, CreateDiskError, DiskError};
use thiserror::Error;

use crate::id::LayerId;

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The host failed an operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "create", "open", "list", "remove", "sync", ...
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The file system has too little space for what is planned.
    #[error(
        "datastore {} has no space: {needed_bytes} bytes are needed, {free_bytes} are free \
         ({reserved_bytes} of them promised to others): remove VMs or images, or grow it",
        path.display()
    )]
    NoSpace {
        /// The datastore.
        path: PathBuf,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes that the file system offers.
        free_bytes: u64,
        /// Bytes that are promised already.
        reserved_bytes: u64,
    },
    /// There is no such layer.
    #[error("layer {id} does not exist")]
    UnknownLayer {
        /// Its name.
        id: LayerId,
    },
    /// A layer of that name exists.
    #[error("layer {id} exists already")]
    Exists {
        /// Its name.
        id: LayerId,
    },
    /// The layer is immutable.
    #[error("layer {id} is sealed: it cannot be opened for writing")]
    Sealed {
        /// Its name.
        id: LayerId,
    },
    /// Another process writes to the layer.
    #[error("layer {id} is in use: another process has it open for writing")]
    InUse {
        /// Its name.
        id: LayerId,
    },
    /// The chain below a layer is not usable.
    #[error("chain of layer {id} is not usable")]
    Chain {
        /// The top of the chain.
        id: LayerId,
        /// What is wrong.
        #[source]
        source: ChainError,
    },
    /// A chain holds a file that is not a layer of the store.
    #[error("chain of layer {id} holds {}, which is not a layer of this store", path.display())]
    ForeignFile {
        /// The top of the chain.
        id: LayerId,
        /// The file.
        path: PathBuf,
    },
    /// A new overlay could not be written.
    #[error("cannot create layer {id}")]
    Create {
        /// Its name.
        id: LayerId,
        /// What failed.
        #[source]
        source: CreateDiskError,
    },
    /// A disk could not be copied into the store.
    #[error("cannot copy a disk into layer {id}")]
    Copy {
        /// The new layer.
        id: LayerId,
        /// What failed.
        #[source]
        source: CopyDiskError,
    },
    /// A name cannot be a home folder or a link in one.
    #[error(
        "name {name:?} is not valid: use 1 to 128 of a-z A-Z 0-9 . _ - and start with a letter \
         or digit"
    )]
    BadName {
        /// The name.
        name: String,
    },
}

impl StoreError {
    /// Whether the datastore's file system is full, found out before or while writing.
    pub fn is_no_space(&self) -> bool {
        match self {
            StoreError::NoSpace { .. } => true,
            StoreError::Create { source, .. } => matches!(source, CreateDiskError::NoSpace),
            StoreError::Copy { source, .. } => matches!(
                source,
                CopyDiskError::Write(DiskError::NoSpace)
                    | CopyDiskError::Create(CreateDiskError::NoSpace)
            ),
            StoreError::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }
}
