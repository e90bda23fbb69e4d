//! Waiting for what happens to a VM.

use api_types::{ErrorKind, WaitFor};

use super::vm::Live;
use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::PowerState;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Happened,
    /// It cannot happen any more.
    Never,
}

impl Host {
    /// Whether `vm` is what `what` names; an error where it cannot be any more. Never blocks: many
    /// may wait for long.
    pub fn has_happened(&self, vm: &Vm, what: WaitFor) -> OpResult<bool> {
        let end = end_of(&vm.live(), what);
        match end {
            Some(End::Happened) => Ok(true),
            None => Ok(false),
            Some(End::Never) => Err(OpError::conflict(format!(
                "{0} is {1}, so it will not be {2}; see 'mitose events'",
                vm.name(),
                vm.state().word(),
                word(what)
            ))),
        }
    }

    /// What a wait says that was in vain.
    pub fn waited_in_vain(&self, vm: &Vm, what: WaitFor, timeout_s: u64) -> OpError {
        OpError::new(
            ErrorKind::Timeout,
            format!(
                "{} was not {} within {timeout_s} s, it is {}; wait longer or see its log",
                vm.name(),
                word(what),
                vm.state().word()
            ),
        )
    }
}

fn end_of(live: &Live, what: WaitFor) -> Option<End> {
    let state = live.row.state;
    let happened = match what {
        WaitFor::Frozen => state == PowerState::Frozen,
        WaitFor::Ready => live.ready_at_ns.is_some() && state.has_process(),
        WaitFor::Running => state == PowerState::Running,
        WaitFor::Off => state.is_off(),
    };
    let gone = live.removed || (state.is_off() && what != WaitFor::Off);
    match (happened && !live.removed, gone) {
        (true, _) => Some(End::Happened),
        (false, true) => Some(End::Never),
        (false, false) => None,
    }
}

fn word(what: WaitFor) -> &'static str {
    match what {
        WaitFor::Frozen => "frozen",
        WaitFor::Ready => "ready",
        WaitFor::Running => "running",
        WaitFor::Off => "off",
    }
}
