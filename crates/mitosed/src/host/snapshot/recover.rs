//! Snapshots at the start of a daemon.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Host;
use crate::inventory::{Snapshot, SnapshotMemory};

impl Host {
    /// Counts the layers that snapshots hold; before layers without users are removed.
    pub(in crate::host) fn hold_snapshots(&self) {
        for snapshot in self.objects::<Snapshot>() {
            self.hold_layers(snapshot.doc.tops.iter().flatten());
        }
    }

    /// Removes snapshots whose memory was being written.
    pub(in crate::host) fn settle_snapshots(self: &Arc<Self>) {
        for vm in self.all() {
            let all = self.snapshots_of(&vm);
            for snapshot in &all {
                if snapshot.doc.memory != SnapshotMemory::Writing {
                    continue;
                }
                let gone = BTreeSet::from([snapshot.id.clone()]);
                let message = format!(
                    "snapshot {} was removed: the daemon ended while its memory was being written",
                    snapshot.name
                );
                let all = self.snapshots_of(&vm);
                if let Err(error) = self.take_out(&vm, &all, &gone, "snapshot.failed", message) {
                    tracing::error!("{}", error.message());
                }
            }
        }
    }
}
