//! Memory type range registers (SDM 3A 12.11). Memory has no types here, so they only hold what
//! was written; guests find all memory to be write-back, as firmware would leave it.

/// What there is: eight variable ranges, the fixed ranges, write-combining. The same as KVM has.
const CAPABILITIES: u64 = 0x508;
const CAPABILITIES_INDEX: u32 = 0xfe;
pub(crate) const DEFAULT_TYPE: u32 = 0x2ff;

/// Enabled, the fixed ranges not, and write-back where no range says otherwise.
const WRITE_BACK: u64 = 1 << 11 | 6;

/// Bits of the default type that exist: type, fixed ranges on, all on.
const DEFAULT_TYPE_BITS: u64 = 0xcff;

/// Bits of a variable range that exist, with physical addresses of 40 bits.
const BASE_BITS: u64 = 0xff_ffff_f0ff;
const MASK_BITS: u64 = 0xff_ffff_f800;

/// Every register that can be written, in the order in which they are held.
const INDICES: [u32; 28] = [
    0x200,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    0x250,
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    DEFAULT_TYPE,
];

/// The registers of one processor.
#[derive(Debug)]
pub(crate) struct Mtrrs([u64; INDICES.len()]);

impl Default for Mtrrs {
    fn default() -> Self {
        let mut mtrrs = Self([0; INDICES.len()]);
        mtrrs.load(DEFAULT_TYPE, WRITE_BACK);
        mtrrs
    }
}

fn place(index: u32) -> Option<usize> {
    INDICES.iter().position(|i| *i == index)
}

impl Mtrrs {
    /// Reads a register; `None` where it is not one of these.
    pub(crate) fn read(&self, index: u32) -> Option<u64> {
        if index == CAPABILITIES_INDEX {
            return Some(CAPABILITIES);
        }
        place(index).map(|at| self.0[at])
    }

    /// Writes a register; `None` where it is not one of these, `Some(false)` where the value or
    /// writing it at all is a #GP.
    pub(crate) fn write(&mut self, index: u32, value: u64) -> Option<bool> {
        if index == CAPABILITIES_INDEX {
            return Some(false);
        }
        let at = place(index)?;
        let allowed = is_valid(index, value);
        if allowed {
            self.0[at] = value;
        }
        Some(allowed)
    }

    /// Takes a saved value.
    pub(crate) fn load(&mut self, index: u32, value: u64) {
        if let Some(at) = place(index) {
            self.0[at] = value;
        }
    }

    /// All registers and their values.
    pub(crate) fn held(&self) -> impl Iterator<Item = (u32, u64)> {
        INDICES.into_iter().zip(self.0)
    }
}

fn is_valid(index: u32, value: u64) -> bool {
    let is_type = |byte: u8| matches!(byte, 0 | 1 | 4 | 5 | 6);
    let low = value as u8;
    match index {
        DEFAULT_TYPE => value & !DEFAULT_TYPE_BITS == 0 && is_type(low),
        0x200..=0x20f if index.is_multiple_of(2) => value & !BASE_BITS == 0 && is_type(low),
        0x200..=0x20f => value & !MASK_BITS == 0,
        // A byte for each part of a fixed range.
        _ => value.to_le_bytes().into_iter().all(is_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memory_is_write_back_at_first() {
        let mtrrs = Mtrrs::default();
        assert_eq!(mtrrs.read(0x2ff), Some(0x806));
        assert_eq!(mtrrs.read(0xfe), Some(0x508));
        for index in INDICES.into_iter().filter(|i| *i != 0x2ff) {
            assert_eq!(mtrrs.read(index), Some(0));
        }
        assert_eq!(mtrrs.read(0x210), None);
        assert_eq!(mtrrs.read(0x251), None);
    }

    #[test]
    fn what_does_not_exist_is_not_taken() {
        let mut mtrrs = Mtrrs::default();
        for (index, value, allowed) in [
            (0xfe, 0x508, false),
            (0x2ff, 0xc06, true),
            (0x2ff, 0x802, false),
            (0x2ff, 0x1006, false),
            (0x200, 0xff_c000_0006, true),
            (0x200, 0xff_c000_0106, false),
            (0x20e, 1 << 40, false),
            (0x201, 0xff_c000_0800, true),
            (0x20f, 0xff_c000_0801, false),
            (0x250, 0x0606_0606_0606_0606, true),
            (0x26f, 0x0606_0206_0606_0606, false),
        ] {
            let before = mtrrs.read(index);
            assert_eq!(mtrrs.write(index, value), Some(allowed), "{index:#x}");
            let wanted = if allowed { Some(value) } else { before };
            assert_eq!(mtrrs.read(index), wanted);
        }
        assert_eq!(mtrrs.write(0x210, 0), None);
    }
}
