//! One control connection of the guest's agent: frames of JSON, both ways, never trusted.
//!
//! The agent says hello and gets the identity message that the daemon left for it; whatever else
//! it says goes to the daemon as it is.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use agent_protocol::ToHost;
use machine::monotonic_ns;
use serde_json::Value;
use vmm_protocol::Event;

use crate::allowance::Allowance;
use crate::outbox::Outbox;

/// Largest frame of the agent, bytes: what the daemon's own connection can carry, with room for the
/// envelope.
const MAX_FRAME_BYTES: usize = 256 << 10;
/// Most bytes taken in one turn.
const TURN_BYTES: usize = 64 << 10;

/// A connection of the agent.
#[derive(Debug)]
pub(crate) struct AgentLink {
    pub(crate) stream: UnixStream,
    received: Vec<u8>,
    outbox: Outbox,
    greeted: bool,
}

impl AgentLink {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            received: vec![],
            outbox: Outbox::default(),
            greeted: false,
        })
    }

    /// Whether the agent has said hello.
    pub(crate) fn greeted(&self) -> bool {
        self.greeted
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends `message` (JSON) when the guest takes it.
    pub(crate) fn send(&mut self, message: &str) -> io::Result<()> {
        let len = u32::try_from(message.len()).map_err(io::Error::other)?;
        self.outbox.push(&len.to_le_bytes())?;
        self.outbox.push(message.as_bytes())?;
        self.outbox.write_to(&self.stream)
    }

    pub(crate) fn on_writable(&mut self) -> io::Result<()> {
        self.outbox.write_to(&self.stream)
    }

    /// Takes what came and counts it on `allowance`; answers a hello with `identity`. Returns what
    /// the daemon is to hear; an error ends the connection.
    pub(crate) fn on_readable(
        &mut self,
        identity: &str,
        allowance: &mut Allowance,
    ) -> io::Result<Vec<Event>> {
        let mut chunk = [0; 4096];
        let mut taken = 0;
        while taken < TURN_BYTES {
            match self.stream.read(&mut chunk) {
                Ok(0) if taken == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => break,
                Ok(n) => {
                    self.received.extend_from_slice(&chunk[..n]);
                    taken += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut events = vec![];
        while let Some(frame) = self.next_frame()? {
            allowance.spend(frame.len(), Instant::now());
            events.extend(self.on_frame(&frame, identity)?);
        }
        Ok(events)
    }

    fn next_frame(&mut self) -> io::Result<Option<String>> {
        let Some((head, rest)) = self.received.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*head) as usize;
        if len > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!("agent frame of {len} bytes")));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let text = String::from_utf8(rest[..len].to_vec()).map_err(io::Error::other)?;
        self.received.drain(..4 + len);
        Ok(Some(text))
    }

    fn on_frame(&mut self, text: &str, identity: &str) -> io::Result<Option<Event>> {
        let message = ToHost::decode(text.as_bytes()).map_err(io::Error::other)?;
        let text = text.to_owned();
        Ok(Some(match message {
            ToHost::Hello(_) => {
                self.send(&with_present_time(identity))?;
                self.greeted = true;
                Event::AgentHello(text)
            }
            ToHost::Ready(_) => Event::AgentReady {
                at_ns: monotonic_ns(),
                message: text,
            },
            ToHost::Pong => return Ok(None),
            ToHost::GuestInfoSet { .. } | ToHost::Freeze { .. } => Event::AgentMessage(text),
        }))
    }
}

/// An identity message with the present time: it was written when the guest was to be started. What
/// else it has stays, also what this program does not know.
fn with_present_time(identity: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ns = now.ok().and_then(|now| u64::try_from(now.as_nanos()).ok());
    let mut message: Value = serde_json::from_str(identity).unwrap_or_default();
    if let (Some(time), Some(now_ns)) = (message.get_mut("wall_clock_unix_ns"), now_ns) {
        *time = now_ns.into();
        return message.to_string();
    }
    identity.to_owned()
}
