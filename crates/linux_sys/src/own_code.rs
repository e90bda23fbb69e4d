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

    /// Pages of code of this program that are mapped, KiB.
    fn mapped_kib() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let program = std::env::current_exe().expect("program");
        let program = program.to_str().expect("path");
        let mut ours = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if line.contains('-') && !line.contains(" kB") {
                ours = line.contains("r-xp") && line.ends_with(program);
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| ours) {
                let word = rss.split_whitespace().next().expect("number");
                sum += word.parse::<u64>().expect("number");
            }
        }
        sum
    }

    #[test]
    fn all_code_is_mapped() {
        let before = mapped_kib();
        map_own_code();
        let after = mapped_kib();
        // Function and test code was used in part only.
        assert!(after >= before && after > 0, "{before} then {after} KiB");
        map_own_code();
        assert_eq!(mapped_kib(), after);
    }
}
