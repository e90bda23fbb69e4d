//! One VM as the daemon holds it: its row and its connection.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use vmm_protocol::{EndReason, RamView};

use super::fork::History;
use crate::inventory::{PowerState, VM_FOLDER, VmRow};
use crate::vmm::Link;

/// What changes in the life of a VM.
#[derive(Debug)]
pub struct Live {
    /// Its row.
    pub row: VmRow,
    /// Connection to its process.
    pub link: Option<Arc<Link>>,
    /// Memory cgroup of another VM in which its process lives until it is moved.
    pub lodging: Option<String>,
    /// The limit of its process was raised for a fork.
    pub limit_raised: bool,
    /// Where its RAM is.
    pub ram: Option<RamView>,
    /// What its process has of its own, over its forks.
    pub(super) history: History,
    /// Its process ended while no daemon looked: its disks are to be checked.
    pub(super) to_mend: bool,
    /// `CLOCK_MONOTONIC` of the agent's word, nanoseconds.
    pub ready_at_ns: Option<u64>,
    /// Why the process said that it ends.
    pub ended: Option<EndReason>,
    /// A process born by `fork()` has told that it lives.
    pub newborn: bool,
    /// An operation brings its process to life and looks after its end until that is done.
    pub starting: bool,
    /// A write to this disk found no space while it was starting.
    pub early_no_space: Option<usize>,
    /// A thread looks after the guest's wish to be frozen.
    pub freezing: bool,
    /// The identity message that its process holds has other guestinfo than the row.
    pub identity_stale: bool,
    /// What the guest set and the store does not have yet; none while nothing is being written.
    pub guestinfo_news: Option<Vec<String>>,
    /// Latest times that the guest reset itself.
    pub resets: Vec<Instant>,
    /// Latest times that its process closed its connection and ran on.
    pub closings: Vec<Instant>,
    /// Its process runs, and has not answered yet since the daemon connected to it.
    pub unanswered: bool,
    /// Removed: its row is not to be written any more.
    pub removed: bool,
}

/// Where a VM is listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its name.
    pub name: Arc<str>,
    /// Id of its folder.
    pub folder: Arc<str>,
}

impl Place {
    /// The place that a row names.
    pub fn of(row: &VmRow) -> Self {
        Self {
            name: row.name.as_str().into(),
            folder: row.folder.as_deref().unwrap_or(VM_FOLDER).into(),
        }
    }
}

/// One VM.
#[derive(Debug)]
pub struct Vm {
    /// Its id.
    pub id: String,
    place: Mutex<Place>,
    operation: Mutex<()>,
    live: Mutex<Live>,
    changed: Condvar,
}

impl Live {
    /// A process is about to get this VM.
    pub fn begin(&mut self) {
        self.starting = true;
        self.unanswered = false;
        self.limit_raised = false;
        self.early_no_space = None;
        self.identity_stale = false;
        self.ended = None;
        self.ready_at_ns = None;
        self.newborn = false;
        self.history = History::default();
    }

    /// The guest runs, or did for a moment; returns the disk for whose write it found no space.
    pub fn came_to_life(&mut self, ram: RamView) -> Option<usize> {
        self.starting = false;
        self.ram = Some(ram);
        self.row.reason = None;
        self.row.begun = None;
        self.row.standby = false;
        let no_space = self.early_no_space.take();
        self.row.state = match no_space {
            Some(_) => PowerState::PausedNoSpace,
            None => PowerState::Running,
        };
        no_space
    }
}

impl Live {
    /// The guest is loaded and stands still.
    pub fn came_to_rest(&mut self, ram: RamView) -> Option<usize> {
        let no_space = self.came_to_life(ram);
        self.row.state = PowerState::Paused;
        no_space
    }
}

impl Vm {
    /// A VM without a process.
    pub fn new(row: VmRow) -> Arc<Self> {
        Arc::new(Self {
            id: row.id.clone(),
            place: Mutex::new(Place::of(&row)),
            operation: Mutex::new(()),
            live: Mutex::new(Live {
                row,
                link: None,
                lodging: None,
                limit_raised: false,
                ram: None,
                history: History::default(),
                to_mend: false,
                ready_at_ns: None,
                ended: None,
                newborn: false,
                starting: false,
                early_no_space: None,
                freezing: false,
                identity_stale: false,
                guestinfo_news: None,
                resets: Vec::new(),
                closings: Vec::new(),
                unanswered: false,
                removed: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> Arc<str> {
        self.place().name
    }

    /// Where it is listed.
    pub fn place(&self) -> Place {
        self.place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives it another place, also in its row; the caller has its turn and lists it there.
    pub(super) fn set_place(&self, place: Place) {
        let mut live = self.live();
        live.row.name = place.name.to_string();
        live.row.folder = Some(place.folder.to_string());
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Waits for the VM's turn: one operation that changes its power state, disks or existence at
    /// a time.
    pub fn operate(&self) -> MutexGuard<'_, ()> {
        self.operation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the VM's turn where nobody has it.
    pub fn try_operate(&self) -> Option<MutexGuard<'_, ()>> {
        match self.operation.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Its present state.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its state and wakes whoever waits for it.
    pub fn update<T>(&self, change: impl FnOnce(&mut Live) -> T) -> T {
        let result = change(&mut self.live());
        self.changed.notify_all();
        result
    }

    /// A copy of its row.
    pub fn row(&self) -> VmRow {
        self.live().row.clone()
    }

    /// Its row unless it was removed.
    pub fn row_to_store(&self) -> Option<VmRow> {
        let live = self.live();
        (!live.removed).then(|| live.row.clone())
    }

    /// Its power state.
    pub fn state(&self) -> PowerState {
        self.live().row.state
    }

    /// Connection to its process.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.live().link.clone()
    }

    /// Waits until `found` gives something, at most until `deadline`.
    pub fn wait<T>(
        &self,
        deadline: Instant,
        mut found: impl FnMut(&mut Live) -> Option<T>,
    ) -> Option<T> {
        let mut live = self.live();
        loop {
            if let Some(value) = found(&mut live) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return None;
            }
            live = self
                .changed
                .wait_timeout(live, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for the agent's word: its time, or none when the VM ended or time ran out.
    pub fn wait_ready(&self, deadline: Instant) -> Option<u64> {
        self.wait(deadline, |live| match (live.ready_at_ns, &live.link) {
            (Some(at), _) => Some(Some(at)),
            (None, None) => Some(None),
            (None, Some(_)) => None,
        })
        .flatten()
    }
}
