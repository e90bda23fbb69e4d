//! The pool of pre-started shells: empty VM processes that wait to be told what to become.
//!
//! Filling it costs some milliseconds of processor time for each, so it happens on a thread of its
//! own, and only while no operation that someone waits for is under way. Where the pool is empty a
//! shell is born of the *seed*, which is faster than starting one; those of the pool are started, so
//! that each has its addresses laid out in its own way.

mod ahead;

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

pub use self::ahead::Build;
use super::link::Link;
use super::process::{self, HOME_MARK};
use super::reactor::{Notice, Reactor, Watch};
use super::seed::Seed;
use crate::cgroup::Groups;
use crate::config::Config;
use crate::nursery;

/// Quiet time before shells are started ahead.
const QUIET: Duration = Duration::from_millis(40);
/// Longest wait of other work for a quiet time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Shells that ended by themselves before the pool stops starting more ahead of time.
const MAX_FAILURES: u32 = 3;

/// An empty VM process, connected.
#[derive(Debug)]
pub struct Shell {
    /// Its user id, taken from the daemon's range.
    pub uid: u32,
    /// Its process id.
    pub pid: i32,
    /// Path of its control socket.
    pub socket: PathBuf,
    /// Path of its log.
    pub log: PathBuf,
    /// Connection to it.
    pub link: Arc<Link>,
    /// What it says goes to the pool until this is redirected.
    pub watch: Watch,
    /// Its memory cgroup, where it has one already.
    pub group: Option<String>,
    /// What it has built ahead.
    pub built: Option<Build>,
}

/// Work for a time when nobody waits.
struct Later(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

#[derive(Debug, Default)]
struct Inner {
    ready: VecDeque<Shell>,
    busy: usize,
    last_use: Option<Instant>,
    failures: u32,
    /// What the next clone is likely to be.
    expected: Option<Build>,
    stopped: bool,
    later: VecDeque<Later>,
    /// When the oldest of them came.
    later_since: Option<Instant>,
}

impl Inner {
    fn take(&mut self, wanted: Option<Build>) -> Option<Shell> {
        let at = |built: Option<Build>| self.ready.iter().position(|shell| shell.built == built);
        let index = at(wanted).or_else(|| at(None)).unwrap_or(0);
        self.ready.remove(index)
    }
}

/// Pool of shells and the user ids of all VM processes.
#[derive(Debug)]
pub struct Pool {
    config: Config,
    reactor: Reactor,
    groups: Option<Arc<Groups>>,
    next: AtomicU64,
    inner: Mutex<Inner>,
    seed: Mutex<Option<Seed>>,
    changed: Condvar,
    uids: Mutex<HashSet<u32>>,
}

/// While it lives no shell is started ahead.
#[derive(Debug)]
pub struct Busy<'a>(&'a Pool);

impl Pool {
    /// Makes the pool; `uids_in_use` belong to VMs that run already.
    pub fn new(
        config: &Config,
        reactor: &Reactor,
        uids_in_use: HashSet<u32>,
        groups: Option<Arc<Groups>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config: config.clone(),
            reactor: reactor.clone(),
            groups,
            next: AtomicU64::new(rand::random::<u32>().into()),
            inner: Mutex::default(),
            seed: Mutex::default(),
            changed: Condvar::new(),
            uids: Mutex::new(uids_in_use),
        })
    }

    /// Starts the thread that fills it.
    pub fn fill_in_background(self: &Arc<Self>) -> anyhow::Result<()> {
        let pool = Arc::clone(self);
        std::thread::Builder::new()
            .name("shell-pool".into())
            .spawn(move || pool.fill())
            .context("cannot start the thread of the shell pool")?;
        Ok(())
    }

    /// Number of shells that wait.
    pub fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// Keeps the pool from starting shells until the guard is dropped.
    pub fn busy(&self) -> Busy<'_> {
        self.lock().busy += 1;
        Busy(self)
    }

    /// Does `work` on the pool's thread when no operation that someone waits for is under way, or
    /// when that has not come about for a while. Work is done in the order in which it came.
    pub fn when_quiet(&self, work: impl FnOnce() + Send + 'static) {
        let mut inner = self.lock();
        inner.later.push_back(Later(Box::new(work)));
        inner.later_since.get_or_insert_with(Instant::now);
        drop(inner);
        self.changed.notify_all();
    }

    /// Takes a waiting shell, or starts one: for a clone one that has built what is `wanted`, where
    /// there is one, else one that has built nothing.
    pub fn take(&self, wanted: Option<Build>) -> anyhow::Result<Shell> {
        loop {
            let taken = self.lock().take(wanted);
            match taken {
                Some(shell) if shell.link.is_closed() => self.discard(shell),
                Some(shell) => return Ok(shell),
                None => return self.start_shell(true),
            }
        }
    }

    /// Ends a shell and frees what it holds.
    pub fn discard(&self, shell: Shell) {
        shell.link.shut();
        process::kill(shell.pid);
        let _ = fs::remove_file(&shell.socket);
        let _ = fs::remove_file(&shell.log);
        self.free_uid(shell.uid);
        self.remove_group(shell.group.as_deref());
    }

    fn remove_group(&self, group: Option<&str>) {
        if let (Some(groups), Some(group)) = (&self.groups, group)
            && let Err(error) = groups.remove(group)
        {
            tracing::debug!(%error, group, "a memory cgroup is left to the next daemon");
        }
    }

    /// Ends all waiting shells; none is started any more ahead of time.
    pub fn stop(&self) {
        let (shells, later) = {
            let mut inner = self.lock();
            inner.stopped = true;
            let inner = &mut *inner;
            (
                std::mem::take(&mut inner.ready),
                std::mem::take(&mut inner.later),
            )
        };
        later.into_iter().for_each(|Later(work)| work());
        for shell in shells {
            self.discard(shell);
        }
        self.end_seed();
    }

    fn lock_seed(&self) -> std::sync::MutexGuard<'_, Option<Seed>> {
        self.seed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_seed(&self) -> anyhow::Result<()> {
        let uid = self.take_uid()?;
        let log = self.config.home.logs().join("seed.log");
        let started = open_log(&log).and_then(|output| {
            Seed::start(|control| self.command("seed", uid, &output, control), uid)
        });
        match started {
            Ok(seed) => {
                expose_to_oom(seed.pid);
                *self.lock_seed() = Some(seed);
                Ok(())
            }
            Err(error) => {
                self.free_uid(uid);
                Err(error)
            }
        }
    }

    fn end_seed(&self) {
        let seed = self.lock_seed().take();
        if let Some(seed) = seed {
            let (pid, uid) = (seed.pid, seed.uid);
            drop(seed);
            process::kill(pid);
            self.free_uid(uid);
        }
    }

    /// Has a shell born, where there is a seed that can.
    fn bear(&self, listener: &UnixListener, log: &File, uid: u32) -> Option<i32> {
        let born = self.lock_seed().as_ref()?.shell(listener, log, uid);
        match born {
            Ok(pid) => Some(pid),
            Err(error) => {
                tracing::warn!("VM processes are started, not born: {error:#}");
                self.end_seed();
                None
            }
        }
    }

    /// Takes a user id that no VM process has.
    pub fn take_uid(&self) -> anyhow::Result<u32> {
        let (first, last) = self.config.uids;
        let count = last - first + 1;
        let mut used = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        let start = rand::random::<u32>() % count;
        let free = (0..count)
            .map(|n| first + (start + n) % count)
            .find(|uid| !used.contains(uid))
            .context("all user ids for VM processes are in use")?;
        used.insert(free);
        Ok(free)
    }

    /// Notes that a process found running has a user id.
    pub fn claim_uid(&self, uid: u32) {
        self.uids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid);
    }

    /// Gives a user id back.
    pub fn free_uid(&self, uid: u32) {
        self.uids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a shell; `at_once` where somebody waits for it.
    fn start_shell(&self, at_once: bool) -> anyhow::Result<Shell> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let uid = self.take_uid()?;
        let socket = self.config.home.run().join(format!("sh-{number:x}.sock"));
        let log = self
            .config
            .home
            .logs()
            .join(format!("shell-{number:x}.log"));
        let mut shell = self.spawn(uid, &socket, &log, at_once);
        if let (Ok(shell), Some(groups), false) = (&mut shell, &self.groups, at_once) {
            shell.group = groups.give(&format!("sh-{number:x}"), shell.pid);
        }
        if shell.is_err() {
            let _ = fs::remove_file(&socket);
            let _ = fs::remove_file(&log);
            self.free_uid(uid);
        }
        shell
    }

    fn spawn(&self, uid: u32, socket: &Path, log: &Path, at_once: bool) -> anyhow::Result<Shell> {
        let listener = nursery::bear(socket, |path| UnixListener::bind(path))
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let output = open_log(log)?;
        let born = at_once
            .then(|| self.bear(&listener, &output, uid))
            .flatten();
        let pid = match born {
            Some(pid) => pid,
            None => {
                let control = listener.try_clone().context("cannot share a socket")?;
                self.start_process(self.command("shell", uid, &output, control.into())?)?
            }
        };
        let connected = Link::connect(socket)
            .map_err(anyhow::Error::from)
            .and_then(|link| {
                let watch = self.reactor.watch(&link, Box::new(|_: Notice| {}))?;
                Ok((link, watch))
            });
        match connected {
            Ok((link, watch)) => Ok(Shell {
                uid,
                pid,
                socket: socket.to_owned(),
                log: log.to_owned(),
                link,
                watch,
                group: None,
                built: None,
            }),
            Err(error) => {
                process::kill(pid);
                Err(error)
            }
        }
    }

    /// How a VM process is started in the role `role`, with its control socket.
    ///
    /// Nothing is to be done between `fork` and `exec`, so that the daemon is not copied: each page
    /// that it writes afterwards would cost a fault.
    fn command(
        &self,
        role: &str,
        uid: u32,
        output: &File,
        control: OwnedFd,
    ) -> anyhow::Result<Command> {
        let (first, last) = self.config.uids;
        let share = || output.try_clone().context("cannot share a log file");
        let mut command = Command::new(&self.config.vmm);
        command
            .args([role, "--uid", &uid.to_string(), "--uid-range"])
            .arg(format!("{first}-{last}"))
            .env_clear()
            .env(HOME_MARK, self.config.home.root())
            .current_dir("/")
            .stdin(control)
            .stdout(share()?)
            .stderr(share()?);
        for name in ["RUST_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Ok(command)
    }

    fn start_process(&self, mut command: Command) -> anyhow::Result<i32> {
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start the VM process {}; install it beside mitosed or set MITOSE_VMM",
                self.config.vmm.display()
            )
        })?;
        let pid = child.id() as i32;
        expose_to_oom(pid);
        Ok(pid)
    }

    fn fill(&self) {
        if let Err(error) = self.start_seed() {
            tracing::warn!("VM processes are started, not born: {error:#}");
        }
        loop {
            {
                let mut inner = self.lock();
                loop {
                    if inner.stopped {
                        return;
                    }
                    let wait = self.wait_before_work(&mut inner);
                    match wait {
                        Some(Duration::ZERO) => break,
                        Some(wait) => {
                            let waited = self.changed.wait_timeout(inner, wait);
                            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                        }
                        None => {
                            let waited = self.changed.wait(inner);
                            inner = waited.unwrap_or_else(PoisonError::into_inner);
                        }
                    }
                }
            }
            let next = self.next_later();
            match next {
                Some(Later(work)) => work(),
                None if self.build_one() => {}
                None => self.add_one(),
            }
        }
    }

    fn next_later(&self) -> Option<Later> {
        let mut inner = self.lock();
        let next = inner.later.pop_front();
        inner.later_since = (!inner.later.is_empty()).then(Instant::now);
        next
    }

    /// How long to wait before work for a quiet time is done or a shell is started ahead.
    fn wait_before_work(&self, inner: &mut Inner) -> Option<Duration> {
        let Some(since) = inner.later_since else {
            return self.wait_before_filling(inner);
        };
        let patience = PATIENCE.saturating_sub(since.elapsed());
        if inner.busy > 0 {
            return Some(patience);
        }
        let quiet = inner.last_use.map_or(QUIET, |at| at.elapsed());
        Some(QUIET.saturating_sub(quiet).min(patience))
    }

    /// How long to wait before a shell is started ahead; none until something changes.
    fn wait_before_filling(&self, inner: &mut Inner) -> Option<Duration> {
        let mut dead = Vec::new();
        inner.ready.retain_mut(|shell| {
            let alive = !shell.link.is_closed();
            if !alive {
                dead.push((
                    shell.uid,
                    shell.pid,
                    shell.socket.clone(),
                    shell.log.clone(),
                    shell.group.take(),
                ));
            }
            alive
        });
        for (uid, pid, socket, log, group) in dead {
            let ending = process::kill(pid);
            let words = fs::read_to_string(&log).unwrap_or_default();
            tracing::warn!(
                ?ending,
                words = words.trim(),
                "an empty VM process ended by itself"
            );
            let _ = fs::remove_file(socket);
            let _ = fs::remove_file(log);
            self.free_uid(uid);
            self.remove_group(group.as_deref());
            inner.failures += 1;
        }
        let full = inner.ready.len() >= self.config.shells || inner.failures >= MAX_FAILURES;
        if full && inner.to_build().is_none() {
            return None;
        }
        if inner.busy > 0 {
            return None;
        }
        let quiet = inner.last_use.map_or(QUIET, |at| at.elapsed());
        Some(QUIET.saturating_sub(quiet))
    }

    fn add_one(&self) {
        match self.start_shell(false) {
            Ok(shell) => {
                let mut inner = self.lock();
                if inner.stopped {
                    drop(inner);
                    self.discard(shell);
                    self.groups.iter().for_each(|groups| groups.remove_root());
                } else {
                    inner.ready.push_back(shell);
                }
            }
            Err(error) => {
                tracing::warn!("cannot start a shell ahead of time: {error:#}");
                self.lock().failures += 1;
            }
        }
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let mut log = File::options();
    log.create(true).append(true);
    match nursery::bear(path, |path| log.open(path)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => log.open(path),
        opened => opened,
    }
    .with_context(|| format!("cannot open {}", path.display()))
}

/// The daemon's own protection is inherited; VMs are to go before it and before others. What is born
/// of a process inherits in turn.
fn expose_to_oom(pid: i32) {
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), "200") {
        tracing::debug!(%error, pid, "cannot set the OOM score of a VM process");
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.busy -= 1;
        inner.failures = 0;
        inner.last_use = Some(Instant::now());
        drop(inner);
        self.0.changed.notify_all();
    }
}
