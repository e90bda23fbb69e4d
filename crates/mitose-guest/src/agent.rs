//! The agent: keeps the control connection to the host, applies identities, serves requests.
//!
//! ```text
//! connect ─► Hello ─► Identity ─► apply ─► Ready ─► serve messages ─┐
//!    ▲                                                              │ connection broken
//!    └────────────── short, growing pause ◄─────────────────────────┘ (as in every new clone)
//! ```

mod entropy;
mod freeze;
mod guestinfo;
mod hooks;
mod identity;
mod journal;
pub(crate) mod links;
pub(crate) mod local;
pub(crate) mod netlink;
mod nics;
pub(crate) mod power;
mod ssh;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::{
    CONTROL_PORT, HOST_CID, Hello, HelloReason, Identity, PROTOCOL_VERSION, REQUEST_PORT, ToGuest,
    ToHost,
};
use anyhow::{Context, Result};

use crate::requests::Server;
use crate::{Root, linux, log};
use freeze::Freezing;
use guestinfo::GuestInfo;
use identity::Heard;
use links::HostLink;
use local::Desk;

/// First and longest pause between two attempts to connect. The first is short because a clone
/// waits for it.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Exists once the first identity is in force: services wait for it. Names the identity, so that an
/// agent that was started again does not apply it a second time: its clock is an old one.
pub(crate) const IDENTIFIED: &str = "/run/mitose/identified";

/// Runs the agent until the system ends.
pub(crate) fn run() -> Result<()> {
    let root = Root::system();
    // Process 1 runs the agent as /proc/self/exe, which is no name to find it by.
    let _ = rustix::thread::set_name(c"mitose-guest");
    std::fs::create_dir_all(root.path("/run/mitose")).context("cannot make /run/mitose")?;
    let desk = Desk {
        info: Arc::new(GuestInfo::open(root.path("/run/mitose/guestinfo.json"))),
        ..Desk::default()
    };
    start_request_server(&root, &desk.link);
    local::start(&root, desk.clone()).context("cannot serve the local socket")?;
    power::watch_button();
    let Desk {
        info,
        link,
        freezing,
    } = desk;
    let applied = std::fs::read_to_string(root.path(IDENTIFIED)).ok();
    Agent {
        root,
        link,
        info,
        freezing,
        applied,
    }
    .keep_connected()
}

fn start_request_server(root: &Root, link: &Arc<HostLink>) {
    let server = Server::new(root.clone(), link.clone());
    let serve = move || {
        // The transport's driver may come after the agent; a guest without one has no host.
        let mut pause = Duration::from_millis(10);
        let listener = loop {
            match linux::vsock_listen(REQUEST_PORT) {
                Ok(listener) => break listener,
                Err(_) => thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        };
        server.accept_all(&listener);
    };
    if let Err(error) = thread::Builder::new().name("accept".into()).spawn(serve) {
        log(&format!("cannot start a thread: {error}"));
    }
}

struct Agent {
    root: Root,
    link: Arc<HostLink>,
    info: Arc<GuestInfo>,
    freezing: Arc<Freezing>,
    /// `instance_uuid` of the identity in force.
    applied: Option<String>,
}

impl Agent {
    fn keep_connected(mut self) -> ! {
        let mut reason = HelloReason::Boot;
        let mut pause = PAUSE_MIN;
        loop {
            if let Ok(stream) = linux::vsock_connect(HOST_CID, CONTROL_PORT) {
                let mut stream = File::from(stream);
                let mut lived = false;
                match self.converse(&mut stream, reason, &mut lived) {
                    Ok(()) => {}
                    Err(error) => log(&format!("control connection: {error:#}")),
                }
                self.link.note_broken();
                self.freezing.connection_broke();
                if lived {
                    reason = HelloReason::Reconnect;
                    pause = PAUSE_MIN;
                    continue;
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Holds one conversation; `lived` is set once the host has said anything.
    fn converse(&mut self, stream: &mut File, reason: HelloReason, lived: &mut bool) -> Result<()> {
        let hello = ToHost::Hello(self.hello(reason));
        let mut asked = Some(Instant::now());
        hello.write(stream)?;
        self.link.set(Some(
            stream.try_clone().context("cannot share the connection")?,
        ));
        loop {
            let message = match read_message(stream)? {
                Some(message) => message,
                None => return Ok(()),
            };
            *lived = true;
            match message {
                ToGuest::Identity(identity) => {
                    let heard = Heard::now(asked.take());
                    self.take_identity(&identity, heard)?;
                }
                ToGuest::GuestInfoSet { key, value } => {
                    if let Err(error) = self.info.set(&key, &value) {
                        log(&format!("guestinfo from the host: {error}"));
                    }
                }
                ToGuest::Thawed { token, name } => self.freezing.thawed(&token, name),
                ToGuest::FreezeRefused { token, reason } => self.freezing.refused(&token, reason),
                ToGuest::Ping => self.link.send(&ToHost::Pong)?,
                ToGuest::Shutdown { reboot } => {
                    if let Err(error) = power::shut_down(reboot) {
                        log(&format!("cannot shut down: {error:#}"));
                    }
                }
            }
        }
    }

    fn hello(&self, reason: HelloReason) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            reason,
            ssh_host_key_kinds: ssh::wanted_kinds(&self.root),
            hostname: identity::hostname(&self.root),
        }
    }

    fn take_identity(&mut self, identity: &Identity, heard: Heard) -> Result<()> {
        self.info.replace(identity.guestinfo.clone());
        let known = self.applied.as_deref() == Some(identity.instance_uuid.as_str());
        let ready = if known {
            identity::describe(&self.root)
        } else {
            identity::apply(&self.root, identity, heard)
        };
        self.applied = Some(identity.instance_uuid.clone());
        let _ = std::fs::write(self.root.path(IDENTIFIED), &identity.instance_uuid);
        for error in &ready.errors {
            log(error);
        }
        self.link.send(&ToHost::Ready(ready))?;
        self.freezing
            .identified(identity.kind, !known, &identity.vm_name);
        Ok(())
    }
}

/// Reads one message. A connection that breaks is the normal end of one: in a clone it is how the
/// agent learns of the fork.
fn read_message(stream: &mut (impl Read + Write)) -> Result<Option<ToGuest>> {
    use agent_protocol::FrameError::{Io, Truncated};
    match ToGuest::read(stream) {
        Ok(message) => Ok(message),
        Err(Io { .. } | Truncated) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
