//! Objects of storage: datastores and disk pools.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::objects::{Kind, Labels, ObjectId};

/// A place for disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Datastore {
    /// Words of a user.
    pub labels: Labels,
    /// Absolute path of its directory; empty for the one in the data directory.
    pub path: PathBuf,
    /// Content of the file that tells that the directory is this datastore's and there.
    pub mark: String,
    /// It is being added: its mark may not be there yet.
    pub adding: bool,
    /// It takes no new disks.
    pub maintenance: bool,
    /// Free space below which it takes no new disks, bytes; by its size where none is given.
    pub reserve_bytes: Option<u64>,
    /// Free space below which an event warns, bytes; by its size where none is given.
    pub warn_bytes: Option<u64>,
}

/// What a disk pool holds copies of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolSource {
    /// The writable disks of a VM or template, by its id.
    Vm(ObjectId),
    /// The disk of an image, by its name.
    Image(String),
}

/// Full copies made ahead, on the datastore that is its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPool {
    /// Words of a user.
    #[serde(default)]
    pub labels: Labels,
    /// What it holds copies of.
    pub source: PoolSource,
    /// Copies wanted.
    pub count: u64,
    /// Most bytes that are copied in a second.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
}

impl Kind for DiskPool {
    const KIND: &'static str = "disk_pool";
    const NOUN: &'static str = "disk pool";
    const PREFIX: &'static str = "diskpool";
}

impl Kind for Datastore {
    const KIND: &'static str = "datastore";
    const NOUN: &'static str = "datastore";
    const PREFIX: &'static str = "datastore";
}
