//! A daemon in a data directory of its own, with the stand-in for VM processes.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod stores;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api_types::{DiskRequest, ForkRequest, RunRequest, VmDetail};
use client::Client;
use tempfile::TempDir;

/// Longest wait for anything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Bed {
    dir: TempDir,
    daemon: Option<Child>,
    args: Vec<String>,
    pub client: Client,
}

impl Bed {
    /// Starts a daemon.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Starts a daemon with more arguments.
    pub fn with(args: &[&str]) -> Self {
        // Short, for sockets below it.
        let dir = tempfile::Builder::new()
            .prefix("md")
            .tempdir_in("/tmp")
            .unwrap();
        let client = Client::new(&dir.path().join("h"));
        std::fs::write(dir.path().join("kernel"), b"kernel").unwrap();
        let mut bed = Self {
            dir,
            daemon: None,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            client,
        };
        bed.start();
        bed
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Names of archives that are being written beside the home.
    pub fn half_written(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).collect()
    }

    /// Directory of the memory cgroups of this bed's VMs.
    pub fn groups(&self) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let top = if v1.exists() {
            v1
        } else {
            Path::new("/sys/fs/cgroup")
        };
        top.join("mitose-bed")
            .join(self.dir.path().file_name().unwrap())
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mitosed"));
        command
            .arg("--home")
            .arg(self.home())
            .args(["--shells", "2"])
            .arg("--cgroup")
            .arg(self.groups())
            .args(&self.args)
            .env("MITOSE_KVM_DEVICE", "/dev/null")
            .env("MITOSE_VMM", fake_vmm())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with more variables in its environment.
    pub fn start_with(&mut self, env: &[(&str, &str)]) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.file("log"))
            .unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.envs(env.iter().copied());
        self.daemon = Some(command.spawn().unwrap());
        let client = self.client.clone();
        self.until("the daemon answers", || client.status().is_ok());
    }

    /// Ends the daemon by SIGKILL.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Ends the daemon by SIGKILL and starts another one.
    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Waits until `done` holds.
    pub fn until(&self, what: &str, done: impl FnMut() -> bool) {
        wait_until(what, done, || self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    pub fn request(&self, name: &str, cmdline: &str) -> RunRequest {
        RunRequest {
            kernel: Some(self.file("kernel")),
            cmdline: Some(cmdline.to_owned()),
            memory_bytes: 16 << 20,
            // The stand-in has no speed that could be measured.
            engine: vm_spec::EngineChoice::Kvm,
            ..serde_json::from_str(&format!(r#"{{"name":"{name}"}}"#)).unwrap()
        }
    }

    /// Runs a VM with one disk of 1 MiB.
    pub fn run(&self, name: &str, cmdline: &str) {
        let request = self.with_disk(self.request(name, cmdline));
        self.client.run(&request).unwrap();
    }

    pub fn with_disk(&self, mut request: RunRequest) -> RunRequest {
        let path = self.file("disk.raw");
        if !path.exists() {
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        }
        request.disks.push(DiskRequest {
            path,
            format: None,
            read_only: false,
        });
        request
    }

    pub fn state(&self, name: &str) -> String {
        self.client.vm(name).unwrap().vm.state
    }

    pub fn detail(&self, name: &str) -> VmDetail {
        self.client.vm(name).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let vms = self.client.vms().unwrap();
        vms.into_iter().map(|vm| vm.name).collect()
    }

    pub fn until_state(&self, name: &str, state: &str) {
        self.until(&format!("{name} is {state}"), || {
            self.client.vm(name).is_ok_and(|vm| vm.vm.state == state)
        });
    }

    /// Types a line on a VM's COM1.
    pub fn type_line(&self, name: &str, line: &str) {
        let mut console = self.client.console(name).unwrap();
        console.write_all(line.as_bytes()).unwrap();
        // What is typed comes back once it has arrived; a connection that ends before may lose it.
        console.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&seen).contains(line) {
            let count = console.read(&mut buffer).unwrap();
            assert!(count > 0, "the console ended: {}", self.log());
            seen.extend_from_slice(&buffer[..count]);
        }
    }

    /// Names of the files in a directory of the data directory.
    pub fn list(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.home().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// VM processes of this bed.
    pub fn processes(&self) -> Vec<i32> {
        let mark = format!("MITOSE_VM_OF={}", self.home().display());
        let mark = mark.as_bytes();
        let marked = |pid: &i32| {
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|b| *b == 0).any(|entry| entry == mark)
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(marked)
            .collect()
    }

    /// Asserts that only the given VMs have left anything on the host.
    pub fn assert_only(&self, names: &[&str]) {
        assert_eq!(self.names(), names, "{}", self.log());
        let details: Vec<VmDetail> = names.iter().map(|name| self.detail(name)).collect();
        let mut ids: Vec<&str> = details.iter().map(|d| d.vm.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(self.list("datastore1/vms"), ids);
        let used = |file: &String| {
            details
                .iter()
                .flat_map(|d| &d.disks)
                .flat_map(|disk| &disk.layers)
                .any(|layer| Path::new(layer).file_name().unwrap() == file.as_str())
        };
        let unused: Vec<_> = self
            .list("datastore1/layers")
            .into_iter()
            .filter(|f| !used(f))
            .collect();
        assert!(unused.is_empty(), "{unused:?} {}", self.log());
        let sockets = self
            .list("run")
            .into_iter()
            .filter(|name| name.starts_with("vm-"));
        for socket in sockets {
            assert!(ids.iter().any(|id| socket.contains(id)), "{socket} is left");
        }
        self.assert_only_processes();
    }

    /// Asserts that no process is left beside those of VMs and shells.
    pub fn assert_only_processes(&self) {
        // Shells of the pool come and go; a VM's process does not stay.
        self.until("no process is left", || {
            let wanted = self.client.status().unwrap();
            let most = wanted.vms_running + wanted.shells_wanted + 1;
            self.processes().len() <= most
        });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for pid in self.processes() {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        // Groups are removed by the daemon, which was killed.
        let deadline = Instant::now() + PATIENCE;
        while self.groups().exists() && Instant::now() < deadline {
            remove_groups(&self.groups());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Has `qemu-img` look at a file; says what is wrong with it.
pub fn qemu_check(path: &str) {
    let checked = Command::new("qemu-img")
        .args(["check", "-q", path])
        .output();
    let checked = checked.unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{path}: {said}");
}

/// Removes cgroups without processes; those that have some are left.
fn remove_groups(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

pub fn clones(names: &[&str]) -> ForkRequest {
    ForkRequest {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..ForkRequest::default()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool, log: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}\n{}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The stand-in is an example of this package, which `cargo test` builds.
pub fn fake_vmm() -> PathBuf {
    let daemon = Path::new(env!("CARGO_BIN_EXE_mitosed"));
    let path = daemon.with_file_name("examples").join("fake_vmm");
    assert!(
        path.exists(),
        "build it with: cargo build -p mitosed --example fake_vmm"
    );
    path
}
