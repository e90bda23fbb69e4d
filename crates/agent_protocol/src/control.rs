//! Messages of the control connection.
//!
//! ```text
//! guest                                   host
//!   Hello{reason: boot}        ──►
//!                              ◄──  Identity{kind: boot}
//!   (applies it)  Ready        ──►
//!   GuestInfoSet, Pong         ◄─►  GuestInfoSet, Ping, Shutdown
//!   ··· fork: the clone's connection is reset ···
//!   Hello{reason: reconnect}   ──►
//!                              ◄──  Identity{kind: clone}
//!   (applies it)  Ready        ──►
//!
//!   Freeze{token}              ──►  stops the vCPUs: the guest stands still in its call
//!   ··· the source is resumed ···
//!                              ◄──  Thawed{token}     the call returns "source"
//!   ··· or a clone is made: reset, Hello, Identity{kind: clone}, Ready ···
//!                                                     the call returns "clone"
//! ```
//!
//! An identity whose `instance_uuid` the agent has applied before is answered by a `Ready` without
//! being applied again, so a host may send it on every connection.
//!
//! **Freezing.** A guest asks to be frozen with a token of its own making, and asks again with the
//! same one, every few seconds and on every new connection, until it has an answer: words are lost
//! while a daemon restarts. It never asks before it has answered an identity on that connection, so
//! a clone does not freeze by its source's wish. A host stops the vCPUs for a token that it has not
//! seen, answers [`ToGuest::Thawed`] for the one that it thawed last, or [`ToGuest::FreezeRefused`].
//! The call in the guest returns in a clone when the `Ready` of its identity is sent, in the source
//! when the host has said `Thawed`, and fails when the host refuses. While the VM stands still,
//! nothing of this depends on a daemon: a restarted one knows the frozen VM by its record.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameError};
use crate::guestinfo;

/// Longest token of a [`ToHost::Freeze`] in bytes.
pub const FREEZE_TOKEN_MAX: usize = 64;

const NAME_MAX: usize = 253;
const LIST_MAX: usize = 64;
const TEXT_MAX: usize = 1024;

/// A message from the agent to its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToHost {
    /// First message of a connection.
    Hello(Hello),
    /// The identity is applied, the guest can be used.
    Ready(Ready),
    /// The guest sets one of its guestinfo values.
    GuestInfoSet {
        /// Starts with [`guestinfo::PREFIX`].
        key: String,
        /// At most [`guestinfo::VALUE_MAX`] bytes; empty removes the key.
        value: String,
    },
    /// The guest wants to be frozen at this point.
    Freeze {
        /// Letters, digits and hyphens, another one for each call.
        token: String,
    },
    /// Answer to a [`ToGuest::Ping`].
    Pong,
}

/// A message from the host to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToGuest {
    /// Who the guest is; answered by [`ToHost::Ready`].
    Identity(Box<Identity>),
    /// A guestinfo value was set from outside.
    GuestInfoSet {
        /// Starts with [`guestinfo::PREFIX`].
        key: String,
        /// At most [`guestinfo::VALUE_MAX`] bytes; empty removes the key.
        value: String,
    },
    /// The source that asked to be frozen runs on.
    Thawed {
        /// That of the [`ToHost::Freeze`].
        token: String,
        /// Name in the host's inventory.
        name: String,
    },
    /// The guest was not frozen.
    FreezeRefused {
        /// That of the [`ToHost::Freeze`].
        token: String,
        /// Why not, one line.
        reason: String,
    },
    /// Asks for a [`ToHost::Pong`].
    Ping,
    /// Asks the guest to power off or to restart in an orderly way.
    Shutdown {
        /// Restart instead of powering off.
        reboot: bool,
    },
}

/// First message of a control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the agent.
    pub protocol: u32,
    /// Program version of the agent.
    pub agent_version: String,
    /// Whether this agent had a connection before.
    pub reason: HelloReason,
    /// Kinds of the SSH host keys (`rsa`, `ecdsa`, `ed25519`) that the guest has, or wants when its
    /// SSH server has none yet: an identity brings new ones of these kinds. In
    /// [`IdentityKind::Boot`] they are used only by a guest without keys.
    #[serde(default)]
    pub ssh_host_key_kinds: Vec<String>,
    /// Current host name.
    pub hostname: String,
}

/// Why an agent connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelloReason {
    /// The agent has just started.
    Boot,
    /// An earlier connection of the same agent broke, as it does in a clone.
    Reconnect,
}

/// The guest has applied its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Host name in force.
    pub hostname: String,
    /// Content of `/etc/machine-id`, 32 hexadecimal digits.
    pub machine_id: String,
    /// MAC address of each network interface, in the order of their indices.
    #[serde(default)]
    pub macs: Vec<String>,
    /// What could not be applied, one line each; empty when all went well.
    #[serde(default)]
    pub errors: Vec<String>,
}

/// Whether an identity is for a guest that booted or for one that was forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    /// The guest came up by itself; SSH host keys are given only when it has none of its own.
    Boot,
    /// The guest is a copy of another one: everything unique is replaced.
    Clone,
}

/// All that makes one guest different from its siblings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Whether the guest booted or was forked.
    pub kind: IdentityKind,
    /// Name in the host's inventory.
    pub vm_name: String,
    /// Host name to take; empty keeps the present one.
    pub hostname: String,
    /// Identity of this identity: the agent applies each value once.
    pub instance_uuid: String,
    /// 32 lower-case hexadecimal digits; empty keeps the present one.
    pub machine_id: String,
    /// Network interfaces by index.
    #[serde(default)]
    pub nics: Vec<NicIdentity>,
    /// SSH host keys to install.
    #[serde(default)]
    pub ssh_host_keys: Vec<SshHostKey>,
    /// Fresh random bytes in hexadecimal, at least 64 of them; see [`Identity::entropy_bytes`].
    pub entropy: String,
    /// Wall-clock time of the host when it sent this, in nanoseconds since 1970; 0 = unknown.
    pub wall_clock_unix_ns: u64,
    /// All guestinfo values.
    #[serde(default)]
    pub guestinfo: BTreeMap<String, String>,
}

/// Addresses of one network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicIdentity {
    /// Position among the guest's virtio network interfaces, from 0.
    pub index: u32,
    /// Six colon-separated hexadecimal bytes.
    pub mac: String,
    /// Static IPv4 or IPv6 address with prefix length (`192.0.2.7/24`); `None` leaves addresses to
    /// the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Default gateway that goes with `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Name servers that go with `address`.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// One SSH host key pair in OpenSSH's file formats.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshHostKey {
    /// `rsa`, `ecdsa` or `ed25519`.
    pub kind: String,
    /// Text of `ssh_host_KIND_key`.
    pub private: String,
    /// Text of `ssh_host_KIND_key.pub`.
    pub public: String,
}

impl fmt::Debug for Identity {
    /// Leaves the secrets (entropy, guestinfo values) out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("kind", &self.kind)
            .field("vm_name", &self.vm_name)
            .field("hostname", &self.hostname)
            .field("instance_uuid", &self.instance_uuid)
            .field("machine_id", &self.machine_id)
            .field("nics", &self.nics)
            .field("ssh_host_keys", &self.ssh_host_keys)
            .field("guestinfo_keys", &self.guestinfo.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SshHostKey {
    /// Leaves the private half out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshHostKey")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Returns the entropy as bytes.
    pub fn entropy_bytes(&self) -> Result<Vec<u8>, FrameError> {
        decode_hex(&self.entropy).ok_or_else(|| {
            bad(
                "identity",
                "entropy",
                "is not a string of hexadecimal bytes",
            )
        })
    }

    /// Stores bytes as the entropy.
    pub fn set_entropy(&mut self, bytes: &[u8]) {
        self.entropy = encode_hex(bytes);
    }

    fn check(&self) -> Result<(), FrameError> {
        const WHAT: &str = "identity";
        check_text(WHAT, "vm_name", &self.vm_name, NAME_MAX)?;
        check_count(WHAT, "nics", self.nics.len(), LIST_MAX)?;
        if !self.hostname.is_empty() {
            check_hostname(WHAT, "hostname", &self.hostname)?;
        }
        if !self.machine_id.is_empty() && !is_machine_id(&self.machine_id) {
            return Err(bad(WHAT, "machine_id", "is not 32 hexadecimal digits"));
        }
        for nic in &self.nics {
            if parse_mac(&nic.mac).is_none() {
                return Err(bad(
                    WHAT,
                    "nics[].mac",
                    format!("{:?} is not a MAC address", nic.mac),
                ));
            }
        }
        for key in &self.ssh_host_keys {
            check_key_kind(WHAT, "ssh_host_keys[].kind", &key.kind)?;
        }
        if self.entropy_bytes()?.len() < 64 {
            return Err(bad(WHAT, "entropy", "has fewer than 64 bytes"));
        }
        guestinfo::check_all(&self.guestinfo).map_err(|problem| bad_guestinfo(WHAT, &problem))
    }
}

impl ToHost {
    /// Returns the frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode_control(&to_json("agent message", self)?)
    }

    /// Understands one control payload that came from a guest, and checks every field's bounds.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let message: Self = from_json("agent message", payload)?;
        message.check()?;
        Ok(message)
    }

    /// Writes the message.
    pub fn write(&self, writer: &mut impl Write) -> Result<(), FrameError> {
        frame::write_bytes(writer, &self.encode()?)
    }

    /// Reads the next message; `None` at the end of the connection.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>, FrameError> {
        frame::read_control(reader)?
            .map(|payload| Self::decode(&payload))
            .transpose()
    }

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Ready(ready) => ready.check(),
            Self::GuestInfoSet { key, value } => check_guestinfo("guest_info_set", key, value),
            Self::Freeze { token } => check_token("freeze", token),
            Self::Pong => Ok(()),
        }
    }
}

impl ToGuest {
    /// Returns the frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode_control(&to_json("host message", self)?)
    }

    /// Understands one control payload that came from a host, and checks its fields.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let message: Self = from_json("host message", payload)?;
        match &message {
            Self::Identity(identity) => identity.check()?,
            Self::GuestInfoSet { key, value } => check_guestinfo("guest_info_set", key, value)?,
            Self::Thawed { token, name } => {
                check_token("thawed", token)?;
                check_text("thawed", "name", name, NAME_MAX)?;
            }
            Self::FreezeRefused { token, reason } => {
                check_token("freeze_refused", token)?;
                check_text("freeze_refused", "reason", reason, TEXT_MAX)?;
            }
            Self::Ping | Self::Shutdown { .. } => {}
        }
        Ok(message)
    }

    /// Writes the message.
    pub fn write(&self, writer: &mut impl Write) -> Result<(), FrameError> {
        frame::write_bytes(writer, &self.encode()?)
    }

    /// Reads the next message; `None` at the end of the connection.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>, FrameError> {
        frame::read_control(reader)?
            .map(|payload| Self::decode(&payload))
            .transpose()
    }
}

impl Hello {
    fn check(&self) -> Result<(), FrameError> {
        const WHAT: &str = "hello";
        check_text(WHAT, "agent_version", &self.agent_version, 64)?;
        check_text(WHAT, "hostname", &self.hostname, NAME_MAX)?;
        check_count(
            WHAT,
            "ssh_host_key_kinds",
            self.ssh_host_key_kinds.len(),
            16,
        )?;
        self.ssh_host_key_kinds
            .iter()
            .try_for_each(|kind| check_key_kind(WHAT, "ssh_host_key_kinds", kind))
    }
}

impl Ready {
    fn check(&self) -> Result<(), FrameError> {
        const WHAT: &str = "ready";
        check_text(WHAT, "hostname", &self.hostname, NAME_MAX)?;
        check_text(WHAT, "machine_id", &self.machine_id, 64)?;
        check_count(WHAT, "macs", self.macs.len(), LIST_MAX)?;
        for mac in &self.macs {
            check_text(WHAT, "macs", mac, 32)?;
        }
        check_count(WHAT, "errors", self.errors.len(), LIST_MAX)?;
        for error in &self.errors {
            check_text(WHAT, "errors", error, TEXT_MAX)?;
        }
        Ok(())
    }

    /// Adds a line to `errors`, cut to what a host accepts.
    pub fn push_error(&mut self, text: &str) {
        if self.errors.len() < LIST_MAX {
            let line: String = text
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            self.errors.push(cut(&line, TEXT_MAX).to_owned());
        }
    }
}

/// Returns the six bytes of `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Returns the usual spelling of a MAC address.
pub fn format_mac(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Returns true for 32 lower-case hexadecimal digits that are not all zero.
pub fn is_machine_id(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|b| b != b'0')
}

/// Returns true for a name that can be a guest's host name: labels of letters, digits and hyphens.
pub fn is_hostname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn check_guestinfo(what: &'static str, key: &str, value: &str) -> Result<(), FrameError> {
    guestinfo::check(key, value).map_err(|problem| bad_guestinfo(what, &problem))
}

fn bad_guestinfo(what: &'static str, problem: &guestinfo::GuestInfoError) -> FrameError {
    bad(what, problem.field(), problem.to_string())
}

fn check_token(what: &'static str, token: &str) -> Result<(), FrameError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !token.is_empty() && token.len() <= FREEZE_TOKEN_MAX && token.bytes().all(plain) {
        return Ok(());
    }
    let shown = cut(token, 64);
    Err(bad(what, "token", format!("{shown:?} is not a token")))
}

fn check_hostname(what: &'static str, field: &'static str, name: &str) -> Result<(), FrameError> {
    if is_hostname(name) {
        return Ok(());
    }
    Err(bad(
        what,
        field,
        format!("{:?} is not a host name", cut(name, 64)),
    ))
}

fn check_key_kind(what: &'static str, field: &'static str, kind: &str) -> Result<(), FrameError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !kind.is_empty() && kind.len() <= 32 && kind.bytes().all(plain) {
        return Ok(());
    }
    Err(bad(
        what,
        field,
        format!("{:?} is not a key kind", cut(kind, 32)),
    ))
}

fn check_text(
    what: &'static str,
    field: &'static str,
    text: &str,
    max: usize,
) -> Result<(), FrameError> {
    if text.len() > max {
        return Err(bad(
            what,
            field,
            format!("has {} bytes, at most {max} fit", text.len()),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(what, field, "has control characters"));
    }
    Ok(())
}

fn check_count(
    what: &'static str,
    field: &'static str,
    count: usize,
    max: usize,
) -> Result<(), FrameError> {
    if count > max {
        return Err(bad(
            what,
            field,
            format!("has {count} entries, at most {max} fit"),
        ));
    }
    Ok(())
}

fn bad(what: &'static str, field: &'static str, problem: impl Into<String>) -> FrameError {
    FrameError::BadField {
        what,
        field,
        problem: problem.into(),
    }
}

/// Returns the longest prefix of at most `max` bytes that ends between two characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

pub(crate) fn to_json(what: &'static str, value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    serde_json::to_vec(value).map_err(|source| FrameError::Malformed { what, source })
}

pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(
    what: &'static str,
    payload: &[u8],
) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|source| FrameError::Malformed { what, source })
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests;
