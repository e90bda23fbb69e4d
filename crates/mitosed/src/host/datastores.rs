//! Datastores as objects: adding, changing and removing them.
//!
//! ```text
//! add: record `adding` ─▶ directories, mark ─▶ record      a record that is still `adding` at a
//!                                                          start of the daemon is taken back
//! there ◀──▶ not there     told by the mark, at each use and every few seconds
//! ```
//!
//! One that is not there keeps its VMs from starting and takes no disks; all else goes on. What was
//! left undone on it is settled when it is back.

mod settle;
mod space;
mod stores;

use std::path::Path;
use std::sync::PoisonError;

use api_types::{
    Datastore as DatastoreAnswer, DatastoreAddRequest, DatastoreChangeRequest, DatastoreState,
    DryRun,
};

pub(super) use self::space::DELTA_BYTES;
use self::space::{reserve_of, warn_of, why_lost};
pub(super) use self::stores::{Promise, Stores};
use super::check::Problems;
use super::{Host, check_version, event};
use crate::clock::random_hex;
use crate::datastore::StoreDir;
use crate::error::{OpError, OpResult};
use crate::inventory::{
    Changes, DATASTORE_FOLDER, Datastore, FIRST_DATASTORE, Kind, Object, ObjectRow,
};

impl Host {
    /// All datastores.
    pub fn datastores(&self) -> Vec<DatastoreAnswer> {
        let mut stores = self.objects::<Datastore>();
        stores.retain(|store| !store.doc.adding);
        stores
            .iter()
            .map(|store| self.show_datastore(store))
            .collect()
    }

    /// One datastore.
    pub fn datastore(&self, reference: &str) -> OpResult<DatastoreAnswer> {
        Ok(self.show_datastore(&self.object(reference)?))
    }

    fn show_datastore(&self, store: &Object<Datastore>) -> DatastoreAnswer {
        let dir = self.store(&store.id);
        let lost = why_lost(&dir, &store.doc);
        let space = match &lost {
            None => dir.space().unwrap_or_default(),
            Some(_) => Default::default(),
        };
        let state = match (&lost, store.doc.maintenance) {
            (Some(_), _) => DatastoreState::Inaccessible,
            (None, true) => DatastoreState::Maintenance,
            (None, false) => DatastoreState::Accessible,
        };
        let on_it = |vm: &&std::sync::Arc<super::Vm>| vm.live().row.datastore == store.id;
        DatastoreAnswer {
            id: store.id.clone(),
            name: store.name.clone(),
            path: dir.root().display().to_string(),
            state,
            reason: lost,
            maintenance: store.doc.maintenance,
            capacity_bytes: space.capacity_bytes,
            free_bytes: space.free_bytes,
            promised_bytes: self.stores.promised_of(&store.id).0,
            reserve_bytes: reserve_of(&store.doc, space),
            warn_bytes: warn_of(&store.doc, space),
            vms: self.all().iter().filter(on_it).count() as u64,
            version: store.version,
        }
    }

    /// Tries a request for a datastore out.
    pub fn check_datastore(&self, request: &DatastoreAddRequest) -> DryRun {
        let mut problems = Problems::default();
        self.plan_datastore(request, &mut problems);
        problems.dry_run()
    }

    fn plan_datastore(
        &self,
        request: &DatastoreAddRequest,
        problems: &mut Problems,
    ) -> Option<StoreDir> {
        problems.take(self.check_free::<Datastore>(Some(DATASTORE_FOLDER), &request.name));
        problems.take(self.check_directory(&request.path))
    }

    /// Adds a datastore in an existing directory.
    pub fn add_datastore(&self, request: &DatastoreAddRequest) -> OpResult<DatastoreAnswer> {
        let _turn = self.store_turn();
        let mut problems = Problems::default();
        let dir = self.plan_datastore(request, &mut problems);
        let dir = problems.end(dir)?;
        let doc = Datastore {
            path: dir.root().to_owned(),
            mark: random_hex::<16>(),
            adding: true,
            reserve_bytes: request.reserve_bytes,
            warn_bytes: request.warn_bytes,
            ..Datastore::default()
        };
        let mark = doc.mark.clone();
        let store = self.make_object(Some(DATASTORE_FOLDER), &request.name, doc, None)?;
        let made = dir
            .make_dirs()
            .and_then(|()| Ok(dir.write_mark(&mark)?))
            .map_err(|error| OpError::invalid(format!("path: {error:#}; give another directory")));
        let made = made.and_then(|()| {
            let changed = self.change_object::<Datastore>(&store.id, None, |store| {
                store.doc.adding = false;
                Ok(())
            })?;
            let told = format!("added at {}", dir.root().display());
            self.tell_object(&changed, "datastore.added", told);
            Ok(changed)
        });
        match made {
            Ok(store) => Ok(self.show_datastore(&store)),
            Err(error) => {
                let _ = dir.unmark();
                self.remove_object::<Datastore>(&store.id, None)?;
                Err(error)
            }
        }
    }

    /// Checks that a directory can become a datastore.
    fn check_directory(&self, path: &Path) -> OpResult<StoreDir> {
        let refuse = |what: String| OpError::invalid(format!("path: {} {what}", path.display()));
        if !path.is_absolute() {
            return Err(refuse("is not absolute; give the whole path".into()));
        }
        let real = std::fs::canonicalize(path).map_err(|error| {
            refuse(format!("cannot be used: {error}; make the directory first"))
        })?;
        if !real.is_dir() {
            return Err(refuse("is not a directory; give one".into()));
        }
        if real.to_str().is_none() {
            return Err(refuse("is not UTF-8; give another directory".into()));
        }
        let home = self.config.home.root();
        if home.starts_with(&real) || real.starts_with(home) {
            return Err(refuse(
                "and the data directory contain one another; give a directory of its own".into(),
            ));
        }
        for store in self.objects::<Datastore>() {
            let other = self.store(&store.id);
            if real.starts_with(other.root()) || other.root().starts_with(&real) {
                return Err(refuse(format!(
                    "belongs to the datastore {} or contains it; give a directory of its own",
                    store.name
                )));
            }
        }
        let dir = StoreDir::new(real);
        match dir.read_mark() {
            Ok(None) => {}
            Ok(Some(_)) => {
                return Err(refuse(format!(
                    "is a datastore already, of another data directory; where that is gone, \
                     remove {}",
                    dir.mark_path().display()
                )));
            }
            Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
        }
        match dir.foreign_content() {
            None => Ok(dir),
            Some(taken) => Err(refuse(format!(
                "has something in it already, such as {:?}; give an empty directory",
                taken.file_name().unwrap_or_default()
            ))),
        }
    }

    /// Tries a change of a datastore out.
    pub fn check_datastore_change(
        &self,
        reference: &str,
        request: &DatastoreChangeRequest,
    ) -> DryRun {
        let mut problems = Problems::default();
        let store = problems.take(self.object::<Datastore>(reference));
        let found = store.map(|store| self.datastore_change_problems(&store, request));
        found.unwrap_or(problems).dry_run()
    }

    fn datastore_change_problems(
        &self,
        store: &Object<Datastore>,
        request: &DatastoreChangeRequest,
    ) -> Problems {
        let mut problems = Problems::default();
        problems.take(check_version(
            Datastore::NOUN,
            &store.name,
            request.version,
            store.version,
        ));
        if let Some(name) = request.name.as_ref().filter(|name| **name != store.name) {
            problems.take(self.check_free::<Datastore>(store.parent.as_deref(), name));
        }
        problems
    }

    /// Changes a datastore's name, limits or maintenance.
    pub fn change_datastore(
        &self,
        reference: &str,
        request: &DatastoreChangeRequest,
    ) -> OpResult<DatastoreAnswer> {
        let _turn = self.store_turn();
        let before = self.object::<Datastore>(reference)?;
        self.datastore_change_problems(&before, request).finish()?;
        let store = self.change_object::<Datastore>(&before.id, request.version, |store| {
            let Object { name, doc, .. } = store;
            request.name.iter().for_each(|new| name.clone_from(new));
            doc.maintenance = request.maintenance.unwrap_or(doc.maintenance);
            doc.reserve_bytes = request.reserve_bytes.or(doc.reserve_bytes);
            doc.warn_bytes = request.warn_bytes.or(doc.warn_bytes);
            Ok(())
        })?;
        let told = match request.maintenance {
            Some(true) => "takes no new disks".to_owned(),
            Some(false) => "takes new disks".to_owned(),
            None => "changed".to_owned(),
        };
        self.tell_object(&store, "datastore.changed", told);
        Ok(self.show_datastore(&store))
    }

    /// Removes a datastore that nothing is on; its directory stays.
    pub fn remove_datastore(&self, reference: &str) -> OpResult<()> {
        let _turn = self.store_turn();
        let store = self.object::<Datastore>(reference)?;
        check_not_first(&store)?;
        // From here on no operation begins on it.
        let was_in_use = !store.doc.maintenance;
        self.change_object::<Datastore>(&store.id, None, |store| {
            store.doc.maintenance = true;
            Ok(())
        })?;
        if let Some(user) = self.user_of_datastore(&store) {
            if was_in_use {
                self.change_object::<Datastore>(&store.id, None, |store| {
                    store.doc.maintenance = false;
                    Ok(())
                })?;
            }
            return Err(in_use(&store, &user));
        }
        let dir = self.store(&store.id);
        if why_lost(&dir, &store.doc).is_none() {
            // Memory of a fork point whose record is gone, on its way out.
            self.sweep_memory(&store.id);
            dir.unmark().map_err(|error| {
                OpError::failed(format!("cannot remove the mark of {}: {error}", store.name))
            })?;
        }
        let told = event(&store.name, "datastore.removed", "removed").about(&store.id);
        self.remove_object::<Datastore>(&store.id, Some(told))
    }

    /// Refuses to remove a datastore that is to stay or that something is on.
    pub fn check_datastore_removal(&self, reference: &str) -> OpResult<()> {
        let store = self.object::<Datastore>(reference)?;
        check_not_first(&store)?;
        match self.user_of_datastore(&store) {
            Some(user) => Err(in_use(&store, &user)),
            None => Ok(()),
        }
    }

    /// What is on a datastore, one of it.
    fn user_of_datastore(&self, store: &Object<Datastore>) -> Option<String> {
        let (_, operations) = self.stores.promised_of(&store.id);
        if operations > 0 {
            return Some(format!("{operations} operations under way"));
        }
        let root = self.store(&store.id);
        let root = root.root();
        for vm in self.all() {
            let row = vm.row();
            let layers = self.layers();
            let below = row.tops().iter().flatten().any(|top| {
                let chain = layers.chain(top).unwrap_or_default();
                chain.iter().any(|layer| layer.path.starts_with(root))
            });
            if row.datastore == store.id || below {
                return Some(format!("the VM {}", row.name));
            }
        }
        let objects = self.objects_read();
        let inside = |row: &&ObjectRow| row.parent.as_ref() == Some(&store.id);
        if let Some(row) = objects.values().find(inside) {
            return Some(format!("the {} {}", row.kind.replace('_', " "), row.name));
        }
        drop(objects);
        let layers = self.layers().any_below(root);
        let layers = layers.then(|| "disk layers of a snapshot or fork point".to_owned());
        layers.or_else(|| self.user_of_memory(root))
    }

    pub(super) fn tell_object(
        &self,
        store: &Object<Datastore>,
        kind: &'static str,
        message: String,
    ) {
        let told = event(&store.name, kind, message).about(&store.id);
        let changes = Changes {
            events: vec![told],
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
    }

    pub(super) fn store_turn(&self) -> std::sync::MutexGuard<'_, ()> {
        let turn = &self.stores.turn;
        turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses to remove the datastore that every data directory has.
fn check_not_first(store: &Object<Datastore>) -> OpResult<()> {
    if store.id != FIRST_DATASTORE {
        return Ok(());
    }
    Err(OpError::conflict(format!(
        "{} is part of the data directory and stays; put it in maintenance with \
         'mitose datastore maintenance {0}' so that it takes no new disks",
        store.name
    )))
}

fn in_use(store: &Object<Datastore>, user: &str) -> OpError {
    OpError::conflict(format!(
        "{} is used by {user}; remove that first",
        store.name
    ))
}
