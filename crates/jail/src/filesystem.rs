//! No path leads anywhere: Landlock where the kernel has it, an empty mount namespace elsewhere.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};

use crate::{Barrier, JailError, check};

/// Closes the file system for this process.
pub(crate) fn close(barrier: Barrier) -> Result<(), JailError> {
    match barrier {
        Barrier::Landlock => deny_paths(),
        Barrier::EmptyMounts => empty_mounts(),
    }
}

/// Denies all paths; where the kernel can, also the network, and signals and abstract sockets that
/// lead out of the jail.
fn deny_paths() -> Result<(), JailError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(JailError::NoLandlock);
    }
    Ok(())
}

/// Puts an empty, read-only file system in the place of the root.
fn empty_mounts() -> Result<(), JailError> {
    // SAFETY: plain flags; the process has one thread.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    check(result.into(), "make a mount namespace")?;
    let null = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: valid C strings; null where mount(2) ignores the argument.
    let result = unsafe { libc::mount(null, c"/".as_ptr(), null, private, null.cast()) };
    check(result.into(), "make mounts private")?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    let kind = c"tmpfs".as_ptr();
    let options = c"size=4k,mode=0555".as_ptr();
    // SAFETY: valid C strings.
    let result = unsafe { libc::mount(kind, c"/tmp".as_ptr(), kind, flags, options.cast()) };
    check(result.into(), "mount an empty file system")?;
    // SAFETY: valid C string.
    let result = unsafe { libc::chdir(c"/tmp".as_ptr()) };
    check(result.into(), "enter the empty file system")?;
    let dot = c".".as_ptr();
    // SAFETY: valid C strings; pivot_root(".", ".") stacks the old root over the new one.
    let result = unsafe { libc::syscall(libc::SYS_pivot_root, dot, dot) };
    check(result, "change the root")?;
    // SAFETY: valid C string.
    let result = unsafe { libc::umount2(dot, libc::MNT_DETACH) };
    check(result.into(), "leave the old root")
}
