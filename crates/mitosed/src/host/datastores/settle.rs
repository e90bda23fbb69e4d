//! Datastores at the start of a daemon, and their coming and going while it runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;

use super::space::{warn_of, why_lost};
use crate::clock::random_hex;
use crate::host::Host;
use crate::host::recover::sweep;
use crate::inventory::{Datastore, FIRST_DATASTORE, Object};
use vm_spec::format_size;

/// Pause between two looks at all datastores.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

impl Host {
    /// Marks the first datastore when it is new, takes back additions that a crash cut, and notes
    /// which datastores are there.
    pub(in crate::host) fn meet_datastores(&self) -> anyhow::Result<()> {
        for store in self.objects::<Datastore>() {
            let dir = self.store(&store.id);
            if store.doc.adding {
                // The mark may have been cut while it was written: nobody else's was there before.
                let begun = |found: String| store.doc.mark.starts_with(&found);
                if dir.read_mark().is_ok_and(|found| found.is_none_or(begun)) {
                    let _ = dir.unmark();
                }
                self.remove_object::<Datastore>(&store.id, None)
                    .map_err(|error| anyhow::anyhow!(error.message()))?;
                continue;
            }
            if store.id == FIRST_DATASTORE && store.doc.mark.is_empty() {
                self.mark_first()?;
            }
            let store = self
                .object::<Datastore>(&store.id)
                .map_err(|error| anyhow::anyhow!(error.message()))?;
            match why_lost(&dir, &store.doc) {
                None => {
                    dir.make_dirs()?;
                    self.meet_disk_pools(&store.id);
                }
                Some(reason) => {
                    tracing::warn!(datastore = store.name, reason, "a datastore is not there");
                    self.stores.note_lost(&store.id, Some(reason));
                }
            }
        }
        Ok(())
    }

    /// A data directory that has no mark yet, or one of which the inventory does not know.
    fn mark_first(&self) -> anyhow::Result<()> {
        let dir = self.store(FIRST_DATASTORE);
        let failed = || format!("cannot mark the datastore {}", dir.root().display());
        let mark = match dir.read_mark().with_context(failed)? {
            Some(mark) if !mark.is_empty() => mark,
            _ => {
                let mark = random_hex::<16>();
                dir.write_mark(&mark).with_context(failed)?;
                mark
            }
        };
        self.change_object::<Datastore>(FIRST_DATASTORE, None, |store| {
            store.doc.mark = mark;
            Ok(())
        })
        .map_err(|error| anyhow::anyhow!(error.message()))?;
        Ok(())
    }

    /// Looks at all datastores again and again for as long as the host is there.
    pub(in crate::host) fn watch_datastores(self: &Arc<Self>) -> anyhow::Result<()> {
        let host: Weak<Self> = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("datastores".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(LOOK_INTERVAL);
                    let Some(host) = host.upgrade() else { return };
                    host.look_at_datastores();
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }

    fn look_at_datastores(self: &Arc<Self>) {
        for store in self.objects::<Datastore>() {
            if store.doc.adding {
                continue;
            }
            let reason = why_lost(&self.store(&store.id), &store.doc);
            let is_back = reason.is_none() && self.stores.is_lost(&store.id);
            if is_back {
                self.settle_datastore(&store);
            }
            if self.stores.note_lost(&store.id, reason.clone()) {
                match &reason {
                    Some(reason) => {
                        self.tell_object(&store, "datastore.inaccessible", reason.clone());
                    }
                    None => {
                        self.tell_object(&store, "datastore.accessible", "is back".to_owned());
                    }
                }
            }
            if reason.is_none() {
                self.look_at_space(&store);
            }
        }
    }

    fn look_at_space(&self, store: &Object<Datastore>) {
        let Ok(space) = self.store(&store.id).space() else {
            return;
        };
        let warn = warn_of(&store.doc, space);
        let is_low = space.free_bytes < warn;
        if !self.stores.note_low(&store.id, is_low) {
            return;
        }
        let free = format_size(space.free_bytes);
        let (kind, message) = if is_low {
            let message = format!("{free} free, less than {}; make space", format_size(warn));
            ("datastore.low_space", message)
        } else {
            ("datastore.space", format!("{free} free"))
        };
        self.tell_object(store, kind, message);
    }

    /// Does on a datastore that is back what recovery does at the start.
    fn settle_datastore(self: &Arc<Self>, store: &Object<Datastore>) {
        if let Err(error) = self.store(&store.id).make_dirs() {
            tracing::warn!(datastore = store.name, "{error:#}");
        }
        for vm in self.all() {
            if vm.row().datastore != store.id {
                continue;
            }
            if let Ok(_turn) = self.turn(&vm)
                && vm.link().is_none()
            {
                self.settle_pending_of(&vm);
            }
        }
        self.sweep_datastore(&store.id);
        self.meet_disk_pools(&store.id);
    }

    /// Removes files and folders of a datastore that no row names. A file or folder that comes
    /// to be meanwhile has its row before it.
    pub(in crate::host) fn sweep_datastore(&self, id: &str) {
        if self.keeps_unlisted() {
            return;
        }
        let dir = self.store(id);
        sweep(&dir.vms(), |name| self.listing().get(name).is_some());
        let layers = dir.layers();
        sweep(&layers, |name| self.layers().has_path(&layers.join(name)));
        self.sweep_memory(id);
    }
}
