//! virtio over MMIO, version 2 (virtio 1.2 §4.2): decodes guest accesses to one device's window.
//!
//! What a running driver touches all the time (notify, interrupt status and acknowledge,
//! configuration) is answered without the worker's mutex. The registers of setting up take it, so
//! a reset returns only when the device does nothing on the guest's behalf any more.

use std::sync::Arc;

use chipset::BusDevice;

use crate::slot::{PENDING_HOST, Slot, SlotShared, status};
use crate::worker::WorkerShared;

/// Size of one device's window, bytes.
pub const MMIO_WINDOW_BYTES: u64 = 0x1000;

/// Register offsets (virtio 1.2 §4.2.2).
pub mod regs {
    #![expect(missing_docs, reason = "names of the specification")]
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VERSION_VALUE: u32 = 2;
const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"MTSE");

/// The window through which the guest reaches one device of a [`crate::Worker`].
#[derive(Debug)]
pub struct MmioTransport {
    worker: Arc<WorkerShared>,
    shared: Arc<SlotShared>,
    index: usize,
    device_id: u32,
}

impl MmioTransport {
    pub(crate) fn new(worker: Arc<WorkerShared>, slot: &Slot, index: usize) -> Self {
        let shared = slot.shared.clone();
        Self {
            worker,
            shared,
            index,
            device_id: slot.device.kind().id(),
        }
    }

    /// Index of the device in its worker.
    pub fn index(&self) -> usize {
        self.index
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            regs::MAGIC => MAGIC_VALUE,
            regs::VERSION => VERSION_VALUE,
            regs::DEVICE_ID => self.device_id,
            regs::VENDOR_ID => VENDOR_VALUE,
            regs::INTERRUPT_STATUS => self.shared.interrupt.status(),
            regs::CONFIG_GENERATION => self.shared.config.generation(),
            // A length of all ones says that there is no shared memory region.
            regs::SHM_LEN_LOW..=regs::SHM_BASE_HIGH => u32::MAX,
            _ => self
                .worker
                .with_slot(self.index, |slot| read_setup(slot, offset)),
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            regs::QUEUE_NOTIFY if value < self.shared.queue_count => {
                self.worker.kick(&self.shared, 1 << value);
            }
            regs::INTERRUPT_ACK => self.shared.interrupt.acknowledge(value),
            regs::DEVICE_FEATURES_SEL..=regs::QUEUE_READY
            | regs::STATUS..=regs::QUEUE_DEVICE_HIGH => {
                self.worker
                    .with_slot(self.index, |slot| write_setup(slot, offset, value));
                if offset == regs::STATUS {
                    self.worker.wake();
                }
            }
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(regs::CONFIG) {
            self.shared.config.driver_read(at, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            data.fill(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(regs::CONFIG) {
            if self.shared.config.driver_write(at, data) {
                self.worker.kick(&self.shared, PENDING_HOST);
            }
        } else if let (Ok(bytes), 0) = (data.try_into(), offset % 4) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

fn read_setup(slot: &Slot, offset: u64) -> u32 {
    let queue = usize::try_from(slot.queue_sel).ok();
    match offset {
        regs::DEVICE_FEATURES => half(slot.offered(), slot.device_features_sel),
        regs::QUEUE_NUM_MAX => queue
            .and_then(|queue| slot.device.queue_sizes().get(queue))
            .map_or(0, |&size| size.into()),
        regs::QUEUE_READY => queue
            .and_then(|queue| slot.queue_regs.get(queue))
            .map_or(0, |regs| regs.ready.into()),
        regs::STATUS => slot.status_register(),
        _ => 0,
    }
}

fn write_setup(slot: &mut Slot, offset: u64, value: u32) {
    match offset {
        regs::STATUS => slot.write_status(value),
        regs::DEVICE_FEATURES_SEL => slot.device_features_sel = value,
        regs::DRIVER_FEATURES_SEL => slot.driver_features_sel = value,
        regs::QUEUE_SEL => slot.queue_sel = value,
        regs::DRIVER_FEATURES => {
            if slot.has(status::DRIVER) && !slot.has(status::FEATURES_OK) {
                set_half(&mut slot.driver_features, slot.driver_features_sel, value);
            }
        }
        _ => write_queue(slot, offset, value),
    }
}

fn write_queue(slot: &mut Slot, offset: u64, value: u32) {
    // Queues are set up between FEATURES_OK and DRIVER_OK (virtio 1.2 §3.1.1).
    if !slot.has(status::FEATURES_OK) || slot.has(status::DRIVER_OK) {
        return;
    }
    let queue = usize::try_from(slot.queue_sel).ok();
    let Some(queue) = queue.and_then(|queue| slot.queue_regs.get_mut(queue)) else {
        return;
    };
    if offset == regs::QUEUE_READY {
        queue.ready = value & 1 != 0;
        return;
    }
    if queue.ready {
        return;
    }
    match offset {
        regs::QUEUE_NUM => queue.size = value,
        regs::QUEUE_DESC_LOW => set_half(&mut queue.desc, 0, value),
        regs::QUEUE_DESC_HIGH => set_half(&mut queue.desc, 1, value),
        regs::QUEUE_DRIVER_LOW => set_half(&mut queue.avail, 0, value),
        regs::QUEUE_DRIVER_HIGH => set_half(&mut queue.avail, 1, value),
        regs::QUEUE_DEVICE_LOW => set_half(&mut queue.used, 0, value),
        regs::QUEUE_DEVICE_HIGH => set_half(&mut queue.used, 1, value),
        _ => {}
    }
}

/// Returns word `select` of `value`; words past the second are zero.
fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let at = match select {
        0 => 0,
        1 => 4,
        _ => return 0,
    };
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn set_half(target: &mut u64, select: u32, value: u32) {
    match select {
        0 => *target = *target & 0xffff_ffff_0000_0000 | u64::from(value),
        1 => *target = *target & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
