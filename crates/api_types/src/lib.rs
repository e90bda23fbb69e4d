//! Wire structures of the daemon's HTTP interface, version 1, one file for each resource.
//!
//! Requests refuse unknown fields; answers may gain fields, which older clients ignore. Bounds of
//! numbers, lengths and forms are written once, as attributes of the fields: the OpenAPI document
//! shows them, and the daemon checks every request against the document.

#![forbid(unsafe_code)]

mod archive;
mod daemon;
mod datastore;
mod disk_pool;
mod event;
mod exec;
mod fork;
mod fork_point;
mod guest;
mod hardware;
mod home;
mod image;
mod lineage;
mod name;
mod problem;
mod reconfigure;
mod run;
pub mod schema;
mod snapshot;
mod task;
mod token;
mod tree;
mod vm;

pub use archive::{ExportRequest, Exported, ImportAs, ImportRequest, Imported};
pub use daemon::{Check, CheckLevel, DaemonStatus};
pub use datastore::{Datastore, DatastoreAddRequest, DatastoreChangeRequest, DatastoreState};
pub use disk_pool::{DiskPool, DiskPoolChangeRequest, DiskPoolRequest, DiskPoolState};
pub use event::Event;
pub use exec::{Encoding, ExecReply, ExecRequest};
pub use fork::{CloneEdit, CloneMode, Cloned, ClonedVm, Consistency, CopyOrigin, ForkRequest};
pub use fork_point::{
    ForkPoint, MAX_CHILDREN, PersistenceRequest, PointForkRequest, PointForked, PrepareRequest,
    Prepared,
};
pub use guest::{GuestInfo, GuestInfoPatch, NicAddressRequest, WaitFor};
pub use hardware::{
    DiskRequest, ExtraDiskRequest, ImageFormat, MAX_EXTRA_DISK_BYTES, NetRequest, SerialDetail,
    SerialRequest,
};
pub use home::{SOCKET_NAME, default_home, socket_of};
pub use image::{BuildKind, Image, ImageRequest, InitKind};
pub use lineage::{FamilyUse, Lineage, LineageVm};
pub use name::{MAX_NAME_BYTES, name_problem};
pub use problem::{ErrorKind, Problem};
pub use reconfigure::{DryRun, NicChange, ReconfigureRequest, SerialChange, WouldMake};
pub use run::{RunReply, RunRequest, StopRequest};
pub use snapshot::{Snapshot, SnapshotMemory, SnapshotRequest, SnapshotsRemoved};
pub use task::{Task, TaskItem, TaskState};
pub use token::{NewToken, Role, Token, TokenRequest};
pub use tree::{
    Folder, FolderRequest, LabelsReply, MAX_ANNOTATION_BYTES, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES,
    MAX_FOLDER_DEPTH, Network, NetworkRequest, ObjectRequest, PoolRequest, ResourcePool,
    TreeObject,
};
pub use vm::{
    DiskDetail, DiskUse, GuestReply, MemoryUse, NicDetail, Persistence, StunRecord, Vm, VmDetail,
};

/// Prefix of every path.
pub const API_PREFIX: &str = "/api/v1";
/// Name in the `Upgrade` header of connections that turn into raw byte streams.
pub const STREAM_PROTOCOL: &str = "mitose-stream";
/// Most clones of one call.
pub const MAX_CLONES: u32 = 240;

#[cfg(test)]
mod tests;
