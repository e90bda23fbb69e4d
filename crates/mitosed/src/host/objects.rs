//! Objects of the inventory that are no VMs: finding, making, changing and removing them.
//!
//! All of them are held in memory as rows; the store is written first, so memory never runs ahead
//! of it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use api_types::ErrorKind;

use super::Host;
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, Kind, NewEvent, Object, ObjectId, ObjectRow};

/// Objects by id.
pub(super) type Objects = BTreeMap<ObjectId, ObjectRow>;

impl Host {
    /// A new id of a kind.
    pub fn new_id(&self, prefix: &str) -> OpResult<ObjectId> {
        Ok(self.new_ids(prefix, 1)?.remove(0))
    }

    /// New ids of a kind, rising.
    pub fn new_ids(&self, prefix: &str, count: usize) -> OpResult<Vec<ObjectId>> {
        let taken = self
            .numbers
            .take(self.inventory.as_ref(), prefix, count as u64);
        let first = taken.map_err(OpError::from)?;
        let numbers = first..first + count as u64;
        Ok(numbers.map(|number| format!("{prefix}-{number}")).collect())
    }

    /// The object of an id, or of a name that one object of the kind has.
    pub fn object<T: Kind>(&self, reference: &str) -> OpResult<Object<T>> {
        let objects = self.objects_read();
        let of_kind = |row: &&ObjectRow| row.kind == T::KIND;
        if let Some(row) = objects.get(reference).filter(of_kind) {
            return parse(row);
        }
        let named: Vec<_> = objects
            .values()
            .filter(|row| row.kind == T::KIND && row.name == reference)
            .collect();
        match named[..] {
            [row] => parse(row),
            [] => Err(OpError::new(
                ErrorKind::NotFound,
                match list_of(T::KIND) {
                    Some(list) => {
                        format!("there is no {} {reference:?}; '{list}' lists them", T::NOUN)
                    }
                    None => format!("there is no {} {reference:?}", T::NOUN),
                },
            )),
            _ => {
                let ids: Vec<_> = named.iter().map(|row| row.id.as_str()).collect();
                Err(OpError::conflict(format!(
                    "{}: {reference:?} names {}; give the id",
                    T::NOUN,
                    ids.join(", ")
                )))
            }
        }
    }

    /// All objects of a kind, by id.
    pub fn objects<T: Kind>(&self) -> Vec<Object<T>> {
        let objects = self.objects_read();
        let rows = objects.values().filter(|row| row.kind == T::KIND);
        rows.filter_map(|row| parse(row).ok()).collect()
    }

    /// Makes an object with a new id and a name that is free.
    pub fn make_object<T: Kind>(
        &self,
        parent: Option<&str>,
        name: &str,
        doc: T,
        told: Option<NewEvent>,
    ) -> OpResult<Object<T>> {
        let _turn = self.objects_turn();
        self.make_object_in_turn(parent, name, doc, told)
    }

    /// As [`Host::make_object`], for callers who have the turn to change objects.
    pub(super) fn make_object_in_turn<T: Kind>(
        &self,
        parent: Option<&str>,
        name: &str,
        doc: T,
        told: Option<NewEvent>,
    ) -> OpResult<Object<T>> {
        // Others may have taken it since it was checked.
        self.check_untaken::<T>(parent, name, None)?;
        let object = Object {
            id: self.new_id(T::PREFIX)?,
            parent: parent.map(str::to_owned),
            name: name.to_owned(),
            version: 1,
            doc,
        };
        let changes = Changes {
            objects: vec![row_of(&object)?],
            events: told
                .into_iter()
                .map(|told| told.about(&object.id))
                .collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        Ok(object)
    }

    /// Changes an object. `expected` is the version that the caller knows, where it names one: an
    /// object that was changed since is not touched.
    pub fn change_object<T: Kind>(
        &self,
        id: &str,
        expected: Option<u64>,
        change: impl FnOnce(&mut Object<T>) -> OpResult<()>,
    ) -> OpResult<Object<T>> {
        self.change_and_tell(id, expected, None, change)
    }

    /// The same, with the event that tells of it.
    pub(super) fn change_and_tell<T: Kind>(
        &self,
        id: &str,
        expected: Option<u64>,
        told: Option<NewEvent>,
        change: impl FnOnce(&mut Object<T>) -> OpResult<()>,
    ) -> OpResult<Object<T>> {
        let _turn = self.objects_turn();
        let mut object = self.object::<T>(id)?;
        check_version(T::NOUN, &object.name, expected, object.version)?;
        change(&mut object)?;
        self.check_untaken::<T>(object.parent.as_deref(), &object.name, Some(&object.id))?;
        object.version += 1;
        let changes = Changes {
            objects: vec![row_of(&object)?],
            events: told.into_iter().collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        Ok(object)
    }

    /// Removes an object that nothing lies in.
    pub fn remove_object<T: Kind>(&self, id: &str, told: Option<NewEvent>) -> OpResult<()> {
        let changes = Changes {
            removed_objects: vec![id.to_owned()],
            events: told.into_iter().collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)
    }

    /// Refuses a name that is taken by an object of the kind in the same place.
    pub fn check_free<T: Kind>(&self, parent: Option<&str>, name: &str) -> OpResult<()> {
        if let Some(problem) = api_types::name_problem(name) {
            return Err(OpError::invalid(problem));
        }
        self.check_untaken::<T>(parent, name, None)
    }

    /// Refuses a name that an object of the kind in the same place has, but for that of the id `but`.
    fn check_untaken<T: Kind>(
        &self,
        parent: Option<&str>,
        name: &str,
        but: Option<&str>,
    ) -> OpResult<()> {
        let objects = self.objects_read();
        let same = |row: &ObjectRow| {
            row.kind == T::KIND && row.parent.as_deref() == parent && row.name == name
        };
        if objects
            .values()
            .any(|row| same(row) && but != Some(row.id.as_str()))
        {
            return Err(OpError::conflict(format!(
                "name: there is a {} {name:?} already; choose another name",
                T::NOUN
            )));
        }
        Ok(())
    }

    /// Takes over what a batch changed; called by [`Host::commit`] once it is in the store.
    pub(super) fn apply_objects(&self, changes: &Changes) {
        if changes.objects.is_empty() && changes.removed_objects.is_empty() {
            return;
        }
        self.stores
            .apply(&changes.objects, &changes.removed_objects);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        for row in &changes.objects {
            objects.insert(row.id.clone(), row.clone());
        }
        for id in &changes.removed_objects {
            objects.remove(id);
        }
    }

    pub(super) fn objects_read(&self) -> std::sync::RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Command that lists the objects of a kind.
fn list_of(kind: &str) -> Option<&'static str> {
    match kind {
        "datastore" => Some("mitose datastore ls"),
        "disk_pool" => Some("mitose pool ls"),
        "network" => Some("mitose network ls"),
        "resource_pool" => Some("mitose respool ls"),
        "token" => Some("mitose token ls"),
        _ => None,
    }
}

/// Refuses a change by a caller who knows another version.
pub fn check_version(noun: &str, name: &str, expected: Option<u64>, found: u64) -> OpResult<()> {
    match expected {
        Some(expected) if expected != found => Err(OpError::new(
            ErrorKind::Stale,
            format!(
                "version: {noun} {name} has version {found}, the request was made for version \
                 {expected}; read it again and repeat the change"
            ),
        )),
        _ => Ok(()),
    }
}

/// An object as a row.
pub fn row_of<T: Kind>(object: &Object<T>) -> OpResult<ObjectRow> {
    object
        .to_row()
        .map_err(|error| OpError::caused(ErrorKind::Failed, error))
}

fn parse<T: Kind>(row: &ObjectRow) -> OpResult<Object<T>> {
    Object::from_row(row).map_err(|error| OpError::caused(ErrorKind::Failed, error))
}
