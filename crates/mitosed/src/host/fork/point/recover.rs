//! Fork points at the start of a daemon.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use vmm_protocol::{Command, Outcome, VmState};

use crate::host::events::{CLOSES_WITHIN, with_event};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{ForkPoint, Object, PointMemory, PowerState};
use crate::vmm::{may_be_of, wait_gone};

/// Time that a keeper has to tell that it is one.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

impl Host {
    /// Holds the layers of all fork points; before anything unused is removed.
    pub(in crate::host) fn hold_points(&self) {
        let mut layers = self.layers();
        for point in self.objects::<ForkPoint>() {
            let tops = point.doc.tops.iter().flatten();
            tops.for_each(|top| layers.hold(top));
        }
    }

    /// Finds the keepers again; takes back what was being made.
    pub(in crate::host) fn meet_keepers(self: &Arc<Self>) -> anyhow::Result<()> {
        for point in self.objects::<ForkPoint>() {
            match &point.doc.memory {
                PointMemory::Sealing => {
                    tracing::info!(point = point.name, "was being made; removed");
                    self.end_point(&point, None);
                }
                PointMemory::Kept { pid, uid, .. } => {
                    self.pool.claim_uid(*uid);
                    if !self.meet_keeper(&point, *pid)? {
                        self.point_lost(&point.id);
                    }
                }
                PointMemory::Files { .. } | PointMemory::Lost => {}
            }
        }
        Ok(())
    }

    /// Returns whether there is a keeper. One that does not answer is there: it is asked again when
    /// what it keeps is wanted.
    fn meet_keeper(self: &Arc<Self>, point: &Object<ForkPoint>, pid: i32) -> anyhow::Result<bool> {
        let Some(link) = self.connect(&point.id, |link| self.keeper_handler(&point.id, link))?
        else {
            return Ok(false);
        };
        let keeps = match link.call(Command::Status, &[], STATUS_TIMEOUT) {
            Ok((Outcome::Status(status), _)) => status.state == VmState::Keeper,
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(point = point.name, "no answer from its keeper: {error}");
                may_be_of(self.config.home.root(), pid)
            }
        };
        if keeps {
            let mut points = self.points.lock();
            points.entry(point.id.clone()).or_default().link = Some(link);
        }
        Ok(keeps)
    }

    /// Where the keeper of a fork point lives on without its connection: connects to it again.
    /// Returns whether it does.
    pub(super) fn meet_keeper_again(self: &Arc<Self>, id: &str) -> bool {
        let memory = self.object::<ForkPoint>(id).map(|point| point.doc.memory);
        let Ok(PointMemory::Kept { pid, .. }) = memory else {
            return false;
        };
        wait_gone(pid, CLOSES_WITHIN);
        if !may_be_of(self.config.home.root(), pid) {
            return false;
        }
        let Ok(Some(link)) = self.connect(id, |link| self.keeper_handler(id, link)) else {
            return false;
        };
        self.points.lock().entry(id.to_owned()).or_default().link = Some(link);
        true
    }

    /// Takes back that a registered child was being started: it is as it was registered, with disks
    /// that nobody wrote to. Returns whether `vm` is one.
    pub(in crate::host) fn take_child_back(self: &Arc<Self>, vm: &Arc<Vm>) -> bool {
        let row = vm.row();
        let Some(child) = row
            .child
            .filter(|_| row.making.is_some_and(|m| m.was_there))
        else {
            return false;
        };
        let renewed = self
            .object::<ForkPoint>(&child.point)
            .and_then(|point| self.renew_child(vm, &point));
        if let Err(error) = &renewed {
            // Its next start tries again and tells.
            tracing::warn!(vm = &*vm.name(), "{}", error.message());
        }
        vm.update(|live| {
            live.row.state = PowerState::PoweredOff;
            live.row.making = None;
            if let (Some(child), Ok(())) = (live.row.child.as_mut(), &renewed) {
                (child.started, child.used) = (false, false);
            }
        });
        let message = "was being started when the daemon ended; it is powered off as before";
        let told = with_event(vm_event(vm, "vm.recovered", message));
        self.commit_logged(&[vm], told);
        true
    }

    /// Process ids of keepers.
    pub(in crate::host) fn keeper_pids(&self) -> HashSet<i32> {
        self.objects::<ForkPoint>()
            .iter()
            .filter_map(|point| match &point.doc.memory {
                PointMemory::Kept { pid, .. } => Some(*pid),
                _ => None,
            })
            .collect()
    }

    /// Memory cgroups of keepers.
    pub(in crate::host) fn keeper_groups(&self) -> Vec<String> {
        self.objects::<ForkPoint>()
            .into_iter()
            .filter_map(|point| match point.doc.memory {
                PointMemory::Kept { group, .. } => group,
                _ => None,
            })
            .collect()
    }
}
