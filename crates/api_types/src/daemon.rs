//! The daemon and its host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// State of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
