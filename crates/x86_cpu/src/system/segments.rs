//! Segment registers: loading them, and addresses through them.

use super::descriptors::{
    BIG, CODE, CONFORMING_OR_DOWN, Descriptor, PRESENT, UNUSABLE, WRITABLE_OR_READABLE, index,
    is_null, null_segment,
};
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

impl Cpu {
    /// Returns the linear address of `size` bytes at `offset` of a segment; #GP(0) or #SS(0) where
    /// the segment forbids the access. Canonical addresses are checked by the access itself.
    pub(crate) fn linear_address(
        &self,
        name: SegmentName,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let segment = self.segment(name);
        if self.long_code() {
            return Ok(match name {
                SegmentName::Fs | SegmentName::Gs => segment.base.wrapping_add(offset),
                _ => offset,
            });
        }
        let fault = |fault: Fault| match name {
            SegmentName::Ss => fault.on_stack(),
            _ => fault,
        };
        self.address_in(segment, offset, size, write).map_err(fault)
    }

    /// As [`linear_address`](Self::linear_address), outside 64-bit code, in a segment that need not
    /// be in a register yet.
    pub(super) fn address_in(
        &self,
        segment: &Segment,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let access = segment.access;
        if self.protected() {
            let denied = if write {
                access & (CODE | WRITABLE_OR_READABLE) != WRITABLE_OR_READABLE
            } else {
                access & (CODE | WRITABLE_OR_READABLE) == CODE
            };
            if access & UNUSABLE != 0 || denied {
                return Err(Fault::protection(0));
            }
        }
        let (first, limit) = (offset & 0xffff_ffff, u64::from(segment.limit));
        let last = first + size.max(1) - 1;
        let grows_down = access & (CODE | CONFORMING_OR_DOWN) == CONFORMING_OR_DOWN;
        let inside = if grows_down {
            let top = if access & BIG != 0 {
                0xffff_ffff
            } else {
                0xffff
            };
            first > limit && last <= top
        } else {
            // A segment of 4 GiB lets accesses wrap.
            last <= limit || limit == 0xffff_ffff
        };
        if !inside {
            return Err(Fault::protection(0));
        }
        Ok(segment.base.wrapping_add(first) & 0xffff_ffff)
    }

    /// Loads DS, ES, FS, GS or SS as MOV and POP do.
    pub(super) fn load_segment(
        &mut self,
        env: &mut dyn Environment,
        name: SegmentName,
        selector: u16,
    ) -> Result<(), Fault> {
        if !self.protected() {
            self.set_real_segment(name, selector);
            return Ok(());
        }
        let segment = match name {
            SegmentName::Ss => self.stack_segment(env, selector, self.cpl(), Fault::protection)?,
            _ => self.data_segment(env, selector)?,
        };
        self.segments[name as usize] = segment;
        Ok(())
    }

    /// Loads a segment register in real mode: limit and rights stay.
    pub(super) fn set_real_segment(&mut self, name: SegmentName, selector: u16) {
        let segment = &mut self.segments[name as usize];
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        // Rights of a segment that can be used, in case the last one could not.
        if segment.access & UNUSABLE != 0 {
            segment.access = 0x93;
            segment.limit = 0xffff;
        }
    }

    fn data_segment(&mut self, env: &mut dyn Environment, selector: u16) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let descriptor = self.descriptor(env, selector, Fault::protection)?;
        let error = index(selector);
        let rpl = (selector & 3) as u8;
        let conforming = descriptor.is(CODE | CONFORMING_OR_DOWN);
        let privileged = conforming || descriptor.dpl() >= self.cpl().max(rpl);
        if !descriptor.is_readable() || !privileged {
            return Err(Fault::protection(error));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(error));
        }
        self.mark_accessed(env, &descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Checks a selector for SS at privilege `cpl`, with the faults of `fault` (#GP or #TS).
    pub(super) fn stack_segment(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        cpl: u8,
        fault: fn(u32) -> Fault,
    ) -> Result<Segment, Fault> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if self.long_code() && cpl < 3 && rpl == cpl {
                return Ok(null_segment(selector, cpl));
            }
            return Err(fault(0));
        }
        let descriptor = self.descriptor(env, selector, fault)?;
        self.stack_segment_of(env, selector, &descriptor, cpl, fault)
    }

    /// Checks a descriptor for SS at privilege `cpl`.
    pub(super) fn stack_segment_of(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
        cpl: u8,
        fault: fn(u32) -> Fault,
    ) -> Result<Segment, Fault> {
        let error = index(selector);
        let same_level = (selector & 3) as u8 == cpl && descriptor.dpl() == cpl;
        if !same_level || !descriptor.is_writable_data() {
            return Err(fault(error));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::stack(error));
        }
        self.mark_accessed(env, descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Empties the data segment registers that a less privileged level must not keep.
    pub(super) fn drop_privileged_segments(&mut self, cpl: u8) {
        for name in [
            SegmentName::Es,
            SegmentName::Ds,
            SegmentName::Fs,
            SegmentName::Gs,
        ] {
            let access = self.segment(name).access;
            let conforming = access & (CODE | CONFORMING_OR_DOWN) == CODE | CONFORMING_OR_DOWN;
            let dpl = (access >> 5 & 3) as u8;
            if access & UNUSABLE == 0 && !conforming && dpl < cpl {
                let base = self.segment(name).base;
                self.segments[name as usize] = null_segment(0, 0);
                // The bases of FS and GS are not the selector's business in long mode.
                if self.long_mode() && matches!(name, SegmentName::Fs | SegmentName::Gs) {
                    self.segments[name as usize].base = base;
                }
            }
        }
    }
}
