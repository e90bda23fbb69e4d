//! Cutting the byte stream of a control connection into frames, for a socket that does not block.
//!
//! The frame's form is that of crate `fd_channel`. The peer is a process that a hostile guest may
//! have taken over: a frame and the descriptors that wait for its end are bounded.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use vmm_protocol::{FromVmm, MAX_FRAME_BYTES, MAX_FRAME_FDS};

/// Bytes read at once.
const READ_STEP: usize = 16 << 10;
/// Most descriptors that one answer of a VM process carries.
const MAX_ANSWER_FDS: usize = 8;

/// What one look at the socket gave.
#[derive(Debug)]
pub enum Progress {
    /// Nothing more at the moment.
    Idle,
    /// More may wait.
    More,
    /// The peer closed, or sent what no VM process sends.
    Closed(Option<&'static str>),
}

/// A frame and the process that sent it, as the kernel says.
#[derive(Debug)]
pub struct Arrived {
    /// The message.
    pub message: FromVmm,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// State between two reads.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Complete frames.
    pub arrived: VecDeque<Arrived>,
    /// Sender of the latest bytes (`SO_PASSCRED`).
    pub sender_pid: Option<i32>,
}

impl Decoder {
    /// Reads once from `socket`, which does not block. A read ends where the frame ends: the kernel
    /// joins the bytes of several sends, and descriptors must stay with their frame.
    pub fn read(&mut self, socket: &UnixStream) -> Progress {
        let mut piece = [0; READ_STEP];
        let wanted = self.missing().min(READ_STEP);
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut piece[..wanted])];
        let result = match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(result) => result,
            Err(Errno::AGAIN) => return Progress::Idle,
            Err(Errno::INTR) => return Progress::More,
            Err(_) => return Progress::Closed(None),
        };
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(fds) => self.fds.extend(fds),
                RecvAncillaryMessage::ScmCredentials(cred) => {
                    self.sender_pid = Some(cred.pid.as_raw_nonzero().get());
                }
                _ => {}
            }
        }
        if result.bytes == 0 {
            return Progress::Closed(None);
        }
        if self.fds.len() > MAX_ANSWER_FDS {
            return Progress::Closed(Some("sent too many descriptors"));
        }
        if result.flags.contains(ReturnFlags::CTRUNC) {
            // The first of them came. Whoever asked misses the others, and the VM runs on.
            tracing::warn!("the daemon is out of descriptors: it lost some of a VM process's");
        }
        self.bytes.extend_from_slice(&piece[..result.bytes]);
        match self.finish_frame() {
            Ok(()) => Progress::More,
            Err(problem) => Progress::Closed(Some(problem)),
        }
    }

    fn frame_bytes(&self) -> Option<usize> {
        let head = self.bytes.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*head) as usize)
    }

    fn missing(&self) -> usize {
        4 + self.frame_bytes().unwrap_or(0) - self.bytes.len()
    }

    fn finish_frame(&mut self) -> Result<(), &'static str> {
        match self.frame_bytes() {
            None => return Ok(()),
            Some(0) => return Err("sent an empty frame"),
            Some(length) if length > MAX_FRAME_BYTES => return Err("sent a frame above the limit"),
            Some(_) if self.missing() > 0 => return Ok(()),
            Some(_) => {}
        }
        let message = serde_json::from_slice(&self.bytes[4..])
            .map_err(|_| "sent a frame that is no message")?;
        self.bytes.clear();
        let fds = std::mem::take(&mut self.fds);
        self.arrived.push_back(Arrived { message, fds });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use vmm_protocol::{Event, Outcome, Reply};

    use super::*;

    fn read_all(decoder: &mut Decoder, socket: &UnixStream) -> Progress {
        loop {
            match decoder.read(socket) {
                Progress::More => {}
                other => return other,
            }
        }
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn frames_cut_anywhere_are_joined_and_keep_their_descriptors() {
        let (ours, theirs) = pair();
        let mut decoder = Decoder::default();
        let reply = FromVmm::Reply(Reply {
            id: 7,
            outcome: Outcome::Done,
        });
        let file = tempfile::tempfile().unwrap();
        fd_channel::send(&theirs, &reply, &[file.as_fd()]).unwrap();
        let event = FromVmm::Event(Event::AgentHello("x".repeat(40_000)));
        fd_channel::send(&theirs, &event, &[]).unwrap();
        assert!(matches!(read_all(&mut decoder, &ours), Progress::Idle));
        let first = decoder.arrived.pop_front().unwrap();
        assert_eq!((first.message, first.fds.len()), (reply, 1));
        let second = decoder.arrived.pop_front().unwrap();
        assert_eq!((second.message, second.fds.len()), (event, 0));
    }

    /// Set for the process whose descriptors are limited.
    const LIMITED: &str = "MITOSE_TEST_LIMITED";

    #[test]
    fn a_frame_comes_without_the_descriptors_that_the_daemon_has_no_room_for() {
        if std::env::var_os(LIMITED).is_none() {
            // The limit is one of a whole process: others in this one need descriptors.
            let of_crate = module_path!().split_once("::").unwrap().1;
            let name = "a_frame_comes_without_the_descriptors_that_the_daemon_has_no_room_for";
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", &format!("{of_crate}::{name}")]);
            let done = again.env(LIMITED, "1").output().unwrap();
            let told = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let (ours, theirs) = pair();
        let reply = FromVmm::Reply(Reply {
            id: 7,
            outcome: Outcome::Done,
        });
        let file = tempfile::tempfile().unwrap();
        fd_channel::send(&theirs, &reply, &[file.as_fd()]).unwrap();
        fd_channel::send(&theirs, &reply, &[]).unwrap();
        let before = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            ..before
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let mut decoder = Decoder::default();
        let progress = read_all(&mut decoder, &ours);
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(matches!(progress, Progress::Idle), "{progress:?}");
        let arrived = decoder.arrived.drain(..);
        let arrived: Vec<_> = arrived
            .map(|frame| (frame.message, frame.fds.len()))
            .collect();
        assert_eq!(arrived, [(reply.clone(), 0), (reply, 0)]);
    }

    #[test]
    fn oversized_and_meaningless_frames_end_the_connection() {
        for bytes in [&u32::MAX.to_le_bytes()[..], &[2, 0, 0, 0, b'{', b'x'][..]] {
            let (ours, mut theirs) = pair();
            theirs.write_all(bytes).unwrap();
            let progress = read_all(&mut Decoder::default(), &ours);
            assert!(
                matches!(progress, Progress::Closed(Some(_))),
                "{progress:?}"
            );
        }
    }
}
