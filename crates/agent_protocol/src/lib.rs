//! The protocol between a host and the agent in a guest: message types and framing.
//!
//! Two kinds of connection exist, both over vsock:
//!
//! * The *control* connection. The guest connects to CID [`HOST_CID`], port [`CONTROL_PORT`], and
//!   keeps it open. Messages are JSON behind a little-endian 32-bit length ([`control`]).
//! * *Request* connections. The host connects to the guest's port [`REQUEST_PORT`]; each carries
//!   one command or one file transfer in typed binary frames ([`request`]).
//!
//! Neither side trusts the other: frames are bounded by [`FRAME_MAX`], and what a guest says is
//! checked field by field before it is returned ([`control::ToHost::decode`]).
//! [`host`] is a small blocking client for hosts without an async runtime.

#![forbid(unsafe_code)]

pub mod control;
pub mod frame;
pub mod guest_paths;
pub mod guestinfo;
pub mod host;
pub mod request;
pub mod tree;

pub use control::{
    Hello, HelloReason, Identity, IdentityKind, NicIdentity, Ready, SshHostKey, ToGuest, ToHost,
};
pub use frame::{FRAME_MAX, FrameError};
pub use request::{Entry, EntryKind, Exit, Get, Put, Reply, Request, Signal, Start, WindowSize};

/// Version of everything in this crate; a [`Hello`] carries it.
pub const PROTOCOL_VERSION: u32 = 1;

/// vsock context id of the host.
pub const HOST_CID: u32 = 2;

/// vsock context id of every guest.
pub const GUEST_CID: u32 = 3;

/// Port on the host that the agent's control connection goes to.
pub const CONTROL_PORT: u32 = 1024;

/// Port in the guest that takes commands and file transfers.
pub const REQUEST_PORT: u32 = 1025;
