//! Linear addresses of a case, the same on both processors.
//!
//! ```text
//! CODE                two pages, executable, not writable; nothing after them
//! EXIT                where a case jumps to when it is done
//! DATA                four pages to write, one to read; nothing before and after them
//! HIGH                one page above 4 GiB
//! ```

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Code pages.
pub const CODE: u64 = 0x1000_0000;
/// Number of code pages.
pub const CODE_PAGES: u64 = 2;
/// Page that a finished case jumps to.
pub const EXIT: u64 = 0x1001_0000;
/// Registers of the native runner; not mapped in the software CPU.
pub const CONTROL: u64 = 0x1003_0000;
/// Data pages.
pub const DATA: u64 = 0x1010_1000;
/// Number of data pages.
pub const DATA_PAGES: u64 = 5;
/// The last data page, which can only be read.
pub const READ_ONLY: u64 = DATA + (DATA_PAGES - 1) * PAGE;
/// First address after the data pages.
pub const DATA_END: u64 = DATA + DATA_PAGES * PAGE;
/// A data page above 4 GiB.
pub const HIGH: u64 = 0x2a00_1010_1000;
/// Bytes of a case's memory: the data pages, then the high page.
pub const MEMORY_BYTES: usize = ((DATA_PAGES + 1) * PAGE) as usize;

/// Returns the linear address of byte `offset` of a case's memory.
pub fn address_of(offset: usize) -> u64 {
    let offset = offset as u64;
    if offset < DATA_PAGES * PAGE {
        DATA + offset
    } else {
        HIGH + offset - DATA_PAGES * PAGE
    }
}

/// Returns the offset in a case's memory of linear address `address`, if it is in there.
pub fn offset_of(address: u64) -> Option<usize> {
    if (DATA..DATA_END).contains(&address) {
        Some((address - DATA) as usize)
    } else if (HIGH..HIGH + PAGE).contains(&address) {
        Some((address - HIGH + DATA_PAGES * PAGE) as usize)
    } else {
        None
    }
}
