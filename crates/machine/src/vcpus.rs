//! The threads of a VM's vCPUs, and the barrier at which they stand still.
//!
//! Each vCPU lives in its own thread, which also saves and loads it: its registers are warm there,
//! and several vCPUs do it at the same time.
//!
//! ```text
//!  Park ──Run──▶ running ──stop()──▶ Park     Save is Park with a copy of the state
//!    └──Exit──▶ thread ends
//! ```

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use vcpu::{EngineError, Exit, GuestIo, Kick, Vcpu, VcpuState};

use crate::clock::monotonic_ns;

/// Makes one vCPU, in the thread that will run it.
pub(crate) type MakeVcpu = Box<dyn FnOnce() -> Result<Box<dyn Vcpu>, EngineError> + Send>;
/// Hears of a vCPU that ended by itself.
pub(crate) type OnEnd = Arc<dyn Fn(Exit) + Send + Sync>;
/// Where accesses of all vCPUs go.
pub(crate) type SharedIo = Arc<dyn GuestIo + Send + Sync>;

/// Looks at the times of entry before sleeping between them: an entry takes a few microseconds.
const LOOKS: u32 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Park,
    Save,
    Run,
    Exit,
}

impl Order {
    const ALL: [Self; 4] = [Self::Park, Self::Save, Self::Run, Self::Exit];

    /// One word with the number of the order, so that it can be read without a lock.
    fn word(self, number: u64) -> u64 {
        number << 2 | self as u64
    }

    fn of_word(word: u64) -> (u64, Self) {
        (word >> 2, Self::ALL[(word & 3) as usize])
    }
}

/// What the owner and one thread tell each other.
#[derive(Default)]
struct Seat {
    kick: Option<Arc<dyn Kick>>,
    saved: Option<Result<VcpuState, EngineError>>,
    failed: Option<EngineError>,
}

/// Progress of one thread; orders to run are not answered but by the time of entry.
#[derive(Default)]
struct Progress {
    /// Number of the order in which it stands still; the largest where it never runs.
    still: AtomicU64,
    /// `CLOCK_MONOTONIC` of its last entry, ns; 0 since an order to run is not carried out.
    entered_ns: AtomicU64,
}

struct Shared {
    /// What `GuestIo::stop_wanted` tells vCPUs.
    stop: Arc<AtomicBool>,
    io: OnceLock<SharedIo>,
    /// The latest order, see [`Order::word`].
    order: AtomicU64,
    progress: Vec<Progress>,
    seats: Mutex<Vec<Seat>>,
    given: Condvar,
    carried_out: Condvar,
}

/// All vCPUs of a VM.
pub(crate) struct VcpuGroup {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    running: bool,
}

impl fmt::Debug for VcpuGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuGroup")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for an order after the one numbered `handled`.
    fn next_order(&self, handled: u64) -> (u64, Order) {
        let latest = || Order::of_word(self.order.load(Ordering::SeqCst));
        if latest().0 == handled {
            let waiting = |_: &mut Vec<Seat>| latest().0 == handled;
            drop(self.given.wait_while(self.lock(), waiting));
        }
        latest()
    }

    /// Waits until every thread stands still in the latest order.
    fn wait_still(&self) -> MutexGuard<'_, Vec<Seat>> {
        let (number, _) = Order::of_word(self.order.load(Ordering::SeqCst));
        let there = |progress: &Progress| progress.still.load(Ordering::SeqCst) >= number;
        self.carried_out
            .wait_while(self.lock(), |_| !self.progress.iter().all(there))
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes that thread `index` stands still in order `number`.
    fn stand_still(&self, index: usize, number: u64) {
        self.progress[index].still.store(number, Ordering::SeqCst);
        // Under the lock, so that a waiter has either seen it or sleeps already.
        drop(self.lock());
        self.carried_out.notify_all();
    }
}

impl VcpuGroup {
    /// Starts a thread for each vCPU; they are made and then stand still. `stop` is the flag that
    /// the vCPUs' [`GuestIo::stop_wanted`] reads; each thread has `stack_bytes` of stack. [`connect`](Self::connect) comes before they run.
    pub(crate) fn spawn(
        makers: Vec<MakeVcpu>,
        stack_bytes: usize,
        stop: Arc<AtomicBool>,
        on_end: OnEnd,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop,
            io: OnceLock::new(),
            order: AtomicU64::new(Order::Park.word(1)),
            progress: makers.iter().map(|_| Progress::default()).collect(),
            seats: Mutex::new(makers.iter().map(|_| Seat::default()).collect()),
            given: Condvar::new(),
            carried_out: Condvar::new(),
        });
        let mut group = Self {
            shared,
            threads: vec![],
            running: false,
        };
        for (index, make) in makers.into_iter().enumerate() {
            let (shared, on_end) = (Arc::clone(&group.shared), Arc::clone(&on_end));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(stack_bytes)
                .spawn(move || thread_main(&shared, index, make, &on_end));
            match thread {
                Ok(thread) => group.threads.push(thread),
                Err(error) => {
                    group.end();
                    return Err(error);
                }
            }
        }
        Ok(group)
    }

    /// Says where accesses of vCPUs go.
    pub(crate) fn connect(&self, io: SharedIo) {
        // Called once, by whoever made the group.
        let _ = self.shared.io.set(io);
    }

    /// Waits until all vCPUs are made.
    pub(crate) fn wait_made(&self) -> Result<(), EngineError> {
        let mut seats = self.shared.wait_still();
        let failed = seats.iter_mut().find_map(|seat| seat.failed.take());
        failed.map_or(Ok(()), Err)
    }

    /// Says whether one could not be made.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.lock().iter().any(|seat| seat.failed.is_some())
    }

    fn give(&self, order: Order) {
        let shared = &self.shared;
        let (number, _) = Order::of_word(shared.order.load(Ordering::SeqCst));
        shared.stop.store(order != Order::Run, Ordering::SeqCst);
        shared.order.store(order.word(number + 1), Ordering::SeqCst);
        // Under the lock, so that a thread has either seen it or sleeps already.
        drop(shared.lock());
        shared.given.notify_all();
    }

    /// Makes the vCPUs run.
    pub(crate) fn run(&mut self) {
        for progress in &self.shared.progress {
            progress.entered_ns.store(0, Ordering::SeqCst);
        }
        self.give(Order::Run);
        self.running = true;
    }

    /// Returns whether the vCPUs run.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Waits until every vCPU entered the guest after the last [`run`](Self::run) and returns when
    /// the first and the last one did, `CLOCK_MONOTONIC` ns.
    pub(crate) fn wait_entered(&self) -> (u64, u64) {
        let progress = &self.shared.progress;
        let times = || progress.iter().map(|p| p.entered_ns.load(Ordering::SeqCst));
        let mut looks = 0;
        while times().any(|t| t == 0) {
            if looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        (times().min().unwrap_or(0), times().max().unwrap_or(0))
    }

    fn stop_with(&mut self, order: Order) -> MutexGuard<'_, Vec<Seat>> {
        self.running = false;
        self.give(order);
        self.kick();
        self.shared.wait_still()
    }

    fn kick(&self) {
        let seats = self.shared.lock();
        for kick in seats.iter().filter_map(|seat| seat.kick.as_ref()) {
            kick.kick();
        }
    }

    /// Stops the vCPUs and returns when all stand still.
    pub(crate) fn park(&mut self) {
        drop(self.stop_with(Order::Park));
    }

    /// Stops the vCPUs and returns their states when all stand still.
    pub(crate) fn park_and_save(&mut self) -> Result<Vec<VcpuState>, EngineError> {
        let mut seats = self.stop_with(Order::Save);
        let missing = || Err(EngineError::Missing("a vCPU that still runs"));
        seats
            .iter_mut()
            .map(|seat| seat.saved.take().unwrap_or_else(missing))
            .collect()
    }

    /// Ends all threads.
    pub(crate) fn end(&mut self) {
        self.give(Order::Exit);
        self.kick();
        for thread in self.threads.drain(..) {
            // A vCPU thread does not panic; if it did, the panic was printed by its own thread.
            let _ = thread.join();
        }
    }
}

/// Makes the vCPU and puts the way to interrupt it into its seat.
fn make_vcpu(shared: &Shared, index: usize, make: MakeVcpu) -> Option<Box<dyn Vcpu>> {
    let made = make().and_then(|mut vcpu| {
        vcpu.hide_from_fork()?;
        let kick = vcpu.attach()?;
        Ok((vcpu, kick))
    });
    match made {
        Ok((vcpu, kick)) => {
            shared.lock()[index].kick = Some(kick);
            shared.stand_still(index, 1);
            Some(vcpu)
        }
        Err(error) => {
            shared.lock()[index].failed = Some(error);
            // Never run: later orders need not wait for it.
            shared.stand_still(index, u64::MAX);
            None
        }
    }
}

fn thread_main(shared: &Shared, index: usize, make: MakeVcpu, on_end: &OnEnd) {
    let Some(mut vcpu) = make_vcpu(shared, index, make) else {
        return;
    };
    // The thread that started this one answers the daemon; a guest is in no such hurry.
    linux_sys::take_usual_slices();
    let progress = &shared.progress[index];
    let mut handled = 1;
    let mut ended = false;
    loop {
        let (number, order) = shared.next_order(handled);
        handled = number;
        match order {
            Order::Park => shared.stand_still(index, number),
            Order::Save => {
                let saved = vcpu.save();
                shared.lock()[index].saved = Some(saved);
                shared.stand_still(index, number);
            }
            Order::Run => {
                vcpu.note_stun();
                progress.entered_ns.store(monotonic_ns(), Ordering::SeqCst);
                let io = shared.io.get().filter(|_| !ended);
                let exit = io.map(|io| vcpu.run(io.as_ref()));
                if let Some(exit) = exit.filter(|exit| *exit != Exit::Kicked) {
                    ended = true;
                    on_end(exit);
                }
            }
            Order::Exit => return,
        }
    }
}
