//! The record of a fork's intent, written beside the preparations: recorded before the source
//! stands still, durable before a clone runs.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};

use anyhow::Context;
use tokio::runtime::Handle;

use crate::error::{OpError, OpResult};
use crate::host::{Host, Vm};
use crate::inventory::{Changes, sync_directory};

/// A thread that records, then syncs. Dropped early it is waited for, so that what it writes never
/// comes after what takes it back.
#[derive(Debug)]
pub(super) struct Recording {
    recorded: mpsc::Receiver<OpResult<()>>,
    files_made: Option<mpsc::Sender<()>>,
    ended: Option<mpsc::Receiver<anyhow::Result<()>>>,
}

impl Recording {
    /// Starts to record the rows of `vms` and `changes`.
    pub fn start(host: &Arc<Host>, vms: Vec<Arc<Vm>>, changes: Changes) -> OpResult<Self> {
        let (tell, recorded) = mpsc::channel();
        let (files_made, wait) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
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
        let work = move || {
            let _ = end.send(work());
        };
        // One of the runtime's threads that has nothing to do is there sooner than a new one.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(work);
        } else {
            std::thread::Builder::new()
                .name("fork-record".into())
                .spawn(work)
                .context("cannot start a thread")?;
        }
        Ok(Self {
            recorded,
            files_made: Some(files_made),
            ended: Some(ended),
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
        match self.ended.take().map(|ended| ended.recv()) {
            Some(Ok(result)) => result,
            _ => anyhow::bail!("the thread that syncs the datastore ended"),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.files_made.take());
        if let Some(ended) = self.ended.take() {
            // An error means that it has ended already.
            let _ = ended.recv();
        }
    }
}
