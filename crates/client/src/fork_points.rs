//! Prepared parents, kept fork points and their children.

use api_types::{
    DryRun, ForkPoint, PersistenceRequest, PointForkRequest, PointForked, PrepareRequest, Prepared,
    Task, Vm,
};

use crate::ClientError;
use crate::calls::{Client, encode};

impl Client {
    /// Kept fork points.
    pub fn fork_points(&self) -> Result<Vec<ForkPoint>, ClientError> {
        self.get("/forkpoints")
    }

    /// A kept fork point, by its id or name, or the name of its parent.
    pub fn fork_point(&self, reference: &str) -> Result<ForkPoint, ClientError> {
        self.get(&format!("/forkpoints/{}", encode(reference)))
    }

    /// Turns a powered-on VM into a parent; `seen` gets the task's states.
    pub fn prepare(
        &self,
        vm: &str,
        request: &PrepareRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Prepared, ClientError> {
        self.run_task(&format!("/vms/{}/prepare", encode(vm)), request, seen)
    }

    /// Powers on children of a fork point; `seen` gets the task's states.
    pub fn fork_children(
        &self,
        fork_point: &str,
        request: &PointForkRequest,
        seen: impl FnMut(&Task),
    ) -> Result<PointForked, ClientError> {
        let path = format!("/forkpoints/{}/fork", encode(fork_point));
        self.run_task(&path, request, seen)
    }

    /// Tells what stands in the way of children, and makes nothing.
    pub fn check_children(
        &self,
        fork_point: &str,
        request: &PointForkRequest,
    ) -> Result<DryRun, ClientError> {
        let path = format!("/forkpoints/{}/fork?dry_run=true", encode(fork_point));
        self.dry_run(&path, request)
    }

    /// Ends a parent: removes its fork point and children that were never started.
    pub fn unprepare(&self, fork_point: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/forkpoints/{}?force={force}", encode(fork_point));
        self.done("DELETE", &path)
    }

    /// Says whether a child keeps its disks over a power-off.
    pub fn set_persistence(&self, vm: &str, persistent: bool) -> Result<Vm, ClientError> {
        let path = format!("/vms/{}/persistence", encode(vm));
        self.change("PUT", &path, None, &PersistenceRequest { persistent })
    }
}
