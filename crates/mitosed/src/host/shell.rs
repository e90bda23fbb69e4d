//! Making a shell the process of a VM, and ending such a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use vmm_protocol::Command;

use super::{Host, Vm};
use crate::inventory::{NicRow, PowerState};
use crate::vmm::{self, Link, LinkError, Shell};

/// Time that a process has to obey, and then to end.
const OBEY: Duration = Duration::from_secs(5);
/// What follows the VM's id in the name of its process's log in the directory of logs.
pub(super) const VMM_LOG_SUFFIX: &str = ".vmm.log";

impl Host {
    /// Gives a shell to a VM: its socket and log get the VM's names, what it says goes to the VM.
    pub(super) fn assign(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        shell: Shell,
    ) -> anyhow::Result<Arc<Link>> {
        let home = &self.config.home;
        let renamed = fs::rename(&shell.socket, home.vm_socket(&vm.id))
            .and_then(|()| self.move_log(vm, &shell.log));
        if let Err(error) = renamed {
            let _ = fs::remove_file(home.vm_socket(&vm.id));
            self.pool.discard(shell);
            return Err(error).context("cannot give a VM process its name");
        }
        let link = Arc::clone(&shell.link);
        vm.update(|live| {
            live.row.uid = Some(shell.uid);
            live.row.pid = Some(shell.pid);
            live.row.group = shell.group;
            live.link = Some(Arc::clone(&link));
            live.begin();
        });
        shell.watch.redirect(self.handler(vm, &link));
        Ok(link)
    }

    /// Gives the log of a process, which is open, to its VM. Where the VM's home is on another file
    /// system there is a link to it instead.
    fn move_log(&self, vm: &Vm, log: &Path) -> std::io::Result<()> {
        let path = self.process_log(vm);
        match fs::rename(log, &path) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                let elsewhere = self.process_log_elsewhere(vm);
                fs::rename(log, &elsewhere)?;
                let _ = fs::remove_file(&path);
                std::os::unix::fs::symlink(&elsewhere, &path)
            }
            renamed => renamed,
        }
    }

    /// Log of a VM's process.
    pub fn process_log(&self, vm: &Vm) -> PathBuf {
        self.vm_home(&vm.live().row).join("vmm.log")
    }

    /// Where that log is when the VM's home is on another file system than the logs.
    pub(super) fn process_log_elsewhere(&self, vm: &Vm) -> PathBuf {
        let name = format!("{}{VMM_LOG_SUFFIX}", vm.id);
        self.config.home.logs().join(name)
    }

    /// Ends the process of a VM that did not come to life, and forgets it.
    pub(super) fn abandon_process(self: &Arc<Self>, vm: &Vm) {
        let (link, pid, uid, group) = vm.update(|live| {
            live.lodging = None;
            let row = &mut live.row;
            (
                live.link.take(),
                row.pid.take(),
                row.uid.take(),
                row.group.take(),
            )
        });
        let pid = pid.or_else(|| link.as_ref().and_then(|l| l.peer_pid()));
        if let Some(link) = &link {
            link.shut();
        }
        if let Some(pid) = pid {
            vmm::kill(pid);
        }
        self.forget_sockets(vm);
        super::backends::forget_serial_sockets(&vm.row());
        self.leave_group(group);
        if let Some(uid) = uid {
            self.pool.free_uid(uid);
        }
    }

    /// Takes its process from a VM that goes on in another one at once. It runs nothing any more
    /// when the call returns, and ends when nobody waits; one that has TAP interfaces is waited for,
    /// which are free only then.
    pub(super) fn leave_process(self: &Arc<Self>, vm: &Vm) {
        if vm.row().nics.iter().any(NicRow::has_tap) {
            self.abandon_process(vm);
        } else {
            let (link, pid, uid, group) = vm.update(|live| {
                let row = &mut live.row;
                let process = (row.pid.take(), row.uid.take(), row.group.take());
                (live.link.take(), process.0, process.1, process.2)
            });
            let pid = pid.or_else(|| link.as_ref().and_then(|l| l.peer_pid()));
            let killed = pid.and_then(vmm::send_kill);
            self.forget_sockets(vm);
            super::backends::forget_serial_sockets(&vm.row());
            let host = Arc::clone(self);
            self.pool.when_quiet(move || {
                killed.map(vmm::Killed::wait);
                if let Some(link) = link {
                    link.shut();
                }
                host.leave_group(group);
                if let Some(uid) = uid {
                    host.pool.free_uid(uid);
                }
            });
        }
        vm.update(|live| {
            live.lodging = None;
            live.ram = None;
            live.ready_at_ns = None;
            live.ended = None;
            live.row.reason = None;
            live.row.freeze = None;
            live.row.state = PowerState::PoweredOff;
        });
    }

    /// Asks a VM's process to end at once and waits until it has; kills it where it does not.
    pub(super) fn end_process(&self, vm: &Vm) {
        let (link, pid) = {
            let live = vm.live();
            (live.link.clone(), live.row.pid)
        };
        let Some(link) = link else { return };
        let asked = link.call(Command::PowerOff, &[], OBEY);
        if !matches!(asked, Ok(_) | Err(LinkError::Closed)) {
            tracing::warn!(
                vm = &*vm.name(),
                "the VM process does not obey; it is killed"
            );
        }
        let gone = || {
            let deadline = Instant::now() + OBEY;
            vm.wait(deadline, |live| live.link.is_none().then_some(()))
        };
        if gone().is_none() {
            if let Some(pid) = pid.or_else(|| link.peer_pid()) {
                vmm::kill(pid);
            }
            link.shut();
            let _ = gone();
        }
    }

    /// Removes the sockets of a VM without a process.
    pub(super) fn forget_sockets(&self, vm: &Vm) {
        let home = &self.config.home;
        let _ = fs::remove_file(home.vm_socket(&vm.id));
        let _ = fs::remove_file(home.vm_vsock(&vm.id));
    }

    /// The last warning or error in the log of a VM's process, for an error message.
    pub(super) fn last_words(&self, vm: &Vm) -> Option<String> {
        let text = fs::read(self.process_log(vm)).ok()?;
        let tail = &text[text.len().saturating_sub(4096)..];
        let tail = String::from_utf8_lossy(tail);
        let telling = |line: &&str| {
            [" ERROR ", " WARN ", "panicked", "error:"]
                .iter()
                .any(|w| line.contains(w))
        };
        let line = tail.lines().rev().find(telling)?;
        // Time and level say nothing in an error message.
        let words = [" ERROR ", " WARN "]
            .iter()
            .find_map(|level| Some(line.split_once(level)?.1))
            .unwrap_or(line);
        let words = words.trim().chars().filter(|c| !c.is_control());
        Some(words.take(300).collect())
    }

    /// An error of a VM's process, with what it last wrote where it just ended.
    pub(super) fn explain(&self, vm: &Vm, what: &str, error: LinkError) -> anyhow::Error {
        let mut message = format!("{what} {}", vm.name());
        if matches!(error, LinkError::Closed)
            && let Some(words) = self
                .memory_verdict(&vm.row())
                .or_else(|| self.last_words(vm))
        {
            message = format!("{message} ({words})");
        }
        if !rustix::process::geteuid().is_root() {
            message = format!("{message}; VMs can only be jailed by root: run mitosed as root");
        }
        anyhow::Error::from(error).context(message)
    }
}
