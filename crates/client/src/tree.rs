//! Folders, networks, pools, any object, families, and changes of VMs.

use api_types::{
    DryRun, Folder, FolderRequest, ForkRequest, Lineage, LineageVm, Network, NetworkRequest,
    ObjectRequest, PoolRequest, ReconfigureRequest, ResourcePool, RunRequest, TreeObject, VmDetail,
};

use serde::Serialize;

use crate::ClientError;
use crate::calls::{Client, encode};

impl Client {
    /// Folders of VMs.
    pub fn folders(&self) -> Result<Vec<Folder>, ClientError> {
        self.get("/folders")
    }

    /// A folder, by its id or path.
    pub fn folder(&self, reference: &str) -> Result<Folder, ClientError> {
        self.get(&format!("/folders/{}", encode(reference)))
    }

    /// Makes a folder.
    pub fn make_folder(&self, request: &FolderRequest) -> Result<Folder, ClientError> {
        self.change("POST", "/folders", None, request)
    }

    /// Removes an empty folder.
    pub fn remove_folder(&self, reference: &str) -> Result<(), ClientError> {
        self.done("DELETE", &format!("/folders/{}", encode(reference)))
    }

    /// Networks.
    pub fn networks(&self) -> Result<Vec<Network>, ClientError> {
        self.get("/networks")
    }

    /// A network, by its id or name.
    pub fn network(&self, reference: &str) -> Result<Network, ClientError> {
        self.get(&format!("/networks/{}", encode(reference)))
    }

    /// Makes a network.
    pub fn make_network(&self, request: &NetworkRequest) -> Result<Network, ClientError> {
        self.change("POST", "/networks", None, request)
    }

    /// Removes a network that no NIC is on.
    pub fn remove_network(&self, reference: &str) -> Result<(), ClientError> {
        self.done("DELETE", &format!("/networks/{}", encode(reference)))
    }

    /// Resource pools.
    pub fn resource_pools(&self) -> Result<Vec<ResourcePool>, ClientError> {
        self.get("/respools")
    }

    /// A resource pool, by its id or name.
    pub fn resource_pool(&self, reference: &str) -> Result<ResourcePool, ClientError> {
        self.get(&format!("/respools/{}", encode(reference)))
    }

    /// Makes a resource pool.
    pub fn make_resource_pool(&self, request: &PoolRequest) -> Result<ResourcePool, ClientError> {
        self.change("POST", "/respools", None, request)
    }

    /// Removes a resource pool that no VM belongs to.
    pub fn remove_resource_pool(&self, reference: &str) -> Result<(), ClientError> {
        self.done("DELETE", &format!("/respools/{}", encode(reference)))
    }

    /// All objects.
    pub fn objects(&self) -> Result<Vec<TreeObject>, ClientError> {
        self.get("/objects")
    }

    /// An object, by its id.
    pub fn object(&self, id: &str) -> Result<TreeObject, ClientError> {
        self.get(&format!("/objects/{}", encode(id)))
    }

    /// Changes name, place and words of an object.
    pub fn change_object(
        &self,
        id: &str,
        request: &ObjectRequest,
    ) -> Result<TreeObject, ClientError> {
        self.patch(&format!("/objects/{}", encode(id)), None, request)
    }

    /// Changes a VM; with a version only where it still has that.
    pub fn reconfigure(
        &self,
        vm: &str,
        version: Option<u64>,
        request: &ReconfigureRequest,
    ) -> Result<VmDetail, ClientError> {
        self.patch(&format!("/vms/{}", encode(vm)), version, request)
    }

    /// Family of a VM.
    pub fn lineage(&self, vm: &str) -> Result<Lineage, ClientError> {
        self.get(&format!("/vms/{}/lineage", encode(vm)))
    }

    /// All VMs with where they come from; `memory` asks for figures of the host's memory.
    pub fn lineages(&self, memory: bool) -> Result<Vec<LineageVm>, ClientError> {
        self.get(&format!("/lineage?memory={memory}"))
    }

    /// Tells what stands in the way of a VM, and makes nothing.
    pub fn check_run(&self, request: &RunRequest) -> Result<DryRun, ClientError> {
        self.dry_run("/vms?dry_run=true", request)
    }

    /// Tells what stands in the way of clones, and makes nothing.
    pub fn check_fork(&self, source: &str, request: &ForkRequest) -> Result<DryRun, ClientError> {
        let path = format!("/vms/{}/fork?dry_run=true", encode(source));
        self.dry_run(&path, request)
    }

    /// A dry run. A request that breaks the interface's document is one of what stands in the way.
    pub(crate) fn dry_run(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<DryRun, ClientError> {
        match self.post(path, request) {
            Err(ClientError::Refused(problem)) if problem.status == 400 => Ok(DryRun {
                problems: match problem.problems.is_empty() {
                    true => vec![*problem],
                    false => problem.problems,
                },
                would_make: Vec::new(),
            }),
            answer => answer,
        }
    }
}
