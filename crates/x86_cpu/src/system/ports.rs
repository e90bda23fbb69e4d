//! IN, OUT, INS, OUTS and the I/O permission bitmap (SDM 1 19.5).

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::delivery::iopl;
use super::operands::segment_name;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;
const DF: u64 = 1 << 10;
/// Iterations of a repeated instruction between two looks at interrupts.
const BATCH: u32 = 64;

impl Cpu {
    /// #GP(0) where neither IOPL nor the task segment allows the ports.
    fn check_port(&mut self, env: &mut dyn Environment, port: u16, size: u64) -> Result<(), Fault> {
        if !self.protected() || self.cpl() <= iopl(self.rflags) {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        let denied = Err(Fault::protection(0));
        let wide = self.tr.access & 0xd == 9;
        if !wide || limit < 0x67 {
            return denied;
        }
        let map = self.system_linear(self.tr.base.wrapping_add(0x66));
        let map = u64::from(self.load_system::<u16>(env, map)?);
        let byte = map + u64::from(port / 8);
        if byte + 1 > limit {
            return denied;
        }
        let linear = self.system_linear(self.tr.base.wrapping_add(byte));
        let bits = self.load_system::<u16>(env, linear)?;
        let wanted = ((1 << size) - 1) << (port & 7);
        if bits & wanted != 0 { denied } else { Ok(()) }
    }

    /// IN and OUT.
    pub(super) fn port(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let input = instruction.mnemonic() == Mnemonic::In;
        let (value_at, port_at) = if input { (0, 1) } else { (1, 0) };
        let size = instruction.op_register(value_at).size();
        let port = match instruction.op_kind(port_at) {
            OpKind::Immediate8 => instruction.immediate8().into(),
            _ => self.general[RDX] as u16,
        };
        self.check_port(env, port, size as u64)?;
        let mask = mask(size);
        if input {
            let value = u64::from(env.port_read(port, size as u8)) & mask;
            let kept = if size == 4 {
                0
            } else {
                self.general[RAX] & !mask
            };
            self.general[RAX] = kept | value;
            return Ok(Flow::Next);
        }
        let value = (self.general[RAX] & mask) as u32;
        env.port_write(port, size as u8, value);
        Ok(Flow::Leave)
    }

    /// INS and OUTS, repeated or not. A repeated one goes on with RIP back at itself.
    pub(super) fn port_string(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let port = self.general[RDX] as u16;
        let size = match instruction.mnemonic() {
            Mnemonic::Insb | Mnemonic::Outsb => 1,
            Mnemonic::Insw | Mnemonic::Outsw => 2,
            _ => 4,
        };
        self.check_port(env, port, size as u64)?;
        let width = address_width(instruction);
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !repeated {
            self.move_port(env, instruction, port, size, width)?;
            return Ok(Flow::Leave);
        }
        let start = self.rip.wrapping_sub(instruction.len() as u64);
        // Traps come after each iteration.
        let batch = if self.stepping() { 1 } else { BATCH };
        for _ in 0..batch {
            let count = self.general[RCX] & width;
            if count == 0 {
                return Ok(Flow::Leave);
            }
            self.move_port(env, instruction, port, size, width)?;
            self.set_pointer(RCX, count - 1, width);
        }
        if self.general[RCX] & width != 0 {
            self.rip = if self.long_code() {
                start
            } else {
                start & 0xffff_ffff
            };
        }
        Ok(Flow::Leave)
    }

    fn set_pointer(&mut self, register: usize, value: u64, width: u64) {
        let place = &mut self.general[register];
        *place = match width {
            0xffff => *place & !0xffff | value & 0xffff,
            _ => value & width,
        };
    }

    /// Moves one element.
    fn move_port(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        port: u16,
        size: usize,
        width: u64,
    ) -> Result<(), Fault> {
        let input = matches!(
            instruction.mnemonic(),
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd
        );
        let (register, segment) = if input {
            (RDI, SegmentName::Es)
        } else {
            let named = segment_name(instruction.memory_segment());
            (RSI, named.unwrap_or(SegmentName::Ds))
        };
        let offset = self.general[register] & width;
        let linear = self.linear_address(segment, offset, size as u64, input)?;
        if input {
            // The page is checked before the device loses what it gives.
            self.check_write(env, linear, size as u64)?;
            let value = env.port_read(port, size as u8).to_le_bytes();
            self.write_bytes(env, linear, &value[..size])?;
        } else {
            let mut value = [0; 4];
            self.read_bytes(env, linear, &mut value[..size])?;
            env.port_write(port, size as u8, u32::from_le_bytes(value));
        }
        let step = size as u64;
        let next = if self.rflags & DF != 0 {
            offset.wrapping_sub(step)
        } else {
            offset.wrapping_add(step)
        };
        self.set_pointer(register, next, width);
        Ok(())
    }
}

fn mask(size: usize) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

/// Mask of the address size of a string instruction.
fn address_width(instruction: &Instruction) -> u64 {
    let kinds = (0..instruction.op_count()).map(|op| instruction.op_kind(op));
    let mut width = u64::MAX;
    for kind in kinds {
        match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => width = 0xffff,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => width = 0xffff_ffff,
            _ => {}
        }
    }
    width
}
