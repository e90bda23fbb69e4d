//! Bridges and the TAP interfaces on them (`Documentation/networking/bridge.rst` of Linux).
//!
//! A TAP that is made here lives as long as a descriptor of it is open: it goes with the process
//! of its VM, also when nobody is left to remove it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::tap::{TapError, attach, check, check_name, interface_request, open_tun};

/// Requests of `linux/sockios.h` that the crate `libc` does not name.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRDELBR: libc::c_ulong = 0x89a1;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// A bridge cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The name is no interface name.
    #[error("bridge: {0:?} is not an interface name of 1 to 15 bytes")]
    Name(String),
    /// No such bridge.
    #[error("bridge: there is no bridge {0:?}; make it with 'ip link add {0} type bridge'")]
    Missing(String),
    /// The interface exists and is no bridge.
    #[error("bridge: the interface {0:?} is no bridge; name another one")]
    Other(String),
    /// The host refuses.
    #[error("bridge: cannot {action} {name:?} ({source}); run mitosed as root")]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// With which interface.
        name: String,
        /// The host call's error.
        #[source]
        source: io::Error,
    },
    /// The interface of a NIC cannot be made.
    #[error(transparent)]
    Tap(#[from] TapError),
}

/// Makes sure that the bridge `name` exists.
pub fn find_bridge(name: &str) -> Result<(), BridgeError> {
    check_name(name).map_err(|_| BridgeError::Name(name.to_owned()))?;
    let interface = sys(name);
    if interface.join("bridge").exists() {
        Ok(())
    } else if interface.exists() {
        Err(BridgeError::Other(name.to_owned()))
    } else {
        Err(BridgeError::Missing(name.to_owned()))
    }
}

/// Makes the bridge `name` where it does not exist, and lets it pass frames. The host itself gets
/// no address on it.
pub fn make_bridge(name: &str) -> Result<(), BridgeError> {
    match find_bridge(name) {
        Err(BridgeError::Missing(_)) => {}
        found => return found,
    }
    let refused = refused("make the bridge", name);
    order(name, SIOCBRADDBR).map_err(&refused)?;
    // Where the host has no IPv6 there is no such file.
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf").join(name);
    let _ = fs::write(ipv6.join("disable_ipv6"), "1");
    set_up(name, true).map_err(&refused)
}

/// Removes the bridge `name`; one that does not exist is removed already.
pub fn remove_bridge(name: &str) -> Result<(), BridgeError> {
    match find_bridge(name) {
        Ok(()) => {}
        Err(BridgeError::Missing(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    let refused = refused("remove the bridge", name);
    set_up(name, false).map_err(&refused)?;
    order(name, SIOCBRDELBR).map_err(&refused)
}

/// Makes the TAP interface `name` on `bridge`, with frames as [`crate::open_tap`] has them.
pub fn make_tap(name: &str, bridge: &str) -> Result<OwnedFd, BridgeError> {
    check_name(name)?;
    find_bridge(bridge)?;
    if sys(name).exists() {
        return Err(TapError::Taken(name.to_owned()).into());
    }
    let tun = open_tun()?;
    attach(&tun, name).map_err(|source| TapError::Attach {
        name: name.to_owned(),
        source,
    })?;
    join(name, bridge).map_err(refused("add an interface to", bridge))?;
    set_up(name, true).map_err(refused("raise the interface", name))?;
    Ok(tun.into())
}

fn sys(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn refused(action: &'static str, name: &str) -> impl Fn(io::Error) -> BridgeError {
    move |source| BridgeError::Refused {
        action,
        name: name.to_owned(),
        source,
    }
}

/// Any socket takes requests about interfaces.
fn socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

fn order(name: &str, request: libc::c_ulong) -> io::Result<()> {
    let socket = socket()?;
    let name = CString::new(name)?;
    // SAFETY: both requests take a string that ends with NUL and lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, name.as_ptr()) })
}

fn join(name: &str, bridge: &str) -> io::Result<()> {
    let socket = socket()?;
    let member = CString::new(name)?;
    // SAFETY: takes a string that ends with NUL and lives until the call returns.
    let index = unsafe { libc::if_nametoindex(member.as_ptr()) };
    let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut request = interface_request(bridge);
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: SIOCBRADDIF takes a `struct ifreq *`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDIF as _, &mut request) })
}

fn set_up(name: &str, up: bool) -> io::Result<()> {
    let socket = socket()?;
    let mut request = interface_request(name);
    // SAFETY: SIOCGIFFLAGS fills a `struct ifreq *`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: the call above filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let bit = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
    // SAFETY: SIOCSIFFLAGS takes a `struct ifreq *`, which lives until the call returns.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_bridge_are_refused() {
        assert!(matches!(find_bridge("a/b"), Err(BridgeError::Name(_))));
        assert!(matches!(
            find_bridge("mt-none0"),
            Err(BridgeError::Missing(_))
        ));
        assert!(matches!(find_bridge("lo"), Err(BridgeError::Other(_))));
    }

    #[test]
    fn a_tap_on_a_bridge_lives_as_long_as_its_descriptor() {
        let number = std::process::id() % 100_000;
        let (bridge, tap) = (format!("mtbr{number}"), format!("mttap{number}"));
        match make_bridge(&bridge) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        }
        make_bridge(&bridge).expect("it is there");
        let made = make_tap(&tap, &bridge);
        let joined = sys(&bridge).join("brif").join(&tap).exists();
        let again = make_tap(&tap, &bridge);
        drop(made.expect("a TAP"));
        let left = sys(&tap).exists();
        remove_bridge(&bridge).expect("removed");
        remove_bridge(&bridge).expect("it is gone");
        assert!(joined && !left);
        assert!(matches!(again, Err(BridgeError::Tap(TapError::Taken(_)))));
        assert!(!sys(&bridge).exists());
    }
}
