//! Wire structures of the daemon's HTTP interface, version 1.
//!
//! Requests refuse unknown fields; answers may gain fields, which older clients ignore.

#![forbid(unsafe_code)]

mod home;
mod image;
mod task;
mod vm;

use serde::{Deserialize, Serialize};

pub use home::{SOCKET_NAME, default_home, socket_of};
pub use image::{BuildKind, Image, ImageRequest, InitKind};
pub use task::{Event, Task, TaskItem, TaskState};
pub use vm::{
    CloneMode, Cloned, ClonedVm, DiskDetail, DiskRequest, DiskUse, ForkRequest, GuestReply,
    ImageFormat, MemoryUse, NetRequest, NicDetail, RunReply, RunRequest, SerialDetail,
    SerialRequest, StopRequest, StunRecord, Vm, VmDetail,
};

/// Prefix of every path.
pub const API_PREFIX: &str = "/v1";
/// Name in the `Upgrade` header of connections that turn into raw byte streams.
pub const STREAM_PROTOCOL: &str = "mitose-stream";
/// Longest name of a VM or image, bytes.
pub const MAX_NAME_BYTES: usize = 63;
/// Most clones of one call.
pub const MAX_CLONES: u32 = 240;

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A field of the request is wrong.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// The object exists or is in a state that does not allow it.
    Conflict,
    /// The object was changed since the version that the request names.
    Stale,
    /// The host lacks something: memory, space, a device.
    Unavailable,
    /// It did not happen in the given time.
    Timeout,
    /// It was tried and failed.
    Failed,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One line for a person: what failed, why, what to do.
    pub error: String,
}

/// State of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub home: String,
    /// Pre-started shells that wait.
    pub shells_ready: usize,
    /// Pre-started shells that it keeps.
    pub shells_wanted: usize,
    /// VMs in the inventory.
    pub vms: usize,
    /// Of these, VMs with a process.
    pub vms_running: usize,
}

/// How one check of the host came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckLevel {
    /// As it should be.
    Ok,
    /// Works, but something is slower or missing.
    Warn,
    /// VMs cannot run.
    Fail,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// What to do about it; none where all is well.
    pub remedy: Option<String>,
}

/// Returns why `name` cannot name a VM or image, or `None` when it can.
pub fn name_problem(name: &str) -> Option<String> {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = ends(name.bytes().next())
        && ends(name.bytes().last())
        && name.bytes().all(inner)
        && name.len() <= MAX_NAME_BYTES;
    (!good).then(|| {
        let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        format!(
            "name: {shown:?} is not 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.', \
             with a letter or digit at both ends"
        )
    })
}

#[cfg(test)]
mod tests;
