//! Instructions of the floating-point crate: operands in, operands out.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86_fp::{FpOperation, Memory, Outside, Unit};

use crate::interp::operand::RDI;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// Executes a resolved instruction.
pub(crate) fn float(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    instruction: &Instruction,
    operation: &FpOperation,
) -> Result<Flow, Fault> {
    match instruction.mnemonic() {
        Mnemonic::Wait => cpu.wait_allowed()?,
        _ => cpu.fp_allowed(operation.unit)?,
    }
    let (load, store) = match operation.memory {
        Memory::None => (0, 0),
        Memory::Load(len) => (len, 0),
        Memory::Store(len) => (0, len),
        Memory::Both(len) => (len, len),
    };
    let mut linear = 0;
    if load | store != 0 {
        // What waits is raised before memory is looked at.
        let x87 = matches!(operation.unit, Unit::X87 | Unit::Mmx);
        if x87 && cpu.fp.x87_pending() && waits(instruction) {
            return Err(Fault::X87);
        }
        // Alignment is checked first.
        let place = cpu.float_place(instruction, u32::from(load | store), store != 0);
        linear = place.map_err(|fault| {
            let unaligned = cpu.effective_address(instruction) & 15 != 0;
            match operation.aligned && unaligned && fault.vector == 12 {
                true => Fault::protection(0),
                false => fault,
            }
        })?;
        if operation.aligned && linear & 15 != 0 {
            return Err(Fault::protection(0));
        }
    }
    cpu.prepare_operand(env, linear, load.into(), store.into())?;
    let mut outside = Outside {
        general: &mut cpu.general,
        flags: &mut cpu.rflags,
        memory: &mut cpu.interp.operand,
    };
    if let Err(fault) = (operation.run)(&mut cpu.fp, &mut outside, operation.arguments) {
        return Err(cpu.fp_fault(fault));
    }
    if store != 0 {
        cpu.store_operand(env, linear, store.into())?;
    }
    Ok(Flow::Next)
}

/// Whether an x87 or MMX instruction raises an x87 exception that is pending.
fn waits(instruction: &Instruction) -> bool {
    !matches!(
        instruction.mnemonic(),
        Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
    )
}

impl Cpu {
    /// Loads what is loaded, after a look whether what is stored can be. What loads its operand only
    /// to keep it still faults as a write.
    fn prepare_operand(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        load: usize,
        store: u64,
    ) -> Result<(), Fault> {
        if store != 0 {
            self.check_write(env, linear, store)?;
        }
        if load != 0 {
            self.load_operand(env, linear, load)?;
        }
        Ok(())
    }

    fn float_place(&self, instruction: &Instruction, len: u32, write: bool) -> Result<u64, Fault> {
        let size = match instruction.op0_kind() {
            OpKind::MemorySegRDI => 8,
            OpKind::MemorySegEDI => 4,
            OpKind::MemorySegDI => 2,
            _ => return self.place(instruction, len, write),
        };
        let segment = self.operand_segment(instruction);
        self.linear(segment, self.register(RDI, size), len, write)
    }

    /// Loads the memory operand of a floating-point instruction.
    pub(crate) fn load_operand(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        len: usize,
    ) -> Result<(), Fault> {
        let bytes: &[u8] = match len {
            2 => &self.load::<u16>(env, linear)?.to_le_bytes(),
            4 => &self.load::<u32>(env, linear)?.to_le_bytes(),
            8 => &self.load::<u64>(env, linear)?.to_le_bytes(),
            16 => &self.load::<u128>(env, linear)?.to_le_bytes(),
            _ => {
                let mut bytes = [0; x86_fp::MEMORY_OPERAND_MAX];
                let len = len.min(bytes.len());
                self.read_bytes(env, linear, &mut bytes[..len])?;
                self.interp.operand.0[..len].copy_from_slice(&bytes[..len]);
                return Ok(());
            }
        };
        self.interp.operand.0[..len].copy_from_slice(bytes);
        Ok(())
    }

    /// Stores it.
    pub(crate) fn store_operand(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        len: usize,
    ) -> Result<(), Fault> {
        let bytes = &self.interp.operand.0;
        match len {
            2 => self.store(env, linear, u16::from_le_bytes(first(bytes))),
            4 => self.store(env, linear, u32::from_le_bytes(first(bytes))),
            8 => self.store(env, linear, u64::from_le_bytes(first(bytes))),
            16 => self.store(env, linear, u128::from_le_bytes(first(bytes))),
            _ => {
                let bytes = *bytes;
                self.write_bytes(env, linear, &bytes[..len.min(bytes.len())])
            }
        }
    }
}

fn first<const N: usize>(bytes: &[u8; x86_fp::MEMORY_OPERAND_MAX]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}
