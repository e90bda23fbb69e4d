//! Disk pools.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// Whether a disk pool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskPoolState {
    /// It has all copies.
    Full,
    /// Copies are made.
    Filling,
    /// No copies are made; see its reason.
    Paused,
}

/// Full copies of the disks of a VM, template or image, made ahead on a datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskPool {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of the datastore that the copies are on.
    pub datastore: String,
    /// Name of the VM, or `image:` and the name of the image, that they are copies of.
    pub source: String,
    /// Copies wanted.
    pub count: u64,
    /// Copies that are ready.
    pub ready: u64,
    /// Whether it is full.
    pub state: DiskPoolState,
    /// Why no copies are made.
    pub reason: Option<String>,
    /// Full clones that took a copy since the daemon began.
    pub hits: u64,
    /// Full clones that found none since the daemon began.
    pub misses: u64,
    /// Most bytes that are copied in a second.
    pub rate_bytes_per_s: Option<u64>,
    /// Rises with each change.
    pub version: u64,
}

/// Make a disk pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskPoolRequest {
    /// VM or template, by id or name, or an image: its name, also behind `image:`.
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = "^[A-Za-z0-9]([A-Za-z0-9.:_/-]*[A-Za-z0-9])?$"
    )]
    pub source: String,
    /// Datastore of the copies, by id or name.
    #[schema(schema_with = schema::name)]
    pub datastore: String,
    /// Copies wanted.
    #[schema(minimum = 0, maximum = 1000)]
    pub count: u64,
    /// Name, unique on the datastore; the source's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// Most bytes that are copied in a second; 256 MiB where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub rate_bytes_per_s: Option<u64>,
}

/// Change a disk pool: what is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskPoolChangeRequest {
    /// Copies wanted.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1000)]
    pub count: Option<u64>,
    /// Most bytes that are copied in a second.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub rate_bytes_per_s: Option<u64>,
    /// Version that the change is made for; any where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub version: Option<u64>,
}
