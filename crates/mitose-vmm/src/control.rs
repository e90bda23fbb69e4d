//! What the process listens to: the daemon on the control socket, the guest's agent, and its own
//! threads. One thread waits for all of it and does what is asked: a request costs no switch to
//! another thread, and an idle VM has one thread less.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::{Machine, MachineEvent, OnEvent};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vmm_protocol::{Event, Request};

use crate::agent::AgentLink;
use crate::allowance::Allowance;
use crate::serial::SerialPeer;

/// Most connections of the daemon at a time; a new daemon needs one while an old one is closing.
const MAX_CONNECTIONS: usize = 4;
/// Most connections of agents at a time.
const MAX_AGENTS: usize = 4;

/// What comes in.
#[derive(Debug)]
pub(crate) enum Message {
    Connected(Arc<UnixStream>),
    Disconnected,
    Request {
        request: Request,
        fds: Vec<OwnedFd>,
        connection: Arc<UnixStream>,
    },
    AgentSaid(Event),
    /// Somebody typed on a serial port.
    Typed {
        port: usize,
        bytes: Vec<u8>,
    },
    Machine(MachineEvent),
    /// The time that [`Control::remind_in`] named has come.
    Reminder,
    /// A thread is done with writing the inherited instant.
    Dumped(Dumped),
}

/// How writing the inherited instant to files ended, and whom to tell.
#[derive(Debug)]
pub(crate) struct Dumped {
    pub(crate) result: Result<(), String>,
    /// Number of the request.
    pub(crate) id: u64,
    pub(crate) connection: Arc<UnixStream>,
}

/// All that the process listens to.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    connections: Vec<Arc<UnixStream>>,
    agents: Vec<AgentLink>,
    /// What the guest's agents together may still say.
    allowance: Allowance,
    serial: Vec<SerialPeer>,
    /// The message that answers an agent's hello, JSON.
    identity: String,
    /// What this process's own threads tell.
    told: Receiver<Message>,
    sender: Sender<Message>,
    wake: Arc<OwnedFd>,
    /// Came in together with what was taken before.
    news: VecDeque<Message>,
    reminder: Option<Instant>,
}

impl Control {
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        let (sender, told) = channel();
        Ok(Self {
            listener,
            connections: vec![],
            agents: vec![],
            allowance: Allowance::new(Instant::now()),
            serial: vec![],
            identity: String::new(),
            told,
            sender,
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            news: VecDeque::new(),
            reminder: None,
        })
    }

    /// Returns what the threads of a machine call to tell their news.
    pub(crate) fn sink(&self) -> OnEvent {
        let tell = self.messenger();
        Arc::new(move |event| tell(Message::Machine(event)))
    }

    /// Returns what a thread of this process calls to tell something.
    pub(crate) fn messenger(&self) -> impl Fn(Message) + Send + Sync + 'static {
        let sender = Mutex::new(self.sender.clone());
        let wake = Arc::clone(&self.wake);
        move |message| {
            // Whoever listens ends only with the process.
            let _ = sender
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .send(message);
            // A full counter means that a wake-up is pending already.
            let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
        }
    }

    /// Listens to the peers of a machine's serial ports.
    pub(crate) fn serve_serial(&mut self, peers: Vec<SerialPeer>, machine: &Machine) {
        for peer in peers {
            self.replace_serial(peer, machine);
        }
    }

    /// Listens to `peer` of a serial port in place of whoever it was before; what that one typed
    /// still reaches the guest.
    pub(crate) fn replace_serial(&mut self, mut peer: SerialPeer, machine: &Machine) {
        let (room, wake) = (peer.room(), Arc::clone(&self.wake));
        machine.on_serial_room(peer.port, move || {
            room.store(true, Ordering::Release);
            let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
        });
        let before = self.serial.iter().position(|old| old.port == peer.port);
        if let Some(before) = before {
            let typed = self.serial.swap_remove(before).into_typed();
            let taken = machine.serial_input(peer.port, &typed);
            peer.keep(&typed[taken..]);
        }
        self.serial.push(peer);
    }

    /// Keeps what a serial port refused until the guest has read.
    pub(crate) fn keep_typed(&mut self, port: usize, bytes: &[u8]) {
        if let Some(peer) = self.serial.iter_mut().find(|peer| peer.port == port) {
            peer.keep(bytes);
        }
    }

    /// Takes over a connection of the guest's agent.
    pub(crate) fn add_agent(&mut self, stream: UnixStream) {
        if self.agents.len() >= MAX_AGENTS {
            self.agents.remove(0);
        }
        match AgentLink::new(stream) {
            Ok(agent) => self.agents.push(agent),
            Err(error) => tracing::warn!(%error, "an agent's connection is unusable"),
        }
    }

    /// Sets the identity message; `push` sends it at once too.
    pub(crate) fn set_identity(&mut self, identity: String, push: bool) {
        if push {
            self.tell_agent(&identity);
        }
        self.identity = identity;
    }

    /// Sends a message to the agent; returns whether there is one. An agent that has not said
    /// hello yet is about to be told everything.
    pub(crate) fn tell_agent(&mut self, message: &str) -> bool {
        let mut told = false;
        self.agents.retain_mut(|agent| {
            let taken = !agent.greeted() || agent.send(message).is_ok();
            told |= taken && agent.greeted();
            taken
        });
        told
    }

    /// Connections of the daemon.
    pub(crate) fn connections(&self) -> &[Arc<UnixStream>] {
        &self.connections
    }

    /// Gives up a connection of the daemon.
    pub(crate) fn forget(&mut self, connection: &Arc<UnixStream>) {
        self.connections
            .retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Has [`Message::Reminder`] come after `wait`, or when an earlier one comes.
    pub(crate) fn remind_in(&mut self, wait: Duration) {
        self.reminder.get_or_insert_with(|| Instant::now() + wait);
    }

    /// Waits for the next message.
    pub(crate) fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.news.pop_front() {
                return Ok(message);
            }
            if self.reminder.is_some_and(|due| due <= Instant::now()) {
                self.reminder = None;
                return Ok(Message::Reminder);
            }
            match self.wait() {
                Ok(flags) => self.take_all(&flags),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for anything; returns all flags: wake-up, listener, connections, agents, serial ports.
    fn wait(&mut self) -> rustix::io::Result<Vec<PollFlags>> {
        let pause = self.allowance.pause(Instant::now());
        let pause = pause.filter(|_| !self.agents.is_empty());
        let lines: Vec<_> = self.serial.iter().map(SerialPeer::waits_for).collect();
        let mut fds = vec![
            PollFd::new(&self.wake, PollFlags::IN),
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
            let read = match pause {
                None => PollFlags::IN,
                Some(_) => PollFlags::empty(),
            };
            PollFd::new(&agent.stream, read | write)
        }));
        fds.extend(lines.iter().map(|line| match line {
            Some(line) => PollFd::new(line.as_ref(), PollFlags::IN),
            // Nothing is asked of it, and its wake-up is seen as its own.
            None => PollFd::new(self.wake.as_ref(), PollFlags::empty()),
        }));
        let due = self.reminder;
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = pause.into_iter().chain(due).min().map(|pause| Timespec {
            tv_sec: pause.as_secs().try_into().unwrap_or(1),
            tv_nsec: pause.subsec_nanos().into(),
        });
        poll(&mut fds, timeout.as_ref())?;
        Ok(fds.iter().map(PollFd::revents).collect())
    }

    fn take_all(&mut self, flags: &[PollFlags]) {
        let [wake, listener, rest @ ..] = flags else {
            return;
        };
        let (connections, rest) = rest.split_at(self.connections.len());
        let (agents, serial) = rest.split_at(self.agents.len());
        if !wake.is_empty() {
            let mut count = [0; 8];
            // Only clears the wake-up; what it announces is in the channel.
            let _ = rustix::io::read(self.wake.as_fd(), &mut count);
            self.news.extend(self.told.try_iter());
            for peer in &mut self.serial {
                let port = peer.port;
                let again = peer.retry().map(|bytes| Message::Typed { port, bytes });
                self.news.extend(again);
            }
        }
        for (peer, flags) in self.serial.iter_mut().zip(serial) {
            if !flags.is_empty() {
                let (port, bytes) = (peer.port, peer.on_readable());
                if !bytes.is_empty() {
                    self.news.push_back(Message::Typed { port, bytes });
                }
            }
        }
        // From the end, so that one that is removed moves none that is still to come.
        for (index, flags) in agents.iter().enumerate().rev() {
            if !flags.is_empty() {
                self.serve_agent(index, *flags);
            }
        }
        for (index, flags) in connections.iter().enumerate().rev() {
            if !flags.is_empty() {
                self.serve_daemon(index);
            }
        }
        if !listener.is_empty() {
            self.accept();
        }
    }

    fn serve_agent(&mut self, index: usize, flags: PollFlags) {
        let agent = &mut self.agents[index];
        let read = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let said = agent.on_writable().and_then(|()| {
            if flags.intersects(read) {
                agent.on_readable(&self.identity, &mut self.allowance)
            } else {
                Ok(vec![])
            }
        });
        match said {
            Ok(events) => self.news.extend(events.into_iter().map(Message::AgentSaid)),
            Err(error) => {
                tracing::debug!(%error, "an agent's connection ended");
                self.agents.remove(index);
            }
        }
    }

    /// Takes one request.
    fn serve_daemon(&mut self, index: usize) {
        let connection = Arc::clone(&self.connections[index]);
        let error = match fd_channel::receive::<Request>(&connection) {
            Ok(frame) => {
                let (request, fds) = (frame.message, frame.fds);
                return self.news.push_back(Message::Request {
                    request,
                    fds,
                    connection,
                });
            }
            Err(error) => error,
        };
        if !matches!(error, fd_channel::ChannelError::Closed) {
            tracing::warn!(%error, "a daemon connection failed");
        }
        self.connections.remove(index);
        self.news.push_back(Message::Disconnected);
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if self.connections.len() < MAX_CONNECTIONS => {
                let stream = Arc::new(stream);
                self.connections.push(Arc::clone(&stream));
                self.news.push_back(Message::Connected(stream));
            }
            Ok(_) => tracing::warn!("too many daemon connections: one was refused"),
            Err(error) => tracing::warn!(%error, "cannot accept a daemon connection"),
        }
    }
}

#[cfg(test)]
mod tests;
