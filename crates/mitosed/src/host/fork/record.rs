//! The record of a fork's intent, written beside the preparations: recorded before the source
//! stands still, durable before a clone runs.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::Context;

use crate::error::{OpError, OpResult};
use crate::host::{Host, Vm};
use crate::inventory::{Changes, sync_directory};

/// A thread that records, then syncs. Dropped early it is waited for, so that what it writes never
/// comes after what takes it back.
#[derive(Debug)]
pub(super) struct Recording {
    recorded: mpsc::Receiver<OpResult<()>>,
    files_made: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Recording {
    /// Starts to record the rows of `vms` and `changes`.
    pub fn start(host: &Arc<Host>, vms: Vec<Arc<Vm>>, changes: Changes) -> OpResult<Self> {
        let (tell, recorded) = mpsc::channel();
        let (files_made, wait) = mpsc::channel::<()>();
        let host = Arc::clone(host);
        let work = move || {
            let vms: Vec<&Arc<Vm>> = vms.iter().collect();
            // Whoever waits for the result goes on; one that gave up does not.
            let _ = tell.send(host.commit(&vms, changes));
            if wait.recv().is_err() {
                return Ok(());
            }
            let stores: BTreeSet<_> = vms.iter().map(|vm| vm.row().datastore).collect();
            for store in stores {
                sync_directory(&host.store(&store).layers())
                    .context("cannot sync the datastore")?;
            }
            host.inventory.sync().context("cannot sync the inventory")
        };
        // A thread of its own: a fork waits for it, and where the host gives none it fails. One of a pool
        // would only be queued then, perhaps behind the fork itself.
        let thread = std::thread::Builder::new()
            .name("fork-record".into())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(Self {
            recorded,
            files_made: Some(files_made),
            thread: Some(thread),
        })
    }

    /// The files that the record names are there: they are synced with it.
    pub fn files_made(&mut self) {
        if let Some(files_made) = self.files_made.take() {
            let _ = files_made.send(());
        }
    }

    /// Waits until the intent survives the daemon's end.
    pub fn wait_recorded(&self) -> OpResult<()> {
        let ended = |_| OpError::failed("the thread that records the fork ended");
        self.recorded.recv().map_err(ended)?
    }

    /// Waits until the intent and the directory entries of its files survive the host's end.
    pub fn wait_durable(mut self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => anyhow::bail!("the thread that syncs the datastore ended"),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.files_made.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
