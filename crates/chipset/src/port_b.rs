//! Port 0x61, "NMI status and control" of a PC, for a machine without the timer and the error lines
//! that it is about.
//!
//! Linux reads it to learn why a non-maskable interrupt came: all ones would say that memory or the bus
//! had failed. It also waits here for channel 2 of the timer to end, which is to be at once, since
//! there is none.

use crate::BusDevice;

/// Output of timer channel 2 (bit 5); the bits of errors (6 and 7) are clear.
const STATUS: u8 = 1 << 5;

/// Answers at port 0x61, one byte. What is written is not kept.
#[derive(Debug)]
pub struct PortB;

impl BusDevice for PortB {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = STATUS;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_is_reported_and_no_one_waits_for_the_timer() {
        let mut wide = [0; 2];
        PortB.write(0, &[0x03]);
        PortB.read(0, &mut wide);
        assert_eq!(wide, [0x20, 0xff]);
    }
}
