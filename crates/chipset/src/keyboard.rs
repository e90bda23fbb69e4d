//! The command port of the keyboard controller, of which only the reset command exists: kernels
//! reset a PC through it. There is no keyboard; tables say so.

use std::sync::Arc;

use crate::{BusDevice, PowerControl};

const COMMAND_RESET: u8 = 0xfe;

/// Answers at port 0x64: status 0 (idle, no data) and the reset command.
#[derive(Debug)]
pub struct KeyboardController {
    power: Arc<dyn PowerControl>,
}

impl KeyboardController {
    /// Returns a controller that resets the machine through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl BusDevice for KeyboardController {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&COMMAND_RESET) {
            self.power.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::RecordedPower;

    #[test]
    fn only_the_reset_command_resets() {
        let power = Arc::new(RecordedPower::default());
        let controller = KeyboardController::new(power.clone());
        let mut status = [0xff];
        controller.read(0, &mut status);
        assert_eq!(status, [0]);
        controller.write(0, &[0xd1]);
        controller.write(0, &[]);
        assert_eq!(power.take(), (0, 0));
        controller.write(0, &[0xfe]);
        assert_eq!(power.take(), (0, 1));
    }
}
