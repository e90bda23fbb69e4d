//! Freezing: a program in the guest asks for it and goes on in the clones, or in the thawed source.
//!
//! ```text
//! mitose-guest freeze ─► local socket ─► Freezing::run: Freeze{token} to the host, again and again
//!                                              │ … the vCPUs stand still here …
//!   host: Thawed{token} ───────────────────────┼─► answer: source
//!   connection reset, identity of a clone ─────┼─► answer: clone, when Ready is sent
//!   host: FreezeRefused{token} ────────────────┴─► failure
//! ```
//!
//! Guest time stands still too, so a pause that ends means that the guest runs: the host has not
//! frozen it yet, or its word was lost. Asking again with the same token settles both.

use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_protocol::{IdentityKind, ToHost};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::links::HostLink;

/// Pause between two requests with the same token.
const AGAIN: Duration = Duration::from_secs(2);

/// Longest wait for a host to ask: without any the call would never return.
const HOST_WAIT: Duration = Duration::from_secs(30);

/// Connections that break on the request, one after the other, of a host that does not know it.
const BREAKS_MAX: u32 = 3;

/// Where a frozen guest goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thawed {
    /// Whether this is a clone; else it is the source.
    pub(crate) clone: bool,
    /// Name in the host's inventory.
    pub(crate) name: String,
}

/// The one request to be frozen that may be under way, and what it must know about the host.
#[derive(Debug, Default)]
pub(crate) struct Freezing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The host has answered an identity on the present connection: it is the host of this VM.
    identified: bool,
    asked: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    token: String,
    /// It was sent at least once.
    sent: bool,
    /// Connections that ended after it was sent, and led to the same host.
    breaks: u32,
    answer: Option<Result<Thawed, String>>,
}

impl Freezing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the host to freeze the VM; returns where it goes on. `caller` is whoever waits for it:
    /// when it hangs up the request is withdrawn.
    pub(super) fn run(&self, link: &HostLink, caller: &UnixStream) -> Result<Thawed> {
        self.run_with(link, caller, AGAIN, HOST_WAIT)
    }

    fn run_with(
        &self,
        link: &HostLink,
        caller: &UnixStream,
        again: Duration,
        host_wait: Duration,
    ) -> Result<Thawed> {
        let token = new_token()?;
        let mut state = self.lock();
        if state.asked.is_some() {
            bail!("another program is waiting to be frozen already");
        }
        state.asked = Some(Asked {
            token: token.clone(),
            sent: false,
            breaks: 0,
            answer: None,
        });
        let answer = self.wait(state, link, caller, &token, again, host_wait);
        self.lock().asked = None;
        answer
    }

    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        link: &HostLink,
        caller: &UnixStream,
        token: &str,
        again: Duration,
        host_wait: Duration,
    ) -> Result<Thawed> {
        let message = ToHost::Freeze {
            token: token.to_owned(),
        };
        let mut due = Instant::now();
        let mut hostless_since = Instant::now();
        loop {
            // Sent with the lock held: the connection cannot become another host's meanwhile.
            let identified = state.identified;
            if identified {
                hostless_since = Instant::now();
            }
            let asked = state.asked.as_mut().context("the request is gone")?;
            if let Some(answer) = asked.answer.take() {
                return answer.map_err(anyhow::Error::msg);
            }
            if hung_up(caller) {
                bail!("the caller has gone");
            }
            if hostless_since.elapsed() > host_wait {
                bail!("no host has answered for {} s", host_wait.as_secs());
            }
            if identified && Instant::now() >= due {
                asked.sent |= link.send(&message).is_ok();
                due = Instant::now() + again;
            }
            let pause = if identified {
                due.saturating_duration_since(Instant::now())
            } else {
                again
            };
            state = match self.changed.wait_timeout(state, pause) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
            if !identified && state.identified {
                due = Instant::now();
            }
        }
    }

    /// The control connection has ended.
    pub(super) fn connection_broke(&self) {
        self.lock().identified = false;
        self.changed.notify_all();
    }

    /// An identity is in force and answered; `news` when it differs from the one before.
    pub(super) fn identified(&self, kind: IdentityKind, news: bool, name: &str) {
        let mut state = self.lock();
        let first = !std::mem::replace(&mut state.identified, true);
        if let Some(asked) = state.asked.as_mut().filter(|asked| asked.sent) {
            if news && kind == IdentityKind::Clone {
                asked.answer = Some(Ok(Thawed {
                    clone: true,
                    name: name.to_owned(),
                }));
            } else if first {
                asked.breaks += 1;
                if asked.breaks >= BREAKS_MAX {
                    asked.answer = Some(Err("the host does not know how to freeze".to_owned()));
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The host says that the source runs on.
    pub(super) fn thawed(&self, token: &str, name: String) {
        self.answer(token, Ok(Thawed { clone: false, name }));
    }

    /// The host says that it does not freeze the guest.
    pub(super) fn refused(&self, token: &str, reason: String) {
        self.answer(token, Err(reason));
    }

    fn answer(&self, token: &str, answer: Result<Thawed, String>) {
        let mut state = self.lock();
        // A token of an earlier call is no answer to this one.
        if let Some(asked) = state.asked.as_mut().filter(|asked| asked.token == token) {
            asked.answer = Some(answer);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Makes a token that no other call has had.
fn new_token() -> Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

fn hung_up(caller: &UnixStream) -> bool {
    let mut fds = [PollFd::new(caller, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ended = PollFlags::HUP | PollFlags::ERR;
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0) && fds[0].revents().intersects(ended)
}

#[cfg(test)]
mod tests;
