//! CRC-32 of IEEE 802.3, eight bytes at a step.
//!
//! Saved state is some 10 KiB and is read by processes that were just born: here a table beats
//! carry-less multiplication, whose detection alone executes CPUID a dozen times, and each of those
//! leaves a virtual machine.

const POLYNOMIAL: u32 = 0xedb8_8320;
const STEP: usize = 8;

/// `TABLES[n][byte]` is the checksum of `byte` followed by `n` zero bytes.
static TABLES: [[u32; 256]; STEP] = tables();

const fn tables() -> [[u32; 256]; STEP] {
    let mut tables = [[0; 256]; STEP];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < STEP {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// Returns the checksum of `parts`, one after the other.
pub(crate) fn crc32(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |crc, part| update(crc, part))
}

fn update(mut crc: u32, bytes: &[u8]) -> u32 {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    for step in steps {
        let mut word = u64::from_le_bytes(*step) ^ u64::from(crc);
        crc = 0;
        for table in TABLES.iter().rev() {
            crc ^= table[(word & 0xff) as usize];
            word >>= 8;
        }
    }
    for byte in rest {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit, as the standard words it.
    fn plain(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            }
        }
        !crc
    }

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(crc32(&[b"123456789"]), 0xcbf4_3926);
        assert_eq!(crc32(&[]), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_parts(bytes in proptest::collection::vec(any::<u8>(), 0..100), at: prop::sample::Index) {
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(crc32(&[head, tail]), plain(&bytes));
        }
    }
}
