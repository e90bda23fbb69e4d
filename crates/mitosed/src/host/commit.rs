//! Writing changes to the inventory's store, and what happens while it takes none.
//!
//! What a user asks for is written first and taken over in memory when that worked. What has
//! happened by itself (a guest powered off, a process died) is true whether it can be written or
//! not: it waits in the backlog, is written before anything else, and is tried again each second.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api_types::ErrorKind;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, VmRow};

/// Pause between two attempts to write the backlog.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two backups of the inventory.
const BACKUP_INTERVAL: Duration = Duration::from_secs(3600);
/// Events that wait for the store; older ones are dropped.
const MAX_WAITING_EVENTS: usize = 10_000;

/// What is true and not written yet.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// VMs whose rows are to be written as they are then.
    vms: BTreeMap<String, Arc<Vm>>,
    changes: Changes,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.vms.is_empty() && self.changes.is_empty()
    }

    fn add_vms(&mut self, vms: &[&Arc<Vm>]) {
        let vms = vms.iter().map(|vm| (vm.id.clone(), Arc::clone(vm)));
        self.vms.extend(vms);
    }
}

impl Host {
    /// Writes the present rows of `vms` and `changes` to the inventory in one batch, and tells the
    /// events. Where that fails the rows are written later, as they are then.
    pub(super) fn commit(&self, vms: &[&Arc<Vm>], changes: Changes) -> OpResult<()> {
        let written = self.commit_intent(vms, changes)?;
        self.look_at_stacks(&written);
        Ok(())
    }

    /// As [`Host::commit`] for what is not over yet: another commit follows, and before that nobody
    /// looks at the VMs' stacks. Returns what was written.
    pub(super) fn commit_intent(
        &self,
        vms: &[&Arc<Vm>],
        mut changes: Changes,
    ) -> OpResult<Changes> {
        super::tasks::sign(&mut changes.events);
        let mut backlog = self.backlog();
        let written = self.catch_up(&mut backlog).and_then(|()| {
            let rows = vms.iter().filter_map(|vm| vm.row_to_store());
            changes.vms.extend(rows);
            self.write(&changes)
        });
        if written.is_err() {
            backlog.add_vms(vms);
        }
        written.map(|()| changes)
    }

    /// Has the background look at the stacks of VMs that were written.
    fn look_at_stacks(&self, changes: &Changes) {
        for row in changes.vms.iter().filter(|row| !row.disks.is_empty()) {
            self.upkeep.look_at(&row.id);
        }
    }

    /// As [`Host::commit`], for what has happened and cannot be taken back: it is written later
    /// where it cannot be written now.
    pub(super) fn commit_logged(&self, vms: &[&Arc<Vm>], mut changes: Changes) {
        super::tasks::sign(&mut changes.events);
        let mut backlog = self.backlog();
        let first = backlog.is_empty();
        backlog.add_vms(vms);
        backlog.changes.append(changes);
        let events = &mut backlog.changes.events;
        let excess = events.len().saturating_sub(MAX_WAITING_EVENTS);
        events.drain(..excess);
        if let Err(error) = self.catch_up(&mut backlog)
            && first
        {
            tracing::error!("{}; it is tried again", error.message());
        }
    }

    /// Changes a VM's row by a wish of a user: in the store first, so that memory never runs ahead
    /// of it. `change` is done twice.
    pub(super) fn change_row(
        &self,
        vm: &Arc<Vm>,
        mut changes: Changes,
        change: impl Fn(&mut VmRow),
    ) -> OpResult<()> {
        super::tasks::sign(&mut changes.events);
        let mut backlog = self.backlog();
        self.catch_up(&mut backlog)?;
        let Some(mut row) = vm.row_to_store() else {
            return Err(OpError::new(
                ErrorKind::NotFound,
                format!("{} was removed", vm.name()),
            ));
        };
        change(&mut row);
        changes.vms.push(row);
        self.write(&changes)?;
        self.look_at_stacks(&changes);
        vm.update(|live| change(&mut live.row));
        Ok(())
    }

    /// Writes what waits; the caller holds the store.
    fn catch_up(&self, backlog: &mut Backlog) -> OpResult<()> {
        if backlog.is_empty() {
            return Ok(());
        }
        let mut changes = backlog.changes.clone();
        let rows = backlog.vms.values().filter_map(|vm| vm.row_to_store());
        changes.vms.extend(rows);
        self.write(&changes)?;
        self.look_at_stacks(&changes);
        *backlog = Backlog::default();
        Ok(())
    }

    fn write(&self, changes: &Changes) -> OpResult<()> {
        let events = self.inventory.apply(changes).map_err(OpError::from)?;
        self.apply_objects(changes);
        for event in events {
            tracing::info!(
                subject = event.subject,
                kind = event.kind,
                "{}",
                event.message
            );
            let _ = self.news.send(event);
        }
        Ok(())
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to look for a backlog now and then, for as long as the host lives.
    pub(super) fn keep_catching_up(self: &Arc<Self>) -> std::io::Result<()> {
        let host = Arc::downgrade(self);
        let look = move || {
            let mut backed_up: Option<Instant> = None;
            while let Some(host) = host.upgrade() {
                let mut backlog = host.backlog();
                if !backlog.is_empty() && host.catch_up(&mut backlog).is_ok() {
                    tracing::info!("the inventory takes changes again; what waited is written");
                }
                drop(backlog);
                host.end_waiting_tasks();
                if let Err(error) = host.inventory.tidy_up() {
                    tracing::debug!(%error, "the inventory's log stays as it is");
                }
                if backed_up.is_none_or(|at| at.elapsed() > BACKUP_INTERVAL) {
                    backed_up = Some(Instant::now());
                    match host.inventory.back_up() {
                        Ok(()) => host.end_epoch(),
                        Err(error) => {
                            let error = anyhow::Error::from(error);
                            tracing::warn!("{}", crate::error::chain_line(&error));
                        }
                    }
                }
                drop(host);
                std::thread::sleep(RETRY_INTERVAL);
            }
        };
        std::thread::Builder::new()
            .name("catch-up".into())
            .spawn(look)
            .map(drop)
    }
}
