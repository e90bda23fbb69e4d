//! The states of a VM and what may be done in each: one table, which every operation asks first.
//!
//! ```text
//! creating ─▶ poweredOff ◀─▶ template
//!                │  ▲ start, shutdown, power off, the guest's own end
//!                ▼  │
//!             running ◀─▶ paused, frozen, paused: no space
//!                │  ▲ suspend, start
//!                ▼  │
//!             suspended
//! ```

use api_types::ErrorKind;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::{PowerState, VmRow};

/// What a VM is, as far as operations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Being made.
    Creating,
    /// vCPUs run.
    Running,
    /// vCPUs stand still because somebody asked.
    Paused,
    /// vCPUs stand still where the guest asked for it.
    Frozen,
    /// vCPUs stand still until there is space.
    NoSpace,
    /// No process.
    Off,
    /// No process: its memory is on disk.
    Suspended,
    /// No process, and none is to be started: it is only cloned.
    Template,
}

/// What somebody wants of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Boot it.
    Start,
    /// Ask its guest to power off.
    ShutDown,
    /// End it at once.
    PowerOff,
    /// Boot it again.
    Reset,
    /// Stop its vCPUs.
    Pause,
    /// Let its vCPUs run on.
    Resume,
    /// Clone its running state.
    Fork,
    /// Keep a fork point of its running state.
    Prepare,
    /// Clone its disks, which are shared.
    Copy,
    /// Copy its disks whole.
    CopyWhole,
    /// Change what can change at any time: a NIC's link, a serial port's back end.
    Adjust,
    /// Change its machine.
    Reconfigure,
    /// Give it another name, folder, pool or other words of a user.
    Describe,
    /// Mark it as a template.
    MarkTemplate,
    /// Take that mark off.
    UnmarkTemplate,
    /// Write its memory to disk and end its process.
    Suspend,
    /// Make a snapshot of its disks.
    Snapshot,
    /// Make a snapshot of its disks and memory.
    SnapshotMemory,
    /// Return to a snapshot.
    Revert,
    /// Put a later import of it in its place.
    Replace,
    /// Remove it where it has no process.
    Remove,
    /// Remove it, also where it runs.
    RemoveByForce,
}

/// What becomes of a VM by an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is done and the VM is this afterwards.
    Becomes(Standing),
    /// It is done and the VM is what it was.
    Stays,
    /// The VM is gone afterwards.
    Gone,
    /// There is nothing to do.
    Already,
    /// It is refused, with this remedy.
    No(Remedy),
}

/// What to do in place of what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is still being made.
    Wait,
    /// It has to run.
    Start,
    /// It runs.
    Reset,
    /// Its vCPUs have to run.
    Resume,
    /// Its vCPUs have to run, or it is ended without its guest.
    ResumeOrForce,
    /// It has to be off.
    Stop,
    /// It has to be off, or is removed by force.
    StopOrForce,
    /// It has to run or be off, or is cloned in a way that it may be suspended with.
    ResumeOrFull,
    /// It has to run, or only its disks are cloned.
    StartOrLinked,
    /// It is a template.
    Unmark,
    /// It is a template, so only its disks are cloned.
    Linked,
    /// It has to run, or has no memory to be kept.
    StartOrDisks,
    /// It runs in place of the machine that it is a copy of.
    TakenOver,
}

/// Columns of the table.
const STANDINGS: [Standing; 8] = [
    Standing::Creating,
    Standing::Running,
    Standing::Paused,
    Standing::Frozen,
    Standing::NoSpace,
    Standing::Off,
    Standing::Suspended,
    Standing::Template,
];

use self::Remedy as R;
use self::Rule::{Already, Becomes, Gone, No, Stays};
use self::Standing::{Off, Paused, Running, Suspended, Template};

/// What each operation does in each of [`STANDINGS`].
#[rustfmt::skip]
const TABLE: &[(Operation, [Rule; STANDINGS.len()])] = &[
    //                              creating     running               paused                frozen                no space              off                   suspended             template
    (Operation::Start,          [No(R::Wait), No(R::Reset),         No(R::Resume),        No(R::Resume),        No(R::Resume),        Becomes(Running),     Becomes(Running),     No(R::Unmark)]),
    (Operation::ShutDown,       [No(R::Wait), Becomes(Off),         No(R::ResumeOrForce), No(R::ResumeOrForce), No(R::ResumeOrForce), Already,              No(R::ResumeOrForce), Already]),
    (Operation::PowerOff,       [No(R::Wait), Becomes(Off),         Becomes(Off),         Becomes(Off),         Becomes(Off),         Already,              Becomes(Off),         Already]),
    (Operation::Reset,          [No(R::Wait), Becomes(Running),     Becomes(Running),     Becomes(Running),     Becomes(Running),     No(R::Start),         No(R::Resume),        No(R::Unmark)]),
    (Operation::Pause,          [No(R::Wait), Becomes(Paused),      Already,              Already,              Becomes(Paused),      No(R::Start),         No(R::Resume),        No(R::Unmark)]),
    (Operation::Resume,         [No(R::Wait), Already,              Becomes(Running),     Becomes(Running),     Becomes(Running),     No(R::Start),         Becomes(Running),     No(R::Unmark)]),
    (Operation::Fork,           [No(R::Wait), Stays,                Stays,                Stays,                Stays,                No(R::StartOrLinked), Stays,                No(R::Linked)]),
    (Operation::Prepare,        [No(R::Wait), Stays,                Stays,                Stays,                Stays,                No(R::Start),         No(R::Resume),        No(R::Unmark)]),
    (Operation::Copy,           [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                No(R::ResumeOrFull),  Stays]),
    (Operation::CopyWhole,      [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                Stays,                Stays]),
    (Operation::Adjust,         [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                No(R::Resume),        No(R::Unmark)]),
    (Operation::Reconfigure,    [No(R::Wait), No(R::Stop),          No(R::Stop),          No(R::Stop),          No(R::Stop),          Stays,                No(R::ResumeOrForce), No(R::Unmark)]),
    (Operation::Describe,       [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                Stays,                Stays]),
    (Operation::MarkTemplate,   [No(R::Wait), No(R::Stop),          No(R::Stop),          No(R::Stop),          No(R::Stop),          Becomes(Template),    No(R::ResumeOrForce), Already]),
    (Operation::UnmarkTemplate, [No(R::Wait), Already,              Already,              Already,              Already,              Already,              Already,              Becomes(Off)]),
    (Operation::Suspend,        [No(R::Wait), Becomes(Suspended),   Becomes(Suspended),   Becomes(Suspended),   No(R::Resume),        No(R::Start),         Already,              No(R::Unmark)]),
    (Operation::Snapshot,       [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                No(R::Resume),        No(R::Unmark)]),
    (Operation::SnapshotMemory, [No(R::Wait), Stays,                Stays,                Stays,                Stays,                No(R::StartOrDisks),  No(R::Resume),        No(R::Unmark)]),
    (Operation::Revert,         [No(R::Wait), Stays,                Stays,                Stays,                Stays,                Stays,                Stays,                No(R::Unmark)]),
    (Operation::Replace,        [No(R::Wait), No(R::TakenOver),     No(R::TakenOver),     No(R::TakenOver),     No(R::TakenOver),     Stays,                Stays,                No(R::Unmark)]),
    (Operation::Remove,         [No(R::Wait), No(R::StopOrForce),   No(R::StopOrForce),   No(R::StopOrForce),   No(R::StopOrForce),   Gone,                 Gone,                 Gone]),
    (Operation::RemoveByForce,  [No(R::Wait), Gone,                 Gone,                 Gone,                 Gone,                 Gone,                 Gone,                 Gone]),
];

impl Standing {
    /// What a VM with this row is.
    pub fn of(row: &VmRow) -> Self {
        match row.state {
            PowerState::Creating => Self::Creating,
            PowerState::Running => Self::Running,
            PowerState::Paused => Self::Paused,
            PowerState::Frozen => Self::Frozen,
            PowerState::PausedNoSpace => Self::NoSpace,
            PowerState::Suspended => Self::Suspended,
            PowerState::PoweredOff | PowerState::OutOfMemory if row.template => Self::Template,
            PowerState::PoweredOff | PowerState::OutOfMemory => Self::Off,
        }
    }

    /// The word for it in messages.
    fn word(self) -> &'static str {
        match self {
            Self::Creating => "still being made",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::NoSpace => "paused for want of space",
            Self::Off => "powered off",
            Self::Suspended => "suspended to disk",
            Self::Template => "a template",
        }
    }
}

impl Operation {
    /// What the table says of it.
    pub fn rule(self, standing: Standing) -> Rule {
        let column = STANDINGS.iter().position(|known| *known == standing);
        let row = TABLE.iter().find(|(operation, _)| *operation == self);
        match (row, column) {
            (Some((_, rules)), Some(column)) => rules[column],
            // A test looks for every operation and every standing in the table.
            _ => No(R::Wait),
        }
    }

    /// What a VM cannot be, where it is refused.
    fn participle(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::ShutDown => "shut down",
            Self::PowerOff => "powered off",
            Self::Reset => "reset",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Fork => "cloned while it runs",
            Self::Prepare => "made a parent",
            Self::Copy | Self::CopyWhole => "cloned by its disks",
            Self::Adjust | Self::Describe => "changed",
            Self::Reconfigure => "reconfigured",
            Self::MarkTemplate => "marked as a template",
            Self::UnmarkTemplate => "made an ordinary VM",
            Self::Suspend => "suspended",
            Self::Snapshot => "made a snapshot of",
            Self::SnapshotMemory => "made a snapshot with memory of",
            Self::Revert => "taken back to a snapshot",
            Self::Replace => "replaced",
            Self::Remove | Self::RemoveByForce => "removed",
        }
    }
}

impl Remedy {
    fn text(self, name: &str) -> String {
        match self {
            Self::Wait => "try again when 'mitose ls' shows its state".to_owned(),
            Self::Start => format!("start it with 'mitose start {name}'"),
            Self::Reset => format!("'mitose reset {name}' boots it again"),
            Self::Resume => format!("'mitose resume {name}' lets it run on"),
            Self::ResumeOrForce => {
                format!("'mitose resume {name}' first, or end it with 'mitose stop {name} --force'")
            }
            Self::Stop => format!("stop it with 'mitose stop {name}'"),
            Self::StopOrForce => {
                format!("stop it with 'mitose stop {name}', or remove it with --force")
            }
            Self::ResumeOrFull => {
                format!("'mitose resume {name}' first, or use --mode instant or full")
            }
            Self::StartOrLinked => {
                format!("start it with 'mitose start {name}', or use --mode linked or full")
            }
            Self::Unmark => format!("'mitose template {name} --off' makes it an ordinary VM"),
            Self::Linked => "clone it with --mode linked or full".to_owned(),
            Self::StartOrDisks => {
                format!("start it with 'mitose start {name}', or leave --memory out")
            }
            Self::TakenOver => {
                format!("remove it with 'mitose rm {name} --force', or import with --new-identity")
            }
        }
    }
}

impl Host {
    /// Asks the table whether `operation` may be done to a VM; says whether there is anything to do.
    /// The caller has the VM's turn.
    pub fn allow(&self, vm: &Vm, operation: Operation) -> OpResult<bool> {
        let standing = Standing::of(&vm.live().row);
        match operation.rule(standing) {
            Becomes(_) | Stays | Gone => {
                let needs_none = [
                    Operation::PowerOff,
                    Operation::RemoveByForce,
                    Operation::Describe,
                ];
                if !needs_none.contains(&operation) {
                    self.check_answers(vm)?;
                }
                Ok(true)
            }
            Already => Ok(false),
            No(remedy) => {
                let name = vm.name();
                let message = format!(
                    "{name} is {}, so it cannot be {}; {}",
                    standing.word(),
                    operation.participle(),
                    remedy.text(&name)
                );
                Err(OpError::new(ErrorKind::Conflict, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_operation_once_and_refuses_all_while_a_vm_is_made() {
        for (index, (operation, rules)) in TABLE.iter().enumerate() {
            let twice = TABLE[..index].iter().any(|(other, _)| other == operation);
            assert!(!twice, "{operation:?}");
            assert_eq!(rules[0], No(R::Wait), "{operation:?}");
        }
        // The last one that is declared tells how many there are.
        assert_eq!(TABLE.len(), Operation::RemoveByForce as usize + 1);
        assert_eq!(STANDINGS.len(), Template as usize + 1);
    }

    #[test]
    fn no_operation_starts_a_template_and_every_state_can_be_left() {
        for (operation, rules) in TABLE {
            let of_template = rules[Template as usize];
            assert_ne!(of_template, Becomes(Running), "{operation:?}");
        }
        for standing in &STANDINGS[1..] {
            let gone = Operation::RemoveByForce.rule(*standing);
            assert_eq!(gone, Gone, "{standing:?}");
        }
    }
}
