//! One thread that takes in what all VM processes say.
//!
//! It does nothing that can block: answers go to their waiting requests, events to a callback that
//! only changes memory. Reading is fair: one bounded piece of each readable connection per round.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use vmm_protocol::{Event, FromVmm, Reply};

use super::decode::Progress;
use super::link::Link;

/// What a connection's owner is told.
#[derive(Debug)]
pub enum Notice {
    /// The process says something unasked.
    Event(Event),
    /// It answered a request that had been given up.
    Late,
    /// The process ended, or was given up for the given breach of the protocol.
    Closed(Option<&'static str>),
}

type Handler = Box<dyn Fn(Notice) + Send + Sync>;

struct Watched {
    link: Arc<Link>,
    handler: Arc<Mutex<Handler>>,
}

struct Shared {
    epoll: OwnedFd,
    next: AtomicU64,
    watched: Mutex<HashMap<u64, Watched>>,
}

/// Handle of the reactor.
#[derive(Clone)]
pub struct Reactor {
    shared: Arc<Shared>,
}

/// One watched connection; its handler can be replaced.
#[derive(Clone)]
pub struct Watch {
    handler: Arc<Mutex<Handler>>,
}

impl Reactor {
    /// Starts the thread.
    pub fn start() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        let shared = Arc::new(Shared {
            epoll,
            next: AtomicU64::new(1),
            watched: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("vmm-links".into())
            .spawn(move || of_thread.run())
            .context("cannot start the thread of VM connections")?;
        Ok(Self { shared })
    }

    /// Watches `link` until it closes; `handler` runs on the reactor's thread and must not block.
    pub fn watch(&self, link: &Arc<Link>, handler: Handler) -> anyhow::Result<Watch> {
        let token = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let handler = Arc::new(Mutex::new(handler));
        let watched = Watched {
            link: Arc::clone(link),
            handler: Arc::clone(&handler),
        };
        self.shared.lock().insert(token, watched);
        let data = epoll::EventData::new_u64(token);
        let added = epoll::add(
            &self.shared.epoll,
            link.socket(),
            data,
            epoll::EventFlags::IN,
        );
        if added.is_err() {
            self.shared.lock().remove(&token);
        }
        added.context("cannot watch the connection to a VM process")?;
        Ok(Watch { handler })
    }
}

impl Watch {
    /// Sends what comes from here on to another handler.
    pub fn redirect(&self, handler: Handler) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = handler;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for VM processes");
                    return;
                }
            }
            for event in &events {
                self.serve(event.data.u64());
            }
        }
    }

    fn serve(&self, token: u64) {
        let found = self
            .lock()
            .get(&token)
            .map(|w| (Arc::clone(&w.link), Arc::clone(&w.handler)));
        let Some((link, handler)) = found else { return };
        let tell = |notice| handler.lock().unwrap_or_else(PoisonError::into_inner)(notice);
        let (arrived, progress) = link.take_in();
        for frame in arrived {
            match frame.message {
                FromVmm::Reply(Reply { id, outcome }) => {
                    if link.deliver(id, outcome, frame.fds) {
                        tell(Notice::Late);
                    }
                }
                FromVmm::Event(event) => tell(Notice::Event(event)),
            }
        }
        if let Progress::Closed(problem) = progress {
            let _ = epoll::delete(&self.epoll, link.socket());
            self.lock().remove(&token);
            link.shut();
            link.close();
            tell(Notice::Closed(problem));
        }
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor")
            .field("watched", &self.shared.lock().len())
            .finish()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
