//! Fork points at the start of a daemon.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use vmm_protocol::{Command, Outcome, VmState};

use crate::host::Host;
use crate::inventory::{ForkPoint, Object, PointMemory};
use crate::vmm::Link;

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
    pub(in crate::host) fn meet_keepers(self: &Arc<Self>) {
        for point in self.objects::<ForkPoint>() {
            match &point.doc.memory {
                PointMemory::Sealing => {
                    tracing::info!(point = point.name, "was being made; removed");
                    self.end_point(&point, None);
                }
                PointMemory::Kept { uid, .. } => {
                    self.pool.claim_uid(*uid);
                    if !self.meet_keeper(&point) {
                        self.point_lost(&point.id);
                    }
                }
                PointMemory::Files { .. } | PointMemory::Lost => {}
            }
        }
    }

    fn meet_keeper(self: &Arc<Self>, point: &Object<ForkPoint>) -> bool {
        let Ok(link) = Link::connect(&self.config.home.vm_socket(&point.id)) else {
            return false;
        };
        let handler = self.keeper_handler(&point.id, &link);
        if self.reactor.watch(&link, handler).is_err() {
            return false;
        }
        match link.call(Command::Status, &[], STATUS_TIMEOUT) {
            Ok((Outcome::Status(status), _)) if status.state == VmState::Keeper => {
                let mut points = self.points.lock();
                points.entry(point.id.clone()).or_default().link = Some(link);
                true
            }
            _ => false,
        }
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
