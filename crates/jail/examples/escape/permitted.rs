//! What a VM process must still be able to do.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, ptr};

use jail::Forked;

use crate::Passed;

/// `KVM_GET_API_VERSION`, `KVM_CREATE_VM`, `KVM_CREATE_VCPU`.
const KVM_GET_API_VERSION: u64 = 0xae00;
const KVM_CREATE_VM: u64 = 0xae01;
const KVM_CREATE_VCPU: u64 = 0xae41;

/// Does it all and returns a clone.
pub(crate) fn run(passed: &Passed, next_uid: u32) -> Born {
    report("threads", threads());
    report("memory", memory());
    report("memfd", memfd());
    report("eventfd", eventfd());
    report("own disk", own_disk(passed));
    report("socketpair", socketpair());
    report("timer signal", timer_signal());
    match &passed.kvm {
        Some(kvm) => report("kvm", kvm_vm(kvm)),
        None => println!("{{\"works\":\"kvm\",\"skipped\":\"/dev/kvm cannot be opened\"}}"),
    }
    let born = Born::new(next_uid).expect("a clone");
    report("fork with an own id", Ok(()));
    born
}

fn report(what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => println!("{{\"works\":\"{what}\"}}"),
        Err(error) => println!("{{\"broken\":\"{what}\",\"error\":\"{error}\"}}"),
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

fn threads() -> io::Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let start = |name: usize| {
        let thread = std::thread::Builder::new().name(format!("worker{name}"));
        thread.spawn(|| COUNT.fetch_add(1, Ordering::SeqCst))
    };
    let threads = (0..4).map(start).collect::<io::Result<Vec<_>>>()?;
    for thread in threads {
        thread.join().map_err(|_| wrong("a thread panicked"))?;
    }
    match COUNT.load(Ordering::SeqCst) {
        4 => Ok(()),
        _ => Err(wrong("a thread did not run")),
    }
}

fn memory() -> io::Result<()> {
    let bytes = 1 << 20;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping wherever the kernel likes.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping made above; nothing else uses it.
    unsafe {
        base.cast::<u8>().write_volatile(7);
        check(libc::mprotect(base, bytes, libc::PROT_READ).into())?;
        check(libc::madvise(base, bytes, libc::MADV_DONTNEED).into())?;
        check(libc::munmap(base, bytes).into())?;
    }
    Ok(())
}

fn memfd() -> io::Result<()> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a C string.
    let fd = check(unsafe { libc::memfd_create(c"ram".as_ptr(), flags) }.into())?;
    // SAFETY: the descriptor is new and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: plain numbers.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) }.into())?;
    // SAFETY: plain numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }.into())?;
    Ok(())
}

fn eventfd() -> io::Result<()> {
    // SAFETY: plain numbers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }.into())?;
    // SAFETY: the descriptor is new and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut value = 3u64;
    // SAFETY: eight bytes that are there.
    check(unsafe { libc::write(fd.as_raw_fd(), (&raw const value).cast(), 8) } as i64)?;
    value = 0;
    // SAFETY: eight bytes that are there.
    check(unsafe { libc::read(fd.as_raw_fd(), (&raw mut value).cast(), 8) } as i64)?;
    if value == 3 {
        Ok(())
    } else {
        Err(wrong("the value is lost"))
    }
}

fn own_disk(passed: &Passed) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let disk = std::fs::File::from(passed.disk.try_clone()?);
    disk.write_all_at(b"sector", 512)?;
    disk.sync_all()?;
    let mut read = [0; 6];
    disk.read_exact_at(&mut read, 512)?;
    if read == *b"sector" {
        Ok(())
    } else {
        Err(wrong("the disk lost its content"))
    }
}

fn socketpair() -> io::Result<()> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    drop(far);
    Ok(())
}

static KICKED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_kick(_: i32) {
    KICKED.fetch_add(1, Ordering::SeqCst);
}

/// The way a vCPU thread is kicked: a timer of the process that signals one of its threads.
fn timer_signal() -> io::Result<()> {
    let handler: extern "C" fn(i32) = on_kick;
    // SAFETY: the handler only counts; all structures are plain data.
    unsafe {
        libc::signal(libc::SIGRTMIN(), handler as *const () as libc::sighandler_t);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGRTMIN();
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = ptr::null_mut();
        check(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer).into())?;
        let mut at_once: libc::itimerspec = std::mem::zeroed();
        at_once.it_value.tv_nsec = 1;
        let no_old = ptr::null_mut();
        let absolute = libc::TIMER_ABSTIME;
        check(libc::timer_settime(timer, absolute, &raw const at_once, no_old).into())?;
        while KICKED.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        check(libc::timer_delete(timer).into())?;
    }
    Ok(())
}

fn kvm_vm(kvm: &OwnedFd) -> io::Result<()> {
    // SAFETY: ioctls without pointers; descriptors are new and owned here.
    unsafe {
        if check(libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0).into())? != 12 {
            return Err(wrong("KVM has another API version"));
        }
        let vm = check(libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0).into())?;
        let vm = OwnedFd::from_raw_fd(vm as i32);
        let vcpu = check(libc::ioctl(vm.as_raw_fd(), KVM_CREATE_VCPU, 0).into())?;
        drop(OwnedFd::from_raw_fd(vcpu as i32));
    }
    Ok(())
}

/// A clone that was born by `fork()`: an own process, an own id, no descriptor but its own.
pub(crate) struct Born {
    /// Its process.
    pub(crate) pid: u32,
    /// Its user id.
    pub(crate) uid: u32,
    link: UnixStream,
}

impl Born {
    fn new(uid: u32) -> io::Result<Self> {
        let (mut link, far) = UnixStream::pair()?;
        // SAFETY: this program has one thread here.
        match unsafe { jail::fork_process() }.map_err(io::Error::other)? {
            Forked::Child(_) => live(far, uid),
            Forked::Parent { child } => {
                drop(far);
                let mut answer = [0];
                link.read_exact(&mut answer)?;
                if answer != [1] {
                    return Err(wrong("the child did not get its id"));
                }
                let pid = child as u32;
                Ok(Self { pid, uid, link })
            }
        }
    }

    /// Says whether it still runs.
    pub(crate) fn answers(&mut self) -> bool {
        let mut answer = [0];
        self.link.write_all(b"?").is_ok()
            && self.link.read_exact(&mut answer).is_ok()
            && answer == *b"!"
    }
}

/// The life of a clone: answers until nobody asks.
fn live(mut link: UnixStream, uid: u32) -> ! {
    let closed = jail::close_all_but(&[link.as_raw_fd()]);
    let taken = jail::take_own_uid(uid);
    // SAFETY: a plain call.
    let good = closed.is_ok() && taken.is_ok() && unsafe { libc::getuid() } == uid;
    let mut question = [0];
    let mut answer = [u8::from(good)];
    while link.write_all(&answer).is_ok() && link.read_exact(&mut question).is_ok() {
        answer = *b"!";
    }
    // SAFETY: ends the process without running what belongs to the parent.
    unsafe { libc::_exit(0) }
}
