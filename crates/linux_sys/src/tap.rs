//! TAP interfaces (`Documentation/networking/tuntap.rst` of Linux).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// A TAP interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is no interface name.
    #[error("tap: {0:?} is not an interface name of 1 to 15 bytes")]
    Name(String),
    /// No such interface.
    #[error("tap: there is no interface {0:?}; make it with 'ip tuntap add {0} mode tap'")]
    Missing(String),
    /// The interface exists.
    #[error("tap: there is an interface {0:?} already; its VM may just be ending, try again")]
    Taken(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun; load the module 'tun' or run as root")]
    Device(#[source] io::Error),
    /// The interface is of another kind.
    #[error(
        "tap: {0:?} is no TAP interface; give one that 'ip tuntap add NAME mode tap' made, or a \
         network"
    )]
    NotTap(String),
    /// Another program has it.
    #[error("tap: {0:?} is in use by another VM or program; end that, or give another interface")]
    Busy(String),
    /// The interface is not ours, or the host refuses it.
    #[error(
        "tap: cannot attach to {name:?}; give an interface that mitosed may use, or run it as root"
    )]
    Attach {
        /// Its name.
        name: String,
        /// The host call's error.
        #[source]
        source: io::Error,
    },
}

/// Bytes of `struct virtio_net_hdr_v1`, virtio 1.x 5.1.6.
const VNET_HEADER_BYTES: libc::c_int = 12;

/// Opens the existing TAP interface `name` for frames with a virtio header of 12 bytes and no
/// offloads; the descriptor does not block.
pub fn open_tap(name: &str) -> Result<OwnedFd, TapError> {
    // TUNSETIFF makes an interface that does not exist; a misspelt name is to fail instead.
    check_tap(name)?;
    let tun = open_tun()?;
    attach(&tun, name).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => TapError::Busy(name.to_owned()),
        io::ErrorKind::InvalidInput => TapError::NotTap(name.to_owned()),
        _ => TapError::Attach {
            name: name.to_owned(),
            source,
        },
    })?;
    Ok(tun.into())
}

/// Makes sure that the interface `name` exists and is a TAP.
pub fn check_tap(name: &str) -> Result<(), TapError> {
    check_name(name)?;
    let interface = std::path::Path::new("/sys/class/net").join(name);
    if !interface.exists() {
        return Err(TapError::Missing(name.to_owned()));
    }
    let flags = std::fs::read_to_string(interface.join("tun_flags")).unwrap_or_default();
    let flags = libc::c_int::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    match flags {
        Ok(flags) if flags & libc::IFF_TAP != 0 => Ok(()),
        _ => Err(TapError::NotTap(name.to_owned())),
    }
}

/// Refuses what cannot be the name of an interface.
pub(crate) fn check_name(name: &str) -> Result<(), TapError> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b'%';
    let dots = name.bytes().all(|b| b == b'.');
    if dots || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) {
        return Err(TapError::Name(name.to_owned()));
    }
    Ok(())
}

/// Opens the device that makes interfaces; its descriptor does not block.
pub(crate) fn open_tun() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(TapError::Device)
}

/// A request about the interface `name`.
pub(crate) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zero bytes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Makes an open device the interface `name`, one that exists or a new one.
pub(crate) fn attach(tun: &File, name: &str) -> io::Result<()> {
    let mut request = interface_request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes a `struct ifreq *`, which lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    let bytes = VNET_HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ takes an `int *`, which lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &bytes) })?;
    // SAFETY: TUNSETOFFLOAD takes flags by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, 0) })
}

pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_of_another_kind_is_told_by_its_name() {
        let told = check_tap("lo").unwrap_err().to_string();
        assert!(told.starts_with("tap: \"lo\" is no TAP"), "{told}");
    }

    #[test]
    fn names_that_are_no_interface_are_refused() {
        for bad in ["", "a/b", "tap%d", "a-name-that-is-too-long"] {
            assert!(matches!(open_tap(bad), Err(TapError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn a_missing_interface_is_not_made() {
        assert!(matches!(
            open_tap("mitose-none0"),
            Err(TapError::Missing(_))
        ));
        assert!(!std::path::Path::new("/sys/class/net/mitose-none0").exists());
    }
}
