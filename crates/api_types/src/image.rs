//! Images.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// An image in the datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// What it was made of, for a person.
    pub description: String,
    /// Virtual size of its disk, bytes; none without a disk.
    pub disk_bytes: Option<u64>,
    /// Space that its files take, bytes.
    pub allocated_bytes: u64,
    /// It has a guest agent.
    pub agent: bool,
    /// It can boot by itself: it has a kernel.
    pub bootable: bool,
}

/// Kind of image to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildKind {
    /// Kernel, busybox and agent in memory.
    Tiny,
    /// Debian on a disk.
    Debian,
}

/// First process of a built image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InitKind {
    /// The guest agent.
    #[default]
    Agent,
    /// systemd.
    Systemd,
}

/// Make an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum ImageRequest {
    /// From Debian's packages.
    Build {
        /// Its name.
        #[schema(schema_with = schema::name)]
        name: String,
        /// Which.
        kind: BuildKind,
        /// Debian release; the default one where not given.
        #[serde(default)]
        #[schema(min_length = 1, max_length = 32, pattern = "^[a-z][a-z0-9-]*$")]
        suite: Option<String>,
        /// Packages beside the base.
        #[serde(default)]
        #[schema(schema_with = schema::packages)]
        include: Vec<String>,
        /// First process.
        #[serde(default)]
        init: InitKind,
        /// Virtual size of the disk, bytes.
        #[serde(default)]
        #[schema(schema_with = schema::optional_bytes)]
        disk_bytes: Option<u64>,
    },
    /// From a raw or qcow2 disk or an OCI/Docker archive.
    Import {
        /// Its name.
        #[schema(schema_with = schema::name)]
        name: String,
        /// Absolute path.
        #[schema(schema_with = schema::path)]
        file: PathBuf,
        /// Partition of a disk that has the root file system, as Linux counts them; found by its
        /// content where not given.
        #[serde(default)]
        #[schema(minimum = 1, maximum = 255)]
        root_partition: Option<u32>,
    },
}
