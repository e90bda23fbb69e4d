//! Runs of bytes within host pages of guest RAM: the inner loops of REP MOVS and REP STOS.

#![expect(unsafe_code, reason = "guest RAM is reached by host address")]

/// Copies `len` bytes upwards, as elements of `size` bytes one after the other would: where the
/// target begins inside the source, what was copied is copied again.
pub(super) fn copy(from: u64, to: u64, len: u64, size: u64) {
    let distance = to.wrapping_sub(from);
    if distance >= len || distance == 0 {
        // SAFETY: both spans are mapped guest RAM; they may overlap (target below source).
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len as usize) };
        return;
    }
    for at in (0..len).step_by(size as usize) {
        // SAFETY: an element lies inside both spans of mapped guest RAM.
        unsafe {
            let (from, to) = ((from + at) as *const u8, (to + at) as *mut u8);
            std::ptr::copy(from, to, size as usize);
        }
    }
}

/// Fills `len` bytes with the low `size` bytes of `value`, over and over.
pub(super) fn fill(to: u64, len: u64, size: u64, value: u64) {
    let byte = value as u8;
    let pattern = value.to_le_bytes();
    let element = &pattern[..size as usize];
    if element.iter().all(|other| *other == byte) {
        // SAFETY: the span is mapped guest RAM.
        unsafe { std::ptr::write_bytes(to as *mut u8, byte, len as usize) };
        return;
    }
    for at in (0..len).step_by(size as usize) {
        // SAFETY: an element lies inside the span of mapped guest RAM.
        unsafe {
            std::ptr::copy_nonoverlapping(element.as_ptr(), (to + at) as *mut u8, element.len());
        }
    }
}

/// Reads bytes of one page.
pub(super) fn read(from: u64, bytes: &mut [u8]) {
    for (at, byte) in (from..).zip(bytes) {
        // SAFETY: the caller gives a part of one mapped page of guest RAM, which others may write.
        *byte = unsafe { (at as *const u8).read_volatile() };
    }
}

/// Whether a page still is what its copy is.
pub(super) fn equal(page: u64, copy: &[u8; 4096]) -> bool {
    let (words, _) = copy.as_chunks::<8>();
    (page..).step_by(8).zip(words).all(|(at, word)| {
        // SAFETY: the caller gives a mapped page of guest RAM, which others may write.
        unsafe { (at as *const u64).read_volatile() == u64::from_ne_bytes(*word) }
    })
}
