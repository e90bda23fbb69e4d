//! A process's own code, mapped before it is needed.

use std::ffi::{c_int, c_void};

const PAGE_BYTES: usize = 4096;

/// Maps all pages of the program's and its libraries' code and constants that are in the page cache
/// or can be read. Each would otherwise cost a page fault when it is needed for the first time
/// (madvise(2), `MADV_POPULATE_READ`, Linux 5.14; older kernels do nothing).
pub fn map_own_code() {
    // SAFETY: the function is called with valid records until it returns something else than 0, and
    // takes no data.
    unsafe { libc::dl_iterate_phdr(Some(map_object), std::ptr::null_mut()) };
}

/// Maps what of one object is never written to.
unsafe extern "C" fn map_object(
    info: *mut libc::dl_phdr_info,
    _bytes: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the linker passes a valid record with as many headers as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    let loaded = headers.iter().filter(|header| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 && header.p_memsz > 0
    });
    for header in loaded {
        let from = (base + header.p_vaddr) as usize & !(PAGE_BYTES - 1);
        let to = (base + header.p_vaddr + header.p_memsz) as usize;
        let bytes = (to - from).next_multiple_of(PAGE_BYTES);
        // SAFETY: the advice changes no mapping's content; the range is the object's own.
        unsafe { libc::madvise(from as *mut c_void, bytes, libc::MADV_POPULATE_READ) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code of this program, and what of it is mapped, KiB.
    fn code_kib() -> (u64, u64) {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let program = std::env::current_exe().expect("program");
        let program = program.to_str().expect("path");
        let mut ours = false;
        let (mut all, mut mapped) = (0, 0);
        for line in smaps.lines() {
            if line.contains('-') && !line.contains(" kB") {
                ours = line.contains("r-xp") && line.ends_with(program);
            }
            let mut words = line.split_whitespace();
            let sum = match words.next() {
                Some("Size:") if ours => &mut all,
                Some("Rss:") if ours => &mut mapped,
                _ => continue,
            };
            *sum += words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
        (all, mapped)
    }

    #[test]
    fn all_code_is_mapped() {
        map_own_code();
        let (all, mapped) = code_kib();
        // The host may take pages back at any time.
        assert!(all > 0 && mapped * 10 >= all * 9, "{mapped} of {all} KiB");
    }
}
