//! The disks of a running VM: each has a worker of its own; slots may be empty until a medium
//! comes, and the stack below a top may be replaced by a shorter one.
//!
//! Neither stops a vCPU. A change holds one disk's queue for as long as a request takes, plus the
//! change itself, which is done in memory: files are opened and checked ahead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use disk_layers::{
    DiskStack, LayerFile, OpenDiskError, PreparedBelow, ReplaceBelowError, StackOptions,
};
use guest_memory::GuestMemoryMmap;
use virtio_devices::{
    Block, BlockConfig, BlockEvent, BlockEventSink, InsertError, SavedDevice, Worker, WorkerGuard,
};
use vm_spec::VmSpec;

use crate::backends::DiskFiles;
use crate::clock::{monotonic_ns, us_between};
use crate::error::BuildError;
use crate::machine::Machine;
use crate::platform::{EventSink, PlatformEvent, Slots};

/// Longest wait for a request in work.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// The block device of a slot.
pub(crate) type DiskDevice = Block<Option<DiskStack>>;

/// One disk slot.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Runs its device.
    pub(crate) worker: Worker,
    /// The slot is not empty.
    pub(crate) has_medium: bool,
}

/// A disk could not be changed; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DiskChangeError {
    /// There is no such slot.
    #[error("disk: there is no disk {index}, the VM has {disks}")]
    NoSlot {
        /// Index asked for.
        index: usize,
        /// Slots of the VM.
        disks: usize,
    },
    /// The slot has no medium.
    #[error("disk {index} is an empty slot: it has no layers")]
    Empty {
        /// Index of the disk.
        index: usize,
    },
    /// New layers cannot be used.
    #[error("cannot open the new layers of disk {index}")]
    Open {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: OpenDiskError,
    },
    /// A request in work took too long.
    #[error("disk {index} did not finish its request within {} s", BUSY_MAX.as_secs())]
    Busy {
        /// Index of the disk.
        index: usize,
    },
    /// The layers below the top stay as they are.
    #[error("cannot replace the layers of disk {index}")]
    Replace {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: ReplaceBelowError,
    },
    /// The medium does not go into the slot.
    #[error("cannot put a medium into disk slot {index}")]
    Insert {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: InsertError,
    },
}

impl Disk {
    pub(crate) fn build(
        slots: &mut Slots<'_>,
        spec: &VmSpec,
        memory: &Arc<GuestMemoryMmap>,
        events: &EventSink,
        index: usize,
        files: Option<DiskFiles>,
    ) -> Result<Self, BuildError> {
        let disk = spec.disks.get(index).ok_or(BuildError::Slots(index))?;
        if files.is_none() && disk.read_only {
            return Err(BuildError::EmptyReadOnly { index });
        }
        let mut stack = files
            .map(|files| open_stack(files, disk.read_only))
            .transpose()
            .map_err(|source| BuildError::OpenDisk { index, source })?;
        // The guest of the checkpoint knows an empty slot: the medium comes to it.
        let comes = match slots.next_saved() {
            Some(SavedDevice::Block(saved)) if saved.capacity_sectors == 0 => stack.take(),
            _ => None,
        };
        let has_medium = stack.is_some() || comes.is_some();
        let config = BlockConfig {
            serial: disk.serial.clone(),
            events: event_sink(events, index),
        };
        let mut worker = Worker::builder(&format!("disk{index}"), Arc::clone(memory))
            .map_err(BuildError::Worker)?;
        slots.add(&mut worker, Box::new(Block::new(stack, config)))?;
        let worker = slots.start(worker)?;
        if let Some(stack) = comes {
            insert(&mut worker.lock(), stack)
                .map_err(|source| BuildError::Insert { index, source })?;
        }
        Ok(Self { worker, has_medium })
    }
}

fn open_stack(files: DiskFiles, read_only: bool) -> Result<DiskStack, OpenDiskError> {
    let options = StackOptions {
        read_only,
        ..StackOptions::default()
    };
    DiskStack::open(files.top, files.below, options)
}

fn event_sink(events: &EventSink, disk: usize) -> BlockEventSink {
    let sink = Arc::clone(events);
    BlockEventSink::new(move |event| match event {
        BlockEvent::NoSpace => sink(PlatformEvent::NoSpace { disk }),
        other => sink(PlatformEvent::DiskError {
            disk,
            message: format!("{other:?}"),
        }),
    })
}

/// The stack behind the only device of a disk's worker; none in an empty slot.
pub(crate) fn stack_of<'a>(guard: &'a mut WorkerGuard<'_>) -> Option<&'a mut DiskStack> {
    let block = guard.device_mut::<DiskDevice>(0)?;
    block.backend_mut().as_mut()
}

fn insert(guard: &mut WorkerGuard<'_>, stack: DiskStack) -> Result<(), InsertError> {
    if let Some(block) = guard.device_mut::<DiskDevice>(0) {
        block.insert(stack)?;
        guard.config_changed(0);
    }
    Ok(())
}

impl Machine {
    fn disk(&mut self, index: usize) -> Result<&mut Disk, DiskChangeError> {
        let disks = self.platform.disks.len();
        let disk = self.platform.disks.get_mut(index);
        disk.ok_or(DiskChangeError::NoSlot { index, disks })
    }

    /// Puts `below` (nearest first), which must show the same content, in the place of all layers
    /// below the top of disk `index`, and writes `backing_name` into the top's header, not durably.
    /// The guest runs on. Returns for how long the disk's queue was held, microseconds.
    pub fn rebase(
        &mut self,
        index: usize,
        below: Vec<LayerFile>,
        backing_name: &str,
    ) -> Result<u64, DiskChangeError> {
        let disk = self.disk(index)?;
        if !disk.has_medium {
            return Err(DiskChangeError::Empty { index });
        }
        let below =
            PreparedBelow::open(below).map_err(|source| DiskChangeError::Open { index, source })?;
        let mut guard = disk
            .worker
            .lock_until(Instant::now() + BUSY_MAX)
            .ok_or(DiskChangeError::Busy { index })?;
        let held_from = monotonic_ns();
        let stack = stack_of(&mut guard).ok_or(DiskChangeError::Empty { index })?;
        let replaced = stack.replace_below(below, backing_name);
        drop(guard);
        let held_us = us_between(held_from, monotonic_ns());
        // Closes the old files, which takes its time.
        drop(replaced.map_err(|source| DiskChangeError::Replace { index, source })?);
        Ok(held_us)
    }

    /// Puts a medium into the empty slot `index` and tells the guest.
    pub fn insert_medium(&mut self, index: usize, files: DiskFiles) -> Result<(), DiskChangeError> {
        let disk = self.disk(index)?;
        if disk.has_medium {
            let source = InsertError::Occupied;
            return Err(DiskChangeError::Insert { index, source });
        }
        let stack =
            open_stack(files, false).map_err(|source| DiskChangeError::Open { index, source })?;
        let mut guard = disk
            .worker
            .lock_until(Instant::now() + BUSY_MAX)
            .ok_or(DiskChangeError::Busy { index })?;
        insert(&mut guard, stack).map_err(|source| DiskChangeError::Insert { index, source })?;
        drop(guard);
        disk.has_medium = true;
        Ok(())
    }
}
