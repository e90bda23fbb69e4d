//! Datastores and disk pools.

use api_types::{
    Datastore, DatastoreAddRequest, DatastoreChangeRequest, DiskPool, DiskPoolChangeRequest,
    DiskPoolRequest,
};

use crate::ClientError;
use crate::calls::{Client, encode};

impl Client {
    /// All datastores.
    pub fn datastores(&self) -> Result<Vec<Datastore>, ClientError> {
        self.get("/datastores")
    }

    /// A datastore, by its id or name.
    pub fn datastore(&self, reference: &str) -> Result<Datastore, ClientError> {
        self.get(&format!("/datastores/{}", encode(reference)))
    }

    /// Adds a datastore.
    pub fn add_datastore(&self, request: &DatastoreAddRequest) -> Result<Datastore, ClientError> {
        self.settle(self.send("POST", "/datastores?wait=true", request)?)
    }

    /// Changes a datastore.
    pub fn change_datastore(
        &self,
        reference: &str,
        request: &DatastoreChangeRequest,
    ) -> Result<Datastore, ClientError> {
        let path = format!("/datastores/{}?wait=true", encode(reference));
        self.settle(self.send("PATCH", &path, request)?)
    }

    /// Removes a datastore that nothing is on.
    pub fn remove_datastore(&self, reference: &str) -> Result<(), ClientError> {
        let path = format!("/datastores/{}?wait=true", encode(reference));
        self.settle(self.json("DELETE", &path, None)?)
    }

    /// All disk pools.
    pub fn disk_pools(&self) -> Result<Vec<DiskPool>, ClientError> {
        self.get("/diskpools")
    }

    /// A disk pool, by its id or name.
    pub fn disk_pool(&self, reference: &str) -> Result<DiskPool, ClientError> {
        self.get(&format!("/diskpools/{}", encode(reference)))
    }

    /// Makes a disk pool, which is filled in the background.
    pub fn make_disk_pool(&self, request: &DiskPoolRequest) -> Result<DiskPool, ClientError> {
        self.settle(self.send("POST", "/diskpools?wait=true", request)?)
    }

    /// Changes a disk pool.
    pub fn change_disk_pool(
        &self,
        reference: &str,
        request: &DiskPoolChangeRequest,
    ) -> Result<DiskPool, ClientError> {
        let path = format!("/diskpools/{}?wait=true", encode(reference));
        self.settle(self.send("PATCH", &path, request)?)
    }

    /// Removes a disk pool with its copies.
    pub fn remove_disk_pool(&self, reference: &str) -> Result<(), ClientError> {
        let path = format!("/diskpools/{}?wait=true", encode(reference));
        self.settle(self.json("DELETE", &path, None)?)
    }
}
