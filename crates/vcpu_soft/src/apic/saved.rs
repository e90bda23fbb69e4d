//! The register page as checkpoints hold it: 1 KiB, as KVM reads and writes it. The id is in its
//! xAPIC place in both modes, the 64-bit command register in two words.

use vcpu::EngineError;

use super::{BASE_ENABLED, LVT_WRITABLE, LocalApic, register};
use crate::apic::timer::Mode;

/// Length of a saved page, bytes.
pub(crate) const PAGE_BYTES: usize = 1024;

fn put(page: &mut [u8], number: u32, value: u32) {
    let at = number as usize * 16;
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get(page: &[u8], number: u32) -> u32 {
    let at = number as usize * 16;
    page.get(at..at + 4)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl LocalApic {
    /// Returns the register page.
    pub(crate) fn save(&self, now_ns: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        for number in register::ID..=register::DIVIDE {
            let value = self.read(number, now_ns).unwrap_or(0);
            put(&mut page, number, value);
        }
        put(&mut page, register::ID, u32::from(self.index) << 24);
        page
    }

    /// Loads a register page; the base register has been set before.
    pub(crate) fn load(&mut self, page: &[u8], now_ns: u64) -> Result<(), EngineError> {
        let unfit = |reason: String| EngineError::Unfit {
            field: "local APIC page",
            reason,
        };
        if page.len() != PAGE_BYTES {
            return Err(unfit(format!("length {} is not {PAGE_BYTES}", page.len())));
        }
        let id = get(page, register::ID) >> 24;
        if self.base & BASE_ENABLED != 0 && id != u32::from(self.index) {
            return Err(unfit(format!("id {id} is not {}", self.index)));
        }
        let words = |first: u32| {
            let mut words = [0; 8];
            for (index, word) in (first..).zip(&mut words) {
                *word = get(page, index);
            }
            // Vectors 0 to 15 do not exist.
            words[0] &= !0xffff;
            words
        };
        self.task_priority = get(page, register::TASK_PRIORITY) as u8;
        let serving = words(register::IN_SERVICE);
        for (to, [low, high]) in self.in_service.iter_mut().zip(serving.as_chunks::<2>().0) {
            *to = u64::from(*low) | u64::from(*high) << 32;
        }
        self.inbox().level.load(words(register::LEVEL));
        self.inbox().requested.load(words(register::REQUESTED));
        self.logical = if self.is_x2apic() {
            0
        } else {
            get(page, register::LOGICAL) & 0xff00_0000
        };
        self.format = get(page, register::FORMAT) | 0x0fff_ffff;
        self.spurious = get(page, register::SPURIOUS) & 0x1ff;
        self.errors_shown = get(page, register::ERROR_STATUS);
        self.errors = 0;
        self.command = u64::from(get(page, register::COMMAND))
            | u64::from(get(page, register::COMMAND_HIGH)) << 32;
        for ((number, entry), writable) in
            (register::LVT_TIMER..).zip(&mut self.lvt).zip(LVT_WRITABLE)
        {
            *entry = get(page, number) & writable;
        }
        self.timer = Default::default();
        self.timer.initial = get(page, register::INITIAL_COUNT);
        self.timer.divide = get(page, register::DIVIDE) & 0b1011;
        let mode = Mode::of_entry(self.lvt[0]);
        self.timer
            .resume(get(page, register::CURRENT_COUNT), mode, now_ns);
        self.taken = None;
        self.publish();
        Ok(())
    }
}
