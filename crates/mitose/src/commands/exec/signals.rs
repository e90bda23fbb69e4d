//! What signals to `mitose exec` do: the first one is the command's, a second one ends `mitose`, and
//! with the connection the command. On a terminal in raw mode, where Ctrl-C is a byte for the command,
//! the first one ends it.

use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use agent_protocol::{Request, Signal};
use anyhow::Context as _;
use rustix::process::Signal as Number;

use super::{Writer, send};
use crate::terminal::RawMode;

/// What ends a program: Ctrl-C, a service manager, a terminal that goes away.
const NUMBERS: [i32; 3] = [
    Number::INT.as_raw(),
    Number::TERM.as_raw(),
    Number::HUP.as_raw(),
];

/// The signals, taken until `mitose` ends. Ends raw mode when dropped.
#[derive(Debug)]
pub(super) struct Signals(Arc<Mutex<Target>>);

/// What a signal is to act on.
#[derive(Debug, Default)]
struct Target {
    /// Connection of a command that has had no signal yet.
    command: Option<Writer>,
    raw: Option<RawMode>,
}

impl Signals {
    /// Takes the signals. Threads that run already would be ended by them all the same.
    pub(super) fn take() -> anyhow::Result<Self> {
        let signals = linux_sys::Signals::take(&NUMBERS).context("cannot take signals")?;
        let target = Arc::<Mutex<Target>>::default();
        let shared = Arc::clone(&target);
        thread::spawn(move || {
            while let Ok(number) = signals.wait() {
                if !lock(&shared).pass_on(number) {
                    process::exit(128 + number);
                }
            }
        });
        Ok(Self(target))
    }

    /// Makes them those of a command, with the terminal in raw mode where that is wanted.
    pub(super) fn pass_to(&self, command: &Writer, raw: bool) -> anyhow::Result<()> {
        // A signal in between is to find the mode that it has to end.
        let mut target = lock(&self.0);
        target.raw = if raw { RawMode::start()? } else { None };
        target.command = Some(Arc::clone(command));
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        *lock(&self.0) = Target::default();
    }
}

impl Target {
    /// Passes a signal on; says no where it is to end this program, which it may do then.
    fn pass_on(&mut self, number: i32) -> bool {
        if self.raw.take().is_some() {
            return false;
        }
        let Some(command) = self.command.take() else {
            return false;
        };
        // A command that takes no input holds up who sends; the next signal is not to wait for it.
        thread::spawn(move || send(&command, &Request::Signal(Signal { signal: number })));
        true
    }
}

fn lock(target: &Mutex<Target>) -> MutexGuard<'_, Target> {
    target.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_signal_is_the_commands_and_the_second_ends_this_program() {
        let (ours, mut agents) = UnixStream::pair().unwrap();
        agents
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let command = Arc::new(Mutex::new(ours));
        let mut target = Target {
            command: Some(Arc::clone(&command)),
            raw: None,
        };
        // Also while a piece of input is stuck on its way to the command.
        let stuck = command.lock().unwrap();
        assert!(target.pass_on(2));
        assert!(!target.pass_on(2));
        drop(stuck);
        let sent = Request::read(&mut agents).unwrap();
        assert_eq!(sent, Some(Request::Signal(Signal { signal: 2 })));
        assert!(!Target::default().pass_on(15), "nothing runs yet");
    }
}
