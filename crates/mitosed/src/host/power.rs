//! Power and pause of a VM that exists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{ErrorKind, StopRequest};
use vmm_protocol::Command;

use super::events::with_event;
use super::states::Operation;
use super::{Host, Vm, needs_process, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Begun, PowerState};
use crate::vmm::{Link, LinkError};

/// Wait for a guest to power off, seconds.
const STOP_TIMEOUT_S: u64 = 90;
/// Time that a VM process has for a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether a process is the one that was `asked`.
fn is_one(link: &Arc<Link>, asked: Option<&Arc<Link>>) -> bool {
    asked.is_some_and(|asked| Arc::ptr_eq(link, asked))
}

impl Host {
    /// Boots a powered-off VM from its disks, lets a suspended one go on.
    pub fn start(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        let _busy = self.pool.busy();
        let _turn = self.turn(vm)?;
        self.allow(vm, Operation::Start)?;
        if vm.state() == PowerState::Suspended {
            return self.wake(vm);
        }
        if !vm.row().returns_to_point() {
            self.check_memory("the VM", vm.row().spec.memory_bytes)?;
        }
        self.power_on(vm)?;
        Ok(())
    }

    /// Powers a VM off: asks the guest and waits, or at once. A child that is not persistent has
    /// given back what it wrote when this returns.
    pub fn power_off(self: &Arc<Self>, vm: &Arc<Vm>, request: &StopRequest) -> OpResult<()> {
        let turn = self.turn(vm)?;
        let operation = if request.force {
            Operation::PowerOff
        } else {
            Operation::ShutDown
        };
        if !self.allow(vm, operation)? {
            return Ok(());
        }
        if vm.state() == PowerState::Suspended {
            return self.discard_memory(vm);
        }
        let _turn = if request.force {
            self.end_process(vm);
            turn
        } else {
            let asked = vm.link();
            self.press_button(vm)?;
            // Others work with the VM meanwhile: above all they may end it at once.
            drop(turn);
            let timeout_s = request.timeout_s.unwrap_or(STOP_TIMEOUT_S);
            self.wait_off(vm, asked.as_ref(), timeout_s)?;
            let turn = self.turn(vm)?;
            let present = vm.link();
            if present.is_some_and(|link| !is_one(&link, asked.as_ref())) {
                // It was off, and somebody has started it again.
                return Ok(());
            }
            turn
        };
        match vm.state() {
            state if state.is_off() => {
                self.discard_changes(vm);
                Ok(())
            }
            state => Err(OpError::failed(format!(
                "{} is still {}; its process does not end",
                vm.name(),
                state.word()
            ))),
        }
    }

    fn press_button(&self, vm: &Arc<Vm>) -> OpResult<()> {
        match self.order(vm, Command::PowerButton) {
            // The guest may power off before the answer.
            Err(_) if vm.link().is_none_or(|link| link.is_closed()) => Ok(()),
            pressed => pressed,
        }
    }

    /// Waits until a VM whose process was `asked` is off, or goes on in another one.
    fn wait_off(&self, vm: &Vm, asked: Option<&Arc<Link>>, timeout_s: u64) -> OpResult<()> {
        let deadline = Instant::now() + Duration::from_secs(timeout_s.min(86_400));
        let left = |live: &mut super::vm::Live| {
            let link = live.link.as_ref();
            let other = link.is_some_and(|link| !is_one(link, asked));
            (other || live.removed || live.row.state.is_off()).then_some(())
        };
        vm.wait(deadline, left).ok_or_else(|| {
            OpError::new(
                ErrorKind::Timeout,
                format!(
                    "{0} did not power off within {timeout_s} s; use 'mitose stop {0} --force'",
                    vm.name()
                ),
            )
        })
    }

    /// Stops a VM's vCPUs.
    pub fn pause(&self, vm: &Arc<Vm>) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        self.pause_now(vm)
    }

    /// As [`Host::pause`], for a caller that has the VM's turn.
    pub(super) fn pause_now(&self, vm: &Arc<Vm>) -> OpResult<()> {
        if !self.allow(vm, Operation::Pause)? {
            return Ok(());
        }
        self.order(vm, Command::Pause)?;
        self.set_state(vm, PowerState::Paused, "vm.paused", "paused")
    }

    /// Lets a VM's vCPUs run on, or a suspended VM go on; retries a write that found no space.
    pub fn resume(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        let state = vm.state();
        if !self.allow(vm, Operation::Resume)? {
            return Ok(());
        }
        if state == PowerState::Suspended {
            let _busy = self.pool.busy();
            return self.wake(vm);
        }
        if state == PowerState::Frozen {
            return self.thaw(vm);
        }
        // Set first: the retried write may find no space again before the answer is here.
        let reason = vm.update(|live| {
            live.row.state = PowerState::Running;
            live.row.reason.take()
        });
        if let Err(error) = self.order(vm, Command::Resume) {
            vm.update(|live| {
                if live.row.state == PowerState::Running {
                    live.row.state = state;
                    live.row.reason = reason;
                }
            });
            return Err(error);
        }
        self.commit(&[vm], with_event(vm_event(vm, "vm.resumed", "running")))
    }

    /// Resets a VM: it boots again from its disks, or returns to its fork point.
    pub fn reset(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        let _busy = self.pool.busy();
        let _turn = self.turn(vm)?;
        self.allow(vm, Operation::Reset)?;
        self.check_boots(&vm.row())?;
        self.with_begun(vm, Begun::Reset, || self.reset_now(vm))
    }

    /// As [`Host::reset`], for a caller that has the VM's turn and has looked that it boots.
    pub(super) fn reset_now(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        if vm.row().returns_to_point() {
            // Nothing of its process is of use any more.
            self.leave_process(vm);
            self.power_on(vm)?;
            return Ok(());
        }
        self.end_process(vm);
        if !vm.state().is_off() {
            return Err(OpError::failed(format!(
                "{}: its process does not end",
                vm.name()
            )));
        }
        self.power_on(vm)?;
        Ok(())
    }

    /// Bytes typed on COM1.
    pub fn type_serial(&self, vm: &Vm, bytes: Vec<u8>) -> OpResult<()> {
        self.order(vm, Command::SerialInput(bytes))
    }

    /// Waits for the VM's turn and makes sure that it was not removed meanwhile.
    pub(super) fn turn<'a>(&self, vm: &'a Vm) -> OpResult<std::sync::MutexGuard<'a, ()>> {
        let turn = vm.operate();
        if vm.live().removed {
            return Err(OpError::new(
                ErrorKind::NotFound,
                format!("{} was removed", vm.name()),
            ));
        }
        Ok(turn)
    }

    pub(super) fn order(&self, vm: &Vm, command: Command) -> OpResult<()> {
        let Some(link) = vm.link() else {
            return needs_process(&vm.name(), PowerState::PoweredOff);
        };
        self.check_answers(vm)?;
        match link.call(command, &[], COMMAND_TIMEOUT) {
            Ok(_) => Ok(()),
            Err(error @ LinkError::Refused { .. }) => {
                Err(OpError::conflict(format!("{}: {error}", vm.name())))
            }
            Err(error) => Err(self.explain(vm, "no answer from", error).into()),
        }
    }

    fn set_state(
        &self,
        vm: &Arc<Vm>,
        state: PowerState,
        kind: &'static str,
        message: &str,
    ) -> OpResult<()> {
        vm.update(|live| {
            if live.link.is_some() {
                live.row.state = state;
            }
        });
        self.commit(&[vm], with_event(vm_event(vm, kind, message)))
    }
}
