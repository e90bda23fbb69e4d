//! Folders of VMs: a tree of any depth below the first one, and the way from names to folders.

use std::sync::{Arc, PoisonError};

use api_types::{DryRun, Folder as FolderReply, FolderRequest, MAX_FOLDER_DEPTH};
use serde_json::json;

use super::check::Problems;
use super::{Host, event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Folder, Labels, Object, VM_FOLDER};

/// What folders of VMs hold.
const HOLDS_VMS: &str = "vm";

impl Host {
    /// The folder of VMs of an id, or of names joined by `/` from the first one, itself `/`.
    pub fn folder(&self, reference: &str) -> OpResult<Object<Folder>> {
        let by_id = |id: &str| self.object::<Folder>(id).ok().filter(|f| f.id == id);
        let holds_vms = |folder: &Object<Folder>| folder.doc.holds == HOLDS_VMS;
        if let Some(folder) = by_id(reference) {
            if holds_vms(&folder) {
                return Ok(folder);
            }
            return Err(OpError::conflict(format!(
                "folder: {reference} holds no VMs but objects of kind {}; name a folder of 'mitose folder ls'",
                folder.doc.holds
            )));
        }
        let mut at = by_id(VM_FOLDER);
        for name in reference.split('/').filter(|name| !name.is_empty()) {
            let parent = at.map(|folder| folder.id);
            at = self
                .objects::<Folder>()
                .into_iter()
                .find(|folder| folder.parent == parent && folder.name == name);
            if at.is_none() {
                return Err(OpError::new(
                    api_types::ErrorKind::NotFound,
                    format!(
                        "folder: there is no folder {reference:?}; make it with 'mitose folder create'"
                    ),
                ));
            }
        }
        at.ok_or_else(|| OpError::failed("the inventory has lost its first folder of VMs"))
    }

    /// Id of the folder that a request names, the first one where it names none.
    pub(super) fn folder_id(&self, reference: Option<&str>) -> OpResult<String> {
        match reference {
            None => Ok(VM_FOLDER.to_owned()),
            Some(reference) => Ok(self.folder(reference)?.id),
        }
    }

    /// Names that lead to a folder of VMs, as they are shown: `/` for the first one.
    pub fn shown_path(&self, folder: &str) -> String {
        match self.folder_path(folder) {
            path if path.is_empty() => "/".to_owned(),
            path => path,
        }
    }

    /// All folders of VMs, each behind the one that it lies in.
    pub fn list_folders(&self) -> Vec<FolderReply> {
        let mut folders: Vec<FolderReply> = self
            .objects::<Folder>()
            .iter()
            .filter(|folder| folder.doc.holds == HOLDS_VMS)
            .map(|folder| self.show_folder(folder))
            .collect();
        folders.sort_by(|a, b| a.path.cmp(&b.path));
        folders
    }

    /// A folder as it is shown.
    pub fn show_folder(&self, folder: &Object<Folder>) -> FolderReply {
        let below = |object: &&Object<Folder>| object.parent.as_deref() == Some(&*folder.id);
        FolderReply {
            object: super::describe::show_object(folder, &folder.doc.labels),
            path: self.shown_path(&folder.id),
            vms: self
                .listing()
                .all()
                .filter(|vm| *vm.place().folder == *folder.id)
                .count(),
            folders: self.objects::<Folder>().iter().filter(below).count(),
        }
    }

    /// Tries a request for a folder out.
    pub fn check_folder(&self, request: &FolderRequest) -> DryRun {
        let mut problems = Problems::default();
        self.plan_folder(request, &mut problems);
        problems.dry_run()
    }

    /// The folder that a new one is to lie in.
    fn plan_folder(&self, request: &FolderRequest, problems: &mut Problems) -> Option<String> {
        let parent = problems.take(self.folder_id(request.parent.as_deref()))?;
        problems.take(self.check_free::<Folder>(Some(&parent), &request.name));
        if self.folder_depth(&parent) + 1 > MAX_FOLDER_DEPTH {
            problems.note(OpError::conflict(format!(
                "parent: folders lie at most {MAX_FOLDER_DEPTH} deep; choose one further up"
            )));
        }
        Some(parent)
    }

    /// Makes a folder.
    pub fn make_folder(self: &Arc<Self>, request: &FolderRequest) -> OpResult<FolderReply> {
        let _turn = self.objects_turn();
        let mut problems = Problems::default();
        let parent = self.plan_folder(request, &mut problems);
        let parent = problems.end(parent)?;
        let doc = Folder {
            labels: Labels::default(),
            holds: HOLDS_VMS.to_owned(),
        };
        let told = event(&request.name, "folder.created", "created").with(json!({
            "parent": parent
        }));
        let folder = self.make_object_in_turn(Some(&parent), &request.name, doc, Some(told))?;
        Ok(self.show_folder(&folder))
    }

    /// Removes a folder that nothing lies in.
    pub fn remove_folder(&self, reference: &str) -> OpResult<()> {
        let _turn = self.objects_turn();
        let folder = self.check_folder_removal(reference)?;
        let told = event(&folder.name, "folder.removed", "removed").about(&folder.id);
        self.remove_object::<Folder>(&folder.id, Some(told))
    }

    /// The folder of a reference, where it may be removed.
    pub fn check_folder_removal(&self, reference: &str) -> OpResult<Object<Folder>> {
        let folder = self.folder(reference)?;
        if folder.id == VM_FOLDER {
            return Err(OpError::conflict(
                "folder: the first folder of VMs stays; remove one below it",
            ));
        }
        let shown = self.show_folder(&folder);
        if shown.vms + shown.folders > 0 {
            return Err(OpError::conflict(format!(
                "folder: {} holds {} VMs and {} folders; remove or move them first",
                shown.path, shown.vms, shown.folders
            )));
        }
        Ok(folder)
    }

    /// Refuses to move the folder `id` to `target` where it would lie in itself or too deep.
    pub(super) fn check_folder_move(&self, id: &str, target: &str) -> OpResult<()> {
        if self.folders_above(target).iter().any(|above| above == id) {
            return Err(OpError::conflict(
                "parent: a folder cannot lie in itself; choose one outside of it",
            ));
        }
        let depth = self.folder_depth(target) + self.folder_height(id);
        if depth > MAX_FOLDER_DEPTH {
            return Err(OpError::conflict(format!(
                "parent: folders lie at most {MAX_FOLDER_DEPTH} deep; choose one further up"
            )));
        }
        Ok(())
    }

    /// Ids of a folder and of those that it lies in.
    fn folders_above(&self, folder: &str) -> Vec<String> {
        let objects = self.objects_read();
        let mut ids = Vec::new();
        let mut next = objects.get(folder);
        while let Some(row) = next.filter(|row| row.kind == "folder") {
            ids.push(row.id.clone());
            next = row.parent.as_deref().and_then(|id| objects.get(id));
        }
        ids
    }

    /// Folders from the first one, which has depth 0.
    fn folder_depth(&self, folder: &str) -> usize {
        self.folders_above(folder).len().saturating_sub(1)
    }

    /// Folders from this one to its deepest, itself included.
    fn folder_height(&self, folder: &str) -> usize {
        let folders = self.objects::<Folder>();
        let mut level = vec![folder.to_owned()];
        let mut height = 0;
        while !level.is_empty() {
            height += 1;
            level = folders
                .iter()
                .filter(|f| f.parent.as_ref().is_some_and(|p| level.contains(p)))
                .map(|f| f.id.clone())
                .collect();
        }
        height
    }

    /// Waits for the turn to change objects.
    pub(super) fn objects_turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.object_turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
