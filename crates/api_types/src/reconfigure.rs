//! Changing a VM that exists, and trying a request out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vm_spec::EngineChoice;

use crate::{DiskRequest, ExtraDiskRequest, NetRequest, Problem, SerialRequest, schema};

/// Change of one NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicChange {
    /// Which, 0 is the first.
    #[schema(minimum = 0, maximum = 13)]
    pub nic: u8,
    /// Plug its cable in or pull it, also while the VM runs.
    #[serde(default)]
    pub connected: Option<bool>,
    /// Network to put it on; only while the VM is off.
    #[serde(default)]
    #[schema(schema_with = schema::optional_label)]
    pub network: Option<String>,
    /// TAP interface to put it on; only while the VM is off.
    #[serde(default)]
    #[schema(schema_with = schema::optional_interface)]
    pub tap: Option<String>,
}

/// Change of one serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SerialChange {
    /// Which, 0 is COM1.
    #[schema(minimum = 0, maximum = 3)]
    pub port: u8,
    /// Its new back end, also while the VM runs.
    pub backend: SerialRequest,
}

/// Change a VM. What is not given stays. Name, folder, pool, annotation, attributes, cables, back ends
/// of serial ports and disks for empty slots can change at any time, everything else while the VM is
/// off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReconfigureRequest {
    /// New name.
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// Folder to move it to: an id, or names joined by `/`; `/` is the first one.
    #[schema(schema_with = schema::optional_folder)]
    pub folder: Option<String>,
    /// Resource pool to put it into.
    #[schema(schema_with = schema::optional_name)]
    pub pool: Option<String>,
    /// New annotation.
    #[schema(schema_with = schema::optional_annotation)]
    pub annotation: Option<String>,
    /// Custom attributes to set; null removes one.
    #[schema(schema_with = schema::attribute_changes)]
    pub attributes: BTreeMap<String, Option<String>>,
    /// Mark it as a template, or take the mark off.
    pub template: Option<bool>,
    /// Cables and networks of NICs.
    #[schema(max_items = 11)]
    pub nics: Vec<NicChange>,
    /// Back ends of serial ports.
    #[schema(max_items = 4)]
    pub serial: Vec<SerialChange>,
    /// Number of vCPUs.
    #[schema(schema_with = schema::optional_cpus)]
    pub cpus: Option<u32>,
    /// Guest RAM, bytes.
    #[schema(schema_with = schema::optional_memory_bytes)]
    pub memory_bytes: Option<u64>,
    /// Most host memory that it takes, bytes; 0 for what it needs.
    #[schema(schema_with = schema::optional_limit)]
    pub memory_limit_bytes: Option<u64>,
    /// Kernel command line.
    #[schema(schema_with = schema::optional_cmdline)]
    pub cmdline: Option<String>,
    /// Engine.
    #[schema(schema_with = schema::optional_engine)]
    pub engine: Option<EngineChoice>,
    /// Instance UUID.
    #[schema(schema_with = schema::optional_uuid)]
    pub uuid: Option<String>,
    /// BIOS UUID.
    #[schema(schema_with = schema::optional_uuid)]
    pub bios_uuid: Option<String>,
    /// Number of serial ports; new ones are logs.
    #[schema(minimum = 1, maximum = 4)]
    pub serial_ports: Option<u8>,
    /// Number of empty disk slots that it is to have.
    #[schema(minimum = 0, maximum = 11)]
    pub spare_disks: Option<u32>,
    /// Disks to add behind those it has.
    #[schema(max_items = 11)]
    pub add_disks: Vec<DiskRequest>,
    /// Disks to put into its empty slots in their order, also while it runs.
    #[schema(max_items = 11)]
    pub insert_disks: Vec<ExtraDiskRequest>,
    /// Disks to remove with what the guest wrote to them, 0 is the first.
    #[schema(schema_with = schema::places)]
    pub remove_disks: Vec<u8>,
    /// NICs to add behind those it has.
    #[schema(max_items = 11)]
    pub add_nics: Vec<NetRequest>,
    /// NICs to remove, 0 is the first.
    #[schema(schema_with = schema::places)]
    pub remove_nics: Vec<u8>,
}

/// A VM that a request would make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WouldMake {
    /// Its name behind those of its folders.
    pub path: String,
    /// Hardware addresses that are given; others are made.
    pub macs: Vec<Option<String>>,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// Space that its disks take at once, bytes.
    pub disk_bytes: u64,
}

/// What a request would lead to; nothing was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// All that is in the way; empty: it can be carried out as the host is now.
    pub problems: Vec<Problem>,
    /// What would be made, where nothing is in the way.
    pub would_make: Vec<WouldMake>,
}
