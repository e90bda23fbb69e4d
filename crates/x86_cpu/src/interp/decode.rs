//! Instruction bytes to decoded instructions.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::flags::mask;
use super::op::At;
use super::operand::{Width, canonical};
use crate::{Cpu, Environment, Fault, SegmentName};

/// Longest instruction, bytes.
pub(super) const INSTRUCTION_MAX: usize = 15;

/// What this processor does not have: TZCNT and LZCNT are BSF and BSR, WBNOINVD is WBINVD.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;

impl Width {
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Makes a decoder of code at `offset` in its page.
pub(super) fn decoder(bytes: &[u8], width: Width, offset: u64) -> Decoder<'_> {
    Decoder::with_ip(width.bits(), bytes, offset, OPTIONS)
}

impl Cpu {
    /// Returns the linear address of the next instruction.
    pub(super) fn code_address(&self) -> Result<u64, Fault> {
        if self.width() == Width::Bits64 {
            return match canonical(self.rip) {
                true => Ok(self.rip),
                false => Err(Fault::protection(0)),
            };
        }
        let segment = &self.segments[SegmentName::Cs as usize];
        if self.rip > u64::from(segment.limit) {
            return Err(Fault::protection(0));
        }
        Ok(segment.base.wrapping_add(self.rip) & mask(4))
    }

    /// Decodes the instruction at RIP.
    pub(super) fn decode_here(&mut self, env: &mut dyn Environment) -> Result<Instruction, Fault> {
        let linear = self.code_address()?;
        let offset = linear & 0xfff;
        self.set_code_base(self.rip.wrapping_sub(offset));
        let mut bytes = [0; INSTRUCTION_MAX];
        let here = self.fetch(env, linear, &mut bytes)?;
        let width = self.width();
        let mut decoder = decoder(&bytes[..here], width, offset);
        let instruction = decoder.decode();
        if !instruction.is_invalid() {
            return Ok(instruction);
        }
        if decoder.last_error() != DecoderError::NoMoreBytes || here == INSTRUCTION_MAX {
            return Err(match decoder.last_error() {
                DecoderError::NoMoreBytes => Fault::protection(0),
                _ => Fault::UNDEFINED,
            });
        }
        let next_page = match width {
            Width::Bits64 => linear.wrapping_add(here as u64),
            _ => linear.wrapping_add(here as u64) & mask(4),
        };
        self.fetch(env, next_page, &mut bytes[here..])?;
        let mut decoder = self::decoder(&bytes, width, offset);
        let instruction = decoder.decode();
        match (instruction.is_invalid(), decoder.last_error()) {
            (false, _) => Ok(instruction),
            (true, DecoderError::NoMoreBytes) => Err(Fault::protection(0)),
            (true, _) => Err(Fault::UNDEFINED),
        }
    }

    /// Decodes the instruction of an op anew, from the bytes that the op was made from.
    pub(super) fn decode_again(&self, at: At) -> Instruction {
        let op = at.op();
        let (gpa, second) = self.interp.cache.pages(op.place);
        let offset = u64::from(op.start);
        let bytes = self.interp.cache.joined(gpa, second, offset);
        let again = bytes.map(|bytes| decoder(&bytes, self.width(), offset).decode());
        // Another instruction could go on to slots that are no ops: none is invalid rather.
        let same = again.filter(|again| again.len() == usize::from(op.len));
        debug_assert!(same.is_some(), "the bytes that the op was made from");
        same.unwrap_or_default()
    }

    /// Fetches bytes up to the end of their page; returns how many.
    fn fetch(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bytes: &mut [u8],
    ) -> Result<usize, Fault> {
        let page = self.fetch_page(env, linear)?;
        if page.fresh {
            self.compare_page(page.gpa, page.host);
        }
        let offset = linear & 0xfff;
        let len = bytes.len().min(0x1000 - offset as usize);
        super::span::read(page.host + offset, &mut bytes[..len]);
        Ok(len)
    }
}
