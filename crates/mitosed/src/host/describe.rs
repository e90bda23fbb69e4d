//! Names, places and words of a user: what every object of the inventory has.

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::{
    DryRun, ErrorKind, LabelsReply, MAX_ANNOTATION_BYTES, MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES,
    ObjectRequest, ReconfigureRequest, TreeObject,
};
use serde_json::{Value, json};

use super::check::Problems;
use super::vm::Place;
use super::{Host, Vm, check_version, event, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, Kind, Labels, Network, NewEvent, Object, ObjectRow, ResourcePool};

/// Objects that keep their names: the roots of the tree.
const FIXED: [&str; 5] = [
    "datacenter-1",
    "folder-1",
    "folder-2",
    "folder-3",
    "folder-4",
];

/// Name that the network of every inventory has from the start.
const FIRST_NETWORK_NAME: &str = "VM Network";

/// What a user wants to be called and said about a VM, checked.
#[derive(Debug, Default)]
pub(super) struct Description {
    place: Option<Place>,
    pool: Option<String>,
    labels: Option<Labels>,
}

impl Description {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.place.is_none() && self.pool.is_none() && self.labels.is_none()
    }
}

impl Host {
    /// Checks the part of a change that every object has.
    pub(super) fn plan_description(
        &self,
        vm: &Vm,
        change: &ReconfigureRequest,
    ) -> OpResult<Description> {
        let place = vm.place();
        let mut wanted = place.clone();
        if let Some(name) = &change.name {
            if let Some(problem) = api_types::name_problem(name) {
                return Err(OpError::invalid(problem));
            }
            wanted.name = name.as_str().into();
        }
        if let Some(folder) = &change.folder {
            wanted.folder = self.folder(folder)?.id.into();
        }
        let pool = change.pool.as_deref().map(|pool| self.pool_id(Some(pool)));
        let row = vm.row();
        let pool = pool.transpose()?.filter(|pool| *pool != pool_of(&row.pool));
        if let Some(pool) = &pool {
            self.check_pool(pool, 1, row.spec.memory_bytes)?;
        }
        let place = (wanted != place).then_some(wanted);
        if let Some(place) = &place {
            self.check_place_free(vm, place)?;
        }
        Ok(Description {
            place,
            pool,
            labels: changed_labels(
                &row.labels,
                change.annotation.as_deref(),
                &change.attributes,
            )?,
        })
    }

    /// Carries a description out; the caller has the VM's turn and has looked at its version.
    pub(super) fn describe(&self, vm: &Arc<Vm>, description: Description) -> OpResult<()> {
        let Description {
            place,
            pool,
            labels,
        } = description;
        let before = vm.place();
        let mut events = Vec::new();
        if let Some(place) = &place {
            if place.name != before.name {
                let message = format!("renamed to {}", place.name);
                let data = json!({ "from": &*before.name, "to": &*place.name });
                events.push(vm_event(vm, "vm.renamed", message).with(data));
            }
            if place.folder != before.folder {
                let message = format!("moved to {}", self.shown_path(&place.folder));
                let data = json!({ "from": &*before.folder, "to": &*place.folder });
                events.push(vm_event(vm, "vm.moved", message).with(data));
            }
        }
        if pool.is_some() || labels.is_some() {
            let data = json!({ "pool": pool, "labels": labels });
            events.push(vm_event(vm, "vm.described", "described").with(data));
        }
        if let Some(place) = &place {
            self.shift(vm, place.clone())?;
        }
        let changes = Changes {
            events,
            ..Changes::default()
        };
        let changed = self.change_row(vm, changes, |row| {
            if let Some(place) = &place {
                row.name = place.name.to_string();
                row.folder = Some(place.folder.to_string());
            }
            if let Some(pool) = &pool {
                row.pool = Some(pool.clone());
            }
            if let Some(labels) = &labels {
                row.labels = labels.clone();
            }
            row.version += 1;
        });
        if changed.is_err() && place.is_some() {
            // It cannot be taken: the VM has its turn, and nobody else was there.
            let _ = self.shift(vm, before);
        }
        changed
    }

    /// Lists a VM in another place.
    fn shift(&self, vm: &Arc<Vm>, place: Place) -> OpResult<()> {
        let free = {
            let mut vms = self
                .vms
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            vms.shift(vm, place.clone())
        };
        match free {
            true => Ok(()),
            false => Err(self.taken(&place)),
        }
    }

    /// Refuses a place that another VM has.
    fn check_place_free(&self, vm: &Vm, place: &Place) -> OpResult<()> {
        let taken = self
            .listing()
            .all()
            .any(|other| other.id != vm.id && other.place() == *place);
        match taken {
            true => Err(self.taken(place)),
            false => Ok(()),
        }
    }

    fn taken(&self, place: &Place) -> OpError {
        OpError::conflict(format!(
            "name: there is a VM {:?} in {} already; choose another name or folder",
            place.name,
            self.shown_path(&place.folder)
        ))
    }

    /// Any object by its id.
    pub fn show_any(&self, id: &str) -> OpResult<TreeObject> {
        if let Ok(vm) = self.find(id) {
            let row = vm.row();
            return Ok(TreeObject {
                id: row.id,
                kind: "vm".to_owned(),
                name: row.name,
                parent: Some(vm.place().folder.to_string()),
                version: row.version,
                labels: reply(&row.labels),
            });
        }
        let objects = self.objects_read();
        let found = objects.get(id).map(show_row);
        found.ok_or_else(|| {
            OpError::new(
                ErrorKind::NotFound,
                format!("there is no object {id:?}; 'mitose object ls' lists them"),
            )
        })
    }

    /// All objects, VMs too, by id.
    pub fn list_objects(&self) -> Vec<TreeObject> {
        let mut all: Vec<TreeObject> = self.objects_read().values().map(show_row).collect();
        let vms = self.all();
        all.extend(vms.iter().filter_map(|vm| self.show_any(&vm.id).ok()));
        all
    }

    /// Changes name, place and words of any object.
    pub fn change_any(
        self: &Arc<Self>,
        id: &str,
        expected: Option<u64>,
        request: &ObjectRequest,
    ) -> OpResult<TreeObject> {
        if let Ok(vm) = self.find(id) {
            self.reconfigure(&vm, expected, &change_of_vm(request))?;
            return self.show_any(&vm.id);
        }
        let _turn = self.objects_turn();
        let found = self.objects_read().get(id).cloned();
        let Some(before) = found else {
            return self.show_any(id);
        };
        let mut problems = Problems::default();
        let mut row = self.plan_row(&before, expected, request, &mut problems);
        problems.finish()?;
        if row == before {
            return Ok(show_row(&row));
        }
        row.version += 1;
        let changes = Changes {
            objects: vec![row.clone()],
            events: change_events(&before, &row),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        Ok(show_row(&row))
    }

    /// Tries a change of any object out.
    pub fn check_any_change(
        &self,
        id: &str,
        expected: Option<u64>,
        request: &ObjectRequest,
    ) -> DryRun {
        if let Ok(vm) = self.find(id) {
            return self.check_reconfigure(&vm, expected, &change_of_vm(request));
        }
        let mut problems = Problems::default();
        let found = self.objects_read().get(id).cloned();
        match found {
            Some(row) => drop(self.plan_row(&row, expected, request, &mut problems)),
            None => drop(problems.take(self.show_any(id))),
        }
        problems.dry_run()
    }

    /// The row of an object as it is to be.
    fn plan_row(
        &self,
        before: &ObjectRow,
        expected: Option<u64>,
        request: &ObjectRequest,
        problems: &mut Problems,
    ) -> ObjectRow {
        let noun = before.kind.replace('_', " ");
        problems.take(check_version(&noun, &before.id, expected, before.version));
        let mut row = before.clone();
        problems.take(self.rename_row(&mut row, request));
        problems.take(self.move_row(&mut row, request));
        problems.take(relabel_row(&mut row, request));
        problems.take(limit_row(&mut row, request));
        row
    }

    fn rename_row(&self, row: &mut ObjectRow, request: &ObjectRequest) -> OpResult<()> {
        let Some(name) = request.name.as_ref().filter(|name| **name != row.name) else {
            return Ok(());
        };
        if FIXED.contains(&row.id.as_str()) {
            return Err(OpError::conflict(format!(
                "name: {} keeps its name {:?}; annotate it instead",
                row.id, row.name
            )));
        }
        // A network may have the name back that the first one has from the start.
        let first = row.kind == Network::KIND && name == FIRST_NETWORK_NAME;
        if let Some(problem) = api_types::name_problem(name).filter(|_| !first) {
            return Err(OpError::invalid(problem));
        }
        row.name.clone_from(name);
        self.check_place(row)
    }

    fn move_row(&self, row: &mut ObjectRow, request: &ObjectRequest) -> OpResult<()> {
        let Some(parent) = &request.parent else {
            return Ok(());
        };
        let parent = self.folder(parent)?.id;
        if row.parent.as_deref() == Some(&parent) {
            return Ok(());
        }
        if row.kind != "folder" || FIXED.contains(&row.id.as_str()) {
            return Err(OpError::conflict(format!(
                "parent: {} stays where it is; only VMs and their folders move",
                row.id
            )));
        }
        self.check_folder_move(&row.id, &parent)?;
        row.parent = Some(parent);
        self.check_place(row)
    }

    /// Refuses a place that another object of the kind has.
    fn check_place(&self, row: &ObjectRow) -> OpResult<()> {
        let objects = self.objects_read();
        let taken = objects.values().any(|other| {
            other.id != row.id
                && (&other.kind, &other.parent, &other.name) == (&row.kind, &row.parent, &row.name)
        });
        if taken {
            return Err(OpError::conflict(format!(
                "name: there is a {} {:?} already; choose another name",
                row.kind.replace('_', " "),
                row.name
            )));
        }
        Ok(())
    }
}

/// The change of a VM that a request about any object asks for.
fn change_of_vm(request: &ObjectRequest) -> ReconfigureRequest {
    ReconfigureRequest {
        name: request.name.clone(),
        folder: request.parent.clone(),
        annotation: request.annotation.clone(),
        attributes: request.attributes.clone(),
        ..ReconfigureRequest::default()
    }
}

/// Id of the pool that a row names.
pub(super) fn pool_of(pool: &Option<String>) -> &str {
    pool.as_deref().unwrap_or(super::pools::FIRST_POOL)
}

/// An object of a known kind as it is shown.
pub(super) fn show_object<T: Kind>(object: &Object<T>, labels: &Labels) -> TreeObject {
    TreeObject {
        id: object.id.clone(),
        kind: T::KIND.to_owned(),
        name: object.name.clone(),
        parent: object.parent.clone(),
        version: object.version,
        labels: reply(labels),
    }
}

fn show_row(row: &ObjectRow) -> TreeObject {
    let labels = row.doc.get("labels").cloned().unwrap_or_default();
    let labels: Labels = serde_json::from_value(labels).unwrap_or_default();
    TreeObject {
        id: row.id.clone(),
        kind: row.kind.clone(),
        name: row.name.clone(),
        parent: row.parent.clone(),
        version: row.version,
        labels: reply(&labels),
    }
}

/// Words of a user as they are shown.
pub(super) fn reply(labels: &Labels) -> LabelsReply {
    LabelsReply {
        annotation: labels.annotation.clone(),
        attributes: labels.attributes.clone(),
    }
}

/// Labels with a change, or none where it changes nothing.
pub(super) fn changed_labels(
    labels: &Labels,
    annotation: Option<&str>,
    attributes: &BTreeMap<String, Option<String>>,
) -> OpResult<Option<Labels>> {
    let mut changed = labels.clone();
    if let Some(annotation) = annotation {
        if annotation.len() > MAX_ANNOTATION_BYTES {
            return Err(OpError::invalid(format!(
                "annotation: {} bytes are more than {MAX_ANNOTATION_BYTES}; shorten it",
                annotation.len()
            )));
        }
        annotation.clone_into(&mut changed.annotation);
    }
    for (key, value) in attributes {
        if api_types::name_problem(key).is_some() {
            let shown: String = key.chars().take(api_types::MAX_NAME_BYTES).collect();
            return Err(OpError::invalid(format!(
                "attributes: {shown:?} is no name of an attribute; take letters, digits, '-', '_' and '.'"
            )));
        }
        match value {
            Some(value) if value.len() > MAX_ATTRIBUTE_BYTES => {
                return Err(OpError::invalid(format!(
                    "attributes: {key} has {} bytes, more than {MAX_ATTRIBUTE_BYTES}; shorten it",
                    value.len()
                )));
            }
            Some(value) => drop(changed.attributes.insert(key.clone(), value.clone())),
            None => drop(changed.attributes.remove(key)),
        }
    }
    if changed.attributes.len() > MAX_ATTRIBUTES {
        return Err(OpError::invalid(format!(
            "attributes: {} are more than {MAX_ATTRIBUTES}; remove some",
            changed.attributes.len()
        )));
    }
    Ok((changed != *labels).then_some(changed))
}

fn relabel_row(row: &mut ObjectRow, request: &ObjectRequest) -> OpResult<()> {
    let labels = row.doc.get("labels").cloned().unwrap_or_default();
    let labels: Labels = serde_json::from_value(labels).unwrap_or_default();
    let annotation = request.annotation.as_deref();
    let Some(labels) = changed_labels(&labels, annotation, &request.attributes)? else {
        return Ok(());
    };
    let labels = serde_json::to_value(labels).map_err(|e| OpError::caused(ErrorKind::Failed, e))?;
    if let Value::Object(doc) = &mut row.doc {
        doc.insert("labels".to_owned(), labels);
    }
    Ok(())
}

fn limit_row(row: &mut ObjectRow, request: &ObjectRequest) -> OpResult<()> {
    let (vms, memory) = (request.vms_max, request.memory_bytes_max);
    if vms.is_none() && memory.is_none() {
        return Ok(());
    }
    if row.kind != ResourcePool::KIND {
        return Err(OpError::conflict(format!(
            "vms_max: {} is no resource pool; only pools have limits",
            row.id
        )));
    }
    if let Value::Object(doc) = &mut row.doc {
        if let Some(vms) = vms {
            doc.insert("vms_max".to_owned(), json!((vms > 0).then_some(vms)));
        }
        if let Some(bytes) = memory {
            let limit = (bytes > 0).then_some(bytes);
            doc.insert("memory_bytes_max".to_owned(), json!(limit));
        }
    }
    Ok(())
}

/// What is told of a change.
fn change_events(before: &ObjectRow, after: &ObjectRow) -> Vec<NewEvent> {
    let kinds: [&'static str; 3] = match after.kind.as_str() {
        "folder" => ["folder.renamed", "folder.moved", "folder.described"],
        "network" => ["network.renamed", "network.moved", "network.described"],
        "resource_pool" => ["pool.renamed", "pool.moved", "pool.described"],
        "datastore" => [
            "datastore.renamed",
            "datastore.moved",
            "datastore.described",
        ],
        _ => ["object.renamed", "object.moved", "object.described"],
    };
    let tell = |kind, message: String, data| {
        event(&before.name, kind, message)
            .about(&after.id)
            .with(data)
    };
    let mut events = Vec::new();
    if before.name != after.name {
        let data = json!({ "from": before.name, "to": after.name });
        let message = format!("renamed to {}", after.name);
        events.push(tell(kinds[0], message, data));
    }
    if before.parent != after.parent {
        let data = json!({ "from": before.parent, "to": after.parent });
        events.push(tell(kinds[1], "moved".to_owned(), data));
    }
    if before.doc != after.doc {
        let data = after.doc.clone();
        events.push(tell(kinds[2], "described".to_owned(), data));
    }
    events
}
