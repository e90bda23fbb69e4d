//! System calls that rustix has no safe form of: vsock addresses, the random device, signal
//! descriptors, and what happens between fork and exec.
#![allow(unsafe_code, reason = "the one place of this program that calls libc")]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{FileType, Gid};
use rustix::process::{Pid, Uid};

/// `RNDADDENTROPY` of `linux/random.h`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// `RNDRESEEDCRNG` of `linux/random.h`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Connects a stream to a vsock port.
pub(crate) fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(cid, port);
    // SAFETY: the pointer and length describe a live, initialised sockaddr_vm.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    check(result).map(|_| socket)
}

/// Listens on a vsock port for any host.
pub(crate) fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the pointer and length describe a live, initialised sockaddr_vm.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    check(result)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

fn vsock_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain integers; all zero is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Credits bytes to the kernel's random pool and makes its generator take them up at once.
pub(crate) fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let random = random.as_fd().as_raw_fd();
    // struct rand_pool_info: i32 bit count, i32 byte count, then the bytes.
    let mut info = Vec::with_capacity(8 + bytes.len());
    let len = i32::try_from(bytes.len()).map_err(io::Error::other)?;
    info.extend_from_slice(&len.saturating_mul(8).to_ne_bytes());
    info.extend_from_slice(&len.to_ne_bytes());
    info.extend_from_slice(bytes);
    // SAFETY: info holds the header and exactly the number of bytes that it announces.
    check(unsafe { libc::ioctl(random, RNDADDENTROPY, info.as_ptr()) })?;
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(random, RNDRESEEDCRNG) }).map(drop)
}

/// Blocks the signals in this process and returns a descriptor that they are read from.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises fully.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: set is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in signals {
        // SAFETY: set is initialised; a bad number is refused with an error.
        check(unsafe { libc::sigaddset(&raw mut set, signal) })?;
    }
    // SAFETY: set is initialised and the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) })?;
    // SAFETY: set is initialised; -1 asks for a new descriptor.
    let fd = check(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    // SAFETY: the kernel has just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Unblocks all signals: process 1 blocks those that it reads from a descriptor, and children
/// inherit that.
pub(crate) fn unblock_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises fully.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: set is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: set is initialised and the old mask is not asked for.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    check(result).map(drop)
}

/// Sends a signal to every process but this one and process 1 (`kill(-1)`).
pub(crate) fn kill_everyone(signal: i32) {
    // SAFETY: no memory is passed; the effect on other processes is the purpose.
    unsafe { libc::kill(-1, signal) };
}

/// Sends a signal, given by number, to a process group.
pub(crate) fn kill_group(group: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) }).map(drop)
}

/// Sends a signal, given by number, to a process.
pub(crate) fn kill_process(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Who a command runs as and how it is attached.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    /// User, group and supplementary groups, when they are to change.
    pub(crate) ids: Option<(Uid, Gid, Vec<Gid>)>,
    /// Makes standard input the controlling terminal.
    pub(crate) terminal: bool,
}

/// Makes the command start a session of its own, take its terminal and drop to its user, whose its
/// streams are then.
pub(crate) fn attach(command: &mut Command, attachment: Attachment) {
    let prepare = move || {
        unblock_signals()?;
        rustix::process::setsid()?;
        if attachment.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some((uid, gid, groups)) = &attachment.ids {
            give_streams(*uid);
            rustix::thread::set_thread_groups(groups)?;
            rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
            rustix::thread::set_thread_res_uid(*uid, *uid, *uid)?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls on values that it owns: it neither allocates nor
    // takes a lock, which is what a forked child of a threaded process may do.
    unsafe { command.pre_exec(prepare) };
}

/// Gives the standard streams to a user, who could not open them as /dev/stdout otherwise. Only makes
/// system calls.
fn give_streams(uid: Uid) {
    use rustix::stdio::{stderr, stdin, stdout};
    for stream in [stdin(), stdout(), stderr()] {
        if is_given(stream) {
            let _ = rustix::fs::fchown(stream, Some(uid), None);
        }
    }
}

/// Whether a stream is the command's: files and devices such as /dev/null are everybody's.
fn is_given(stream: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Fifo) => true,
        Ok(FileType::CharacterDevice) => rustix::termios::isatty(stream),
        _ => false,
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn pipes_and_terminals_are_given_and_shared_devices_are_not() {
        let (read, write) = std::io::pipe().unwrap();
        assert!(is_given(read.as_fd()) && is_given(write.as_fd()));
        let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::NOCTTY).unwrap();
        assert!(is_given(terminal.as_fd()));
        assert!(!is_given(File::open("/dev/null").unwrap().as_fd()));
        assert!(!is_given(tempfile::tempfile().unwrap().as_fd()));
    }

    /// Only root runs commands as another user.
    #[test]
    fn another_users_command_opens_its_streams_by_their_names() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let nobody = 65534;
        let mut command = Command::new("sh");
        let script = "id -u > /dev/stdout && echo oops > /dev/stderr";
        command.args(["-c", script]).current_dir("/");
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ids = (Uid::from_raw(nobody), Gid::from_raw(nobody), Vec::new());
        let attachment = Attachment {
            ids: Some(ids),
            terminal: false,
        };
        attach(&mut command, attachment);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((&*output.stdout, &*stderr), (&b"65534\n"[..], "oops\n"));
        assert_eq!(fs::metadata("/dev/null").unwrap().uid(), 0);
    }
}
