//! One VM with a bare-metal guest that is forked: commands, answers, clones.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api_types::{Cloned, DiskRequest, ForkRequest, NetRequest, RunRequest};
use vm_spec::EngineChoice;

use crate::host::Host;

/// Longest wait for a word of the guest: it may have to touch gigabytes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// RAM that the guest leaves untouched: itself, its tables, what lies above.
const UNTOUCHED_MIB: u64 = 24;

/// A VM; it is removed with its clones when dropped.
pub(crate) struct Source<'a> {
    host: &'a Host,
    pub(crate) name: String,
    serial: File,
    path: PathBuf,
    input: UnixStream,
    /// What was read of COM1's output and not asked for.
    unread: String,
    clones: Vec<String>,
    /// It stays when this is dropped.
    kept: bool,
}

/// What a fork gave, beside the daemon's own answer.
pub(crate) struct Fork {
    pub(crate) cloned: Cloned,
    /// When the request was sent, `CLOCK_MONOTONIC`, ns: shortly before it arrived.
    pub(crate) sent_ns: u64,
}

impl Fork {
    /// Times to the first instruction of each clone, microseconds.
    pub(crate) fn first_runs(&self) -> anyhow::Result<Vec<f64>> {
        let of = |clone: &api_types::ClonedVm| {
            let error = clone.error.as_deref().unwrap_or("it gave no time");
            let us = clone.first_run_us;
            us.map(|us| us as f64)
                .with_context(|| format!("{}: {error}", clone.name))
        };
        self.cloned.clones.iter().map(of).collect()
    }

    /// Time to the first instruction of the last clone, microseconds.
    pub(crate) fn last_run(&self) -> anyhow::Result<f64> {
        Ok(self.first_runs()?.into_iter().fold(0.0, f64::max))
    }
}

/// Returns `CLOCK_MONOTONIC`, ns.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// MiB that a guest touches in a VM of `memory_mib`.
pub(crate) fn touched_mib(memory_mib: u64) -> u64 {
    memory_mib - UNTOUCHED_MIB
}

/// A VM with a disk, as a request.
pub(crate) fn request(host: &Host, name: &str, memory_mib: u64, words: &str) -> RunRequest {
    RunRequest {
        kernel: Some(host.guest()),
        cmdline: Some(format!("touch={} {words}", touched_mib(memory_mib))),
        disks: vec![DiskRequest {
            path: host.disk(),
            format: None,
            read_only: false,
        }],
        memory_bytes: memory_mib << 20,
        engine: EngineChoice::Kvm,
        wait_ready_s: Some(0),
        ..RunRequest::named(name)
    }
}

impl<'a> Source<'a> {
    /// Boots a VM with a disk and a TAP and waits until its guest has touched all its RAM.
    pub(crate) fn boot(host: &'a Host, memory_mib: u64, words: &str) -> anyhow::Result<Self> {
        let name = host.new_name("s");
        let run = RunRequest {
            nets: vec![NetRequest {
                tap: Some(host.tap(0)),
                mac: None,
                ..NetRequest::default()
            }],
            ..request(host, &name, memory_mib, words)
        };
        host.client.run(&run).context("cannot run a VM")?;
        match Self::attach(host, &name) {
            Ok(mut source) => {
                source.wait_line("M")?;
                Ok(source)
            }
            Err(error) => {
                let _ = host.client.remove(&name, true);
                Err(error)
            }
        }
    }

    /// The VM `name`, which runs.
    pub(crate) fn attach(host: &'a Host, name: &str) -> anyhow::Result<Self> {
        let detail = host.client.vm(name)?;
        let path = PathBuf::from(detail.serial.context("the VM has no serial log")?);
        Ok(Self {
            host,
            name: name.to_owned(),
            serial: File::open(&path)?,
            path,
            input: host.client.console(name)?,
            unread: String::new(),
            clones: vec![],
            kept: false,
        })
    }

    /// Leaves the VM to run.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }

    /// Waits for a line that begins with `start` and returns the rest of it.
    pub(crate) fn wait_line(&mut self, start: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            while let Some((line, rest)) = self.unread.split_once('\n') {
                let (line, rest) = (line.trim_end().to_owned(), rest.to_owned());
                self.unread = rest;
                ensure!(!line.starts_with('E'), "the guest says {line}");
                if let Some(end) = line.strip_prefix(start) {
                    return Ok(end.to_owned());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "the guest did not say {start}; see {}",
                self.path.display()
            );
            let mut bytes = vec![];
            self.serial.read_to_end(&mut bytes)?;
            self.unread.push_str(&String::from_utf8_lossy(&bytes));
            if bytes.is_empty() {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }

    /// Types `byte` and waits for a line that begins with `answer`; returns the rest of the line
    /// and the time it took.
    pub(crate) fn command(&mut self, byte: u8, answer: &str) -> anyhow::Result<(String, Duration)> {
        let began = Instant::now();
        self.input.write_all(&[byte])?;
        let line = self.wait_line(answer)?;
        Ok((line, began.elapsed()))
    }

    /// Returns the largest time between two steps of the guest since the last such question, TSC
    /// ticks.
    pub(crate) fn gap_ticks(&mut self) -> anyhow::Result<u64> {
        let (gap, _) = self.command(b'g', "gap=")?;
        gap.trim().parse().context("the guest's gap is no number")
    }

    /// Everything that the guest has printed.
    pub(crate) fn output(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.path)?;
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes `count` clones in one call; one alone gets a TAP.
    pub(crate) fn fork(&mut self, count: usize) -> anyhow::Result<Fork> {
        let names: Vec<String> = (0..count).map(|_| self.host.new_name("c")).collect();
        let mut nets = vec![];
        if count == 1 {
            nets.push(NetRequest {
                tap: Some(self.host.tap(1)),
                mac: None,
                ..NetRequest::default()
            });
        }
        let request = ForkRequest {
            names: names.clone(),
            nets,
            wait_ready_s: Some(0),
            ..ForkRequest::default()
        };
        self.clones.extend(names);
        let sent_ns = monotonic_ns();
        let cloned = self.host.client.fork(&self.name, &request)?;
        if let Some(error) = cloned.clones.iter().find_map(|clone| clone.error.as_ref()) {
            bail!("a clone failed: {error}");
        }
        Ok(Fork { cloned, sent_ns })
    }

    /// Names of the clones that there are.
    pub(crate) fn clones(&self) -> &[String] {
        &self.clones
    }

    /// Removes all clones; returns the time of each removal.
    pub(crate) fn remove_clones(&mut self) -> anyhow::Result<Vec<Duration>> {
        let mut times = vec![];
        for name in std::mem::take(&mut self.clones) {
            let began = Instant::now();
            self.host.client.remove(&name, true)?;
            times.push(began.elapsed());
        }
        Ok(times)
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        let own = Some(&self.name).filter(|_| !self.kept);
        for name in self.clones.iter().chain(own) {
            let _ = self.host.client.remove(name, true);
        }
    }
}
