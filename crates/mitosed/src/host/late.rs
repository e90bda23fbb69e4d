//! What a VM process did with a request that was given up: it is asked when it answers at last.
//!
//! It obeys in the order in which it was told, so its state then is what all of that has led to.

use std::sync::Arc;
use std::time::Duration;

use vmm_protocol::{Command, Outcome};

use super::events::{is_current, with_event};
use super::recover::state_of;
use super::{Host, Vm, vm_event};
use crate::inventory::PowerState;
use crate::vmm::Link;

/// Time that the process has to tell its state; when it answers later it is asked again.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

impl Host {
    /// The process behind `link` has answered a request that nobody waited for any more.
    pub(super) fn answered_late(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>) {
        // Whoever works with the VM finds its state out by what it does.
        let Ok(_turn) = self.turn(vm) else { return };
        let before = vm.state();
        if !before.has_process() {
            return;
        }
        let status = match link.call(Command::Status, &[], STATUS_TIMEOUT) {
            Ok((Outcome::Status(status), _)) => status,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(vm = &*vm.name(), %error, "no state from a VM process");
                return;
            }
        };
        let state = vm.update(|live| {
            let state = state_of(&live.row, &status);
            // What it said of itself meanwhile is newer.
            let is_news = is_current(live, link) && live.row.state == before && state != before;
            if is_news {
                live.row.state = state;
                live.row.reason = None;
            }
            is_news.then_some(state)
        });
        let Some(state) = state else { return };
        let kind = match state {
            PowerState::Running => "vm.resumed",
            PowerState::PausedNoSpace => "vm.no_space",
            _ => "vm.paused",
        };
        let message = format!("{}: its process answered late", state.word());
        self.commit_logged(&[vm], with_event(vm_event(vm, kind, message)));
    }
}
