//! Datastores.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// Whether a datastore can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatastoreState {
    /// It is there.
    Accessible,
    /// Its directory or file system is not there.
    Inaccessible,
    /// It takes no new disks.
    Maintenance,
}

/// A place for disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Datastore {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: String,
    /// Whether it can be used.
    pub state: DatastoreState,
    /// Why it is inaccessible.
    pub reason: Option<String>,
    /// It takes no new disks.
    pub maintenance: bool,
    /// Size of its file system, bytes; 0 where it is inaccessible.
    pub capacity_bytes: u64,
    /// What can be written to it, bytes.
    pub free_bytes: u64,
    /// Of these, promised to operations under way.
    pub promised_bytes: u64,
    /// Free space below which it takes no new disks, bytes.
    pub reserve_bytes: u64,
    /// Free space below which an event warns, bytes.
    pub warn_bytes: u64,
    /// VMs whose home is on it.
    pub vms: u64,
    /// Rises with each change.
    pub version: u64,
}

/// Add a datastore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatastoreAddRequest {
    /// Its name.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// Absolute path of an existing directory of its own.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// Free space below which it takes no new disks, bytes; 1 % of its size, at most 1 GiB, where
    /// not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub reserve_bytes: Option<u64>,
    /// Free space below which an event warns, bytes; 5 % of its size, at most 10 GiB, where not
    /// given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub warn_bytes: Option<u64>,
}

/// Change a datastore: what is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatastoreChangeRequest {
    /// Its name.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// It takes no new disks.
    #[serde(default)]
    pub maintenance: Option<bool>,
    /// Free space below which it takes no new disks, bytes.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub reserve_bytes: Option<u64>,
    /// Free space below which an event warns, bytes.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub warn_bytes: Option<u64>,
    /// Version that the change is made for; any where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub version: Option<u64>,
}
