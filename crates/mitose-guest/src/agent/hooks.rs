//! The image's own steps after a fork: `/etc/mitose/clone.d/*`, in order of their names.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent_protocol::Identity;
use agent_protocol::guest_paths::CLONE_SCRIPTS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::Root;
use crate::linux::{self, Attachment};
use crate::pid1::services::executables;
use crate::requests::command::BASE_PATH;

/// Longest time that one script may take.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Runs all scripts and returns what went wrong, one line for each that failed.
pub(super) fn run_all(root: &Root, identity: &Identity, limit: Duration) -> Vec<String> {
    executables(root, CLONE_SCRIPTS)
        .iter()
        .filter_map(|script| {
            let problem = run(script, identity, limit).err()?;
            Some(format!("{}: {problem}", script.display()))
        })
        .collect()
}

fn run(script: &Path, identity: &Identity, limit: Duration) -> Result<(), String> {
    let mut command = Command::new(script);
    command
        .env_clear()
        .env("PATH", BASE_PATH)
        .env("HOME", "/root")
        .env("MITOSE_VM_NAME", &identity.vm_name)
        .env("MITOSE_HOSTNAME", &identity.hostname)
        .env("MITOSE_INSTANCE_UUID", &identity.instance_uuid)
        .stdin(Stdio::null());
    linux::attach(
        &mut command,
        Attachment {
            ids: None,
            terminal: false,
        },
    );
    let mut child = command.spawn().map_err(|e| format!("cannot run: {e}"))?;
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or("has no process id")?;
    let exited = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| format!("cannot watch: {e}"))?;
    let mut fds = [PollFd::new(&exited, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let ended = matches!(poll(&mut fds, Some(&timeout)), Ok(n) if n > 0);
    if !ended {
        let _ = linux::kill_group(pid, libc::SIGKILL);
    }
    let status = child.wait().map_err(|e| format!("cannot wait: {e}"))?;
    match (ended, status.success()) {
        (false, _) => Err(format!("killed after {} s", limit.as_secs())),
        (true, false) => Err(format!("ended with {status}")),
        (true, true) => Ok(()),
    }
}
