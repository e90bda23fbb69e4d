//! Blocking, typed client of the daemon's HTTP interface, over its Unix socket or TLS.
//!
//! Each call opens a connection of its own. It knows nothing of starting a daemon.

#![forbid(unsafe_code)]

mod calls;
mod connect;
mod fork_points;
mod http;
mod snapshots;
mod storage;
mod tasks;
mod tree;

use std::path::PathBuf;

use api_types::{ErrorKind, Problem};

pub use calls::{Client, LogOptions};
pub use tasks::TaskFilter;

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers at the socket.
    #[error("no daemon answers at {}", path.display())]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// The host call's error.
        #[source]
        source: std::io::Error,
    },
    /// The address of a daemon on the network cannot be used.
    #[error("url: {url} cannot be used: {reason}")]
    Address {
        /// The address.
        url: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The daemon refused, or tried and failed.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// The connection broke off.
    #[error("the connection to the daemon broke off while it was to {doing}")]
    Broken {
        /// What was under way.
        doing: &'static str,
        /// The host call's error.
        #[source]
        source: std::io::Error,
    },
    /// The daemon's answer is not what this client knows.
    #[error("the daemon's answer cannot be read: {0}; are client and daemon of one version?")]
    Answer(String),
    /// What the daemon sent could not be written on.
    #[error("cannot write the output")]
    Output(#[source] std::io::Error),
}

impl ClientError {
    /// Kind of a refusal.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
