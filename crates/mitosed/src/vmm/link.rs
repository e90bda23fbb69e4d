//! Connection to one VM process: numbered requests, each answered once.
//!
//! Requests may be sent from any thread; the reactor's thread takes the answers in. A request is
//! sent whole before [`Link::request`] returns, so many VMs can be told to start before the first
//! answer is waited for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vmm_protocol::{Command, MAX_FRAME_BYTES, MAX_FRAME_FDS, Outcome, Request, VERSION};

use super::decode::{Arrived, Decoder, Progress};
use super::process::Ending;

/// A VM process that does not take a request in this time is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that may wait for an answer.
const MAX_WAITING: usize = 64;

/// A VM process did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error("cannot connect to the VM process")]
    Connect(#[source] std::io::Error),
    /// The process ended or broke the protocol.
    #[error("the VM process ended before it answered")]
    Closed,
    /// No answer in time.
    #[error("the VM process did not answer within {0:?}")]
    Timeout(Duration),
    /// The request does not fit a frame.
    #[error("request of {bytes} bytes and {fds} descriptors is too large for the VM process")]
    TooLarge {
        /// Length, bytes.
        bytes: usize,
        /// Number of descriptors.
        fds: usize,
    },
    /// The socket failed.
    #[error("cannot send a request to the VM process")]
    Send(#[source] std::io::Error),
    /// The process says that it failed.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
        /// Step of a fork at which it failed.
        step: Option<vmm_protocol::ForkStep>,
    },
    /// The process answered something else than was asked.
    #[error("the VM process gave an answer that does not fit the request")]
    Unexpected,
}

type Answer = (Outcome, Vec<OwnedFd>);

impl LinkError {
    /// Whether nobody listens: there is no process. After other failures there may be one.
    pub fn is_nobody(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect(error) if matches!(error.kind(), NotFound | ConnectionRefused))
    }
}

/// Connection to one VM process.
#[derive(Debug)]
pub struct Link {
    socket: UnixStream,
    send: Mutex<()>,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::SyncSender<Answer>>>,
    /// Requests that nobody waits for any more, since no answer came in time.
    late: Mutex<HashSet<u64>>,
    decoder: Mutex<Decoder>,
    closed: AtomicBool,
    peer_pid: AtomicI32,
    /// The process, held so that the kernel keeps how it ended.
    process: OnceLock<OwnedFd>,
}

/// A request whose answer has not been taken.
#[derive(Debug)]
pub struct Pending {
    link: Arc<Link>,
    id: u64,
    answer: mpsc::Receiver<Answer>,
    /// The answer, where it came while nobody took it.
    early: Option<Answer>,
}

impl Link {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Arc<Self>, LinkError> {
        let socket = UnixStream::connect(path).map_err(LinkError::Connect)?;
        // The kernel then tells which process really sent each frame.
        sockopt::set_socket_passcred(&socket, true).map_err(|e| LinkError::Connect(e.into()))?;
        socket.set_nonblocking(true).map_err(LinkError::Connect)?;
        Ok(Arc::new(Self {
            socket,
            send: Mutex::new(()),
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
            late: Mutex::default(),
            decoder: Mutex::default(),
            closed: AtomicBool::new(false),
            peer_pid: AtomicI32::new(0),
            process: OnceLock::new(),
        }))
    }

    /// The socket, for polling.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Returns whether the process has ended or was given up.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Process that sent the latest frame, as the kernel says.
    pub fn peer_pid(&self) -> Option<i32> {
        Some(self.peer_pid.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    /// Whether the process has not ended; where it never said anything, the one with the number `pid`.
    pub fn process_lives(&self, pid: Option<i32>) -> bool {
        match self.process.get() {
            Some(process) => !super::process::has_ended(process),
            None => pid.is_some_and(super::process::lives),
        }
    }

    /// How the process ended, where it has and the kernel tells.
    pub fn ending(&self) -> Ending {
        super::process::ending_of(self.process.get()?.as_fd())
    }

    /// Sends `command` with the descriptors that it numbers.
    pub fn request(
        self: &Arc<Self>,
        command: Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Pending, LinkError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            id,
            version: VERSION,
            command,
        };
        let body = serde_json::to_vec(&request).map_err(|_| LinkError::Unexpected)?;
        if body.len() > MAX_FRAME_BYTES || fds.len() > MAX_FRAME_FDS {
            return Err(LinkError::TooLarge {
                bytes: body.len(),
                fds: fds.len(),
            });
        }
        let (sender, answer) = mpsc::sync_channel(1);
        {
            let mut waiting = lock(&self.waiting);
            if self.is_closed() {
                return Err(LinkError::Closed);
            }
            if waiting.len() >= MAX_WAITING {
                return Err(LinkError::Timeout(SEND_TIMEOUT));
            }
            waiting.insert(id, sender);
        }
        let pending = Pending {
            link: Arc::clone(self),
            id,
            answer,
            early: None,
        };
        self.send_frame(&body, fds)?;
        Ok(pending)
    }

    /// Sends `command` and waits for its answer.
    pub fn call(
        self: &Arc<Self>,
        command: Command,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Answer, LinkError> {
        self.request(command, fds)?.wait(timeout)
    }

    fn send_frame(&self, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let mut bytes = Vec::with_capacity(body.len() + 4);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(body);
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let deadline = Instant::now() + SEND_TIMEOUT;
        let _order = lock(&self.send);
        let mut sent = 0;
        while sent < bytes.len() {
            let parts = [IoSlice::new(&bytes[sent..])];
            match sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    sent += n;
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_writable(deadline)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::Send(errno.into())),
            }
        }
        Ok(())
    }

    fn wait_writable(&self, deadline: Instant) -> Result<(), LinkError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Half a frame may be out: nothing more can be said on this connection.
            self.shut();
            return Err(LinkError::Timeout(SEND_TIMEOUT));
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(LinkError::Send(errno.into())),
        }
    }

    /// Ends the connection; the reactor sees its end.
    pub fn shut(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Takes in what the socket holds, a bounded piece at a time.
    pub(super) fn take_in(&self) -> (VecDeque<Arrived>, Progress) {
        let mut decoder = lock(&self.decoder);
        let progress = decoder.read(&self.socket);
        if let Some(pid) = decoder.sender_pid
            && self.peer_pid.swap(pid, Ordering::AcqRel) != pid
        {
            let pid = Pid::from_raw(pid);
            let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            // Set once: all frames come from one process.
            let _ = process.map(|process| self.process.set(process));
        }
        (std::mem::take(&mut decoder.arrived), progress)
    }

    /// Hands an answer to whoever waits for it; answers that nobody waits for are dropped. Says
    /// whether it came too late.
    pub(super) fn deliver(&self, id: u64, outcome: Outcome, fds: Vec<OwnedFd>) -> bool {
        let Some(sender) = lock(&self.waiting).remove(&id) else {
            return lock(&self.late).remove(&id);
        };
        // Whoever waited may have given up just now.
        let _ = sender.try_send((outcome, fds));
        lock(&self.late).remove(&id)
    }

    /// Ends all waiting requests.
    pub(super) fn close(&self) {
        let mut waiting = lock(&self.waiting);
        self.closed.store(true, Ordering::Release);
        waiting.clear();
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Pending {
    /// Waits for the answer at most until `deadline`, and leaves it to [`Pending::wait`].
    pub fn look_until(&mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.early.is_none() {
            self.early = self.answer.recv_timeout(left).ok();
        }
    }

    /// Waits for the answer; a failure that the process reports is an error.
    pub fn wait(self, timeout: Duration) -> Result<Answer, LinkError> {
        self.wait_since(Instant::now(), timeout)
    }

    /// As [`Pending::wait`], where time has run since `start`, for one of several that are waited for.
    pub fn wait_since(mut self, start: Instant, timeout: Duration) -> Result<Answer, LinkError> {
        if let Some(answer) = self.early.take() {
            return taken(answer);
        }
        match self
            .answer
            .recv_timeout(timeout.saturating_sub(start.elapsed()))
        {
            Ok(answer) => taken(answer),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                // An answer tells of all that was asked before it, so a few stand for many.
                let mut late = lock(&self.link.late);
                if late.len() < MAX_WAITING {
                    late.insert(self.id);
                }
                drop(late);
                // It may have come before it was known to be late.
                match self.answer.try_recv() {
                    Ok(answer) => {
                        lock(&self.link.late).remove(&self.id);
                        taken(answer)
                    }
                    Err(_) => Err(LinkError::Timeout(timeout)),
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(LinkError::Closed),
        }
    }
}

fn taken(answer: Answer) -> Result<Answer, LinkError> {
    match answer {
        (Outcome::Failed { message, step }, _) => Err(LinkError::Refused {
            message: one_line(&message),
            step,
        }),
        answer => Ok(answer),
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.link.waiting).remove(&self.id);
    }
}

/// Words of another process, made fit for one line of a terminal.
fn one_line(text: &str) -> String {
    text.chars()
        .take(2000)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn several_answers_have_one_time_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let nobody = Link::connect(&path).unwrap_err();
        assert!(nobody.is_nobody(), "{nobody:?}");
        // It takes connections, and nobody answers.
        let listener = UnixListener::bind(&path).unwrap();
        let link = Link::connect(&path).unwrap();
        let asked = [(); 50].map(|()| link.request(Command::Status, &[]).unwrap());
        let (start, timeout) = (Instant::now(), Duration::from_millis(50));
        for pending in asked {
            let silent = pending.wait_since(start, timeout).unwrap_err();
            assert!(matches!(silent, LinkError::Timeout(told) if told == timeout));
        }
        assert!(start.elapsed() < timeout * 20, "{:?}", start.elapsed());
        drop(listener);
        assert!(Link::connect(&path).unwrap_err().is_nobody());
        // A link to nobody it can tell of leaves it to the number.
        assert!(link.process_lives(Some(std::process::id() as i32)));
        assert!(!link.process_lives(None));
    }
}
