//! BCD instructions of 16- and 32-bit code.

use iced_x86::{Instruction, Mnemonic};

use crate::interp::flags::{AF, CF, STATUS, of_result};
use crate::interp::operand::RAX;
use crate::state::Flow;
use crate::{Cpu, Fault};

impl Cpu {
    pub(super) fn decimal(&mut self, instruction: &Instruction) -> Result<Flow, Fault> {
        match instruction.mnemonic() {
            Mnemonic::Daa => self.decimal_adjust(false),
            Mnemonic::Das => self.decimal_adjust(true),
            Mnemonic::Aaa => self.ascii_adjust(false),
            Mnemonic::Aas => self.ascii_adjust(true),
            Mnemonic::Aam => {
                let (al, radix) = (
                    self.general[RAX] & 0xff,
                    u64::from(instruction.immediate8()),
                );
                let high = al.checked_div(radix).ok_or(Fault::DIVIDE)?;
                self.set_register(RAX, 2, high << 8 | (al % radix));
                self.set_status(of_result(al % radix, 1));
            }
            Mnemonic::Aad => {
                let (al, ah) = (self.general[RAX] & 0xff, self.general[RAX] >> 8 & 0xff);
                let value = (al + ah * u64::from(instruction.immediate8())) & 0xff;
                self.set_register(RAX, 2, value);
                self.set_status(of_result(value, 1));
            }
            _ => {
                let value = if self.rflags & CF != 0 { 0xff } else { 0 };
                self.set_register(RAX, 1, value);
            }
        }
        Ok(Flow::Next)
    }

    fn decimal_adjust(&mut self, subtract: bool) {
        let old = self.general[RAX] & 0xff;
        let mut flags = 0;
        let mut change = 0;
        if old & 0xf > 9 || self.rflags & AF != 0 {
            change += 6;
            flags |= AF;
        }
        if old > 0x99 || self.rflags & CF != 0 {
            change += 0x60;
            flags |= CF;
        } else if subtract && flags & AF != 0 && old < 6 {
            flags |= CF;
        }
        let value = match subtract {
            true => old.wrapping_sub(change),
            false => old + change,
        } & 0xff;
        self.set_register(RAX, 1, value);
        self.set_status(flags | of_result(value, 1));
    }

    fn ascii_adjust(&mut self, subtract: bool) {
        let ax = self.general[RAX] & 0xffff;
        let adjust = ax & 0xf > 9 || self.rflags & AF != 0;
        let value = match (adjust, subtract) {
            (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
            (true, false) => ax.wrapping_add(0x106),
            (false, _) => ax,
        };
        self.set_register(RAX, 2, value & 0xff0f);
        let carry = if adjust { CF | AF } else { 0 };
        self.set_status((self.rflags & STATUS & !(CF | AF)) | carry);
    }
}
