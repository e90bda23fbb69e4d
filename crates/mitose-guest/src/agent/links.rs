//! What the parts of the agent share about the host: the connection to send on, and whether it
//! has just broken.

use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_protocol::{FrameError, ToHost};

/// A fork resets all connections at once; within this time they count as broken together.
const TOGETHER: Duration = Duration::from_secs(2);

/// The control connection as the other threads see it.
#[derive(Debug, Default)]
pub(crate) struct HostLink {
    state: Mutex<State>,
    broke: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stream: Option<File>,
    broken_at: Option<Instant>,
}

impl HostLink {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the connection that messages are sent on.
    pub(crate) fn set(&self, stream: Option<File>) {
        self.lock().stream = stream;
    }

    /// Sends a message to the host; without a connection it is not sent and that is an error.
    pub(crate) fn send(&self, message: &ToHost) -> Result<(), FrameError> {
        let mut state = self.lock();
        match &mut state.stream {
            Some(stream) => message.write(stream),
            None => Err(FrameError::Io {
                action: "write",
                source: std::io::ErrorKind::NotConnected.into(),
            }),
        }
    }

    /// The control connection has ended.
    pub(crate) fn note_broken(&self) {
        let mut state = self.lock();
        state.stream = None;
        state.broken_at = Some(Instant::now());
        self.broke.notify_all();
    }

    /// Whether a request connection that has just ended did so because the guest was forked: then
    /// the control connection broke with it.
    pub(crate) fn was_forked(&self) -> bool {
        let deadline = Instant::now() + TOGETHER;
        let mut state = self.lock();
        if state.stream.is_none() && state.broken_at.is_none() {
            return false;
        }
        loop {
            if state.broken_at.is_some_and(|at| at.elapsed() < TOGETHER) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = match self.broke.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_break_of_the_control_connection_means_a_fork() {
        let link = HostLink::default();
        assert!(!link.was_forked());
        link.note_broken();
        assert!(link.was_forked());
        assert!(link.send(&ToHost::Pong).is_err());
    }
}
