//! `mitosed`: the daemon that owns the inventory, opens all host resources, and starts and forks
//! VMs; every VM runs in a process of its own and outlives it.

#![forbid(unsafe_code)]

mod cgroup;
mod clock;
mod config;
mod datastore;
mod doctor;
mod error;
mod host;
mod http;
mod image;
mod inventory;
mod keys;
mod layers;
mod nursery;
mod usage;
mod vmm;

use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Args, Command, Config};
use crate::host::Host;
use crate::inventory::Sqlite;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error::chain_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Command::Openapi) = args.command {
        return print_openapi();
    }
    let config = args.check()?;
    let _lock = lock_home(&config)?;
    nursery::lay(config.home.root())?;
    // A daemon has no terminal; where it leads a group already it is a session's own.
    let _ = rustix::process::setsid();
    raise_file_limit();
    // All threads have them; VM processes take theirs themselves.
    linux_sys::take_short_slices(linux_sys::Hurry::Daemon);
    protect_from_oom();
    host::refuse_lost(&config.home)?;
    let inventory = Sqlite::open(&config.home.inventory())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Operations have threads of their own. Where there are few processors a second worker is
        // woken only to take one from them.
        .worker_threads(worker_threads())
        // Each task in work has one, and waits for its guests in it.
        .max_blocking_threads(8192)
        // One that waits for work is there sooner than a new one.
        .thread_keep_alive(Duration::from_secs(60))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // What is wrong with the addresses is told before any process is started.
    let doors = runtime.block_on(http::Doors::open(&config))?;
    let host = Host::recover(config, Box::new(inventory))?;
    let served = runtime.block_on(http::serve(Arc::clone(&host), doors));
    host.stop();
    // Requests that still wait for a guest do not keep the daemon.
    runtime.shutdown_background();
    served
}

fn worker_threads() -> usize {
    match std::thread::available_parallelism() {
        Ok(processors) if processors.get() > 2 => 2,
        _ => 1,
    }
}

fn print_openapi() -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{:#}", http::openapi()).context("cannot write the document")
}

/// A daemon that was killed keeps its own lock until the kernel has cleaned up after it.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// One that was killed leaves the file's lock for a moment to a process that it was just starting.
const FILE_LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// One daemon per data directory. Two locks say so: the process's own (fcntl(2)) ends with it whatever it
/// has started, but also when it closes another descriptor of the file; the file's (flock(2)) does not.
fn lock_home(config: &Config) -> anyhow::Result<File> {
    let path = config.home.root().join("mitosed.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let operation = FlockOperation::NonBlockingLockExclusive;
    let locked = wait_for_lock(LOCK_WAIT, || fcntl_lock(&file, operation))
        .and_then(|()| wait_for_lock(FILE_LOCK_WAIT, || flock(&file, operation)));
    match locked {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another mitosed runs for {}; stop it with 'mitose daemon stop', or set MITOSE_HOME",
            config.home.root().display()
        ),
        Err(errno) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Tries to lock until somebody else's lock is gone, for `patience` at most.
fn wait_for_lock(
    patience: Duration,
    lock: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match lock() {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {}
            other => return other,
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// A call that makes hundreds of clones holds several descriptors for each.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Under memory pressure VMs go first: without the daemon nobody can stop them.
fn protect_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::debug!(%error, "cannot lower the OOM score");
    }
}
