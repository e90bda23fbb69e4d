//! The thread that listens: to the daemon on the control socket and to the guest's agent. It only
//! reads and hands on; the main thread does what is asked.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use vmm_protocol::{Event, Request};

use crate::agent::AgentLink;
use crate::server::Message;

/// Most connections of the daemon at a time; a new daemon needs one while an old one is closing.
const MAX_CONNECTIONS: usize = 4;
/// Most connections of agents at a time.
const MAX_AGENTS: usize = 4;
const STACK_BYTES: usize = 192 << 10;

/// What other threads give the control thread.
#[derive(Debug, Default)]
struct Given {
    agents: Vec<UnixStream>,
    /// The message that answers an agent's hello, JSON.
    identity: String,
    /// Send the identity to connected agents now.
    push_identity: bool,
    /// Another message for connected agents, JSON.
    say: Vec<String>,
}

/// Handle of the control thread.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    given: Arc<Mutex<Given>>,
    wake: Arc<OwnedFd>,
}

impl Control {
    /// Starts the thread; what comes in goes to `inbox`.
    pub(crate) fn spawn(listener: UnixListener, inbox: Sender<Message>) -> std::io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let control = Self {
            given: Arc::default(),
            wake,
        };
        let thread = Listening {
            listener,
            connections: vec![],
            agents: vec![],
            control: control.clone(),
            inbox,
        };
        std::thread::Builder::new()
            .name("control".into())
            .stack_size(STACK_BYTES)
            .spawn(move || thread.run())?;
        Ok(control)
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        // A full counter means that a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Hands over a connection of the guest's agent.
    pub(crate) fn add_agent(&self, stream: UnixStream) {
        self.given().agents.push(stream);
        self.wake();
    }

    /// Sets the identity message; `push` sends it at once too.
    pub(crate) fn set_identity(&self, identity: String, push: bool) {
        let mut given = self.given();
        given.identity = identity;
        given.push_identity |= push;
        drop(given);
        self.wake();
    }

    /// Sends another message to the agent.
    pub(crate) fn tell_agent(&self, message: String) {
        self.given().say.push(message);
        self.wake();
    }
}

struct Listening {
    listener: UnixListener,
    connections: Vec<Arc<UnixStream>>,
    agents: Vec<AgentLink>,
    control: Control,
    inbox: Sender<Message>,
}

impl Listening {
    fn run(mut self) {
        loop {
            let (ready, flags) = match self.wait() {
                Ok(flags) => flags,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the control thread cannot wait any longer");
                    return;
                }
            };
            let first_agent = 2 + ready;
            self.take_given(flags[0]);
            for index in (0..self.agents.len().min(flags.len() - first_agent)).rev() {
                self.serve_agent(index, flags[first_agent + index]);
            }
            for index in (0..ready).rev() {
                if !flags[2 + index].is_empty() && !self.serve_daemon(index) {
                    self.connections.remove(index);
                }
            }
            if !flags[1].is_empty() {
                self.accept();
            }
        }
    }

    /// Waits for anything; returns the number of daemon connections that were polled and all
    /// flags: wake-up, listener, connections, agents.
    fn wait(&self) -> rustix::io::Result<(usize, Vec<PollFlags>)> {
        let mut fds = vec![
            PollFd::new(&self.control.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(
            self.connections
                .iter()
                .map(|c| PollFd::new(c.as_ref(), PollFlags::IN)),
        );
        fds.extend(self.agents.iter().map(|agent| {
            let write = if agent.wants_write() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            PollFd::new(&agent.stream, PollFlags::IN | write)
        }));
        poll(&mut fds, None)?;
        Ok((
            self.connections.len(),
            fds.iter().map(PollFd::revents).collect(),
        ))
    }

    fn take_given(&mut self, flags: PollFlags) {
        if flags.is_empty() {
            return;
        }
        let mut count = [0; 8];
        // Only clears the wake-up; what it announces is below.
        let _ = rustix::io::read(self.control.wake.as_fd(), &mut count);
        let mut given = self.control.given();
        let agents = std::mem::take(&mut given.agents);
        let mut say = std::mem::take(&mut given.say);
        if std::mem::take(&mut given.push_identity) {
            say.insert(0, given.identity.clone());
        }
        drop(given);
        for message in say {
            self.agents.retain_mut(|agent| agent.send(&message).is_ok());
        }
        for stream in agents {
            if self.agents.len() >= MAX_AGENTS {
                self.agents.remove(0);
            }
            match AgentLink::new(stream) {
                Ok(agent) => self.agents.push(agent),
                Err(error) => tracing::warn!(%error, "an agent's connection is unusable"),
            }
        }
    }

    fn serve_agent(&mut self, index: usize, flags: PollFlags) {
        if flags.is_empty() {
            return;
        }
        let identity = self.control.given().identity.clone();
        let agent = &mut self.agents[index];
        let result = agent
            .on_writable()
            .and_then(|()| agent.on_readable(&identity));
        match result {
            Ok(events) => events
                .into_iter()
                .for_each(|event| self.hand_on_event(event)),
            Err(error) => {
                tracing::debug!(%error, "an agent's connection ended");
                self.agents.remove(index);
            }
        }
    }

    fn hand_on_event(&self, event: Event) {
        // The main thread ends only with the process.
        let _ = self.inbox.send(Message::AgentSaid(event));
    }

    /// Takes one request; returns false where the connection is over.
    fn serve_daemon(&self, index: usize) -> bool {
        let connection = &self.connections[index];
        match fd_channel::receive::<Request>(connection) {
            Ok(frame) => {
                let (request, fds) = (frame.message, frame.fds);
                let connection = Arc::clone(connection);
                self.inbox
                    .send(Message::Request {
                        request,
                        fds,
                        connection,
                    })
                    .is_ok()
            }
            Err(fd_channel::ChannelError::Closed) => {
                let _ = self
                    .inbox
                    .send(Message::Disconnected(Arc::clone(connection)));
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a daemon connection failed");
                let _ = self
                    .inbox
                    .send(Message::Disconnected(Arc::clone(connection)));
                false
            }
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if self.connections.len() < MAX_CONNECTIONS => {
                let stream = Arc::new(stream);
                let _ = self.inbox.send(Message::Connected(Arc::clone(&stream)));
                self.connections.push(stream);
            }
            Ok(_) => tracing::warn!("too many daemon connections: one was refused"),
            Err(error) => tracing::warn!(%error, "cannot accept a daemon connection"),
        }
    }
}
