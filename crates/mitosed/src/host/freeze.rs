//! Frozen sources: a guest asks to stand still, clones go on from there, and so does the source when
//! it is resumed.
//!
//! ```text
//! running ── guest asks ─▶ wish on record ─ Pause ─▶ frozen ── resume: thawed on record, Resume,
//!    ▲                                                 │               Thawed to the guest ──┐
//!    └─────────────────────────────────────────────────┼─────────────────────────────────────┘
//!                                                      └─ clone: the clones run, it stays frozen
//! ```
//!
//! The guest repeats its wish until it is answered, so what is lost with a daemon is made up for:
//! a wish that was not carried out comes again, and one that was thawed gets its answer again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::ToGuest;
use vmm_protocol::Command;

use super::events::{is_current, spawn, with_event};
use super::vm::Live;
use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, FreezeRow, PowerState};
use crate::vmm::Link;

/// Time that a VM process has to stop its vCPUs or to pass a message on.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait for the operation that brings a VM to life; the guest asks again later.
const START_WAIT: Duration = Duration::from_secs(10);

impl Host {
    /// The guest of `vm` asks to be frozen; runs on the reactor's thread.
    pub(super) fn freeze_wanted(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, token: String) {
        let busy = vm.update(|live| std::mem::replace(&mut live.freezing, true));
        if busy {
            return;
        }
        let (host, vm, link) = (Arc::clone(self), Arc::clone(vm), Arc::clone(link));
        spawn("freeze", move || {
            host.carry_out_wish(&vm, &link, &token);
            vm.update(|live| live.freezing = false);
        });
    }

    fn carry_out_wish(&self, vm: &Arc<Vm>, link: &Arc<Link>, token: &str) {
        let settled = |live: &mut Live| {
            (!live.starting || live.removed || !is_current(live, link)).then_some(())
        };
        if vm.wait(Instant::now() + START_WAIT, settled).is_none() {
            return;
        }
        let _turn = vm.operate();
        let (state, wish) = {
            let live = vm.live();
            if live.removed || !is_current(&live, link) {
                return;
            }
            (live.row.state, live.row.freeze.clone())
        };
        if wish.is_some_and(|wish| wish.token == token && wish.thawed) {
            self.say_thawed(vm, link, token);
            return;
        }
        // A VM that stands still for another reason asks again when it goes on.
        if state != PowerState::Running {
            return;
        }
        if let Err(error) = self.freeze(vm, link, token) {
            let reason = error.message();
            tracing::warn!(vm = &*vm.name(), reason, "a guest cannot be frozen");
            let refused = ToGuest::FreezeRefused {
                token: token.to_owned(),
                reason: one_line(&reason),
            };
            self.tell_guest(vm, link, &refused);
        }
    }

    /// Records the wish, stops the vCPUs, records that they stand still. The caller has the turn.
    fn freeze(&self, vm: &Arc<Vm>, link: &Arc<Link>, token: &str) -> OpResult<()> {
        vm.update(|live| {
            live.row.freeze = Some(FreezeRow {
                token: token.to_owned(),
                thawed: false,
            });
        });
        let paused = self
            .commit(&[vm], Changes::default())
            .and_then(|()| self.order(vm, Command::Pause));
        if let Err(error) = paused {
            vm.update(|live| live.row.freeze = None);
            self.commit_logged(&[vm], Changes::default());
            return Err(error);
        }
        let frozen = vm.update(|live| {
            // A write that found no space may have stopped it first.
            let frozen = live.row.state == PowerState::Running && is_current(live, link);
            if frozen {
                live.row.state = PowerState::Frozen;
            }
            frozen
        });
        if frozen {
            let name = vm.name();
            let message = format!(
                "frozen where its guest asked for it; 'mitose clone {name}' makes clones that go on \
                 from there, 'mitose resume {name}' lets it go on itself"
            );
            self.commit_logged(&[vm], with_event(vm_event(vm, "vm.frozen", message)));
        }
        Ok(())
    }

    /// Lets a frozen VM go on. The caller has the turn.
    pub(super) fn thaw(&self, vm: &Arc<Vm>) -> OpResult<()> {
        let Some(link) = vm.link() else {
            return Err(OpError::conflict(format!("{} is ending", vm.name())));
        };
        let set = |thawed: bool, state: PowerState| {
            vm.update(|live| {
                live.row.state = state;
                let wish = live.row.freeze.as_mut()?;
                wish.thawed = thawed;
                Some(wish.token.clone())
            })
        };
        // On record before the guest runs: it may ask for the answer after a daemon's end.
        let token = set(true, PowerState::Running);
        let resumed = self
            .commit(&[vm], Changes::default())
            .and_then(|()| self.order(vm, Command::Resume));
        if let Err(error) = resumed {
            if vm.state() == PowerState::Running {
                set(false, PowerState::Frozen);
                self.commit_logged(&[vm], Changes::default());
            }
            return Err(error);
        }
        if let Some(token) = token {
            self.say_thawed(vm, &link, &token);
        }
        self.commit(
            &[vm],
            with_event(vm_event(vm, "vm.resumed", "running; its guest is thawed")),
        )
    }

    fn say_thawed(&self, vm: &Vm, link: &Arc<Link>, token: &str) {
        let thawed = ToGuest::Thawed {
            token: token.to_owned(),
            name: vm.name().to_string(),
        };
        self.tell_guest(vm, link, &thawed);
    }

    /// Sends a message to the guest's agent; an agent that is away hears it otherwise.
    fn tell_guest(&self, vm: &Vm, link: &Arc<Link>, message: &ToGuest) {
        let told = serde_json::to_string(message)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(link.call(Command::TellAgent(text), &[], TIMEOUT)?));
        if let Err(error) = told {
            tracing::info!(vm = &*vm.name(), "the agent was not told: {error:#}");
        }
    }
}

/// Words for a guest: one line of bounded length.
fn one_line(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(200).collect()
}
