//! The address port of PCI configuration mechanism 1, with nothing behind it.
//!
//! Kernels that are built for PCI complain at boot where they find no way to ask for devices. Here they
//! find one, and every answer is that of an empty slot. What is written is not kept: each address leads
//! to the same nothing, so only the bit that says that the mechanism exists can be read back. The byte
//! at 0xcf9 is the reset control register of chipsets (Intel PCH, "Reset Control").

use std::sync::Arc;

use crate::{BusDevice, PowerControl};

/// The enable bit, by whose reading back the mechanism is known.
const ENABLED: u32 = 1 << 31;

/// Offset of the reset control register, which only accesses of one byte reach.
const RESET_CONTROL: u64 = 1;
/// Reset control: resets the processors where it is written as 1.
const RESET_CPU: u8 = 1 << 2;

/// Answers at port 0xcf8, four bytes. The data port 0xcfc is nobody's: it reads as all ones.
#[derive(Debug)]
pub struct PciAddress {
    power: Arc<dyn PowerControl>,
}

impl PciAddress {
    /// Returns a port that resets the machine through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl BusDevice for PciAddress {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = ENABLED.to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let kept = usize::try_from(at).ok().and_then(|at| register.get(at));
            *byte = kept.copied().unwrap_or(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (RESET_CONTROL, &[value]) = (offset, data)
            && value & RESET_CPU != 0
        {
            self.power.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::RecordedPower;

    #[test]
    fn only_the_enable_bit_reads_back() {
        let power = Arc::new(RecordedPower::default());
        let port = PciAddress::new(power.clone());
        port.write(3, &[1]);
        port.write(0, &0x8000_1634_u32.to_le_bytes());
        let mut word = [0; 4];
        port.read(0, &mut word);
        assert_eq!(u32::from_le_bytes(word), ENABLED);
        let mut last = [0; 2];
        port.read(3, &mut last);
        assert_eq!(last, [0x80, 0xff]);
        assert_eq!(power.take(), (0, 0));
    }

    #[test]
    fn a_byte_at_0xcf9_resets() {
        let power = Arc::new(RecordedPower::default());
        let port = PciAddress::new(power.clone());
        port.write(1, &[0x02]);
        port.write(1, &0x0606_u16.to_le_bytes());
        port.write(2, &[0x06]);
        assert_eq!(power.take(), (0, 0));
        port.write(1, &[0x06]);
        assert_eq!(power.take(), (0, 1));
    }
}
