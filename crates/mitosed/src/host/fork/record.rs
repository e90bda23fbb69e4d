//! The record of a fork's intent, written beside the preparations: recorded before the source
//! stands still, durable before a guest's flush on a new top is answered.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::prepared_ahead_max;
use super::seats::Seat;
use crate::error::{OpError, OpResult};
use crate::host::limits::Raise;
use crate::host::{Host, Vm};
use crate::inventory::{Changes, sync_directory};

/// Threads that wait for the next record; more end when theirs is written.
const IDLE_MAX: usize = 4;

/// Longest wait for clones to run before their record is synced.
const START_WAIT: Duration = Duration::from_millis(3);

type Work = Box<dyn FnOnce() + Send>;

/// Threads that write records. Each record has one of its own from its beginning to its end, since a
/// fork waits for it: it never stands behind the record of another fork.
#[derive(Debug, Default)]
pub(in crate::host) struct Recorders(Arc<Mutex<Vec<mpsc::Sender<Work>>>>);

impl Recorders {
    /// Has `work` done at once: by a thread that waits, which is there sooner than a new one, or by
    /// a new one. Where the host gives none, that is an error.
    fn begin(&self, work: Work) -> OpResult<()> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = match idle {
            None => work,
            Some(idle) => match idle.send(work) {
                Ok(()) => return Ok(()),
                // It ended.
                Err(mpsc::SendError(work)) => work,
            },
        };
        let idle = Arc::downgrade(&self.0);
        std::thread::Builder::new()
            .name("fork-record".into())
            .spawn(move || serve(work, &idle))
            .context("cannot start a thread")?;
        Ok(())
    }
}

/// Does `work`, then what comes, until the host is gone or enough others wait.
fn serve(mut work: Work, idle: &Weak<Mutex<Vec<mpsc::Sender<Work>>>>) {
    loop {
        work();
        let (sender, next) = mpsc::channel();
        let Some(idle) = idle.upgrade() else { return };
        {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() >= IDLE_MAX {
                return;
            }
            idle.push(sender);
        }
        drop(idle);
        let Ok(given) = next.recv() else { return };
        work = given;
    }
}

/// A record that is written, then synced. Dropped early it is waited for, so that what is written
/// never comes after what takes it back.
#[derive(Debug)]
pub(super) struct Recording {
    recorded: mpsc::Receiver<OpResult<()>>,
    files_made: Option<mpsc::Sender<()>>,
    synced: mpsc::Receiver<anyhow::Result<()>>,
}

impl Recording {
    /// Starts to record the rows of `vms` and `changes`, and to do beside what else is to be done
    /// before the source stands still: `raise` is its limit. The limits of those whose processes
    /// have groups by then are set when the files are made.
    pub fn start(
        host: &Arc<Host>,
        vms: Vec<Arc<Vm>>,
        changes: Changes,
        raise: Option<Raise>,
    ) -> OpResult<Self> {
        let (tell, recorded) = mpsc::channel();
        let (files_made, wait) = mpsc::channel::<()>();
        let (ended, synced) = mpsc::channel();
        let recorders = &host.recorders;
        let host = Arc::clone(host);
        recorders.begin(Box::new(move || {
            let rows: Vec<&Arc<Vm>> = vms.iter().collect();
            let recorded = host.commit_intent(&rows, changes).map(drop);
            host.raise(raise);
            // Whoever waits for the result goes on; one that gave up does not.
            let _ = tell.send(recorded);
            let result = match wait.recv() {
                Ok(()) => host.finish_record(&vms),
                Err(_) => Ok(()),
            };
            // The host may end when the result is known.
            drop((vms, host));
            let _ = ended.send(result);
        }))?;
        Ok(Self {
            recorded,
            files_made: Some(files_made),
            synced,
        })
    }

    /// The files that the record names are there, and clones were told to run: syncs both when they
    /// run, if that is soon. A sync keeps processors busy; but flushes of guests wait for it.
    pub fn sync_when_running(&mut self, seats: &mut [Seat]) {
        if seats.len() <= prepared_ahead_max() {
            let deadline = Instant::now() + START_WAIT;
            let pending = seats.iter_mut().filter_map(|seat| seat.pending.as_mut());
            pending.for_each(|pending| pending.look_until(deadline));
        }
        self.files_made();
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
    pub fn wait_durable(self) -> anyhow::Result<()> {
        let result = self.synced.recv();
        result.context("the thread that syncs the datastore ended")?
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.files_made.take());
        // Nothing comes where the result was taken.
        let _ = self.synced.recv();
    }
}

impl Host {
    /// Limits the processes that VMs were given for this, and syncs what names them.
    fn finish_record(&self, vms: &[Arc<Vm>]) -> anyhow::Result<()> {
        // One that ran before has its limit, and finding it again takes a look at all of its pages.
        let new = |vm: &&Arc<Vm>| vm.live().ram.is_none();
        vms.iter().filter(new).for_each(|vm| self.limit(vm));
        let stores: BTreeSet<_> = vms.iter().map(|vm| vm.row().datastore).collect();
        for store in stores {
            sync_directory(&self.store(&store).layers()).context("cannot sync the datastore")?;
        }
        self.inventory.sync().context("cannot sync the inventory")
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{ThreadId, current};

    use super::*;

    /// Has the thread that works tell its id, and wait for a word.
    fn work(recorders: &Recorders) -> (ThreadId, mpsc::Sender<()>) {
        let (tell, told) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let work = move || {
            tell.send(current().id()).unwrap();
            let _ = wait.recv();
        };
        recorders.begin(Box::new(work)).unwrap();
        (told.recv().unwrap(), go_on)
    }

    fn idle(recorders: &Recorders) -> usize {
        recorders.0.lock().unwrap().len()
    }

    fn wait_idle(recorders: &Recorders, count: usize) {
        while idle(recorders) != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_record_never_stands_behind_another_and_threads_are_used_again() {
        let recorders = Recorders::default();
        let (first, go_on) = work(&recorders);
        let (second, go_on_too) = work(&recorders);
        assert_ne!(first, second);
        drop(go_on);
        wait_idle(&recorders, 1);
        let (third, go_on) = work(&recorders);
        assert_eq!(third, first);
        drop((go_on, go_on_too));
        wait_idle(&recorders, 2);
    }

    #[test]
    fn few_threads_wait_and_none_outlives_the_host() {
        let recorders = Recorders::default();
        let working: Vec<_> = (0..IDLE_MAX + 3).map(|_| work(&recorders)).collect();
        drop(working);
        wait_idle(&recorders, IDLE_MAX);
        let watched = Arc::downgrade(&recorders.0);
        drop(recorders);
        while watched.upgrade().is_some() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_broke_off_is_not_asked_again() {
        let recorders = Recorders::default();
        let (tell, told) = mpsc::channel::<()>();
        let panics = Box::new(move || {
            let _tell = tell;
            std::panic::resume_unwind(Box::new("broken on purpose"));
        });
        recorders.begin(panics).unwrap();
        assert!(told.recv().is_err());
        let (_, go_on) = work(&recorders);
        drop(go_on);
        wait_idle(&recorders, 1);
    }
}
