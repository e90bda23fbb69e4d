//! What the daemon remembers: a tree of objects, disk layers, events, tasks.
//!
//! The daemon keeps all of it in memory too and reads it there; the store behind [`Inventory`]
//! takes batches that are applied whole or not at all.

mod archives;
mod fork_points;
mod migrations;
mod objects;
mod quiet;
mod rows;
mod snapshots;
mod sqlite;
mod storage;

use api_types::{Event, Task};

pub use archives::{ArchiveRecord, ArchivedFile, ArchivedLayer, ArchivedMemory, ArchivedTable};
pub use fork_points::{ChildRow, ForkPoint, PointMemory};
pub use objects::{
    Folder, HostSystem, Kind, Labels, Network, Object, ObjectId, ObjectRow, ResourcePool,
};
pub use rows::{
    AddressRow, Begun, BootSource, DiskRow, FreezeRow, LayerId, LayerRow, MAX_STUN_RECORDS, Making,
    MediumRow, NicRow, PowerState, VmRow,
};
pub use snapshots::{MemoryFiles, Snapshot, SnapshotMemory, SuspendRow};
pub use sqlite::{Sqlite, sync_directory};
pub use storage::{Datastore, DiskPool, PoolSource};

/// The inventory's store failed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The file cannot be opened or has another form.
    #[error("cannot open the inventory {path} ({source}); {remedy}")]
    Open {
        /// Its path.
        path: String,
        /// What to do about it.
        remedy: &'static str,
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
    /// The file opens, but its content is damaged.
    #[error("the inventory {path} is damaged ({found}); {RESTORE}")]
    Damaged {
        /// Its path.
        path: String,
        /// What SQLite found first.
        found: String,
    },
    /// Others would be able to read the file.
    #[error("cannot keep others from reading the inventory; let mitosed own its data directory")]
    Protect(#[source] std::io::Error),
    /// A copy of the file could not be put in its place.
    #[error("cannot keep a backup of the inventory")]
    Backup(#[source] std::io::Error),
    /// A read or write failed.
    #[error("cannot {action} the inventory, so nothing was changed ({source}); {remedy}")]
    Access {
        /// "read", "change", "sync".
        action: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// The store's error.
        #[source]
        source: rusqlite::Error,
    },
    /// The write-ahead log could not be made durable.
    #[error("cannot make the inventory durable")]
    Sync(#[source] std::io::Error),
    /// A row is no valid document.
    #[error("the inventory has a row that cannot be read: {id}; {RESTORE}")]
    Row {
        /// Its key.
        id: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl InventoryError {
    /// Whether the store may work again later by itself.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Access { .. } | Self::Sync(_))
    }
}

/// What to do about a damaged inventory.
pub const RESTORE: &str = "stop mitosed, move inventory.db.bak in its directory to inventory.db, remove \
                       inventory.db-wal, then start mitosed";

/// Folder of VMs that every inventory has.
pub const VM_FOLDER: &str = "folder-1";
/// Folder of datastores that every inventory has.
pub const DATASTORE_FOLDER: &str = "folder-3";
/// Datastore that every inventory has.
pub const FIRST_DATASTORE: &str = "datastore-1";

/// An event that has no number yet.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Name of what it is about.
    pub subject: String,
    /// What happened, such as `vm.started`.
    pub kind: &'static str,
    /// One line for a person.
    pub message: String,
    /// Id of what it is about.
    pub object: Option<ObjectId>,
    /// Task that it belongs to.
    pub task: Option<i64>,
    /// Who asked for that task.
    pub user: Option<String>,
    /// What a program wants to know, by the kind of event.
    pub data: Option<serde_json::Value>,
}

impl NewEvent {
    /// The same, about the object `id`.
    pub fn about(mut self, id: &str) -> Self {
        self.object = Some(id.to_owned());
        self
    }

    /// The same, as part of a task.
    pub fn of_task(mut self, task: i64) -> Self {
        self.task = Some(task);
        self
    }

    /// The same, with figures for programs.
    pub fn with(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }
}

/// Changes that are applied together.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// VMs to add or replace.
    pub vms: Vec<VmRow>,
    /// Ids of VMs to remove.
    pub removed_vms: Vec<String>,
    /// Other objects to add or replace.
    pub objects: Vec<ObjectRow>,
    /// Ids of other objects to remove.
    pub removed_objects: Vec<ObjectId>,
    /// Layers to add or replace.
    pub layers: Vec<LayerRow>,
    /// Layers to remove.
    pub removed_layers: Vec<LayerId>,
    /// Events to add.
    pub events: Vec<NewEvent>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.vms.is_empty()
            && self.removed_vms.is_empty()
            && self.objects.is_empty()
            && self.removed_objects.is_empty()
            && self.layers.is_empty()
            && self.removed_layers.is_empty()
            && self.events.is_empty()
    }

    /// Adds later changes: what they remove is not added by these, and the other way round.
    pub fn append(&mut self, later: Self) {
        let gone = |id: &String| !later.removed_vms.contains(id);
        self.vms.retain(|row| gone(&row.id));
        self.objects
            .retain(|row| !later.removed_objects.contains(&row.id));
        self.layers
            .retain(|row| !later.removed_layers.contains(&row.id));
        self.removed_layers
            .retain(|id| later.layers.iter().all(|row| row.id != *id));
        self.vms.extend(later.vms);
        self.removed_vms.extend(later.removed_vms);
        self.objects.extend(later.objects);
        self.removed_objects.extend(later.removed_objects);
        self.layers.extend(later.layers);
        self.removed_layers.extend(later.removed_layers);
        self.events.extend(later.events);
    }
}

/// All objects of the store.
#[derive(Debug, Default)]
pub struct Contents {
    /// VMs.
    pub vms: Vec<VmRow>,
    /// Objects that are no VMs.
    pub objects: Vec<ObjectRow>,
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
    /// The last number that was given for ids that begin with `prefix`; 0 where none was.
    fn last_number(&self, prefix: &str) -> Result<u64, InventoryError>;
    /// Takes `count` numbers for ids with `prefix`, never given before; returns the first.
    fn take_numbers(&self, prefix: &str, count: u64) -> Result<u64, InventoryError>;
    /// Gives the numbers from `first` to before `end` back, where they are the last that were taken.
    fn give_numbers_back(&self, prefix: &str, first: u64, end: u64) -> Result<(), InventoryError>;
    /// Makes everything applied so far durable.
    fn sync(&self) -> Result<(), InventoryError>;
    /// Does what is to be done now and then while nobody waits; called every second or so.
    fn tidy_up(&self) -> Result<(), InventoryError>;
    /// Keeps a copy of the store as it is, in place of an earlier copy.
    fn back_up(&self) -> Result<(), InventoryError>;
    /// Returns at most `limit` events with a number above `after`, oldest first.
    fn events(&self, after: i64, limit: usize) -> Result<Vec<Event>, InventoryError>;
    /// Returns the events of a task, oldest first.
    fn events_of_task(&self, task: i64) -> Result<Vec<Event>, InventoryError>;
    /// Number of the latest event, 0 when there is none.
    fn last_event(&self) -> Result<i64, InventoryError>;
    /// Adds a task and returns its number; `asked` is the digest of the call that its idempotency
    /// key came with.
    fn add_task(&self, task: &Task, asked: Option<&str>) -> Result<i64, InventoryError>;
    /// Replaces a task.
    fn put_task(&self, task: &Task) -> Result<(), InventoryError>;
    /// Returns a task.
    fn task(&self, id: i64) -> Result<Option<Task>, InventoryError>;
    /// Returns the number of the task that was asked for with an idempotency key, and the digest of
    /// the call.
    fn task_of_key(&self, key: &str) -> Result<Option<(i64, Option<String>)>, InventoryError>;
    /// Returns at most `limit` tasks with a number below `before`, latest first.
    fn tasks(&self, before: i64, limit: usize) -> Result<Vec<Task>, InventoryError>;
    /// Returns the tasks that were in work.
    fn running_tasks(&self) -> Result<Vec<Task>, InventoryError>;
}

#[cfg(test)]
pub(crate) mod tests;
