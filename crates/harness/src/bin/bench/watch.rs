//! When each VM wrote its first byte on COM1, seen from outside with inotify(7).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::source::monotonic_ns;

/// Name of the file in a VM's home folder that takes what it writes on COM1.
const SERIAL_LOG: &[u8] = b"serial.log";

type Seen = Arc<Mutex<HashMap<PathBuf, u64>>>;

/// Watches a folder of home folders until it is dropped.
pub(crate) struct FirstBytes {
    seen: Seen,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl FirstBytes {
    /// Watches home folders that appear in `homes` from here on.
    pub(crate) fn watch(homes: &Path) -> anyhow::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // The daemon makes a home folder elsewhere and then gives it its name.
        let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        let all = inotify::add_watch(&queue, homes, appears)
            .with_context(|| format!("cannot watch {}", homes.display()))?;
        let seen = Seen::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut watcher = Watcher {
            queue,
            all,
            homes: homes.to_owned(),
            folders: HashMap::new(),
            seen: Arc::clone(&seen),
        };
        let stop_wanted = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("first-bytes".into())
            .spawn(move || watcher.run(&stop_wanted))?;
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until the log `path` has a byte; returns when it was seen, `CLOCK_MONOTONIC` ns.
    pub(crate) fn wait(&self, path: &Path) -> anyhow::Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = self
                .seen
                .lock()
                .map_or(None, |seen| seen.get(path).copied());
            if let Some(at_ns) = seen {
                return Ok(at_ns);
            }
            anyhow::ensure!(Instant::now() < deadline, "{} stays empty", path.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for FirstBytes {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    queue: OwnedFd,
    all: i32,
    homes: PathBuf,
    folders: HashMap<i32, PathBuf>,
    seen: Seen,
}

impl Watcher {
    fn run(&mut self, stop: &OwnedFd) {
        loop {
            let mut fds = [
                PollFd::new(&self.queue, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            self.take_events(monotonic_ns());
        }
    }

    fn take_events(&mut self, now_ns: u64) {
        let mut space = [MaybeUninit::uninit(); 16 << 10];
        let mut created = vec![];
        let mut reader = inotify::Reader::new(self.queue.as_fd(), &mut space);
        // The reader ends with an error when the queue is empty.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map_or(&b""[..], |name| name.to_bytes());
            if event.wd() == self.all {
                created.push(self.homes.join(OsStr::from_bytes(name)));
            } else if event.events().contains(ReadFlags::MODIFY) && name == SERIAL_LOG {
                let Some(folder) = self.folders.get(&event.wd()) else {
                    continue;
                };
                if let Ok(mut seen) = self.seen.lock() {
                    seen.entry(folder.join(OsStr::from_bytes(name)))
                        .or_insert(now_ns);
                }
            }
        }
        for folder in created {
            // A folder that is gone again has no first byte.
            if let Ok(watch) = inotify::add_watch(&self.queue, &folder, WatchFlags::MODIFY) {
                self.folders.insert(watch, folder);
            }
        }
    }
}
