//! Starts QEMU for a run and ends it with its owner.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::build::{Lab, file_error};
use crate::error::BuildError;
use crate::run_dir::RunDir;
use crate::spec::RunSpec;
use crate::{tools, transfer};

/// The virtio-serial ports in the order of their numbers in the lab, from 1.
pub(crate) const PORTS: [&str; 3] = ["stdout", "stderr", "control"];

/// Besides sparing work, these keep a lab on an overloaded host from taking lost time for broken
/// hardware: a timer found dead stops the boot, a clock found unstable changes what KVM offers.
const KERNEL_PARAMETERS: &[&str] = &[
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "nokaslr",
    "audit=0",
    "random.trust_cpu=on",
    "no_timer_check",
    "tsc=reliable",
    "nowatchdog",
    "rcupdate.rcu_cpu_stall_suppress=1",
];

/// Longest time between QEMU closing its sockets and ending.
const PORTS_TO_EXIT: Duration = Duration::from_secs(2);

const CONSOLE: &str = "console.log";
const MESSAGES: &str = "qemu.log";

impl Lab {
    /// Returns the words that start the lab's QEMU, for those who want a machine of their own.
    pub fn emulator(&self) -> Vec<OsString> {
        emulator(&self.emulator)
    }
}

/// A running machine; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
}

impl Machine {
    /// Starts the machine of `spec`; it connects to the sockets of [`listen`] in `run`.
    pub(crate) fn start(lab: &Lab, spec: &RunSpec, run: &RunDir) -> Result<Self, BuildError> {
        let messages = run.file(MESSAGES);
        let log = File::create(&messages).map_err(|e| file_error("create", &messages, e))?;
        // setpriv makes the kernel end QEMU when this process dies, however it dies.
        let program = "setpriv";
        let child = Command::new(tools::find(program)?)
            .args(["--pdeathsig", "KILL", "--"])
            .args(emulator(&lab.emulator))
            .args(arguments(lab, spec))
            .current_dir(run.path())
            // A Ctrl-C is for this process, which then ends QEMU.
            .process_group(0)
            // Where QEMU keeps what the run writes to the root disk.
            .env("TMPDIR", run.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| BuildError::Spawn { program, source })?;
        Ok(Self { child })
    }

    /// Returns how the machine ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits a moment for a machine that has closed its ports, then ends it; returns how it ended.
    pub(crate) fn end_after_ports(&mut self) -> String {
        let deadline = Instant::now() + PORTS_TO_EXIT;
        while self.ended().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.end()
    }

    /// Ends the machine and returns how it ended.
    pub(crate) fn end(&mut self) -> String {
        // Both fail only where the process is gone already.
        let _ = self.child.kill();
        self.child
            .wait()
            .map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Listens on the socket of a port in the run's directory.
pub(crate) fn listen(port: &str, run: &RunDir) -> Result<UnixListener, BuildError> {
    let path = run.path();
    let directory = File::open(path).map_err(|e| file_error("open", path, e))?;
    // Through the descriptor, the path is short enough for a socket wherever the cache lies.
    let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), socket(port));
    UnixListener::bind(Path::new(&short)).map_err(|e| file_error("listen in", path, e))
}

/// Returns the end of the console's and QEMU's own output.
pub(crate) fn last_words(run: &RunDir) -> String {
    let read = |name: &str| fs::read(run.file(name)).unwrap_or_default();
    let text = [CONSOLE, MESSAGES].map(read).concat();
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    // QEMU lists what the model of CPU has and its software CPU lacks, on every start.
    let lines = text
        .lines()
        .filter(|line| !line.contains("TCG doesn't support requested feature"));
    tools::last_chars(&lines.collect::<Vec<_>>().join("\n"))
}

fn socket(port: &str) -> String {
    format!("{port}.sock")
}

/// Returns the words that start QEMU in place, with its own libraries and firmware.
fn emulator(tree: &Path) -> Vec<OsString> {
    let share = tree.join("usr/share");
    vec![
        tree.join("usr/lib64/ld-linux-x86-64.so.2").into(),
        "--library-path".into(),
        tree.join("usr/lib/x86_64-linux-gnu").into(),
        tree.join("usr/bin/qemu-system-x86_64").into(),
        "-L".into(),
        share.join("seabios").into(),
        "-L".into(),
        share.join("qemu").into(),
    ]
}

fn arguments(lab: &Lab, spec: &RunSpec) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let drive = |file: &str, id: &str, snapshot: &str| {
        // A comma in a file's name is written twice in QEMU's options.
        let file = file.replace(',', ",,");
        format!(
            "file={file},id={id},format=raw,if=none,cache=unsafe,discard=unmap,snapshot={snapshot}"
        )
    };
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("-machine", "q35,usb=off,vmport=off,hpet=off".to_owned());
    add("-accel", "tcg,thread=multi".to_owned());
    add("-cpu", "EPYC,+svm,+npt".to_owned());
    add("-smp", spec.cpus.to_string());
    add("-m", format!("{}M", spec.memory_bytes >> 20));
    add("-display", "none".to_owned());
    add("-serial", format!("file:{CONSOLE}"));
    add("-kernel", path(&lab.kernel));
    add("-initrd", path(&lab.initramfs));
    add("-append", KERNEL_PARAMETERS.join(" "));
    add("-drive", drive(&path(&lab.disk), "root", "on"));
    add(
        "-device",
        "virtio-blk-pci,drive=root,disable-legacy=on".to_owned(),
    );
    add("-drive", drive(transfer::DISK, "transfer", "off"));
    add(
        "-device",
        "virtio-blk-pci,drive=transfer,disable-legacy=on".to_owned(),
    );
    add("-device", "virtio-serial-pci,disable-legacy=on".to_owned());
    for (index, port) in PORTS.iter().enumerate() {
        add(
            "-chardev",
            format!("socket,id={port},path={}", socket(port)),
        );
        add(
            "-device",
            format!("virtserialport,chardev={port},nr={},name={port}", index + 1),
        );
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_follows_the_spec() {
        let lab = Lab {
            disk: "/a,b/disk".into(),
            kernel: "/k".into(),
            initramfs: "/i".into(),
            emulator: "/e".into(),
            runs: "/r".into(),
        };
        let spec = RunSpec {
            cpus: 3,
            memory_bytes: 1 << 30,
            ..RunSpec::new(["true"])
        };
        let line = arguments(&lab, &spec).join(" ");
        for part in [
            "-smp 3",
            "-m 1024M",
            "file=/a,,b/disk,id=root",
            "nr=3,name=control",
        ] {
            assert!(line.contains(part), "{line} lacks {part}");
        }
    }
}
