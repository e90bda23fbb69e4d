//! INIT and start-up IPIs (SDM 3A 10.1, 9.4); power-up is [`Cpu::new`].

use super::descriptors::PRESENT;
use crate::{Cpu, Segment, SegmentName, TableRegister};

const CR0_CACHES: u64 = 0x6000_0000;
const CR0_ET: u64 = 0x10;

fn real(access: u32) -> Segment {
    Segment {
        selector: 0,
        base: 0,
        limit: 0xffff,
        access,
    }
}

impl Cpu {
    /// Goes to the state after power-up, memory and clocks aside.
    pub fn reset(&mut self) {
        let fresh = Self::new(self.ram.clone(), self.attention.clone());
        self.fp = fresh.fp;
        (self.sysenter, self.pat, self.tsc_aux) = (fresh.sysenter, fresh.pat, fresh.tsc_aux);
        (self.star, self.lstar, self.cstar) = (0, 0, 0);
        (self.sfmask, self.kernel_gs_base) = (0, 0);
        self.cr0 = CR0_CACHES;
        self.init();
    }

    /// Takes an INIT: as power-up, but x87, SSE, caches and most model-specific registers stay.
    /// The processor then waits for [`startup`](Self::startup) unless it is the first one.
    pub fn init(&mut self) {
        self.general = [0; 16];
        self.general[2] = 0x600;
        self.rip = 0xfff0;
        self.rflags = 2;
        let data = real(0x13 | PRESENT);
        self.segments = [data; 6];
        self.segments[SegmentName::Cs as usize] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            ..real(0x1b | PRESENT)
        };
        self.tr = real(0xb | PRESENT);
        self.ldtr = real(2 | PRESENT);
        let table = TableRegister {
            base: 0,
            limit: 0xffff,
        };
        (self.gdt, self.idt) = (table, table);
        self.cr0 = self.cr0 & CR0_CACHES | CR0_ET;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.debug_address = [0; 4];
        (self.dr6, self.dr7) = (0xffff_0ff0, 0x400);
        (self.interrupt_shadow, self.nmi_blocked) = (false, false);
        self.state_replaced();
    }

    /// Takes a start-up IPI: real mode at page `vector`.
    pub fn startup(&mut self, vector: u8) {
        self.segments[SegmentName::Cs as usize] = Segment {
            selector: u16::from(vector) << 8,
            base: u64::from(vector) << 12,
            ..real(0x1b | PRESENT)
        };
        self.rip = 0;
        self.refresh();
    }
}
