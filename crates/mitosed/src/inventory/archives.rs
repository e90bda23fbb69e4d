//! What archives had: the record of each export and import.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::objects::{Kind, Labels, ObjectId};
use super::rows::LayerId;

/// One disk layer of an archive, as it is called here. The record does not hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedLayer {
    /// Its id here.
    pub layer: LayerId,
    /// SHA-256 of its file in the archive, hexadecimal.
    pub sha256: String,
    /// Length of its file in the archive, bytes.
    pub bytes: u64,
}

/// Guest RAM of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedMemory {
    /// SHA-256 of the whole RAM, hexadecimal.
    pub sha256: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// File here that had it; another one may be there by now, or none.
    pub file: Option<PathBuf>,
    /// Its table of page digests, where one was kept.
    pub table: Option<ArchivedTable>,
}

/// A table of page digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedTable {
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Its length, bytes.
    pub bytes: u64,
}

/// A boot file of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedFile {
    /// SHA-256 of its content, hexadecimal.
    pub sha256: String,
    /// Its length, bytes.
    pub bytes: u64,
    /// File here that had it; another one may be there by now, or none.
    pub file: PathBuf,
}

/// An archive that was written or read here. Its name is the id of the export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchiveRecord {
    /// Words of a user.
    pub labels: Labels,
    /// Its file.
    pub path: PathBuf,
    /// Name of what was exported.
    pub subject: String,
    /// Id of its VM here, whose page digests go with it.
    pub vm_id: ObjectId,
    /// It came from elsewhere.
    pub imported: bool,
    /// Being written: a daemon that finds it like this removes the unfinished file.
    pub writing: bool,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// All its layers, also those that were left out.
    pub layers: Vec<ArchivedLayer>,
    /// Kernel and initial RAM disk, also where they were left out.
    pub boot: Vec<ArchivedFile>,
    /// Its memory, also where it was left out.
    pub memory: Option<ArchivedMemory>,
}

impl Kind for ArchiveRecord {
    const KIND: &'static str = "archive";
    const NOUN: &'static str = "archive";
    const PREFIX: &'static str = "archive";
}
