//! One device with its registers and queues: everything of it that the worker's mutex protects.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{debug, warn};
use virtio_queue::QueueState;

use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, Progress, VirtioDevice};
use crate::gate::Gate;
use crate::interrupt::{INTERRUPT_CONFIG, INTERRUPT_USED_RING, Interrupt};
use crate::queue::{GuestRam, VirtQueue};
use crate::saved::{RestoreError, SavedQueue, SavedTransport};

/// `VIRTIO_F_INDIRECT_DESC`.
pub(crate) const F_INDIRECT_DESC: u32 = 28;
/// `VIRTIO_F_EVENT_IDX`.
pub(crate) const F_EVENT_IDX: u32 = 29;
/// `VIRTIO_F_VERSION_1`.
pub(crate) const F_VERSION_1: u32 = 32;

/// Device status bits (virtio 1.2 §2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u32 = 1;
    pub(crate) const DRIVER: u32 = 2;
    pub(crate) const DRIVER_OK: u32 = 4;
    pub(crate) const FEATURES_OK: u32 = 8;
    pub(crate) const NEEDS_RESET: u32 = 0x40;
    pub(crate) const FAILED: u32 = 0x80;
}

/// Breaches of the rules that are logged as warnings, per device.
const BREAKS_LOGGED: u32 = 8;

/// Pending bit: the host side has news, or the driver wrote the configuration.
pub(crate) const PENDING_HOST: u64 = 1 << 63;
/// Everything may have news.
pub(crate) const PENDING_ALL: u64 = u64::MAX;

/// The part of a slot that vCPUs use without the worker's mutex.
#[derive(Debug)]
pub(crate) struct SlotShared {
    /// Bit per notified queue, and [`PENDING_HOST`].
    pub(crate) pending: AtomicU64,
    pub(crate) interrupt: Interrupt,
    pub(crate) config: Arc<ConfigSpace>,
    pub(crate) queue_count: u32,
}

/// Queue registers as the driver wrote them.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueRegs {
    pub(crate) size: u32,
    pub(crate) ready: bool,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) device: Box<dyn VirtioDevice>,
    pub(crate) shared: Arc<SlotShared>,
    mem: Arc<GuestRam>,
    /// Status bits that the driver set; `NEEDS_RESET` lives in [`Interrupt`].
    pub(crate) status: u32,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
    pub(crate) driver_features: u64,
    pub(crate) queue_sel: u32,
    pub(crate) queue_regs: Vec<QueueRegs>,
    /// Empty unless the driver runs.
    queues: Vec<VirtQueue>,
    raise_again: bool,
    /// How often the driver broke the rules.
    breaks: u32,
}

impl Slot {
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        interrupt: Interrupt,
        mem: Arc<GuestRam>,
    ) -> Self {
        let shared = Arc::new(SlotShared {
            pending: AtomicU64::new(0),
            interrupt,
            config: device.config(),
            queue_count: u32::try_from(device.queue_sizes().len()).unwrap_or(0),
        });
        let mut slot = Self {
            device,
            shared,
            mem,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queue_regs: Vec::new(),
            queues: Vec::new(),
            raise_again: false,
            breaks: 0,
        };
        slot.clear_registers();
        slot
    }

    fn clear_registers(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queue_regs = self
            .device
            .queue_sizes()
            .iter()
            .map(|&size| QueueRegs {
                size: size.into(),
                ..QueueRegs::default()
            })
            .collect();
        self.queues.clear();
        self.raise_again = false;
    }

    /// Feature bits on offer.
    pub(crate) fn offered(&self) -> u64 {
        self.device.features() | 1 << F_INDIRECT_DESC | 1 << F_EVENT_IDX | 1 << F_VERSION_1
    }

    pub(crate) fn is_active(&self) -> bool {
        !self.queues.is_empty()
    }

    pub(crate) fn status_register(&self) -> u32 {
        let broken = if self.shared.interrupt.needs_reset() {
            status::NEEDS_RESET
        } else {
            0
        };
        self.status | broken
    }

    /// Takes a write of the status register. The driver may only add bits, in the order of virtio
    /// 1.2 §3.1.1, or write 0; anything else is ignored.
    pub(crate) fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let known = status::ACKNOWLEDGE
            | status::DRIVER
            | status::FEATURES_OK
            | status::DRIVER_OK
            | status::FAILED;
        let value = value & !status::NEEDS_RESET;
        if value & !known != 0 || value & self.status != self.status {
            return;
        }
        let added = value & !self.status;
        if added & status::ACKNOWLEDGE != 0 {
            self.status |= status::ACKNOWLEDGE;
        }
        if added & status::DRIVER != 0 && self.has(status::ACKNOWLEDGE) {
            self.status |= status::DRIVER;
        }
        if added & status::FEATURES_OK != 0 && self.has(status::DRIVER) && self.features_fit() {
            self.status |= status::FEATURES_OK;
        }
        if added & status::FAILED != 0 {
            self.status |= status::FAILED;
        }
        if added & status::DRIVER_OK != 0 && self.has(status::FEATURES_OK) {
            self.status |= status::DRIVER_OK;
            self.start();
        }
    }

    pub(crate) fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn features_fit(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & 1 << F_VERSION_1 != 0
    }

    /// The driver set `DRIVER_OK`: checks the queues and lets the device run.
    fn start(&mut self) {
        let states: Vec<_> = self
            .queue_regs
            .iter()
            .map(|regs| (regs.clone(), 0, 0))
            .collect();
        match self.build_queues(&states) {
            Ok(queues) => {
                self.queues = queues;
                self.shared.pending.store(PENDING_ALL, Ordering::SeqCst);
            }
            Err(queue) => {
                self.stop_broken(&format_args!("queue {queue} is not usable"));
            }
        }
    }

    /// Returns the queues, or the index of the first that cannot be used.
    fn build_queues(&self, states: &[(QueueRegs, u16, u16)]) -> Result<Vec<VirtQueue>, usize> {
        let event_idx_enabled = self.driver_features & 1 << F_EVENT_IDX != 0;
        let sizes = self.device.queue_sizes();
        let build = |(index, (regs, next_avail, next_used)): (usize, &(QueueRegs, u16, u16))| {
            let max_size = sizes[index];
            let size = if regs.ready {
                u16::try_from(regs.size).map_err(|_| index)?
            } else {
                1
            };
            let state = QueueState {
                max_size,
                next_avail: *next_avail,
                next_used: *next_used,
                event_idx_enabled,
                size,
                ready: regs.ready,
                desc_table: if regs.ready { regs.desc } else { 0 },
                avail_ring: if regs.ready { regs.avail } else { 0 },
                used_ring: if regs.ready { regs.used } else { 0 },
            };
            let queue = VirtQueue::new(index, state).map_err(|_| index)?;
            if regs.ready && !queue.is_valid(&self.mem) {
                Err(index)
            } else {
                Ok(queue)
            }
        };
        states.iter().enumerate().map(build).collect()
    }

    /// The driver broke the rules: nothing is done for it until it resets the device.
    fn stop_broken(&mut self, reason: &dyn fmt::Display) {
        let kind = self.device.kind();
        self.breaks = self.breaks.saturating_add(1);
        // A guest can do this as often as it likes, so it is not to fill the log.
        if self.breaks <= BREAKS_LOGGED {
            warn!(?kind, %reason, "driver broke the rules of virtio, the device needs a reset");
        } else {
            debug!(?kind, %reason, "driver broke the rules of virtio again");
        }
        self.queues.clear();
        self.shared.interrupt.signal_needs_reset();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.clear_registers();
        self.shared.pending.store(0, Ordering::SeqCst);
        self.shared.interrupt.reset();
    }

    /// Notes that the configuration changed; the driver is interrupted at the next turn. A device
    /// without a driver needs no word: the next driver reads the configuration anyway.
    pub(crate) fn config_changed(&mut self) {
        if self.status != 0 {
            self.shared.interrupt.note_config();
            self.raise_again = true;
        }
    }

    /// Lets the device work on what is pending; returns whether it wants another turn.
    pub(crate) fn run(&mut self, gate: &Gate) -> bool {
        let kicked = self.shared.pending.swap(0, Ordering::SeqCst);
        if std::mem::take(&mut self.raise_again) {
            self.shared.interrupt.raise_unacknowledged();
        }
        if kicked == 0 || !self.is_active() {
            return false;
        }
        let mut io = DeviceIo {
            mem: &self.mem,
            queues: &mut self.queues,
            interrupt: &self.shared.interrupt,
            gate,
            features: self.driver_features,
        };
        let outcome = self.device.process(kicked, &mut io).and_then(|progress| {
            io.signal_used()?;
            Ok(progress)
        });
        match outcome {
            Ok(Progress::Idle) => false,
            Ok(Progress::More) => {
                self.shared.pending.fetch_or(kicked, Ordering::SeqCst);
                true
            }
            Err(broken) => {
                self.stop_broken(&broken);
                false
            }
        }
    }

    pub(crate) fn save(&self) -> SavedTransport {
        let queue = |(index, regs): (usize, &QueueRegs)| {
            let running = self.queues.get(index).map(VirtQueue::state);
            SavedQueue {
                size: regs.size,
                ready: regs.ready,
                desc_gpa: regs.desc,
                avail_gpa: regs.avail,
                used_gpa: regs.used,
                next_avail: running.map_or(0, |state| state.next_avail),
                next_used: running.map_or(0, |state| state.next_used),
            }
        };
        SavedTransport {
            device_id: self.device.kind().id(),
            status: self.status,
            needs_reset: self.shared.interrupt.needs_reset(),
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            interrupt_status: self.shared.interrupt.status(),
            config_generation: self.shared.config.generation(),
            queues: self.queue_regs.iter().enumerate().map(queue).collect(),
            device: self.device.save(),
        }
    }

    pub(crate) fn restore(&mut self, saved: &SavedTransport) -> Result<(), RestoreError> {
        let device_id = self.device.kind().id();
        if saved.device_id != device_id {
            return Err(RestoreError::Kind {
                saved: saved.device_id,
                expected: device_id,
            });
        }
        let field = |field, value| RestoreError::Field {
            device_id,
            field,
            value,
        };
        check_status(saved.status).map_err(|()| field("status", saved.status.into()))?;
        if saved.interrupt_status & !(INTERRUPT_USED_RING | INTERRUPT_CONFIG) != 0 {
            return Err(field("interrupt_status", saved.interrupt_status.into()));
        }
        if saved.queues.len() != self.queue_regs.len() {
            return Err(field("queues", saved.queues.len() as u64));
        }
        self.status = saved.status;
        self.device_features_sel = saved.device_features_sel;
        self.driver_features_sel = saved.driver_features_sel;
        self.driver_features = saved.driver_features;
        self.queue_sel = saved.queue_sel;
        if self.has(status::FEATURES_OK) && !self.features_fit() {
            return Err(field("driver_features", saved.driver_features));
        }
        let regs = |q: &SavedQueue| QueueRegs {
            size: q.size,
            ready: q.ready,
            desc: q.desc_gpa,
            avail: q.avail_gpa,
            used: q.used_gpa,
        };
        self.queue_regs = saved.queues.iter().map(regs).collect();
        let active = self.has(status::DRIVER_OK) && !saved.needs_reset;
        self.device.restore(&saved.device, active)?;
        if active {
            let states: Vec<_> = saved
                .queues
                .iter()
                .map(|q| (regs(q), q.next_avail, q.next_used))
                .collect();
            self.queues = self
                .build_queues(&states)
                .map_err(|queue| RestoreError::Queue { device_id, queue })?;
        }
        self.shared.config.set_generation(saved.config_generation);
        self.shared
            .interrupt
            .restore(saved.interrupt_status, saved.needs_reset);
        self.shared.pending.store(PENDING_ALL, Ordering::SeqCst);
        self.raise_again = true;
        Ok(())
    }
}

/// Says whether the driver can have reached this status.
fn check_status(value: u32) -> Result<(), ()> {
    let steps = value & !status::FAILED;
    let reachable = [
        0,
        status::ACKNOWLEDGE,
        status::ACKNOWLEDGE | status::DRIVER,
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
    ];
    if reachable.contains(&steps) {
        Ok(())
    } else {
        Err(())
    }
}
