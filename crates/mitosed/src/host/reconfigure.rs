//! Changing a VM that exists.
//!
//! ```text
//! any time    name, folder, pool, words      the record alone
//! any time    cables, serial back ends       the record, then the VM's process
//! any time    disks into empty slots         the record, files, then the VM's process
//! powered off everything else                the record with intents, then files
//! ```
//! All of a change is checked before any of it is done.

mod cold;
mod insert;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api_types::{DryRun, ErrorKind, ReconfigureRequest, SerialChange};
use serde_json::json;
use vmm_protocol::{Command, SetSerial};

use self::cold::Rebuilt;
use super::backends::FdList;
use super::check::Problems;
use super::datastores::Promise;
use super::describe::Description;
use super::events::with_event;
use super::identity::check_ports;
use super::media::{Media, check_slots};
use super::states::Operation;
use super::{Host, Vm, check_version, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, VmRow};

/// Time that a VM process has for a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A change, worked out.
struct Planned {
    /// What becomes of the mark of a template, where it changes.
    mark: Option<bool>,
    description: Description,
    /// The machine, where it changes.
    rebuilt: Option<Rebuilt>,
    /// What goes into empty slots.
    media: Media,
    /// Space of its tops.
    _space: Option<Promise>,
}

impl Host {
    /// Changes a VM. `expected` is the version that the caller knows, where it names one.
    pub fn reconfigure(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        expected: Option<u64>,
        change: &ReconfigureRequest,
    ) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        check_version("VM", &vm.name(), expected, vm.live().row.version)?;
        let mut problems = Problems::default();
        let planned = self.plan_change(vm, change, &mut problems);
        let planned = problems.end(planned)?;
        if let Some(rebuilt) = planned.rebuilt {
            self.rebuild(vm, rebuilt)?;
        }
        if changes_ports(change) {
            self.adjust(vm, change)?;
        }
        self.insert_media(vm, &planned.media)?;
        if let Some(template) = planned.mark {
            self.mark(vm, template)?;
        }
        if !planned.description.is_empty() {
            self.describe(vm, planned.description)?;
        }
        Ok(())
    }

    /// Tries a change out.
    pub fn check_reconfigure(
        &self,
        vm: &Vm,
        expected: Option<u64>,
        change: &ReconfigureRequest,
    ) -> DryRun {
        let mut problems = Problems::default();
        let version = vm.live().row.version;
        problems.take(check_version("VM", &vm.name(), expected, version));
        self.plan_change(vm, change, &mut problems);
        problems.dry_run()
    }

    /// Works a change out; nothing is done.
    fn plan_change(
        &self,
        vm: &Vm,
        change: &ReconfigureRequest,
        problems: &mut Problems,
    ) -> Option<Planned> {
        let cold = is_cold(change);
        problems.take(self.allow(vm, Operation::Describe));
        if cold {
            problems.take(self.allow(vm, Operation::Reconfigure));
            self.check_fixed(&vm.row(), change, problems);
        }
        if is_hot(change) {
            problems.take(self.allow(vm, Operation::Adjust));
        }
        let mark = problems.take(self.plan_template(vm, change.template));
        let description = problems.take(self.plan_description(vm, change));
        problems.take(check_hot(self, &vm.row(), change));
        let rebuilt = cold.then(|| problems.take(self.plan_rebuilt(vm, change)));
        let media = self.try_media("insert_disks", &change.insert_disks, problems);
        let rebuilt = match rebuilt {
            Some(rebuilt) => Some(rebuilt?),
            None => None,
        };
        let row = rebuilt.as_ref().map_or_else(|| vm.row(), Rebuilt::row);
        let count = change.insert_disks.len();
        problems.take(check_slots("insert_disks", &row, count));
        let space = (count > 0).then(|| self.promise_deltas(&row.datastore, count));
        Some(Planned {
            mark: mark?,
            description: description?,
            rebuilt,
            media: media?,
            _space: problems.take(space.transpose())?,
        })
    }

    /// What becomes of the mark of a template, where it changes.
    fn plan_template(&self, vm: &Vm, template: Option<bool>) -> OpResult<Option<bool>> {
        let operation = match template {
            None => return Ok(None),
            Some(true) => Operation::MarkTemplate,
            Some(false) => Operation::UnmarkTemplate,
        };
        Ok(self.allow(vm, operation)?.then_some(template).flatten())
    }

    fn mark(&self, vm: &Arc<Vm>, template: bool) -> OpResult<()> {
        let (kind, message) = match template {
            true => ("vm.template_marked", "marked as a template"),
            false => ("vm.template_unmarked", "made an ordinary VM"),
        };
        let changes = with_event(vm_event(vm, kind, message));
        self.change_row(vm, changes, |row| {
            row.template = template;
            row.version += 1;
        })
    }

    /// Changes cables and back ends of serial ports, of a VM that runs or of one that does not.
    fn adjust(&self, vm: &Arc<Vm>, change: &ReconfigureRequest) -> OpResult<()> {
        let before = vm.row();
        let told = json!({ "nics": change.nics, "serial": change.serial });
        let told = vm_event(vm, "vm.reconfigured", "cables or serial ports changed").with(told);
        self.claim_ports(vm, change)?;
        let written = self.change_row(vm, with_event(told), |row| {
            set_adjusted(row, change);
            row.version += 1;
        });
        written.inspect_err(|_| {
            vm.update(|live| adjust_back(&mut live.row, &before));
            // Somebody else may have written it meanwhile.
            self.commit_logged(&[vm], Changes::default());
        })?;
        let sent = self.send_links(vm, change).and_then(|()| {
            let mut ports = change.serial.iter();
            ports.try_for_each(|port| self.send_serial(vm, port))
        });
        sent.inspect_err(|error| {
            let message = format!("not changed: {}", error.message());
            let told = vm_event(vm, "vm.reconfigure_failed", message);
            let back = |row: &mut VmRow| {
                adjust_back(row, &before);
                row.version += 1;
            };
            if let Err(error) = self.change_row(vm, with_event(told), back) {
                tracing::error!("{}", error.message());
            }
        })
    }

    /// Gives a VM files and sockets for its serial ports that no other VM may have; nobody else gets
    /// any of them in between.
    fn claim_ports(&self, vm: &Vm, change: &ReconfigureRequest) -> OpResult<()> {
        if change.serial.is_empty() {
            return Ok(());
        }
        let wanted: Vec<_> = change.serial.iter().map(|port| &port.backend).collect();
        let vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        for other in vms.all().filter(|other| other.id != vm.id) {
            check_ports(&other.live().row, &wanted)?;
        }
        vm.update(|live| set_adjusted(&mut live.row, change));
        Ok(())
    }

    fn send_links(&self, vm: &Vm, change: &ReconfigureRequest) -> OpResult<()> {
        let Some(link) = vm.link() else { return Ok(()) };
        let row = vm.row();
        for nic in &change.nics {
            let (Some(connected), index) = (nic.connected, usize::from(nic.nic)) else {
                continue;
            };
            if !row.nics[index].has_tap() {
                continue;
            }
            let order = Command::SetLink {
                nic: index,
                up: connected,
            };
            let answer = link.call(order, &[], CHANGE_TIMEOUT);
            answer.map_err(|error| self.explain(vm, "nics: cannot set a link of", error))?;
        }
        Ok(())
    }

    fn send_serial(&self, vm: &Vm, change: &SerialChange) -> OpResult<()> {
        let Some(link) = vm.link() else { return Ok(()) };
        let port = usize::from(change.port);
        let mut fds = FdList::default();
        let backend = self.open_serial(&vm.row(), port, &mut fds)?;
        let order = Command::SetSerial(SetSerial { port, backend });
        let answer = link.call(order, &fds.borrowed(), CHANGE_TIMEOUT);
        answer.map_err(|error| self.explain(vm, "serial: cannot change a port of", error))?;
        Ok(())
    }

    /// Sets the links of a VM's NICs as its row says, after a start or where an earlier daemon may
    /// have ended in the middle of a change.
    pub(super) fn pull_cables(&self, vm: &Vm) {
        let Some(link) = vm.link() else { return };
        let nics = vm.row().nics;
        let pulled = nics.iter().enumerate();
        for (nic, _) in pulled.filter(|(_, nic)| nic.disconnected && nic.has_tap()) {
            let order = Command::SetLink { nic, up: false };
            if let Err(error) = link.call(order, &[], CHANGE_TIMEOUT) {
                tracing::warn!(vm = &*vm.name(), nic, "cannot pull a cable: {error:#}");
            }
        }
    }
}

/// Whether a change has something that goes to the VM's process.
fn is_hot(change: &ReconfigureRequest) -> bool {
    changes_ports(change) || !change.insert_disks.is_empty()
}

/// Whether a change has cables or serial ports.
fn changes_ports(change: &ReconfigureRequest) -> bool {
    let plugged = |nic: &api_types::NicChange| nic.connected.is_some();
    change.nics.iter().any(plugged) || !change.serial.is_empty()
}

/// Whether a change has something that only a VM without a process takes.
fn is_cold(change: &ReconfigureRequest) -> bool {
    let moved = |nic: &api_types::NicChange| nic.network.is_some() || nic.tap.is_some();
    change.nics.iter().any(moved)
        || change.cpus.is_some()
        || change.memory_bytes.is_some()
        || change.memory_limit_bytes.is_some()
        || change.cmdline.is_some()
        || change.engine.is_some()
        || change.uuid.is_some()
        || change.bios_uuid.is_some()
        || change.serial_ports.is_some()
        || change.spare_disks.is_some()
        || !change.add_disks.is_empty()
        || !change.remove_disks.is_empty()
        || !change.add_nics.is_empty()
        || !change.remove_nics.is_empty()
}

/// Refuses NICs and ports that do not exist, and back ends that cannot be.
fn check_hot(host: &Host, row: &VmRow, change: &ReconfigureRequest) -> OpResult<()> {
    for nic in &change.nics {
        let index = usize::from(nic.nic);
        if index >= row.nics.len() {
            return Err(missing("nics", "NIC", index, row.nics.len()));
        }
    }
    let ports = usize::from(change.serial_ports.unwrap_or(0)).max(row.serial.len());
    for port in &change.serial {
        let index = usize::from(port.port);
        if index >= ports {
            return Err(missing("serial", "serial port", index, ports));
        }
    }
    let mut after = row.clone();
    let log = api_types::SerialRequest::Log;
    after.serial.resize(ports, log);
    set_adjusted(&mut after, change);
    host.check_serial(&after.serial, Some(row))
}

/// The error about a part that a VM does not have.
fn missing(field: &str, what: &str, index: usize, count: usize) -> OpError {
    OpError::new(
        ErrorKind::Conflict,
        format!("{field}: there is no {what} {index}, the VM has {count}; they count from 0"),
    )
}

/// Gives a row the cables and ports of one of before.
fn adjust_back(row: &mut VmRow, before: &VmRow) {
    for (nic, was) in row.nics.iter_mut().zip(&before.nics) {
        nic.disconnected = was.disconnected;
    }
    row.serial.clone_from(&before.serial);
}

fn set_adjusted(row: &mut VmRow, change: &ReconfigureRequest) {
    for nic in &change.nics {
        if let (Some(connected), Some(row)) =
            (nic.connected, row.nics.get_mut(usize::from(nic.nic)))
        {
            row.disconnected = !connected;
        }
    }
    for port in &change.serial {
        if let Some(backend) = row.serial.get_mut(usize::from(port.port)) {
            backend.clone_from(&port.backend);
        }
    }
}
