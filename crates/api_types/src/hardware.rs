//! Parts of a VM that a request names: disks, NICs, serial ports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};
use vm_spec::MacAddr;

use crate::schema;

/// Format of a disk file that a user gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// qcow2.
    Qcow2,
}

/// One disk of a new VM: the file stays as it is, writes go to a delta of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// Absolute path.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// Its format; told by the file's first bytes where not given.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
}

/// Largest extra disk, bytes.
pub const MAX_EXTRA_DISK_BYTES: u64 = 16 << 40;

/// A disk for an empty slot: one of its own that is empty, or a delta on what an image or a file
/// shows. Exactly one of size, image and path is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExtraDiskRequest {
    /// Size of an empty disk, bytes.
    #[schema(schema_with = schema::optional_disk_bytes)]
    pub size_bytes: Option<u64>,
    /// Image whose disk it shows.
    #[schema(schema_with = schema::optional_name)]
    pub image: Option<String>,
    /// Absolute path of the file that it shows.
    #[schema(schema_with = schema::optional_path)]
    pub path: Option<PathBuf>,
    /// Format of that file; told by its first bytes where not given.
    pub format: Option<ImageFormat>,
}

/// One NIC of a new VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetRequest {
    /// Name of an existing TAP interface; none for a NIC without a link.
    #[serde(default)]
    #[schema(schema_with = schema::optional_interface)]
    pub tap: Option<String>,
    /// Network, by its name or id: the TAP interface is made when the VM starts.
    #[serde(default)]
    #[schema(schema_with = schema::optional_label)]
    pub network: Option<String>,
    /// Hardware address; a random one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_unicast_mac)]
    pub mac: Option<MacAddr>,
    /// Its cable is not plugged in.
    #[serde(default)]
    pub disconnected: bool,
}

/// Back end of a serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SerialRequest {
    /// A log in the VM's home folder.
    #[default]
    Log,
    /// Nothing.
    None,
    /// Output is appended to this file.
    File(PathBuf),
    /// A pseudo-terminal of the host, beside the log.
    Pty,
    /// A Unix socket at this path that takes one connection at a time, beside the log.
    Unix(PathBuf),
}

impl PartialSchema for SerialRequest {
    fn schema() -> RefOr<Schema> {
        schema::serial()
    }
}

impl ToSchema for SerialRequest {}

/// One serial port of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SerialDetail {
    /// Its name: COM1 to COM4.
    pub port: String,
    /// Its back end.
    pub backend: SerialRequest,
    /// File that its output is appended to.
    pub log: Option<String>,
    /// Where to type and read: the pseudo-terminal of a running VM, or the socket.
    pub path: Option<String>,
}
