//! Work that nobody waits for: the priority of a thread's disk accesses (ioprio_set(2)), and its
//! time slices.

use std::marker::PhantomData;

use crate::time_slice::{set_slice, slice, take_usual_slices};

const WHO_PROCESS: libc::c_int = 1;
const CLASS_SHIFT: libc::c_int = 13;
const CLASS_NONE: libc::c_int = 0;
const CLASS_IDLE: libc::c_int = 3;

/// While it lives, the disk gets what this thread asks for when nobody else asks, and the thread
/// has the kernel's usual time slices. It stays with the thread that made it.
#[derive(Debug)]
pub struct Background {
    slice_ns: Option<u64>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Background {
    /// Begins. Where the kernel refuses, or its scheduler knows no priorities, nothing changes.
    pub fn begin() -> Self {
        let slice_ns = slice();
        take_usual_slices();
        set_class(CLASS_IDLE);
        Self {
            slice_ns,
            _of_this_thread: PhantomData,
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        set_class(CLASS_NONE);
        if let Some(slice_ns) = self.slice_ns {
            set_slice(slice_ns);
        }
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
        let idle = Background::begin();
        assert_eq!(class(), CLASS_IDLE.into());
        drop(idle);
        assert_eq!(class(), before);
    }
}
