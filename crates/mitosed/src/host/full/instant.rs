//! The disks of a VM that is not powered off, at one instant: sealed as for a fork, and held while
//! they are copied. The VM goes on meanwhile.

use std::sync::Arc;

use crate::error::OpResult;
use crate::host::fork::Held;
use crate::host::{Host, Vm};
use crate::inventory::{DiskRow, PowerState, VmRow};

/// How long a source stood still, microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stun {
    /// Its vCPUs.
    pub stun_us: u64,
    /// Its disks.
    pub io_held_us: u64,
}

/// Disks of an instant. Their layers stay for as long as this lives.
pub(super) struct DiskInstant<'a> {
    /// The machine, powered off, with the sealed layers as its disks.
    pub row: VmRow,
    /// What it cost the source.
    pub stun: Stun,
    _held: Held<'a>,
}

impl Host {
    /// Seals the disks of a VM that has a process or is suspended. The caller has its turn.
    pub(super) fn instant_disks(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<DiskInstant<'_>> {
        let row = vm.row();
        let (held, tops, stun) = if row.state == PowerState::Suspended {
            let tops = self.below_empty_tops(&row)?;
            (Held::new(self, &tops), tops, Stun::default())
        } else {
            let tops = row.tops();
            let held = Held::new(self, &tops);
            let sealed = self.seal(vm, false, None)?;
            let stun = Stun {
                stun_us: sealed.forked.stun_us,
                io_held_us: sealed.forked.io_held_us,
            };
            (held, sealed.tops, stun)
        };
        let disks = tops.into_iter().map(DiskRow::of);
        let row = VmRow {
            state: PowerState::PoweredOff,
            disks: disks.collect(),
            suspend: None,
            ..row
        };
        Ok(DiskInstant {
            row,
            stun,
            _held: held,
        })
    }
}
