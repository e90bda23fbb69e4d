//! The address port of PCI configuration mechanism 1, with nothing behind it.
//!
//! Kernels that are built for PCI complain at boot where they find no way to ask for devices. Here they
//! find one, and every answer is that of an empty slot. What is written is not kept: each address leads
//! to the same nothing, so only the bit that says that the mechanism exists can be read back.

use crate::BusDevice;

/// The enable bit, by whose reading back the mechanism is known.
const ENABLED: u32 = 1 << 31;

/// Answers at port 0xcf8, four bytes. The data port 0xcfc is nobody's: it reads as all ones.
#[derive(Debug)]
pub struct PciAddress;

impl BusDevice for PciAddress {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = ENABLED.to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let kept = usize::try_from(at).ok().and_then(|at| register.get(at));
            *byte = kept.copied().unwrap_or(0xff);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_enable_bit_reads_back() {
        PciAddress.write(3, &[1]);
        PciAddress.write(0, &0x8000_1234_u32.to_le_bytes());
        let mut word = [0; 4];
        PciAddress.read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), ENABLED);
        let mut last = [0; 2];
        PciAddress.read(3, &mut last);
        assert_eq!(last, [0x80, 0xff]);
    }
}
