//! What hostile code would try, as a table of raw system calls.

use std::ffi::{CStr, CString, c_char};

use crate::permitted::Born;

/// `CAP_SETGID` and `CAP_SETUID`, which a jailed process may raise again.
const ID_CAPABILITIES: u32 = (1 << 6) | (1 << 7);
const ALL_CAPABILITIES: u32 = u32::MAX;
/// Asks for another signal than SIGIO when a descriptor is ready; fcntl(2).
const F_SETSIG: u64 = 10;

/// What the attempts are aimed at.
pub(crate) struct Target {
    /// Path of another VM's disk.
    pub(crate) disk_path: CString,
    /// Another VM process.
    pub(crate) victim: u32,
    /// Its user id.
    pub(crate) victim_uid: u32,
    /// A folder that was left open.
    pub(crate) folder: i32,
    /// The VM's own disk.
    pub(crate) own_disk: i32,
}

struct Attempt {
    name: String,
    call: i64,
    args: [u64; 6],
}

/// Makes all attempts: as the process is, with its capabilities raised, and under the victim's id.
pub(crate) fn run(target: &Target, born: &Born) {
    let mut scratch = vec![0u64; 512];
    let scratch = scratch.as_mut_ptr() as u64;
    let mut list = files(target, scratch);
    list.extend(sockets(scratch));
    list.extend(processes(target.victim, scratch));
    list.extend(identities(scratch));
    list.extend(kernel(scratch));
    list.extend(descriptors(target, scratch));
    make(&list, "");
    raise_capabilities();
    make(&list, "with capabilities: ");
    adopt(target.victim_uid);
    make(
        &processes(target.victim, scratch),
        "under the victim's id: ",
    );
    adopt(born.uid);
    make(&processes(born.pid, scratch), "own clone, under its id: ");
}

fn make(list: &[Attempt], prefix: &str) {
    for Attempt { name, call, args } in list {
        let [a, b, c, d, e, f] = *args;
        // SAFETY: pointers among the arguments lead to live memory of this process; if a call
        // does harm in spite of the jail, the test has found what it looks for.
        let result = unsafe { libc::syscall(*call, a, b, c, d, e, f) };
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        match (result, error) {
            (-1, libc::EPERM | libc::EACCES | libc::ENOSYS) => {
                println!("{{\"denied\":\"{prefix}{name}\",\"errno\":{error}}}");
            }
            (-1, _) => println!("{{\"reached\":\"{prefix}{name}\",\"errno\":{error}}}"),
            _ => println!("{{\"reached\":\"{prefix}{name}\",\"result\":{result}}}"),
        }
    }
}

/// What the jail leaves: raising the two capabilities again.
fn raise_capabilities() {
    let header = [0x2008_0522u32, 0];
    let sets = [ID_CAPABILITIES, ID_CAPABILITIES, 0, 0, 0, 0];
    // SAFETY: header and sets are laid out as capset(2) reads them.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
}

/// What the jail leaves: taking another id of the range.
fn adopt(uid: u32) {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    println!("{{\"adopted\":{}}}", result == 0);
}

/// A system call by the 32-bit entry, which filters of 64-bit calls do not see.
pub(crate) fn old_entry() {
    // SAFETY: getpid of the 32-bit table; rbx is not touched by it.
    unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
    println!("{{\"reached\":\"int80\"}}");
}

fn at(path: &'static CStr) -> u64 {
    path.as_ptr() as u64
}

fn attempt(name: &str, call: i64, args: &[u64]) -> Attempt {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Attempt {
        name: name.to_owned(),
        call,
        args: all,
    }
}

const HERE: u64 = libc::AT_FDCWD as u64;
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

/// Calls that take a path, for a file of the host and for another VM's disk.
fn files(target: &Target, scratch: u64) -> Vec<Attempt> {
    let folder = target.folder as u64;
    let own_disk = target.own_disk as u64;
    let mut list = vec![
        attempt(
            "openat below an open folder",
            libc::SYS_openat,
            &[folder, at(c"passwd"), 0],
        ),
        attempt(
            "openat without a folder",
            libc::SYS_openat,
            &[u64::MAX, at(c"passwd"), 0],
        ),
        attempt(
            "openat2",
            libc::SYS_openat2,
            &[folder, at(c"passwd"), scratch, 24],
        ),
        attempt(
            "own memory",
            libc::SYS_openat,
            &[HERE, at(c"/proc/self/mem"), 2],
        ),
        attempt(
            "own program",
            libc::SYS_openat,
            &[HERE, at(c"/proc/self/exe"), 0],
        ),
        attempt(
            "list a folder",
            libc::SYS_getdents64,
            &[folder, scratch, 4096],
        ),
        attempt("fchdir", libc::SYS_fchdir, &[folder]),
        attempt("getcwd", libc::SYS_getcwd, &[scratch, 4096]),
        attempt("fchmod own disk", libc::SYS_fchmod, &[own_disk, 0o4777]),
        attempt("fchown own disk", libc::SYS_fchown, &[own_disk, 0, 0]),
        attempt(
            "fstat by path call",
            libc::SYS_newfstatat,
            &[folder, at(c""), scratch, EMPTY_PATH],
        ),
        attempt(
            "file handle",
            libc::SYS_open_by_handle_at,
            &[folder, scratch, 0],
        ),
        attempt("inotify", libc::SYS_inotify_init1, &[0]),
        attempt("fanotify", libc::SYS_fanotify_init, &[0, 0]),
    ];
    let disk = target.disk_path.as_ptr();
    for (what, path) in [("host file", c"/etc/passwd".as_ptr()), ("other disk", disk)] {
        list.extend(with_path(what, path, scratch));
    }
    list
}

fn with_path(what: &str, path: *const c_char, scratch: u64) -> Vec<Attempt> {
    let path = path as u64;
    let new = at(c"/tmp/mitose-escaped");
    let write = (libc::O_RDWR | libc::O_CREAT) as u64;
    let calls = [
        ("open", libc::SYS_open, vec![path, 0]),
        ("openat", libc::SYS_openat, vec![HERE, path, write, 0o600]),
        ("creat", libc::SYS_creat, vec![path, 0o600]),
        ("stat", libc::SYS_stat, vec![path, scratch]),
        ("lstat", libc::SYS_lstat, vec![path, scratch]),
        (
            "newfstatat",
            libc::SYS_newfstatat,
            vec![HERE, path, scratch, 0],
        ),
        (
            "statx",
            libc::SYS_statx,
            vec![HERE, path, 0, 0x7ff, scratch],
        ),
        ("statfs", libc::SYS_statfs, vec![path, scratch]),
        ("access", libc::SYS_access, vec![path, 0]),
        ("faccessat", libc::SYS_faccessat, vec![HERE, path, 0]),
        ("faccessat2", libc::SYS_faccessat2, vec![HERE, path, 0, 0]),
        ("readlink", libc::SYS_readlink, vec![path, scratch, 4096]),
        (
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            vec![HERE, path, scratch, scratch, 0],
        ),
        ("chdir", libc::SYS_chdir, vec![path]),
        ("chroot", libc::SYS_chroot, vec![path]),
        ("truncate", libc::SYS_truncate, vec![path, 0]),
        ("unlink", libc::SYS_unlink, vec![path]),
        ("unlinkat", libc::SYS_unlinkat, vec![HERE, path, 0]),
        ("rename", libc::SYS_rename, vec![path, new]),
        (
            "renameat2",
            libc::SYS_renameat2,
            vec![HERE, path, HERE, new, 0],
        ),
        ("link", libc::SYS_link, vec![path, new]),
        ("symlink", libc::SYS_symlink, vec![path, new]),
        ("mkdir", libc::SYS_mkdir, vec![new, 0o700]),
        ("mkdirat", libc::SYS_mkdirat, vec![HERE, new, 0o700]),
        ("rmdir", libc::SYS_rmdir, vec![path]),
        (
            "mknod",
            libc::SYS_mknod,
            vec![new, u64::from(libc::S_IFIFO), 0],
        ),
        ("chmod", libc::SYS_chmod, vec![path, 0o777]),
        ("chown", libc::SYS_chown, vec![path, 0, 0]),
        ("utimensat", libc::SYS_utimensat, vec![HERE, path, 0, 0]),
        (
            "getxattr",
            libc::SYS_getxattr,
            vec![path, at(c"user.x"), scratch, 16],
        ),
        (
            "setxattr",
            libc::SYS_setxattr,
            vec![path, at(c"user.x"), scratch, 1, 0],
        ),
        ("execve", libc::SYS_execve, vec![path, scratch, scratch]),
    ];
    let name = |call: &str| format!("{call} of {what}");
    let attempts = calls.iter();
    attempts
        .map(|(call, number, args)| attempt(&name(call), *number, args))
        .collect()
}

fn sockets(scratch: u64) -> Vec<Attempt> {
    let stream = libc::SOCK_STREAM as u64;
    let datagram = libc::SOCK_DGRAM as u64;
    let families = [
        ("unix", libc::AF_UNIX),
        ("inet", libc::AF_INET),
        ("inet6", libc::AF_INET6),
        ("netlink", libc::AF_NETLINK),
        ("packet", libc::AF_PACKET),
        ("vsock", libc::AF_VSOCK),
        ("alg", libc::AF_ALG),
    ];
    let mut list = Vec::new();
    for (name, family) in families {
        for (kind, number) in [("stream", stream), ("datagram", datagram)] {
            let args = [family as u64, number, 0];
            list.push(attempt(
                &format!("socket {name} {kind}"),
                libc::SYS_socket,
                &args,
            ));
        }
    }
    let unix = libc::AF_UNIX as u64;
    // The ends of a datagram pair could send to any socket by its name.
    list.push(attempt(
        "datagram pair",
        libc::SYS_socketpair,
        &[unix, datagram, 0, scratch],
    ));
    list.push(attempt("connect", libc::SYS_connect, &[1, scratch, 16]));
    list.push(attempt("bind", libc::SYS_bind, &[1, scratch, 16]));
    list.push(attempt("listen", libc::SYS_listen, &[1, 1]));
    list
}

/// Calls against other processes.
fn processes(victim: u32, scratch: u64) -> Vec<Attempt> {
    let kick = libc::SIGRTMIN() as u64;
    let abort = libc::SIGABRT as u64;
    let mut list = vec![
        attempt("kill all", libc::SYS_kill, &[u64::MAX, 0]),
        attempt(
            "kill own group",
            libc::SYS_kill,
            &[0, libc::SIGWINCH as u64],
        ),
        attempt(
            "signal by pidfd",
            libc::SYS_pidfd_send_signal,
            &[0, kick, 0, 0],
        ),
        attempt("steal a descriptor", libc::SYS_pidfd_getfd, &[0, 0, 0]),
        attempt("signal at readiness", libc::SYS_fcntl, &[0, F_SETSIG, 9]),
        attempt("trace me", libc::SYS_ptrace, &[0, 0, 0, 0]),
    ];
    for (who, pid) in [("victim", u64::from(victim)), ("process 1", 1)] {
        let calls = [
            ("kill", libc::SYS_kill, vec![pid, libc::SIGKILL as u64]),
            ("probe", libc::SYS_kill, vec![pid, 0]),
            ("tkill", libc::SYS_tkill, vec![pid, kick]),
            ("kick", libc::SYS_tgkill, vec![pid, pid, kick]),
            ("abort", libc::SYS_tgkill, vec![pid, pid, abort]),
            (
                "queue a signal to",
                libc::SYS_rt_sigqueueinfo,
                vec![pid, kick, scratch],
            ),
            (
                "queue a kick to",
                libc::SYS_rt_tgsigqueueinfo,
                vec![pid, pid, kick, scratch],
            ),
            ("pidfd_open", libc::SYS_pidfd_open, vec![pid, 0]),
            (
                "be told of",
                libc::SYS_fcntl,
                vec![0, libc::F_SETOWN as u64, pid],
            ),
            ("ptrace", libc::SYS_ptrace, vec![16, pid, 0, 0]),
            ("seize", libc::SYS_ptrace, vec![0x4206, pid, 0, 0]),
            (
                "read memory of",
                libc::SYS_process_vm_readv,
                vec![pid, scratch, 1, scratch, 1, 0],
            ),
            (
                "write memory of",
                libc::SYS_process_vm_writev,
                vec![pid, scratch, 1, scratch, 1, 0],
            ),
            ("kcmp", libc::SYS_kcmp, vec![pid, pid, 0, 0, 0]),
            ("limits of", libc::SYS_prlimit64, vec![pid, 7, 0, scratch]),
            (
                "robust list of",
                libc::SYS_get_robust_list,
                vec![pid, scratch, scratch],
            ),
            (
                "pages of",
                libc::SYS_move_pages,
                vec![pid, 0, scratch, 0, scratch, 0],
            ),
            (
                "schedule",
                libc::SYS_sched_setscheduler,
                vec![pid, 0, scratch],
            ),
            (
                "time slices of",
                libc::SYS_sched_setattr,
                vec![pid, scratch, 0],
            ),
            ("pin", libc::SYS_sched_setaffinity, vec![pid, 8, scratch]),
            ("renice", libc::SYS_setpriority, vec![0, pid, 19]),
            ("group of", libc::SYS_setpgid, vec![pid, 0]),
        ];
        let name = |call: &str| format!("{call} {who}");
        let calls = calls.iter();
        list.extend(calls.map(|(call, number, args)| attempt(&name(call), *number, args)));
    }
    list
}

/// Becoming somebody else, or more.
fn identities(scratch: u64) -> Vec<Attempt> {
    let below = u64::from(crate::RANGE.first - 1);
    let above = u64::from(crate::RANGE.last + 1);
    let inside = u64::from(crate::RANGE.first);
    let unchanged = u64::from(u32::MAX);
    let header: &'static [u32; 2] = &[0x2008_0522, 0];
    let every: &'static [u32; 6] = &[ALL_CAPABILITIES, ALL_CAPABILITIES, 0, 0, 0, 0];
    let capset = [header.as_ptr() as u64, every.as_ptr() as u64];
    let (header, none) = (
        libc::PR_CAP_AMBIENT as u64,
        libc::PR_CAP_AMBIENT_RAISE as u64,
    );
    let mut list = vec![
        attempt("setuid", libc::SYS_setuid, &[0]),
        attempt("setgid", libc::SYS_setgid, &[0]),
        attempt("setreuid", libc::SYS_setreuid, &[0, 0]),
        attempt("setregid", libc::SYS_setregid, &[0, 0]),
        attempt("setfsuid", libc::SYS_setfsuid, &[0]),
        attempt("setfsgid", libc::SYS_setfsgid, &[0]),
        attempt("setgroups", libc::SYS_setgroups, &[0, 0]),
        attempt("all capabilities", libc::SYS_capset, &capset),
        attempt(
            "ambient capability",
            libc::SYS_prctl,
            &[header, none, 7, 0, 0],
        ),
        attempt(
            "be dumpable",
            libc::SYS_prctl,
            &[libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0],
        ),
        attempt(
            "keep capabilities",
            libc::SYS_prctl,
            &[libc::PR_SET_KEEPCAPS as u64, 1],
        ),
        attempt(
            "secure bits",
            libc::SYS_prctl,
            &[libc::PR_SET_SECUREBITS as u64, 0],
        ),
        attempt(
            "name a tracer",
            libc::SYS_prctl,
            &[libc::PR_SET_PTRACER as u64, u64::MAX],
        ),
        attempt(
            "more stack",
            libc::SYS_setrlimit,
            &[libc::RLIMIT_NOFILE as u64, scratch],
        ),
        // The low half of the pointer is zero: filters that look at 32 bits take it for none.
        attempt("own limits", libc::SYS_prlimit64, &[0, 7, 0x1_0000_0000, 0]),
    ];
    for (name, call) in [
        ("setresuid", libc::SYS_setresuid),
        ("setresgid", libc::SYS_setresgid),
    ] {
        for (what, id) in [
            ("0", 0),
            ("below", below),
            ("above", above),
            ("-1", unchanged),
        ] {
            for (place, args) in [
                ("all", [id, id, id]),
                ("real", [id, inside, inside]),
                ("effective", [inside, id, inside]),
                ("saved", [inside, inside, id]),
            ] {
                list.push(attempt(&format!("{name} {what} {place}"), call, &args));
            }
        }
    }
    list
}

/// Parts of the kernel that no VM process needs.
fn kernel(scratch: u64) -> Vec<Attempt> {
    let user = libc::CLONE_NEWUSER as u64;
    let child = user | libc::SIGCHLD as u64;
    vec![
        attempt("unshare user", libc::SYS_unshare, &[user]),
        attempt(
            "unshare mounts",
            libc::SYS_unshare,
            &[libc::CLONE_NEWNS as u64],
        ),
        attempt(
            "unshare network",
            libc::SYS_unshare,
            &[libc::CLONE_NEWNET as u64],
        ),
        attempt(
            "clone into a user namespace",
            libc::SYS_clone,
            &[child, 0, 0, 0, 0],
        ),
        attempt("clone3", libc::SYS_clone3, &[scratch, 88]),
        attempt("vfork", libc::SYS_vfork, &[]),
        attempt("setns", libc::SYS_setns, &[0, 0]),
        attempt("setsid", libc::SYS_setsid, &[]),
        attempt(
            "mount",
            libc::SYS_mount,
            &[at(c"none"), at(c"/"), at(c"tmpfs"), 0, 0],
        ),
        attempt(
            "umount",
            libc::SYS_umount2,
            &[at(c"/"), libc::MNT_DETACH as u64],
        ),
        attempt("pivot_root", libc::SYS_pivot_root, &[at(c"/"), at(c"/")]),
        attempt("open_tree", libc::SYS_open_tree, &[HERE, at(c"/"), 1]),
        attempt("fsopen", libc::SYS_fsopen, &[at(c"tmpfs"), 0]),
        attempt(
            "execveat",
            libc::SYS_execveat,
            &[0, at(c""), scratch, scratch, EMPTY_PATH],
        ),
        attempt("bpf", libc::SYS_bpf, &[0, scratch, 48]),
        attempt("io_uring_setup", libc::SYS_io_uring_setup, &[4, scratch]),
        attempt(
            "io_uring_enter",
            libc::SYS_io_uring_enter,
            &[0, 0, 0, 0, 0, 0],
        ),
        attempt("aio", libc::SYS_io_setup, &[1, scratch]),
        attempt("keyctl", libc::SYS_keyctl, &[0, u64::MAX - 2, 0]),
        attempt(
            "add_key",
            libc::SYS_add_key,
            &[at(c"user"), at(c"x"), scratch, 1, u64::MAX],
        ),
        attempt(
            "request_key",
            libc::SYS_request_key,
            &[at(c"user"), at(c"x"), 0, 0],
        ),
        attempt(
            "perf_event_open",
            libc::SYS_perf_event_open,
            &[scratch, 0, u64::MAX, u64::MAX, 0],
        ),
        attempt("userfaultfd", libc::SYS_userfaultfd, &[1]),
        attempt("init_module", libc::SYS_init_module, &[scratch, 8, at(c"")]),
        attempt("finit_module", libc::SYS_finit_module, &[0, at(c""), 0]),
        attempt("kexec_load", libc::SYS_kexec_load, &[0, 0, 0, 0]),
        attempt("reboot", libc::SYS_reboot, &[0, 0, 0, 0]),
        attempt("swapon", libc::SYS_swapon, &[at(c"/etc/passwd"), 0]),
        attempt("syslog", libc::SYS_syslog, &[3, scratch, 4096]),
        attempt("sethostname", libc::SYS_sethostname, &[at(c"x"), 1]),
        attempt("clock_settime", libc::SYS_clock_settime, &[0, scratch]),
        attempt("adjtimex", libc::SYS_adjtimex, &[scratch]),
        attempt("iopl", libc::SYS_iopl, &[3]),
        attempt("ioperm", libc::SYS_ioperm, &[0x60, 1, 1]),
        attempt("modify_ldt", libc::SYS_modify_ldt, &[0, scratch, 16]),
        attempt("personality", libc::SYS_personality, &[0xffff_ffff]),
        attempt("seccomp", libc::SYS_seccomp, &[0, 0, 0]),
        attempt("acct", libc::SYS_acct, &[0]),
        attempt("quotactl", libc::SYS_quotactl, &[0, 0, 0, 0]),
        attempt("shared memory", libc::SYS_shmget, &[0, 4096, 0o1600]),
        attempt("semaphores", libc::SYS_semget, &[0, 1, 0o1600]),
        attempt("message queue", libc::SYS_msgget, &[0, 0o1600]),
        attempt(
            "named queue",
            libc::SYS_mq_open,
            &[at(c"x"), 0o102, 0o600, 0],
        ),
        attempt("wait", libc::SYS_wait4, &[u64::MAX, 0, 1, 0]),
        attempt("other abi", 0x4000_0000 | libc::SYS_getpid, &[]),
    ]
}

/// Requests to open descriptors that are no reads and writes.
fn descriptors(target: &Target, scratch: u64) -> Vec<Attempt> {
    let own_disk = target.own_disk as u64;
    let requests = [
        ("TIOCSTI", 0, 0x5412),
        ("TIOCSETD", 0, 0x5423),
        ("TIOCLINUX", 0, 0x541c),
        ("TIOCSCTTY", 0, 0x540e),
        ("SIOCGIFCONF", 1, 0x8912),
        ("FIOASYNC", 1, 0x5452),
        ("FIOSETOWN", 1, 0x8901),
        ("TUNSETIFF", own_disk, 0x4004_54ca),
        ("FS_IOC_SETFLAGS", own_disk, 0x4008_6602),
        ("FICLONE", own_disk, 0x4004_9409),
        ("BLKDISCARD", own_disk, 0x1277),
        ("SG_IO", own_disk, 0x2285),
    ];
    let mut list: Vec<Attempt> = requests
        .iter()
        .map(|(name, fd, request)| {
            attempt(
                &format!("ioctl {name}"),
                libc::SYS_ioctl,
                &[*fd, *request, scratch],
            )
        })
        .collect();
    for (name, command) in [
        ("lease", libc::F_SETLEASE),
        ("watch a folder", libc::F_NOTIFY),
        ("larger pipe", libc::F_SETPIPE_SZ),
    ] {
        list.push(attempt(
            name,
            libc::SYS_fcntl,
            &[own_disk, command as u64, 0],
        ));
    }
    list
}
