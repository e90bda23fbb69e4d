//! Segment and gate descriptors (SDM 3A 3.4.5, 3.5, 5.8.3).

use crate::mmu::EFER_LMA;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

/// Bits of [`Segment::access`].
pub(super) const ACCESSED: u32 = 1;
pub(super) const WRITABLE_OR_READABLE: u32 = 1 << 1;
pub(super) const CONFORMING_OR_DOWN: u32 = 1 << 2;
pub(super) const CODE: u32 = 1 << 3;
pub(super) const NO_SYSTEM: u32 = 1 << 4;
pub(super) const PRESENT: u32 = 1 << 7;
pub(super) const LONG: u32 = 1 << 13;
pub(super) const BIG: u32 = 1 << 14;
pub(super) const UNUSABLE: u32 = 1 << 16;

/// Types of system descriptors; the 32-bit ones are the 64-bit ones in long mode.
pub(super) const TYPE_TSS16: u32 = 1;
pub(super) const TYPE_LDT: u32 = 2;
pub(super) const TYPE_CALL_GATE16: u32 = 4;
pub(super) const TYPE_TSS: u32 = 9;
pub(super) const TYPE_CALL_GATE: u32 = 12;

/// An eight-byte descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) low: u32,
    pub(super) high: u32,
    /// Where it lies.
    pub(super) linear: u64,
}

impl Descriptor {
    /// Access rights in the form of [`Segment::access`].
    pub(super) fn access(self) -> u32 {
        self.high >> 8 & 0xf0ff
    }

    pub(super) fn base(self) -> u64 {
        u64::from(self.low >> 16 | self.high << 16 & 0x00ff_0000 | self.high & 0xff00_0000)
    }

    pub(super) fn limit(self) -> u32 {
        let limit = self.low & 0xffff | self.high & 0x000f_0000;
        if self.high & 1 << 23 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    pub(super) fn dpl(self) -> u8 {
        (self.high >> 13 & 3) as u8
    }

    pub(super) fn is(self, bits: u32) -> bool {
        self.access() & bits == bits
    }

    /// Type of a system descriptor; `None` for code and data.
    pub(super) fn system_type(self) -> Option<u32> {
        (!self.is(NO_SYSTEM)).then_some(self.access() & 0xf)
    }

    /// Code that runs at no other level than its own.
    pub(super) fn is_plain_code(self) -> bool {
        self.is(NO_SYSTEM | CODE) && !self.is(CONFORMING_OR_DOWN)
    }

    pub(super) fn is_code(self) -> bool {
        self.is(NO_SYSTEM | CODE)
    }

    pub(super) fn is_writable_data(self) -> bool {
        self.is(NO_SYSTEM | WRITABLE_OR_READABLE) && !self.is(CODE)
    }

    pub(super) fn is_readable(self) -> bool {
        self.is(NO_SYSTEM) && (!self.is(CODE) || self.is(WRITABLE_OR_READABLE))
    }

    /// The segment register that it makes, accessed.
    pub(super) fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            access: self.access() | ACCESSED,
        }
    }
}

/// Selector as it stands in error codes.
pub(super) fn index(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

/// Whether the selector is null.
pub(super) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// A segment register without a segment; `dpl` is CPL for SS, otherwise 0.
pub(super) fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        access: UNUSABLE | u32::from(dpl) << 5,
    }
}

impl Cpu {
    pub(super) fn protected(&self) -> bool {
        self.cr0 & crate::mmu::CR0_PE != 0
    }

    pub(super) fn long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    pub(super) fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }

    /// Reads the descriptor that `selector` names; a table that does not reach so far is a fault
    /// that `fault` makes of the selector.
    pub(super) fn descriptor(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        fault: fn(u32) -> Fault,
    ) -> Result<Descriptor, Fault> {
        match self.descriptor_in_table(env, selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(fault(index(selector))),
        }
    }

    /// Reads the descriptor that `selector` names; `None` where its table does not reach so far.
    pub(super) fn descriptor_in_table(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
    ) -> Result<Option<Descriptor>, Fault> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u32::from(self.gdt.limit))
        } else if self.ldtr.access & UNUSABLE == 0 && !is_null(self.ldtr.selector) {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return Ok(None);
        };
        let offset = u32::from(selector & 0xfff8);
        if offset + 7 > limit {
            return Ok(None);
        }
        let linear = self.system_linear(base.wrapping_add(offset.into()));
        let word = self.load_system::<u64>(env, linear)?;
        Ok(Some(Descriptor {
            low: word as u32,
            high: (word >> 32) as u32,
            linear,
        }))
    }

    /// Reads bits 63 to 32 of the base of a 16-byte system descriptor of long mode.
    pub(super) fn upper_base(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
    ) -> Result<u64, Fault> {
        let limit = if selector & 4 == 0 {
            u32::from(self.gdt.limit)
        } else {
            self.ldtr.limit
        };
        if u32::from(selector & 0xfff8) + 15 > limit {
            return Err(Fault::protection(index(selector)));
        }
        let linear = self.system_linear(descriptor.linear.wrapping_add(8));
        let word = self.load_system::<u64>(env, linear)?;
        if word >> 32 & 0x1f00 != 0 {
            return Err(Fault::protection(index(selector)));
        }
        Ok(word << 32)
    }

    /// An address in a descriptor table or task segment, as the mode wraps it.
    pub(super) fn system_linear(&self, linear: u64) -> u64 {
        if self.long_mode() {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    /// Sets the accessed bit of a descriptor of code or data.
    pub(super) fn mark_accessed(
        &mut self,
        env: &mut dyn Environment,
        descriptor: &Descriptor,
    ) -> Result<(), Fault> {
        if descriptor.is(ACCESSED) {
            return Ok(());
        }
        let linear = self.system_linear(descriptor.linear.wrapping_add(5));
        self.set_bits_system(env, linear, ACCESSED as u8)
    }
}
