//! What an image starts: scripts, a service description, a command of the kernel command line.
//!
//! This runs as a child of process 1 and ends by becoming the service, so that nothing of it stays
//! in memory.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::Start;
use agent_protocol::guest_paths::{SERVICE, START_SCRIPTS};

use super::cmdline::Cmdline;
use crate::agent::IDENTIFIED;
use crate::requests::command::{self, BASE_PATH};
use crate::{Root, log};

/// How long services wait for the guest's identity: they would start with another's name and
/// without addresses. A guest without a host starts them after it.
const IDENTITY_WAIT: Duration = Duration::from_secs(2);

/// Runs the scripts, then starts `mitose.cmd=` and the service.
pub(crate) fn run(root: &Root) {
    wait_for_identity(root);
    for script in executables(root, START_SCRIPTS) {
        let status = Command::new(&script)
            .env("PATH", BASE_PATH)
            .env("HOME", "/root")
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => log(&format!("{} ended with {status}", script.display())),
            Err(error) => log(&format!("cannot run {}: {error}", script.display())),
        }
    }
    let mut programs = Vec::new();
    if let Some(line) = Cmdline::read().value("mitose.cmd") {
        let argv = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        programs.push(Start {
            argv,
            ..Start::default()
        });
    }
    match service(root) {
        Ok(service) => programs.extend(service),
        Err(error) => log(&format!("{SERVICE}: {error:#}")),
    }
    start_all(root, &programs);
}

fn wait_for_identity(root: &Root) {
    let deadline = Instant::now() + IDENTITY_WAIT;
    let has_host = root.path("/dev/vsock").exists();
    while has_host && !root.path(IDENTIFIED).exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Starts all programs; the last one takes this process's place.
fn start_all(root: &Root, programs: &[Start]) {
    let Some((last, others)) = programs.split_last() else {
        return;
    };
    for program in others {
        let started = command::build(root, program).and_then(|mut c| Ok(c.spawn()?));
        if let Err(error) = started {
            log(&format!("cannot start {:?}: {error:#}", program.argv));
        }
    }
    match command::build(root, last) {
        Ok(mut command) => log(&format!("cannot start {:?}: {}", last.argv, command.exec())),
        Err(error) => log(&format!("cannot start {:?}: {error:#}", last.argv)),
    }
}

fn service(root: &Root) -> anyhow::Result<Option<Start>> {
    let Ok(text) = fs::read(root.path(SERVICE)) else {
        return Ok(None);
    };
    let start: Start = serde_json::from_slice(&text)?;
    anyhow::ensure!(!start.argv.is_empty(), "argv is empty");
    Ok(Some(start))
}

/// Returns the executable files of a directory, sorted by name.
pub(crate) fn executables(root: &Root, dir: &str) -> Vec<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let Ok(entries) = fs::read_dir(root.path(dir)) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| {
            fs::metadata(e.path()).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .map(|e| e.path())
        .collect();
    paths.sort();
    paths
}
