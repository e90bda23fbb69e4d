//! Priority of a thread's disk accesses (ioprio_set(2)).

use std::marker::PhantomData;

const WHO_PROCESS: libc::c_int = 1;
const CLASS_SHIFT: libc::c_int = 13;
const CLASS_NONE: libc::c_int = 0;
const CLASS_IDLE: libc::c_int = 3;

/// While it lives, the disk gets what this thread asks for when nobody else asks. It stays with the
/// thread that made it.
#[derive(Debug)]
pub struct IdleIo {
    _of_this_thread: PhantomData<*const ()>,
}

impl IdleIo {
    /// Begins. Where the kernel refuses, or its scheduler knows no priorities, nothing changes.
    pub fn begin() -> Self {
        set_class(CLASS_IDLE);
        Self {
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for IdleIo {
    fn drop(&mut self) {
        set_class(CLASS_NONE);
    }
}

fn set_class(class: libc::c_int) {
    // SAFETY: the call takes three numbers; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> libc::c_long {
        // SAFETY: the call takes two numbers; 0 is the calling thread.
        unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) >> CLASS_SHIFT }
    }

    #[test]
    fn the_thread_is_idle_for_as_long_as_it_says() {
        let before = class();
        let idle = IdleIo::begin();
        assert_eq!(class(), CLASS_IDLE.into());
        drop(idle);
        assert_eq!(class(), before);
    }
}
