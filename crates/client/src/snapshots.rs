//! Snapshots, suspending, and archives.

use api_types::{
    DryRun, ExportRequest, Exported, ImportRequest, Imported, Snapshot, SnapshotRequest,
    SnapshotsRemoved, Task, Vm,
};

use crate::ClientError;
use crate::calls::{Client, encode};

impl Client {
    /// Snapshots of a VM, oldest first.
    pub fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, ClientError> {
        self.get(&format!("/vms/{}/snapshots", encode(vm)))
    }

    /// One snapshot of a VM.
    pub fn snapshot(&self, vm: &str, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.get(&path_of(vm, snapshot))
    }

    /// Makes a snapshot; `seen` gets the task's states.
    pub fn create_snapshot(
        &self,
        vm: &str,
        request: &SnapshotRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Snapshot, ClientError> {
        self.run_task(&format!("/vms/{}/snapshots", encode(vm)), request, seen)
    }

    /// Removes a snapshot, and those that continue it where `children` is set.
    pub fn remove_snapshot(
        &self,
        vm: &str,
        snapshot: &str,
        children: bool,
    ) -> Result<SnapshotsRemoved, ClientError> {
        let path = format!("{}?children={children}&wait=true", path_of(vm, snapshot));
        self.settle(self.json("DELETE", &path, None)?)
    }

    /// Returns a VM to a snapshot; `seen` gets the task's states.
    pub fn revert(
        &self,
        vm: &str,
        snapshot: &str,
        seen: impl FnMut(&Task),
    ) -> Result<Vm, ClientError> {
        self.start_task(&format!("{}/revert", path_of(vm, snapshot)), seen)
    }

    /// Suspends a VM to disk; `seen` gets the task's states.
    pub fn suspend(&self, vm: &str, seen: impl FnMut(&Task)) -> Result<Vm, ClientError> {
        self.start_task(&format!("/vms/{}/suspend", encode(vm)), seen)
    }

    /// Writes a VM or one of its snapshots to an archive; `seen` gets the task's states.
    pub fn export(
        &self,
        vm: &str,
        request: &ExportRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Exported, ClientError> {
        self.run_task(&format!("/vms/{}/export", encode(vm)), request, seen)
    }

    /// Writes a fork point to an archive; `seen` gets the task's states.
    pub fn export_fork_point(
        &self,
        fork_point: &str,
        request: &ExportRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Exported, ClientError> {
        let path = format!("/forkpoints/{}/export", encode(fork_point));
        self.run_task(&path, request, seen)
    }

    /// Makes a VM or a fork point of an archive; `seen` gets the task's states.
    pub fn import(
        &self,
        request: &ImportRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Imported, ClientError> {
        self.run_task("/import", request, seen)
    }

    /// Tells what stands in the way of an import, and makes nothing.
    pub fn check_import(&self, request: &ImportRequest) -> Result<DryRun, ClientError> {
        self.dry_run("/import?dry_run=true", request)
    }
}

fn path_of(vm: &str, snapshot: &str) -> String {
    format!("/vms/{}/snapshots/{}", encode(vm), encode(snapshot))
}
