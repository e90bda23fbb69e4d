//! User ids and capabilities.

use crate::{JailError, check, last_error};

/// Inclusive range of user ids that belong to VM processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRange {
    /// Lowest id.
    pub first: u32,
    /// Highest id.
    pub last: u32,
}

impl UidRange {
    /// Checks that `uid` is one of the range and the range holds no system user.
    pub(crate) fn check(self, uid: u32) -> Result<(), JailError> {
        let proper = self.first > 0xffff && self.last <= i32::MAX as u32;
        if proper && (self.first..=self.last).contains(&uid) {
            return Ok(());
        }
        Err(JailError::Uid { uid, range: self })
    }
}

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
/// The two capabilities that making clones of this VM needs.
const KEPT: u32 = (1 << CAP_SETGID) | (1 << CAP_SETUID);
/// Highest capability number that is tried; the kernel refuses those it does not know.
const CAP_LAST: u32 = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Set {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION_3: u32 = 0x2008_0522;

fn set_capabilities(effective: u32, permitted: u32) -> Result<(), JailError> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let low = Set {
        effective,
        permitted,
        inheritable: 0,
    };
    let high = Set {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    let sets = [low, high];
    // SAFETY: header and both words of sets are laid out as capset(2) version 3 reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    check(result, "set capabilities")
}

/// Takes the user and group id `uid` in this thread. Raw calls: libc would signal other threads,
/// which a process born by `fork()` does not have.
fn take_ids(uid: u32) -> Result<(), JailError> {
    // SAFETY: plain numbers.
    let group = unsafe { libc::syscall(libc::SYS_setresgid, uid, uid, uid) };
    check(group, "set the group id")?;
    // SAFETY: plain numbers.
    let user = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    check(user, "set the user id")
}

fn forbid_inspection() -> Result<(), JailError> {
    // SAFETY: plain numbers.
    check(
        i64::from(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }),
        "make it undumpable",
    )
}

/// Root becomes `uid`, with nothing kept but what clones need.
pub(crate) fn drop_to(uid: u32) -> Result<(), JailError> {
    // SAFETY: an empty list of groups.
    let groups = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) };
    check(groups, "drop supplementary groups")?;
    for cap in (0..=CAP_LAST).filter(|cap| KEPT & 1u32.checked_shl(*cap).unwrap_or(0) == 0) {
        // SAFETY: plain numbers; unknown capabilities are refused, which is fine.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap) };
    }
    // SAFETY: plain numbers.
    let keep = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) };
    check(keep.into(), "keep capabilities")?;
    take_ids(uid)?;
    set_capabilities(0, KEPT)?;
    // SAFETY: plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(last_error("forbid new privileges"));
    }
    forbid_inspection()
}

/// A clone born by `fork()` takes its own id of the range.
pub(crate) fn move_to(uid: u32) -> Result<(), JailError> {
    set_capabilities(KEPT, KEPT)?;
    take_ids(uid)?;
    set_capabilities(0, KEPT)?;
    forbid_inspection()
}
