//! The thread that runs a group of devices, and the rules by which others share them with it.
//!
//! The worker parks in `epoll_wait`, holding nothing; when woken it locks its devices, lets each
//! that has news work for a bounded time, and unlocks. vCPUs announce news by setting a bit and
//! writing an eventfd, which never blocks.
//!
//! To fork a VM: [`Worker::gate`] (no new descriptor is taken; the guest runs on and may notify),
//! [`Worker::drain`] (waits for the request in work), stop the vCPUs, then [`Worker::lock`] and
//! save. While the guard lives the worker touches neither devices nor guest memory. Take the
//! guard only when the vCPUs have stopped: a vCPU that resets a device waits for the same mutex.
//! [`Worker::ungate`] looks at every queue again, so that no notification is lost.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chipset::InterruptLine;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::process::{Pid, getpid};

use crate::device::{DeviceKind, Poller, Readiness, VirtioDevice};
use crate::gate::Gate;
use crate::interrupt::Interrupt;
use crate::queue::GuestRam;
use crate::saved::{RestoreError, SavedTransport};
use crate::slot::{PENDING_ALL, PENDING_HOST, Slot, SlotShared};
use crate::transport::MmioTransport;

/// Epoll data of the wake-up eventfd; slots use the index in the upper half.
const WAKE: u64 = u64::MAX;
/// Most events taken from epoll at once.
const EVENTS_PER_WAIT: usize = 32;
const NO_EVENT: Event = Event {
    flags: EventFlags::empty(),
    data: EventData::new_u64(WAKE),
};
const STACK_BYTES: usize = 256 << 10;

/// What the thread, the transports and the handle share.
pub(crate) struct WorkerShared {
    slots: Mutex<Vec<Slot>>,
    mem: Arc<GuestRam>,
    gate: Gate,
    stop: AtomicBool,
    /// Watched edge-triggered, so it is written and never read.
    wake: OwnedFd,
    epoll: Arc<OwnedFd>,
    /// The process that the descriptors belong to.
    process: Pid,
}

impl fmt::Debug for WorkerShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gated = self.gate.is_shut();
        f.debug_struct("WorkerShared")
            .field("gated", &gated)
            .finish_non_exhaustive()
    }
}

impl WorkerShared {
    fn new(mem: Arc<GuestRam>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(WAKE);
        epoll::add(&epoll, &wake, data, EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            slots: Mutex::new(Vec::new()),
            mem,
            gate: Gate::new(),
            stop: AtomicBool::new(false),
            wake,
            epoll: Arc::new(epoll),
            process: getpid(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        // A panic of the worker aborts the process; one of a test's thread leaves whole slots.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Vec<Slot>>> {
        match self.slots.try_lock() {
            Ok(slots) => Some(slots),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn with_slot<R>(&self, index: usize, f: impl FnOnce(&mut Slot) -> R) -> R {
        f(&mut self.lock()[index])
    }

    /// Sets pending bits of a slot and wakes the worker if they were the first.
    pub(crate) fn kick(&self, slot: &SlotShared, bits: u64) {
        if slot.pending.fetch_or(bits, Ordering::SeqCst) == 0 {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the worker has been woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Says whether this is a child made by `fork()`: it has copies of all memory, but neither the
    /// thread nor, perhaps, the descriptors.
    fn in_forked_child(&self) -> bool {
        getpid() != self.process
    }

    /// One turn over all devices; returns whether one of them wants another at once.
    fn turn(&self, events: &[Event]) -> bool {
        let host_news = events.iter().any(|event| event.data.u64() != WAKE);
        if self.gate.is_shut() && !host_news {
            return false;
        }
        let mut slots = self.lock();
        for event in events {
            note_event(&mut slots, event);
        }
        if self.gate.is_shut() {
            return false;
        }
        if self.gate.take_recheck() {
            for slot in slots.iter() {
                slot.shared.pending.store(PENDING_ALL, Ordering::SeqCst);
            }
        }
        let mut more = false;
        for slot in slots.iter_mut() {
            more |= slot.run(&self.gate);
        }
        more
    }

    /// Waits for events and makes a turn; returns the number of events and whether a device wants
    /// another turn at once.
    pub(crate) fn step(&self, timeout: Option<&Timespec>) -> (usize, bool) {
        let mut events = [NO_EVENT; EVENTS_PER_WAIT];
        let count = match epoll::wait(&self.epoll, &mut events, timeout) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => panic!("epoll_wait of a device worker failed: {errno}"),
        };
        let more = !self.stop.load(Ordering::SeqCst) && self.turn(&events[..count]);
        (count, more)
    }

    fn run(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut more = false;
        while !self.stop.load(Ordering::SeqCst) {
            (_, more) = self.step(more.then_some(&now));
        }
    }

    pub(crate) fn guard(&self) -> WorkerGuard<'_> {
        self.gate.hold();
        WorkerGuard {
            slots: self.lock(),
            shared: self,
        }
    }

    fn guard_until(&self, deadline: Instant) -> Option<WorkerGuard<'_>> {
        self.gate.hold();
        loop {
            if let Some(slots) = self.try_lock() {
                return Some(WorkerGuard {
                    slots,
                    shared: self,
                });
            }
            if Instant::now() >= deadline {
                self.release();
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn release(&self) {
        self.gate.release();
        self.wake();
    }

    /// Opens or shuts the gate; opening has every queue looked at again.
    pub(crate) fn set_gate(&self, shut: bool) {
        if shut {
            self.gate.shut();
        } else {
            self.gate.open();
            self.wake();
        }
    }

    /// Returns another window to device `index`.
    pub(crate) fn transport(self: &Arc<Self>, index: usize) -> MmioTransport {
        MmioTransport::new(self.clone(), &self.lock()[index], index)
    }

    /// Says whether a device has news that the next turn will bring.
    pub(crate) fn has_pending(&self) -> bool {
        let pending = |slot: &Slot| slot.shared.pending.load(Ordering::SeqCst) != 0;
        !self.gate.is_shut() && (self.gate.wants_recheck() || self.lock().iter().any(pending))
    }
}

fn note_event(slots: &mut [Slot], event: &Event) {
    let data = event.data.u64();
    if data == WAKE {
        return;
    }
    let Some(slot) = usize::try_from(data >> 32)
        .ok()
        .and_then(|at| slots.get_mut(at))
    else {
        return;
    };
    let flags = event.flags;
    let ends = EventFlags::HUP | EventFlags::ERR;
    let readiness = Readiness {
        readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | ends),
        writable: flags.intersects(EventFlags::OUT | ends),
        hangup: flags.intersects(ends),
    };
    let token = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    slot.device.note_ready(token, readiness);
    slot.shared.pending.fetch_or(PENDING_HOST, Ordering::SeqCst);
}

/// Collects devices for a [`Worker`].
#[derive(Debug)]
pub struct WorkerBuilder {
    name: String,
    shared: Arc<WorkerShared>,
}

impl WorkerBuilder {
    pub(crate) fn shared(&self) -> Arc<WorkerShared> {
        self.shared.clone()
    }

    /// Adds a device as after power-on, with its interrupt line.
    pub fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        line: Arc<dyn InterruptLine>,
    ) -> io::Result<Arc<MmioTransport>> {
        let slot = Slot::new(device, Interrupt::new(line), self.shared.mem.clone());
        self.insert(slot)
    }

    /// Adds a device in a saved state, which is checked as untrusted input.
    pub fn add_restored(
        &mut self,
        device: Box<dyn VirtioDevice>,
        line: Arc<dyn InterruptLine>,
        saved: &SavedTransport,
    ) -> Result<Arc<MmioTransport>, RestoreError> {
        let mut slot = Slot::new(device, Interrupt::new(line), self.shared.mem.clone());
        slot.restore(saved)?;
        let device_id = saved.device_id;
        self.insert(slot)
            .map_err(|source| RestoreError::Host { device_id, source })
    }

    fn insert(&mut self, mut slot: Slot) -> io::Result<Arc<MmioTransport>> {
        let mut slots = self.shared.lock();
        let index = slots.len();
        let number = u32::try_from(index).map_err(io::Error::other)?;
        slot.device
            .attach(Poller::new(self.shared.epoll.clone(), number))?;
        let transport = MmioTransport::new(self.shared.clone(), &slot, index);
        slots.push(slot);
        Ok(Arc::new(transport))
    }

    /// Starts the thread with the gate shut: [`Worker::ungate`] when the vCPUs have their state.
    pub fn spawn(self) -> io::Result<Worker> {
        let shared = self.shared.clone();
        let thread = thread(&self.name, move || shared.run())?;
        Ok(Worker {
            shared: self.shared,
            thread: Some(thread),
        })
    }

    /// The same on a thread that waits for it.
    pub fn spawn_on(self, waiting: WaitingThread) -> io::Result<Worker> {
        let name = CString::new(&*self.name)?;
        let work = (name, self.shared.clone());
        if waiting.give.send(work).is_err() {
            return self.spawn();
        }
        Ok(Worker {
            shared: self.shared,
            thread: Some(waiting.thread),
        })
    }
}

/// A thread without devices: a [`Worker`] that gets it is there sooner than one with a new thread.
/// Dropped without, it ends.
#[derive(Debug)]
pub struct WaitingThread {
    give: mpsc::Sender<(CString, Arc<WorkerShared>)>,
    thread: JoinHandle<()>,
}

impl WaitingThread {
    /// Starts one.
    pub fn start() -> io::Result<Self> {
        let (give, given) = mpsc::channel::<(CString, Arc<WorkerShared>)>();
        let work = move || {
            if let Ok((name, shared)) = given.recv() {
                // A name is for those who look.
                let _ = rustix::thread::set_name(&name);
                shared.run();
            }
        };
        let thread = thread("device", work)?;
        Ok(Self { give, thread })
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.stack_size(STACK_BYTES).spawn(move || {
        let _abort = AbortOnPanic;
        work();
    })
}

/// A VM whose device thread died cannot go on, and nobody would notice: end the process instead.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Handle of a running worker. Dropping it stops and joins the thread, except in a child made by
/// `fork()`: there the thread does not exist and descriptors may mean something else, so the
/// handle leaks what it holds and touches nothing.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<WorkerShared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts collecting devices of a worker named `name` (a thread name: 15 bytes count).
    pub fn builder(name: &str, mem: Arc<GuestRam>) -> io::Result<WorkerBuilder> {
        Ok(WorkerBuilder {
            name: name.to_owned(),
            shared: Arc::new(WorkerShared::new(mem)?),
        })
    }

    /// Shuts the gate: no device takes a new descriptor. Never blocks. The request in work goes
    /// on; [`Worker::drain`] waits for it.
    pub fn gate(&self) {
        self.shared.set_gate(true);
    }

    /// Waits until the request in work is complete. With the gate shut none follows.
    pub fn drain(&self) {
        drop(self.shared.lock());
    }

    /// Opens the gate and has every queue looked at again.
    pub fn ungate(&self) {
        self.shared.set_gate(false);
    }

    /// Locks the devices: until the guard is dropped the worker touches nothing. A worker that is
    /// busy stops at its next descriptor to let the caller in, and looks at every queue again
    /// when the guard is dropped.
    pub fn lock(&self) -> WorkerGuard<'_> {
        self.shared.guard()
    }

    /// Locks the devices, or gives up at `deadline`: a request in work may take long.
    pub fn lock_until(&self, deadline: Instant) -> Option<WorkerGuard<'_>> {
        self.shared.guard_until(deadline)
    }

    /// Stops and joins the thread. Descriptors stay in the queues, complete or untouched.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.shared.in_forked_child() {
            std::mem::forget(thread);
            std::mem::forget(self.shared.clone());
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        // The thread cannot end by panic: that aborts the process.
        let _ = thread.join();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Exclusive access to a worker's devices.
#[derive(Debug)]
pub struct WorkerGuard<'a> {
    slots: MutexGuard<'a, Vec<Slot>>,
    shared: &'a WorkerShared,
}

impl WorkerGuard<'_> {
    /// Number of devices.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Says whether the worker has no device.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns the kind of device `index`.
    pub fn kind(&self, index: usize) -> Option<DeviceKind> {
        self.slots.get(index).map(|slot| slot.device.kind())
    }

    /// Says whether the driver of device `index` runs.
    pub fn is_active(&self, index: usize) -> bool {
        self.slots.get(index).is_some_and(Slot::is_active)
    }

    /// Returns device `index` if it is a `T`. Changes made through the reference take effect when
    /// the guard is dropped.
    pub fn device_mut<T: VirtioDevice + 'static>(&mut self, index: usize) -> Option<&mut T> {
        let slot = self.slots.get_mut(index)?;
        slot.device.as_any_mut().downcast_mut::<T>()
    }

    /// Has the driver of device `index` told that the configuration changed: when the guard is
    /// dropped, or, with the gate shut, when it opens.
    pub fn config_changed(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.config_changed();
        }
    }

    /// Brings everything that devices hold of the guest's data into their back ends' files.
    pub fn quiesce(&mut self) -> io::Result<()> {
        self.slots
            .iter_mut()
            .try_for_each(|slot| slot.device.quiesce())
    }

    /// Saves device `index`: registers, queues, own state. Legal while the vCPUs are stopped.
    ///
    /// # Panics
    ///
    /// When there is no such device.
    pub fn save(&self, index: usize) -> SavedTransport {
        self.slots[index].save()
    }
}

impl Drop for WorkerGuard<'_> {
    fn drop(&mut self) {
        if !self.shared.in_forked_child() {
            self.shared.release();
        }
    }
}
