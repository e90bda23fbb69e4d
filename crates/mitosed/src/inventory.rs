//! What the daemon remembers: VMs, disk layers, events, tasks.
//!
//! The daemon keeps all of it in memory too and reads it there; the store behind [`Inventory`]
//! takes batches that are applied whole or not at all.

mod rows;
mod sqlite;

use api_types::{Event, Task};

pub use rows::{
    BootSource, DiskRow, LayerId, LayerRow, MAX_STUN_RECORDS, NicRow, PowerState, VmRow,
};
pub use sqlite::{Sqlite, sync_directory};

/// The inventory's store failed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The file cannot be opened or has another form.
    #[error("cannot open the inventory {path}")]
    Open {
        /// Its path.
        path: String,
        /// The store's error.
        #[source]
        source: rusqlite::Error,
    },
    /// It was written by a newer program.
    #[error(
        "the inventory {path} has form {found}, this program knows {known}; use a newer mitosed"
    )]
    Newer {
        /// Its path.
        path: String,
        /// Its form.
        found: i64,
        /// Newest form that is known.
        known: i64,
    },
    /// A read or write failed.
    #[error("cannot {action} the inventory")]
    Access {
        /// "read", "change", "sync".
        action: &'static str,
        /// The store's error.
        #[source]
        source: rusqlite::Error,
    },
    /// The write-ahead log could not be made durable.
    #[error("cannot make the inventory durable")]
    Sync(#[source] std::io::Error),
    /// A row is no valid document.
    #[error("the inventory has a row that cannot be read: {id}")]
    Row {
        /// Its key.
        id: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// An event that has no number yet.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// VM or image that it is about.
    pub subject: String,
    /// What happened, such as `vm.started`.
    pub kind: &'static str,
    /// One line for a person.
    pub message: String,
}

/// Changes that are applied together.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// VMs to add or replace.
    pub vms: Vec<VmRow>,
    /// Ids of VMs to remove.
    pub removed_vms: Vec<String>,
    /// Layers to add or replace.
    pub layers: Vec<LayerRow>,
    /// Layers to remove.
    pub removed_layers: Vec<LayerId>,
    /// Events to add.
    pub events: Vec<NewEvent>,
}

/// All objects of the store.
#[derive(Debug, Default)]
pub struct Contents {
    /// VMs.
    pub vms: Vec<VmRow>,
    /// Disk layers.
    pub layers: Vec<LayerRow>,
}

/// A store of the inventory. Changes survive the daemon's sudden end when the call returns, and
/// the host's after the next [`Inventory::sync`].
pub trait Inventory: Send + Sync {
    /// Reads all objects.
    fn load(&self) -> Result<Contents, InventoryError>;
    /// Applies changes whole; returns the events with their numbers.
    fn apply(&self, changes: &Changes) -> Result<Vec<Event>, InventoryError>;
    /// Makes everything applied so far durable.
    fn sync(&self) -> Result<(), InventoryError>;
    /// Returns at most `limit` events with a number above `after`, oldest first.
    fn events(&self, after: i64, limit: usize) -> Result<Vec<Event>, InventoryError>;
    /// Number of the latest event, 0 when there is none.
    fn last_event(&self) -> Result<i64, InventoryError>;
    /// Adds a task and returns its number, or replaces it where it has one.
    fn put_task(&self, task: &Task) -> Result<i64, InventoryError>;
    /// Returns a task.
    fn task(&self, id: i64) -> Result<Option<Task>, InventoryError>;
    /// Returns the tasks that were in work.
    fn running_tasks(&self) -> Result<Vec<Task>, InventoryError>;
}

#[cfg(test)]
mod tests;
