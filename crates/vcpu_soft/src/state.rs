//! Saving and loading one vCPU, INIT and start-up.
//!
//! A vCPU is saved at an instruction boundary, so no event is half delivered. States of an engine
//! that has such events load all the same: an interrupt is delivered again, an exception comes back
//! when its instruction runs again.

use vcpu::{
    DebugRegisters, DescriptorTable, EngineError, Msr, PendingEvents, Registers, RunState, Segment,
    SystemRegisters, VcpuState,
};
use x86_cpu::{Cpu, SegmentName, TableRegister};
use x86_fp::FpState;

use crate::clock::{self, TSC_KHZ};
use crate::cpuid;
use crate::mtrr;
use crate::registers::{self, PLAIN, TIME_PAGE, TSC, TSC_ADJUST, TSC_DEADLINE, WALL_CLOCK};
use crate::vcpu::SoftVcpu;

/// Length of the XSAVE area that is saved, bytes: what KVM takes at least.
const XSAVE_BYTES: usize = 4096;
/// Largest one that is loaded.
const XSAVE_BYTES_MAX: usize = 64 << 10;
/// Offset of XSTATE_BV in it.
const XSTATE_BV: usize = 512;
/// Its parts that this engine has: x87, SSE.
const XSTATE_HERE: u64 = 3;
/// XCR0 of a CPU whose guest does not use XSAVE.
const XCR0_RESET: u64 = 1;
/// Rates of the time-stamp counter that are taken, kHz.
const TSC_KHZ_RANGE: std::ops::RangeInclusive<u32> = 1000..=100_000_000;

const SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];
const PAT: u32 = 0x277;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// RDX after a reset: family, model, stepping.
const CPU_SIGNATURE_AT_RESET: u64 = 0x600;

const SHADOW_STI: u8 = 1;

fn unfit(field: &'static str, reason: String) -> EngineError {
    EngineError::Unfit { field, reason }
}

/// Resets what INIT resets (SDM 3A table 10-1).
pub(crate) fn init(cpu: &mut Cpu) {
    let segment = |access| x86_cpu::Segment {
        selector: 0,
        base: 0,
        limit: 0xffff,
        access,
    };
    let table = TableRegister {
        base: 0,
        limit: 0xffff,
    };
    cpu.general = [0; 16];
    cpu.general[2] = CPU_SIGNATURE_AT_RESET;
    cpu.rip = 0xfff0;
    cpu.rflags = 2;
    cpu.segments = [segment(0x93); 6];
    cpu.segments[SegmentName::Cs as usize] = x86_cpu::Segment {
        selector: 0xf000,
        base: 0xffff_0000,
        ..segment(0x9b)
    };
    (cpu.tr, cpu.ldtr) = (segment(0x8b), segment(0x82));
    (cpu.gdt, cpu.idt) = (table, table);
    // Cache control bits stay.
    cpu.cr0 = cpu.cr0 & 0x6000_0000 | 0x10;
    (cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) = (0, 0, 0, 0);
    cpu.debug_address = [0; 4];
    (cpu.dr6, cpu.dr7) = (0xffff_0ff0, 0x400);
    (cpu.interrupt_shadow, cpu.nmi_blocked) = (false, false);
    cpu.state_replaced();
}

/// Sets what a start-up request sets.
pub(crate) fn start_up(cpu: &mut Cpu, vector: u8) {
    let cs = &mut cpu.segments[SegmentName::Cs as usize];
    cs.selector = u16::from(vector) << 8;
    cs.base = u64::from(vector) << 12;
    cpu.rip = 0;
    cpu.state_replaced();
}

fn segment_out(s: &x86_cpu::Segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: s.access,
    }
}

fn segment_in(s: &Segment) -> x86_cpu::Segment {
    x86_cpu::Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: s.access & 0x1_f0ff,
    }
}

impl SoftVcpu {
    pub(crate) fn save_system(&self) -> SystemRegisters {
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        let cpu = &self.cpu;
        let named = |name: SegmentName| segment_out(&cpu.segments[name as usize]);
        let table = |t: &TableRegister| DescriptorTable {
            base: t.base,
            limit: t.limit,
        };
        let [cs, ds, es, fs, gs, ss] = [Cs, Ds, Es, Fs, Gs, Ss].map(named);
        let (tr, ldt) = (segment_out(&cpu.tr), segment_out(&cpu.ldtr));
        SystemRegisters {
            segments: [cs, ds, es, fs, gs, ss, tr, ldt],
            gdt: table(&cpu.gdt),
            idt: table(&cpu.idt),
            cr0: cpu.cr0,
            cr2: cpu.cr2,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            cr8: u64::from(self.platform.apic.task_priority() >> 4),
            efer: cpu.efer,
            apic_base: self.platform.apic.base(),
            interrupt_bitmap: [0; 4],
        }
    }

    pub(crate) fn load_system(&mut self, system: &SystemRegisters) -> Result<(), EngineError> {
        use SegmentName::{Cs, Ds, Es, Fs, Gs, Ss};
        let (apic, cpu) = (&mut self.platform.apic, &mut self.cpu);
        if !apic.load_base(system.apic_base) {
            let reason = format!("{:#x} is not a value of this register", system.apic_base);
            return Err(unfit("local APIC base", reason));
        }
        apic.set_task_priority((system.cr8 as u8 & 15) << 4);
        let table = |t: &DescriptorTable| TableRegister {
            base: t.base,
            limit: t.limit,
        };
        let [cs, ds, es, fs, gs, ss, tr, ldt] = system.segments.map(|s| segment_in(&s));
        for (name, segment) in [(Cs, cs), (Ds, ds), (Es, es), (Fs, fs), (Gs, gs), (Ss, ss)] {
            cpu.segments[name as usize] = segment;
        }
        (cpu.tr, cpu.ldtr) = (tr, ldt);
        (cpu.gdt, cpu.idt) = (table(&system.gdt), table(&system.idt));
        cpu.cr0 = system.cr0;
        cpu.cr2 = system.cr2;
        cpu.cr3 = system.cr3;
        cpu.cr4 = system.cr4;
        cpu.efer = system.efer;
        cpu.state_replaced();
        Ok(())
    }

    fn save_registers(&self) -> Registers {
        Registers {
            general: self.cpu.general,
            rip: self.cpu.rip,
            rflags: self.cpu.rflags,
        }
    }

    pub(crate) fn load_registers(&mut self, registers: &Registers) {
        self.cpu.general = registers.general;
        self.cpu.rip = registers.rip;
        // Bit 1 is always set, bits 3, 5, 15 and those above 21 never.
        self.cpu.rflags = registers.rflags & 0x3f_7fd5 | 2;
        self.cpu.state_replaced();
    }

    fn save_msrs(&self, now_ns: u64) -> Vec<Msr> {
        let (cpu, platform) = (&self.cpu, &self.platform);
        let [cs, esp, eip] = cpu.sysenter;
        let held = [
            (TSC, platform.tsc_at(now_ns)),
            (TSC_ADJUST, platform.tsc_adjustment),
            (SYSENTER[0], cs),
            (SYSENTER[1], esp),
            (SYSENTER[2], eip),
            (PAT, cpu.pat),
            (STAR, cpu.star),
            (LSTAR, cpu.lstar),
            (CSTAR, cpu.cstar),
            (SFMASK, cpu.sfmask),
            (KERNEL_GS_BASE, cpu.kernel_gs_base),
            (WALL_CLOCK, platform.wall_clock),
            (TIME_PAGE, platform.time_page.msr()),
            (TSC_DEADLINE, platform.apic.tsc_deadline()),
        ];
        // Those that another engine may not know only where they hold something.
        let rare = [(TSC_AUX, cpu.tsc_aux)]
            .into_iter()
            .chain(PLAIN.into_iter().zip(platform.plain))
            .chain(platform.mtrrs.held())
            .filter(|(index, value)| *value != 0 || *index == mtrr::DEFAULT_TYPE);
        held.into_iter()
            .filter(|(index, value)| *index != TSC_ADJUST || *value != 0)
            .chain(rare)
            .map(|(index, value)| Msr { index, value })
            .collect()
    }

    fn load_msrs(&mut self, msrs: &[Msr], khz: u32) {
        let held = |index: u32| msrs.iter().find(|m| m.index == index).map(|m| m.value);
        let (cpu, platform) = (&mut self.cpu, &mut self.platform);
        for msr in msrs {
            match msr.index {
                PAT => cpu.pat = msr.value,
                STAR => cpu.star = msr.value,
                LSTAR => cpu.lstar = msr.value,
                CSTAR => cpu.cstar = msr.value,
                SFMASK => cpu.sfmask = msr.value,
                KERNEL_GS_BASE => cpu.kernel_gs_base = msr.value,
                TSC_AUX => cpu.tsc_aux = msr.value,
                WALL_CLOCK => platform.wall_clock = msr.value,
                TIME_PAGE => platform.time_page.set_msr(msr.value),
                index => {
                    platform.mtrrs.load(index, msr.value);
                    if let Some(place) = SYSENTER.iter().position(|i| *i == index) {
                        cpu.sysenter[place] = msr.value;
                    }
                    if let Some(place) = PLAIN.iter().position(|i| *i == index) {
                        platform.plain[place] = msr.value;
                    }
                    // All others describe the machine, not the guest: features that CPUID, checked
                    // before, does not offer do not need them.
                }
            }
        }
        // The counter includes what the guest set its processors apart by.
        let apart = held(TSC_ADJUST).unwrap_or(0);
        let tsc = held(TSC).unwrap_or(0).wrapping_sub(apart);
        let more = platform.vm_time.load_tsc(tsc, khz);
        platform.tsc_adjustment = apart.wrapping_add(more);
        platform.refresh_time();
    }

    fn save_xsave(&self) -> Vec<u8> {
        let mut area = vec![0; XSAVE_BYTES];
        area[..512].copy_from_slice(&self.cpu.fp.to_fxsave());
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&XSTATE_HERE.to_le_bytes());
        area
    }

    fn load_xsave(&mut self, area: &[u8]) -> Result<(), EngineError> {
        let length = || {
            unfit(
                "XSAVE area",
                format!("length {} is out of range", area.len()),
            )
        };
        let bytes = |at: usize| area.get(at..at + 8)?.first_chunk().copied();
        let (Some(mut legacy), Some(present)) = (
            area.first_chunk::<512>().copied(),
            bytes(XSTATE_BV).map(u64::from_le_bytes),
        ) else {
            return Err(length());
        };
        if area.len() > XSAVE_BYTES_MAX {
            return Err(length());
        }
        // Parts that are not present are in their initial state (SDM 1 13.6).
        if present & 1 == 0 {
            legacy[..24].fill(0);
            legacy[32..160].fill(0);
            legacy[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        }
        if present & 2 == 0 {
            legacy[160..416].fill(0);
        }
        let mxcsr = u32::from_le_bytes([legacy[24], legacy[25], legacy[26], legacy[27]]);
        if mxcsr & !0xffff != 0 {
            return Err(unfit(
                "XSAVE area",
                format!("MXCSR {mxcsr:#x} has reserved bits"),
            ));
        }
        self.cpu.fp = FpState::from_fxsave(&legacy);
        Ok(())
    }

    pub(crate) fn save_state(&self) -> VcpuState {
        let now = self.platform.vm_time.save_processor_ns();
        let inbox = self.platform.apic.inbox();
        VcpuState {
            registers: self.save_registers(),
            system: self.save_system(),
            xsave: self.save_xsave(),
            xcr0: None,
            debug: DebugRegisters {
                address: self.cpu.debug_address,
                dr6: self.cpu.dr6,
                dr7: self.cpu.dr7,
            },
            lapic: self.platform.apic.save(now),
            events: PendingEvents {
                interrupt_shadow: if self.cpu.interrupt_shadow {
                    SHADOW_STI
                } else {
                    0
                },
                interrupt: self.platform.apic.taken().map(|vector| (vector, false)),
                nmi: (false, inbox.nmi_waits(), self.cpu.nmi_blocked),
                ..PendingEvents::default()
            },
            run_state: self.run_state,
            msrs: self.save_msrs(now),
            cpuid: self.platform.cpuid.clone(),
            tsc_khz: Some(self.platform.time.khz()),
        }
    }

    pub(crate) fn load_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        cpuid::check(&state.cpuid)?;
        if let Some(xcr0) = state.xcr0.filter(|value| *value != XCR0_RESET) {
            let reason = format!("{xcr0:#x} is in use, the software engine has no XSAVE");
            return Err(unfit("XCR0", reason));
        }
        let khz = state.tsc_khz.unwrap_or(TSC_KHZ);
        if !TSC_KHZ_RANGE.contains(&khz) {
            return Err(unfit("TSC frequency", format!("{khz} kHz is out of range")));
        }
        self.platform.cpuid.clone_from(&state.cpuid);
        self.load_system(&state.system)?;
        self.load_xsave(&state.xsave)?;
        self.cpu.debug_address = state.debug.address;
        self.cpu.dr6 = state.debug.dr6;
        self.cpu.dr7 = state.debug.dr7;
        self.load_msrs(&state.msrs, khz);
        let now = clock::now_ns();
        self.platform.apic.load(&state.lapic, now)?;
        let deadline = |m: &&Msr| m.index == registers::TSC_DEADLINE && m.value != 0;
        if let Some(msr) = state.msrs.iter().find(deadline) {
            let (time, apart) = (&self.platform.time, self.platform.tsc_adjustment);
            let at = time.time_of_tsc(msr.value, apart, now);
            self.platform.apic.set_tsc_deadline(msr.value, at);
        }
        let events = &state.events;
        self.cpu.interrupt_shadow = events.interrupt_shadow != 0;
        self.cpu.nmi_blocked = events.nmi.2;
        if events.nmi.0 || events.nmi.1 {
            self.platform.apic.inbox().request_nmi();
        }
        if let Some((vector, false)) = events.interrupt {
            self.platform.apic.deliver_again(vector);
        }
        self.load_registers(&state.registers);
        self.run_state = state.run_state;
        if state.run_state == RunState::SipiReceived {
            start_up(&mut self.cpu, events.sipi_vector as u8);
            self.run_state = RunState::Runnable;
        }
        Ok(())
    }
}
