//! What a VM process did with a request that was given up: it is asked when it answers at last.
//!
//! It obeys in the order in which it was told, so its state then is what all of that has led to.
//!
//! One that does not answer when a daemon takes it over is left alone, since its guest ran: the VM is
//! what it was on record, and taken over when its process answers. Until then it can only be ended. So
//! is one that runs on without its connection, from when it is connected to again.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_protocol::{Command, Outcome, Status};

use super::events::{is_current, with_event};
use super::recover::state_of;
use super::vm::Live;
use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::PowerState;
use crate::vmm::{Link, Notice};

/// Time that the process has to tell its state; when it answers later it is asked again.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a process is connected to again where the host has nothing left to do it with.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Why nothing else is known of a VM.
const UNANSWERED: &str = "its process has not answered since the daemon connected to it";

impl Host {
    /// Leaves a VM as it is on record, whose process is there and does not answer.
    pub(super) fn leave_unanswered(self: &Arc<Self>, vm: &Arc<Vm>) {
        vm.update(|live| {
            live.unanswered = true;
            live.starting = false;
            // What was said while no daemon listened is unknown.
            live.identity_stale = true;
            live.row.reason.get_or_insert_with(|| UNANSWERED.to_owned());
        });
        let told = vm_event(vm, "vm.unresponsive", UNANSWERED);
        self.commit_logged(&[vm], with_event(told));
        let Some(link) = vm.link() else { return };
        // It may have answered just before: an answer to this one, which nobody waits for any more, is
        // noticed in any case.
        let asked = link.request(Command::Status, &[]);
        let answered = asked.and_then(|asked| asked.wait(Duration::ZERO));
        if answered.is_ok() {
            (self.handler(vm, &link))(Notice::Late);
        }
        if link.is_closed() {
            (self.handler(vm, &link))(Notice::Closed(None));
        }
    }

    /// Connects again to a process that runs on while its connection is `closed`; it is taken over when
    /// it answers. Returns whether that may come about: not where it does not listen any more.
    pub(super) fn connect_again(self: &Arc<Self>, vm: &Arc<Vm>, closed: &Arc<Link>) -> bool {
        let link = loop {
            match self.connect(&vm.id, |link| self.handler(vm, link)) {
                Ok(Some(link)) => break link,
                Ok(None) => return false,
                Err(error) => tracing::warn!(vm = &*vm.name(), "it is tried again: {error:#}"),
            }
            thread::sleep(CONNECT_PAUSE);
            if !closed.process_lives(vm.row().pid) {
                return false;
            }
        };
        let taken = vm.update(|live| {
            let taken = is_current(live, closed) && !live.starting;
            if taken {
                live.link = Some(Arc::clone(&link));
            }
            taken
        });
        if taken {
            self.leave_unanswered(vm);
        } else {
            // Whoever took the process from its VM looks after it.
            link.shut();
        }
        true
    }

    /// Waits until recovery has settled what it found: it keeps what a VM that does not answer may
    /// use, and would not know what one that was taken over meanwhile uses.
    pub(super) fn wait_settled(&self) {
        self.settled.wait();
    }

    /// Refuses what a process that does not answer would have to do.
    pub(super) fn check_answers(&self, vm: &Vm) -> OpResult<()> {
        if !vm.live().unanswered {
            return Ok(());
        }
        let name = vm.name();
        Err(OpError::unavailable(format!(
            "{name} cannot be asked: {UNANSWERED}; wait until it does, or end it with 'mitose stop \
             {name} --force'"
        )))
    }

    /// Takes a VM over whose process answers at last. The caller has its turn.
    fn take_over_late(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, status: &Status) {
        if !vm.update(|live| is_current(live, link) && std::mem::take(&mut live.unanswered)) {
            return;
        }
        vm.update(|live| {
            live.row.reason = live.row.reason.take().filter(|told| told != UNANSWERED);
        });
        self.take_over(vm, link, status);
        if vm.link().is_none() {
            return;
        }
        self.settle_merges_of(vm);
        self.settle_pending_of(vm);
        self.pull_cables(vm);
        self.settle_in(vec![Arc::clone(vm)], None);
        let told = vm_event(vm, "vm.recovered", "its process answers again");
        self.commit_logged(&[vm], with_event(told));
    }

    /// The process behind `link` has answered a request that nobody waited for any more.
    pub(super) fn answered_late(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>) {
        self.wait_settled();
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
        if vm.live().unanswered {
            self.take_over_late(vm, link, &status);
            return;
        }
        let state = vm.update(|live| {
            let is_current = is_current(live, link);
            is_current.then(|| take_status(live, before, &status))
        });
        let Some(state) = state.flatten() else { return };
        let kind = match state {
            PowerState::Running => "vm.resumed",
            PowerState::PausedNoSpace => "vm.no_space",
            _ => "vm.paused",
        };
        let message = format!("{}: its process answered late", state.word());
        self.commit_logged(&[vm], with_event(vm_event(vm, kind, message)));
    }
}

/// Takes over what the process of a VM that was in the state `before` says of itself; returns a state
/// that is news.
fn take_status(live: &mut Live, before: PowerState, status: &Status) -> Option<PowerState> {
    // Whether it forked is seen by where its memory is.
    live.ram = status.ram;
    let state = state_of(&live.row, status);
    // What it said of itself meanwhile is newer.
    let is_news = live.row.state == before && state != before;
    if is_news {
        live.row.state = state;
        live.row.reason = None;
    }
    is_news.then_some(state)
}

#[cfg(test)]
mod tests {
    use vmm_protocol::{RamView, VmState};

    use super::*;
    use crate::inventory::tests as sample;

    #[test]
    fn what_a_process_says_late_is_where_its_memory_is() {
        let vm = Vm::new(sample::vm("vm-1", "a"));
        let mut live = vm.live();
        live.row.state = PowerState::Running;
        // Nobody knew whether a fork that was given up had come to that.
        live.ram = Some(RamView::Private);
        let mut status = Status {
            state: VmState::Running,
            ram: Some(RamView::Shared),
            ram_range: None,
            agent_ready: false,
            first_run_at_ns: None,
            ready_at_ns: None,
            engine: None,
        };
        assert_eq!(take_status(&mut live, PowerState::Running, &status), None);
        assert_eq!(live.ram, Some(RamView::Shared));
        status.state = VmState::Paused;
        assert_eq!(take_status(&mut live, PowerState::Frozen, &status), None);
        let news = take_status(&mut live, PowerState::Running, &status);
        assert_eq!(news, Some(PowerState::Paused));
        assert_eq!(live.row.state, PowerState::Paused);
    }
}
