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
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use vcpu::{EngineError, Exit, GuestIo, Kick, Vcpu, VcpuState};

use crate::clock::monotonic_ns;

/// Makes one vCPU, in the thread that will run it.
pub(crate) type MakeVcpu = Box<dyn FnOnce() -> Result<Box<dyn Vcpu>, EngineError> + Send>;
/// Hears of a vCPU that ended by itself.
pub(crate) type OnEnd = Arc<dyn Fn(Exit) + Send + Sync>;

/// The stack of a vCPU thread, bytes: devices run on it, deep recursion does not.
const STACK_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Park,
    Save,
    Run,
    Exit,
}

#[derive(Default)]
struct Seat {
    kick: Option<Arc<dyn Kick>>,
    /// Number of the order that was carried out.
    done: u64,
    saved: Option<Result<VcpuState, EngineError>>,
    failed: Option<EngineError>,
}

struct Orders {
    number: u64,
    order: Order,
    seats: Vec<Seat>,
}

struct Shared {
    /// What `GuestIo::stop_wanted` tells vCPUs.
    stop: Arc<AtomicBool>,
    orders: Mutex<Orders>,
    given: Condvar,
    carried_out: Condvar,
    /// `CLOCK_MONOTONIC` of each vCPU's last entry, ns; 0 since an order to run is not carried out.
    entered_ns: Vec<AtomicU64>,
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
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl VcpuGroup {
    /// Starts a thread for each vCPU; they are made and then stand still. `stop` is the flag that
    /// the vCPUs' [`GuestIo::stop_wanted`] reads.
    pub(crate) fn spawn(
        makers: Vec<MakeVcpu>,
        io: Arc<dyn GuestIo + Send + Sync>,
        stop: Arc<AtomicBool>,
        on_end: OnEnd,
    ) -> std::io::Result<Self> {
        let seats = makers.iter().map(|_| Seat::default()).collect();
        let shared = Arc::new(Shared {
            stop,
            orders: Mutex::new(Orders {
                number: 1,
                order: Order::Park,
                seats,
            }),
            given: Condvar::new(),
            carried_out: Condvar::new(),
            entered_ns: makers.iter().map(|_| AtomicU64::new(0)).collect(),
        });
        let mut group = Self {
            shared,
            threads: vec![],
            running: false,
        };
        for (index, make) in makers.into_iter().enumerate() {
            let (shared, io, on_end) = (
                Arc::clone(&group.shared),
                Arc::clone(&io),
                Arc::clone(&on_end),
            );
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || thread_main(&shared, index, make, io.as_ref(), &on_end))?;
            group.threads.push(thread);
        }
        Ok(group)
    }

    /// Waits until all vCPUs are made.
    pub(crate) fn wait_made(&self) -> Result<(), EngineError> {
        let mut orders = self.wait_carried_out(self.shared.lock());
        orders
            .seats
            .iter_mut()
            .find_map(|seat| seat.failed.take())
            .map_or(Ok(()), Err)
    }

    fn wait_carried_out<'a>(&'a self, orders: MutexGuard<'a, Orders>) -> MutexGuard<'a, Orders> {
        let pending = |orders: &mut Orders| orders.seats.iter().any(|s| s.done < orders.number);
        self.shared
            .carried_out
            .wait_while(orders, pending)
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn give(&self, order: Order) -> MutexGuard<'_, Orders> {
        let mut orders = self.shared.lock();
        orders.number += 1;
        orders.order = order;
        self.shared
            .stop
            .store(order != Order::Run, Ordering::SeqCst);
        self.shared.given.notify_all();
        orders
    }

    /// Makes the vCPUs run.
    pub(crate) fn run(&mut self) {
        for entered in &self.shared.entered_ns {
            entered.store(0, Ordering::SeqCst);
        }
        drop(self.give(Order::Run));
        self.running = true;
    }

    /// Returns whether the vCPUs run.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Waits until every vCPU entered the guest after the last [`run`](Self::run) and returns when
    /// the first and the last one did, `CLOCK_MONOTONIC` ns.
    pub(crate) fn wait_entered(&self) -> (u64, u64) {
        let times = || {
            self.shared
                .entered_ns
                .iter()
                .map(|t| t.load(Ordering::SeqCst))
        };
        while times().any(|t| t == 0) {
            std::thread::sleep(Duration::from_micros(20));
        }
        (times().min().unwrap_or(0), times().max().unwrap_or(0))
    }

    fn stop_with(&mut self, order: Order) -> MutexGuard<'_, Orders> {
        self.running = false;
        let orders = self.give(order);
        for kick in orders.seats.iter().filter_map(|seat| seat.kick.as_ref()) {
            kick.kick();
        }
        self.wait_carried_out(orders)
    }

    /// Stops the vCPUs and returns when all stand still.
    pub(crate) fn park(&mut self) {
        drop(self.stop_with(Order::Park));
    }

    /// Stops the vCPUs and returns their states.
    pub(crate) fn park_and_save(&mut self) -> Result<Vec<VcpuState>, EngineError> {
        let mut orders = self.stop_with(Order::Save);
        let missing = || Err(EngineError::Missing("a vCPU that still runs"));
        orders
            .seats
            .iter_mut()
            .map(|s| s.saved.take().unwrap_or_else(missing))
            .collect()
    }

    /// Ends all threads.
    pub(crate) fn end(&mut self) {
        let orders = self.give(Order::Exit);
        for kick in orders.seats.iter().filter_map(|seat| seat.kick.as_ref()) {
            kick.kick();
        }
        drop(orders);
        for thread in self.threads.drain(..) {
            // A vCPU thread does not panic; if it did, the panic was printed by its own thread.
            let _ = thread.join();
        }
    }
}

fn thread_main(shared: &Shared, index: usize, make: MakeVcpu, io: &dyn GuestIo, on_end: &OnEnd) {
    let made = make().and_then(|mut vcpu| {
        vcpu.hide_from_fork()?;
        let kick = vcpu.attach()?;
        Ok((vcpu, kick))
    });
    let mut orders = shared.lock();
    let seat = &mut orders.seats[index];
    seat.done = 1;
    let mut vcpu = match made {
        Ok((vcpu, kick)) => {
            seat.kick = Some(kick);
            vcpu
        }
        Err(error) => {
            seat.failed = Some(error);
            // Never run: later orders need not wait for it.
            seat.done = u64::MAX;
            shared.carried_out.notify_all();
            return;
        }
    };
    shared.carried_out.notify_all();
    let mut handled = 1;
    let mut ended = false;
    loop {
        orders = shared
            .given
            .wait_while(orders, |orders| orders.number == handled)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        handled = orders.number;
        let order = orders.order;
        drop(orders);
        let saved = (order == Order::Save).then(|| vcpu.save());
        if order == Order::Exit {
            return;
        }
        orders = shared.lock();
        let seat = &mut orders.seats[index];
        seat.saved = saved;
        seat.done = handled;
        shared.carried_out.notify_all();
        if order != Order::Run {
            continue;
        }
        drop(orders);
        vcpu.note_stun();
        shared.entered_ns[index].store(monotonic_ns(), Ordering::SeqCst);
        if !ended {
            let exit = vcpu.run(io);
            if exit != Exit::Kicked {
                ended = true;
                on_end(exit);
            }
        }
        orders = shared.lock();
    }
}
