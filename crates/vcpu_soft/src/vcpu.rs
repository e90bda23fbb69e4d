//! One vCPU: its run loop on the machine's thread, waiting, starting.

use std::sync::Arc;
use std::thread;

use vcpu::{
    EngineError, Exit, GuestIo, Kick, Registers, RunState, SystemRegisters, Vcpu, VcpuState,
};
use x86_cpu::{Cpu, Ram, Stop};

use crate::apic::Apics;
use crate::clock::{self, VmTime};
use crate::cpuid::{self, Topology};
use crate::platform::{Platform, Surroundings};
use crate::starved::Starved;
use crate::state;

/// Instructions that a processor runs at a stretch at most: timers of the guest are looked at in
/// between. A few hundred microseconds.
const BUDGET_MAX: u64 = 100_000;
/// The fewest, however near the next timer is.
const BUDGET_MIN: u64 = 500;
/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;

#[derive(Debug)]
struct SoftKick {
    apics: Arc<Apics>,
    index: u8,
}

impl Kick for SoftKick {
    fn kick(&self) {
        self.apics.inbox(self.index).notify();
    }
}

/// One vCPU of the software engine.
#[derive(Debug)]
pub(crate) struct SoftVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) platform: Platform,
    pub(crate) run_state: RunState,
    topology: Topology,
    apics: Arc<Apics>,
    /// One that only waits for others gives its host processor back: they may want it.
    yields: bool,
    starved: Starved,
}

impl SoftVcpu {
    /// A vCPU after power-up: the first one runs, others wait for INIT.
    pub(crate) fn new(apics: Arc<Apics>, topology: Topology, ram: Ram, time: Arc<VmTime>) -> Self {
        let index = topology.index;
        let attention = apics.inbox(index).attention.clone();
        Self {
            cpu: Cpu::new(ram.clone(), attention),
            platform: Platform::new(Arc::clone(&apics), index, ram, time),
            run_state: if index == 0 {
                RunState::Runnable
            } else {
                RunState::Uninitialized
            },
            topology,
            apics,
            yields: topology.count > 1,
            starved: Starved::default(),
        }
    }

    /// Acts on INIT and start-up requests (SDM 3A 9.4).
    pub(crate) fn take_signals(&mut self) {
        let inbox = self.platform.apic.inbox();
        if !inbox.signals_wait() {
            return;
        }
        let signals = inbox.take_signals();
        if signals.init {
            state::init(&mut self.cpu);
            self.platform.apic.reset();
            self.run_state = if self.topology.index == 0 {
                RunState::Runnable
            } else {
                RunState::InitReceived
            };
        }
        if let Some(vector) = signals
            .startup
            .filter(|_| self.run_state == RunState::InitReceived)
        {
            state::start_up(&mut self.cpu, vector);
            self.run_state = RunState::Runnable;
        }
    }

    /// Whether something ends a HLT.
    fn is_woken(&self) -> bool {
        let interrupt =
            || self.cpu.rflags & INTERRUPTS != 0 && self.platform.apic.deliverable().is_some();
        interrupt() || (!self.cpu.nmi_blocked && self.platform.apic.inbox().nmi_waits())
    }

    /// Instructions until the next timer, or as many as are run at a stretch.
    fn budget(&self, now_ns: u64) -> u64 {
        let left = self
            .platform
            .apic
            .fires_ns()
            .map_or(u64::MAX, |at| at.saturating_sub(now_ns));
        // About three nanoseconds each.
        (left / 3).clamp(BUDGET_MIN, BUDGET_MAX)
    }

    fn wait(&self) {
        let inbox = self.platform.apic.inbox();
        inbox
            .bell
            .wait(self.platform.apic.fires_ns(), || inbox.attention.take());
    }
}

impl Vcpu for SoftVcpu {
    fn attach(&mut self) -> Result<Arc<dyn Kick>, EngineError> {
        Ok(Arc::new(SoftKick {
            apics: Arc::clone(&self.apics),
            index: self.topology.index,
        }))
    }

    fn run(&mut self, io: &dyn GuestIo) -> Exit {
        self.platform.vm_time.running();
        self.platform.refresh_time();
        self.starved.begin();
        loop {
            // Whatever is asked of the vCPU is set before its attention is called, and looked at
            // below after the call is forgotten.
            self.platform.apic.inbox().attention.take();
            if io.stop_wanted() {
                return Exit::Kicked;
            }
            self.take_signals();
            let now = clock::now_ns();
            if self.starved.look(now) {
                self.platform.time_page.note_stun();
                self.platform.update_time_page();
            }
            self.platform.apic.poll(now);
            match self.run_state {
                RunState::Runnable | RunState::SipiReceived => {}
                RunState::Halted if self.is_woken() => self.run_state = RunState::Runnable,
                RunState::Halted | RunState::Uninitialized | RunState::InitReceived => {
                    self.wait();
                    self.starved.waited(clock::now_ns().saturating_sub(now));
                    continue;
                }
            }
            let budget = self.budget(now);
            let mut around = Surroundings {
                platform: &mut self.platform,
                io,
            };
            match self.cpu.run_about(&mut around, budget) {
                Stop::Budget => {}
                Stop::Halted => self.run_state = RunState::Halted,
                Stop::Yield if self.yields => thread::yield_now(),
                Stop::Yield => {}
                Stop::TripleFault => return Exit::TripleFault,
            }
        }
    }

    fn set_cpu_model(&mut self) -> Result<(), EngineError> {
        self.platform.cpuid = cpuid::model(self.topology);
        Ok(())
    }

    fn set_boot_state(
        &mut self,
        registers: &Registers,
        system: &SystemRegisters,
    ) -> Result<(), EngineError> {
        self.load_system(system)?;
        self.load_registers(registers);
        Ok(())
    }

    fn system_registers(&self) -> Result<SystemRegisters, EngineError> {
        Ok(self.save_system())
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        self.take_signals();
        Ok(self.save_state())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.load_state(state)
    }

    fn note_stun(&mut self) {
        self.platform.time_page.note_stun();
    }

    fn hide_from_fork(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
