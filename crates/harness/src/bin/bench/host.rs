//! The host's side: a daemon with a home of its own, TAPs, the guest's files. All of it goes when
//! the bench ends.

use std::cell::Cell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::Client;
use tempfile::TempDir;

/// Shells that the daemon keeps as shipped.
pub(crate) const POOL: usize = 16;
/// Size of each VM's disk, bytes.
const DISK_BYTES: u64 = 1 << 30;
/// TAPs: the source's and one for a single clone.
const TAPS: [&str; 2] = ["mitosebench0", "mitosebench1"];
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A daemon and what its VMs use.
pub(crate) struct Host {
    folder: TempDir,
    home: PathBuf,
    pub(crate) client: Client,
    daemon: Option<Child>,
    shells: usize,
    /// Further arguments of the daemon.
    words: Vec<String>,
    taps: Vec<Tap>,
    next: Cell<u32>,
}

impl Host {
    /// Makes the files and TAPs and starts a daemon that keeps `shells` shells.
    pub(crate) fn start(shells: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mitose-bench-").tempdir()?;
        let home = folder.path().join("h");
        std::fs::create_dir(&home)?;
        let home = home.canonicalize()?;
        std::fs::write(folder.path().join("guest.elf"), bare_guests::guest_elf())?;
        let disk = File::create_new(folder.path().join("disk.qcow2"))?;
        disk_layers::create_full(&disk, DISK_BYTES)?;
        let taps = TAPS
            .iter()
            .map(|name| Tap::add(name))
            .collect::<anyhow::Result<_>>()?;
        let mut host = Self {
            client: Client::new(&home),
            folder,
            home,
            daemon: None,
            shells,
            words: vec![],
            taps,
            next: Cell::new(0),
        };
        host.start_daemon()?;
        Ok(host)
    }

    /// Goes on with a daemon that keeps `shells` shells.
    pub(crate) fn restart(&mut self, shells: usize) -> anyhow::Result<()> {
        self.restart_with(shells, &[])
    }

    /// The same, with further arguments.
    pub(crate) fn restart_with(&mut self, shells: usize, words: &[&str]) -> anyhow::Result<()> {
        if self.shells == shells && self.words == words {
            return Ok(());
        }
        self.stop_daemon();
        self.shells = shells;
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
        self.start_daemon()
    }

    fn start_daemon(&mut self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file("mitosed.log"))?;
        let program = harness::program("mitosed")?;
        let child = Command::new(&program)
            .arg("--home")
            .arg(&self.home)
            .args(["--shells", &self.shells.to_string()])
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.daemon = Some(child);
        let deadline = Instant::now() + START_TIMEOUT;
        while self.client.status().is_err() {
            ensure!(
                Instant::now() < deadline,
                "the daemon does not answer; it says: {}",
                self.daemon_log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn stop_daemon(&mut self) {
        let Some(mut child) = self.daemon.take() else {
            return;
        };
        if self.client.stop_daemon().is_err() {
            let _ = child.kill();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until all shells of the pool stand ready and the host has come to rest.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while self.client.status()?.shells_ready < self.shells {
            ensure!(Instant::now() < deadline, "the pool of shells stays empty");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// A name that no VM had before.
    pub(crate) fn new_name(&self, prefix: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{prefix}{}", self.next.get())
    }

    /// The daemon's data folder.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// A path for a file that goes with the bench.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The guest's program.
    pub(crate) fn guest(&self) -> PathBuf {
        self.file("guest.elf")
    }

    /// The disk that all VMs stand on.
    pub(crate) fn disk(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// Folder with the home folders of VMs.
    pub(crate) fn vm_homes(&self) -> PathBuf {
        self.home.join("datastore1/vms")
    }

    /// TAP number `index`: 0 for sources, 1 for single clones.
    pub(crate) fn tap(&self, index: usize) -> String {
        self.taps[index].0.clone()
    }

    fn daemon_log(&self) -> String {
        let path = self.file("mitosed.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// What the daemon found worth telling.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let log = self.daemon_log();
        let notable = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        log.lines().filter(notable).map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for vm in self.client.vms().unwrap_or_default() {
            let _ = self.client.remove(&vm.name, true);
        }
        self.stop_daemon();
    }
}

/// A TAP interface that goes when it is dropped.
struct Tap(String);

impl Tap {
    fn add(name: &str) -> anyhow::Result<Self> {
        if Path::new("/sys/class/net").join(name).exists() {
            // Left by a bench that was killed.
            ip(&["link", "delete", name])?;
        }
        ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        let tap = Self(name.to_owned());
        ip(&["link", "set", name, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", &self.0]) {
            eprintln!("{} stays: {error:#}", self.0);
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip")
        .args(args)
        .status()
        .context("cannot run ip (package iproute2)")?;
    ensure!(status.success(), "ip {} gave {status}", args.join(" "));
    Ok(())
}
