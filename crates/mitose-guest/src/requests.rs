//! Answers the host's request connections: commands and file transfers.
//!
//! Each connection has a thread of its own. Connections are sockets of any kind, which is how the
//! tests run without vsock.

pub(crate) mod command;
mod copy;
mod session;
#[cfg(test)]
mod tests;
mod users;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use agent_protocol::{FrameError, Reply, Request};

use crate::agent::links::HostLink;
use crate::{Root, log};

/// Most connections served at a time; a host that opens more is refused.
const CONNECTIONS_MAX: usize = 512;

/// What every connection needs to know.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) root: Root,
    pub(crate) link: Arc<HostLink>,
    open: AtomicUsize,
}

impl Server {
    pub(crate) fn new(root: Root, link: Arc<HostLink>) -> Arc<Self> {
        Arc::new(Self {
            root,
            link,
            open: AtomicUsize::new(0),
        })
    }

    /// Accepts connections for ever.
    pub(crate) fn accept_all(self: Arc<Self>, listener: &OwnedFd) {
        use rustix::net::{SocketFlags, accept_with};
        loop {
            match accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(socket) => self.clone().start(socket),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => {
                    log(&format!("cannot accept a connection: {error}"));
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Serves one connection on a thread of its own.
    pub(crate) fn start(self: Arc<Self>, socket: OwnedFd) {
        let mut stream = File::from(socket);
        if self.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.open.fetch_sub(1, Ordering::Relaxed);
            let _ = Reply::Error("too many connections at a time".into()).write(&mut stream);
            return;
        }
        let spawned = thread::Builder::new()
            .name("request".into())
            .spawn(move || {
                self.serve(stream);
                self.open.fetch_sub(1, Ordering::Relaxed);
            });
        if let Err(error) = spawned {
            log(&format!("cannot start a thread: {error}"));
        }
    }

    fn serve(&self, mut stream: File) {
        let answer = match Request::read(&mut stream) {
            Ok(None) => return,
            Ok(Some(Request::Start(start))) => return session::run(self, stream, &start),
            Ok(Some(Request::Put(put))) => copy::receive(&self.root, &mut stream, &put),
            Ok(Some(Request::Get(get))) => copy::send(&self.root, &mut stream, &get),
            Ok(Some(other)) => Err(anyhow::anyhow!(
                "a connection cannot begin with a {} frame",
                other.name()
            )),
            Err(FrameError::Io { .. } | FrameError::Truncated) => return,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = answer {
            refuse(&mut stream, &format!("{error:#}"));
        }
    }
}

/// Sends the reason of a failure and discards what the host still sends, so that the answer is not
/// lost behind a reset.
fn refuse(stream: &mut File, reason: &str) {
    if Reply::Error(reason.to_owned()).write(stream).is_err() {
        return;
    }
    let _ = stream.flush();
    while let Ok(Some(request)) = Request::read(stream) {
        if request == Request::Eof {
            break;
        }
    }
}
