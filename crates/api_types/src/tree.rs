//! The tree of objects: folders, and what every object has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// Longest annotation, bytes.
pub const MAX_ANNOTATION_BYTES: usize = 4096;
/// Most custom attributes of one object.
pub const MAX_ATTRIBUTES: usize = 64;
/// Longest value of a custom attribute, bytes.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// Folders below each other.
pub const MAX_FOLDER_DEPTH: usize = 32;

/// Words of a user about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LabelsReply {
    /// Free text.
    #[serde(default)]
    pub annotation: String,
    /// Custom attributes.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// An object of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeObject {
    /// Its id, never used again.
    pub id: String,
    /// `datacenter`, `folder`, `host`, `resource_pool`, `datastore`, `network`, `vm` ...
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Id of the object that it lies in.
    pub parent: Option<String>,
    /// Rises with each change: the value of `ETag`.
    pub version: u64,
    /// Words of a user.
    #[serde(flatten)]
    pub labels: LabelsReply,
}

/// Change an object. What is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectRequest {
    /// New name; spaces only in that of the first network, "VM Network".
    #[schema(schema_with = schema::optional_label)]
    pub name: Option<String>,
    /// Folder to move it to: an id, or names joined by `/` below the first folder of VMs, itself `/`.
    #[schema(schema_with = schema::optional_folder)]
    pub parent: Option<String>,
    /// New annotation.
    #[schema(schema_with = schema::optional_annotation)]
    pub annotation: Option<String>,
    /// Custom attributes to set; null removes one.
    #[schema(schema_with = schema::attribute_changes)]
    pub attributes: BTreeMap<String, Option<String>>,
    /// Most VMs in it, for a resource pool; 0 for any number.
    #[schema(minimum = 0, maximum = 1000000)]
    pub vms_max: Option<u32>,
    /// Most guest memory of the VMs in it, bytes, for a resource pool; 0 for any amount.
    #[schema(schema_with = schema::optional_limit)]
    pub memory_bytes_max: Option<u64>,
}

/// Make a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FolderRequest {
    /// Its name.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// Folder that it is to lie in: an id, or names joined by `/`; the first folder of VMs where not
    /// given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_folder)]
    pub parent: Option<String>,
}

/// A folder of VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Folder {
    /// What every object has.
    #[serde(flatten)]
    pub object: TreeObject,
    /// Names that lead to it, joined by `/`; `/` for the first folder.
    pub path: String,
    /// VMs in it.
    pub vms: usize,
    /// Folders in it.
    pub folders: usize,
}

/// Make a resource pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolRequest {
    /// Its name.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// Most VMs in it; any number where not given.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1000000)]
    pub vms_max: Option<u32>,
    /// Most guest memory of the VMs in it, bytes; any amount where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_limit)]
    pub memory_bytes_max: Option<u64>,
}

/// A resource pool: VMs that share limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourcePool {
    /// What every object has.
    #[serde(flatten)]
    pub object: TreeObject,
    /// VMs in it.
    pub vms: u32,
    /// Most of them.
    pub vms_max: Option<u32>,
    /// Guest memory of the VMs in it, bytes.
    pub memory_bytes: u64,
    /// Most of it, bytes.
    pub memory_bytes_max: Option<u64>,
}

/// Make a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// Its name.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// Existing bridge of the host that its NICs join.
    #[serde(default)]
    #[schema(schema_with = schema::optional_interface)]
    pub bridge: Option<String>,
    /// The daemon makes a bridge for it that leads nowhere else.
    #[serde(default)]
    pub isolated: bool,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// What every object has.
    #[serde(flatten)]
    pub object: TreeObject,
    /// Bridge that its NICs join; none: they have no link.
    pub bridge: Option<String>,
    /// The bridge was made for it.
    pub isolated: bool,
    /// NICs on it.
    pub nics: usize,
}
