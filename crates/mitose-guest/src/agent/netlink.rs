//! The few rtnetlink requests that the agent needs: link up and down, MAC, addresses, routes.
//!
//! Messages are built byte by byte as `linux/netlink.h` and `linux/rtnetlink.h` lay them out, in
//! native byte order; each asks for an acknowledgement, which carries the kernel's error.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const HEADER: usize = 16;

/// Brings an interface up or down.
pub(crate) fn set_up(interface: &str, up: bool) -> io::Result<()> {
    let flags = if up { IFF_UP } else { 0 };
    ask(&Message::link(index_of(interface)?, flags, IFF_UP))
}

/// Sets an interface's MAC address.
pub(super) fn set_mac(interface: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut message = Message::link(index_of(interface)?, 0, 0);
    message.attribute(IFLA_ADDRESS, &mac);
    ask(&message)
}

/// Adds an address, or replaces the same one.
pub(super) fn add_address(interface: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
    ask(&Message::address(index_of(interface)?, address, prefix))
}

/// Removes all other addresses of the same family: those that a clone has from its source.
pub(super) fn remove_other_addresses(interface: &str, keep: IpAddr, prefix: u8) -> io::Result<()> {
    let index = index_of(interface)?;
    for (address, length) in list_addresses(index)? {
        if address.is_ipv4() == keep.is_ipv4() && (address, length) != (keep, prefix) {
            let mut message = Message::new(RTM_DELADDR, 0);
            message.address_body(index, address, length);
            ask(&message)?;
        }
    }
    Ok(())
}

/// Sets the default route of a family.
pub(super) fn set_default_route(interface: &str, gateway: IpAddr) -> io::Result<()> {
    ask(&Message::default_route(index_of(interface)?, gateway))
}

fn index_of(interface: &str) -> io::Result<u32> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, interface)?)
}

/// Sends a message on a socket of its own; answers are read from it.
fn send(message: &Message) -> io::Result<OwnedFd> {
    // NETLINK_ROUTE is protocol 0.
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &message.finish(), SendFlags::empty(), &kernel)?;
    Ok(socket)
}

/// Lists the addresses of an interface.
fn list_addresses(index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
    let mut message = Message::new(RTM_GETADDR, NLM_F_DUMP);
    message.bytes.extend([0u8; 8]);
    let socket = send(&message)?;
    let mut found = Vec::new();
    let mut answer = vec![0u8; 32 << 10];
    loop {
        let (_, n) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        let mut rest = &answer[..n.min(answer.len())];
        while let Some((kind, body, next)) = next_message(rest) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(found),
                RTM_NEWADDR => found.extend(parse_address(body, index)),
                _ => {}
            }
            rest = next;
        }
        if n == 0 {
            return Ok(found);
        }
    }
}

/// Takes one message off: kind, what follows the header, what follows the message.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..len)?;
    Some((
        kind,
        body,
        bytes.get(len.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Reads `struct ifaddrmsg` with its attributes when it is about the interface.
fn parse_address(body: &[u8], index: u32) -> Option<(IpAddr, u8)> {
    let prefix = *body.get(1)?;
    if u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?) != index {
        return None;
    }
    let mut attributes = body.get(8..)?;
    let mut address = None;
    while let Some(head) = attributes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = attributes.get(4..len)?;
        // On a point-to-point link the local address is the interface's own.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
            address = match value.len() {
                4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                _ => None,
            };
        }
        attributes = attributes
            .get(len.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Some((address?, prefix))
}

fn ask(message: &Message) -> io::Result<()> {
    let socket = send(message)?;
    let mut answer = [0u8; 4096];
    let (_, n) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    acknowledged(&answer[..n.min(4096)])
}

/// Reads the error number of an acknowledgement; 0 is success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = answer
        .get(HEADER..HEADER + 4)
        .and_then(|b| b.try_into().ok());
    match (kind, code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(io::Error::other("netlink answer is not an acknowledgement")),
    }
}

/// A message being built: the header's length is filled in by [`Message::finish`].
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0u8; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        Self { bytes }
    }

    /// `struct ifinfomsg`.
    fn link(index: u32, flags: u32, changed: u32) -> Self {
        let mut message = Self::new(RTM_NEWLINK, 0);
        message.bytes.extend([0u8; 4]);
        message.bytes.extend(index.to_ne_bytes());
        message.bytes.extend(flags.to_ne_bytes());
        message.bytes.extend(changed.to_ne_bytes());
        message
    }

    /// `struct ifaddrmsg`.
    fn address(index: u32, address: IpAddr, prefix: u8) -> Self {
        let mut message = Self::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
        message.address_body(index, address, prefix);
        message
    }

    fn address_body(&mut self, index: u32, address: IpAddr, prefix: u8) {
        self.bytes.extend([family(address), prefix, 0, 0]);
        self.bytes.extend(index.to_ne_bytes());
        let octets = octets(address);
        self.attribute(IFA_LOCAL, &octets);
        self.attribute(IFA_ADDRESS, &octets);
    }

    /// `struct rtmsg` for 0.0.0.0/0 or ::/0.
    fn default_route(index: u32, gateway: IpAddr) -> Self {
        let mut message = Self::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        message.bytes.extend([family(gateway), 0, 0, 0]);
        message
            .bytes
            .extend([RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST]);
        message.bytes.extend([0u8; 4]);
        message.attribute(RTA_GATEWAY, &octets(gateway));
        message.attribute(RTA_OIF, &index.to_ne_bytes());
        message
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let len = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let mut link = Message::link(3, 1, 1);
        link.attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]);
        let bytes = link.finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[0..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 3u32.to_ne_bytes());
        assert_eq!(bytes[32..34], 10u16.to_ne_bytes());
        assert_eq!(bytes[36..42], [2, 0, 0, 0, 0, 9]);
        let address = Message::address(3, "192.0.2.7".parse().unwrap(), 24).finish();
        assert_eq!(address.len(), 16 + 8 + 8 + 8);
        assert_eq!(address[16..20], [2, 24, 0, 0]);
        let route = Message::default_route(3, "2001:db8::1".parse().unwrap()).finish();
        assert_eq!(route.len(), 16 + 12 + 20 + 8);
    }

    #[test]
    fn the_kernel_answers_for_an_interface_that_exists() {
        assert!(index_of("lo").unwrap() > 0);
        assert!(index_of("no-such-if").is_err());
    }

    #[test]
    fn addresses_of_an_interface_are_listed() {
        let addresses = list_addresses(index_of("lo").unwrap()).unwrap();
        assert!(
            addresses.contains(&("127.0.0.1".parse().unwrap(), 8)),
            "{addresses:?}"
        );
        let body = Message::address(3, "2001:db8::1".parse().unwrap(), 64).finish();
        let expected = Some(("2001:db8::1".parse().unwrap(), 64));
        assert_eq!(parse_address(&body[16..], 3), expected);
        assert_eq!(parse_address(&body[16..], 4), None);
        for cut in 0..body.len() {
            let _ = next_message(&body[..cut]);
            let _ = parse_address(&body[16.min(cut)..cut], 3);
        }
    }

    #[test]
    fn answers_are_understood() {
        let mut answer = [0u8; 36];
        answer[4] = 2;
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(17));
        assert!(acknowledged(&answer[..8]).is_err());
        assert!(acknowledged(&[]).is_err());
    }
}
