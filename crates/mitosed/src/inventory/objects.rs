//! Objects of the inventory: what has an id, a name and a place in the tree.
//!
//! ```text
//! dc1 (datacenter)
//! ├── vm (folder) ── VMs, templates, folders          snapshots below their VM
//! ├── host (folder) ── host ── Resources (resource pool)
//! ├── datastore (folder) ── datastore1                disk pools below their datastore
//! └── network (folder) ── VM Network
//! fork points, users and tokens have no parent in the tree
//! ```

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A stable id: the kind's prefix and a number that is never used again, such as `vm-42`.
pub type ObjectId = String;

/// What a kind of object keeps beside its id, name and place.
pub trait Kind: Clone + Serialize + DeserializeOwned + Send + 'static {
    /// Name of the kind in the store.
    const KIND: &'static str;
    /// Its name for a person.
    const NOUN: &'static str;
    /// Prefix of its ids.
    const PREFIX: &'static str;
}

/// One object as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectRow {
    /// Its id.
    pub id: ObjectId,
    /// Its kind, [`Kind::KIND`].
    pub kind: String,
    /// Object that it lies in.
    pub parent: Option<ObjectId>,
    /// Name, unique among objects of its kind in the same place.
    pub name: String,
    /// Rises with each change that a user makes.
    pub version: u64,
    /// The kind's own document.
    pub doc: serde_json::Value,
}

/// One object of a known kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<T> {
    /// Its id.
    pub id: ObjectId,
    /// Object that it lies in.
    pub parent: Option<ObjectId>,
    /// Its name.
    pub name: String,
    /// Rises with each change.
    pub version: u64,
    /// What its kind keeps.
    pub doc: T,
}

impl<T: Kind> Object<T> {
    /// As it is stored.
    pub fn to_row(&self) -> Result<ObjectRow, serde_json::Error> {
        Ok(ObjectRow {
            id: self.id.clone(),
            kind: T::KIND.to_owned(),
            parent: self.parent.clone(),
            name: self.name.clone(),
            version: self.version,
            doc: serde_json::to_value(&self.doc)?,
        })
    }

    /// From the store; the caller has looked at the kind.
    pub fn from_row(row: &ObjectRow) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: row.id.clone(),
            parent: row.parent.clone(),
            name: row.name.clone(),
            version: row.version,
            doc: T::deserialize(&row.doc)?,
        })
    }
}

/// Words of a user about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// Free text.
    pub annotation: String,
    /// Custom attributes.
    pub attributes: std::collections::BTreeMap<String, String>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $kind:literal $noun:literal $prefix:literal { $($field:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            /// Words of a user.
            pub labels: Labels,
            $($field)*
        }
        impl Kind for $name {
            const KIND: &'static str = $kind;
            const NOUN: &'static str = $noun;
            const PREFIX: &'static str = $prefix;
        }
    )*};
}

kinds! {
    /// The root of a tree.
    #[cfg_attr(not(test), expect(dead_code, reason = "the root is found by its kind alone"))]
    Datacenter "datacenter" "datacenter" "datacenter" {}
    /// A place for objects of one kind.
    Folder "folder" "folder" "folder" {
        /// Kind of object that it is for: `vm`, `host`, `datastore` or `network`.
        pub holds: String,
    }
    /// The machine that VMs run on.
    HostSystem "host" "host" "host" {}
    /// A share of a host.
    ResourcePool "resource_pool" "resource pool" "resgroup" {
        /// Most VMs in it.
        pub vms_max: Option<u32>,
        /// Most guest memory of the VMs in it, bytes.
        pub memory_bytes_max: Option<u64>,
    }
    /// A network that NICs connect to.
    Network "network" "network" "network" {
        /// Bridge that TAPs of its NICs join; none: NICs on it have no link.
        pub bridge: Option<String>,
        /// The daemon made that bridge, and removes it with the network.
        pub isolated: bool,
    }
}
