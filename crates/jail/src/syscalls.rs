//! The system calls a VM process may make; all others fail with `EPERM`.
//!
//! Calls that take a path are absent, so are those that make sockets, trace or signal others. The
//! list must still allow building a VM and `fork()`: a process born that way inherits the filter.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::{JailError, UidRange};

/// Calls that are allowed with any arguments.
const PLAIN: &[i64] = &[
    // files and sockets that are open already
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    // waiting
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_restart_syscall,
    // memory
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // threads, fork() and the end
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_capset,
    libc::SYS_getrandom,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;
/// Type byte of KVM's ioctls, in bits 8 to 15 of a request.
const KVM_IOCTL: u64 = 0xae;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Requests to descriptors that fcntl(2) may make: none that arranges for signals or leases.
const FCNTL: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];
/// The kind of a socket, without its flags.
const SOCKET_KIND: u64 = 0xf;

/// One way of making a call: argument, comparison, value. The kernel looks at the low 32 bits of
/// all these arguments.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::Error> {
    rule_of(SeccompCmpArgLen::Dword, conditions)
}

/// The same where the kernel looks at all 64 bits.
fn wide_rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::Error> {
    rule_of(SeccompCmpArgLen::Qword, conditions)
}

fn rule_of(
    len: SeccompCmpArgLen,
    conditions: &[(u8, SeccompCmpOp, u64)],
) -> Result<SeccompRule, seccompiler::Error> {
    let conditions = conditions
        .iter()
        .map(|(arg, op, value)| SeccompCondition::new(*arg, len.clone(), op.clone(), *value))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn rules(range: UidRange) -> Result<Rules, seccompiler::Error> {
    use SeccompCmpOp::{Eq, Ge, Le, MaskedEq};
    let mut rules: Rules = PLAIN.iter().map(|call| (*call, vec![])).collect();
    let (first, last) = (u64::from(range.first), u64::from(range.last));
    let own_ids = [
        (0, Ge, first),
        (0, Le, last),
        (1, Ge, first),
        (1, Le, last),
        (2, Ge, first),
        (2, Le, last),
    ];
    rules.insert(libc::SYS_setresuid, vec![rule(&own_ids)?]);
    rules.insert(libc::SYS_setresgid, vec![rule(&own_ids)?]);
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, MaskedEq(NAMESPACE_FLAGS), 0)])?],
    );
    // Connected streams only: the end of a datagram pair can send to any socket that has a name.
    let local = (0, Eq, libc::AF_UNIX as u64);
    let stream = (1, MaskedEq(SOCKET_KIND), libc::SOCK_STREAM as u64);
    rules.insert(libc::SYS_socketpair, vec![rule(&[local, stream])?]);
    // A timer signals threads of its own process and no others, whatever id this process takes;
    // so timers are how threads interrupt each other, and kill(2) and its kin are absent.
    let monotonic = libc::CLOCK_MONOTONIC as u64;
    rules.insert(libc::SYS_timer_create, vec![rule(&[(0, Eq, monotonic)])?]);
    let requests = FCNTL
        .iter()
        .map(|request| rule(&[(1, Eq, *request as u64)]));
    rules.insert(libc::SYS_fcntl, requests.collect::<Result<_, _>>()?);
    let ioctls = [
        rule(&[(1, MaskedEq(0xff00), KVM_IOCTL << 8)])?,
        rule(&[(1, Eq, libc::FIONBIO)])?,
        rule(&[(1, Eq, libc::FIONREAD)])?,
    ];
    rules.insert(libc::SYS_ioctl, ioctls.into());
    let names = [libc::PR_SET_NAME, libc::PR_SET_VMA];
    let names = names.iter().map(|option| rule(&[(0, Eq, *option as u64)]));
    let mut prctl: Vec<_> = names.collect::<Result<_, _>>()?;
    prctl.push(rule(&[(0, Eq, libc::PR_SET_DUMPABLE as u64), (1, Eq, 0)])?);
    rules.insert(libc::SYS_prctl, prctl);
    // The other filter answers it: of two filters the stricter action counts.
    rules.insert(libc::SYS_clone3, vec![]);
    // Reading own limits: libc asks for the stack's when it starts a thread.
    let reading = wide_rule(&[(0, Eq, 0), (2, Eq, 0)])?;
    rules.insert(libc::SYS_prlimit64, vec![reading]);
    // A thread's own time slices; what needs a privilege the kernel refuses.
    for call in [libc::SYS_sched_getattr, libc::SYS_sched_setattr] {
        rules.insert(call, vec![rule(&[(0, Eq, 0)])?]);
    }
    Ok(rules)
}

/// Loads the filters into the calling thread; threads and processes made later inherit them.
pub(crate) fn confine(range: UidRange) -> Result<(), JailError> {
    let errno = |code: i32| SeccompAction::Errno(code as u32);
    // clone3 hides its flags from filters: libc falls back to clone when it does not exist.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let absent = SeccompFilter::new(
        no_clone3,
        SeccompAction::Allow,
        errno(libc::ENOSYS),
        TargetArch::x86_64,
    );
    let allowed = SeccompFilter::new(
        rules(range)?,
        errno(libc::EPERM),
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    for filter in [absent, allowed] {
        let program: BpfProgram = filter
            .and_then(TryInto::try_into)
            .map_err(seccompiler::Error::from)?;
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}
