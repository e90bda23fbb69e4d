//! What is outside the processor and its own: local APIC, time, registers, CPUID; and the
//! processor's [`Environment`] made of it.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vcpu::{CpuidLeaf, GuestIo};
use x86_cpu::{Environment, Ram};

use crate::apic::{Apics, LocalApic};
use crate::clock::{self, View, VmTime};
use crate::cpuid;
use crate::mtrr::Mtrrs;
use crate::registers::PLAIN;
use crate::time_page::TimePage;

/// CPUID.1 EDX: the local APIC is there, which its base register decides.
const CPUID_APIC: u32 = 1 << 9;
const APIC_ENABLED: u64 = 1 << 11;

/// The surroundings of one processor.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) apic: LocalApic,
    pub(crate) ram: Ram,
    pub(crate) vm_time: Arc<VmTime>,
    /// The VM's time as of the last entry.
    pub(crate) time: View,
    /// What this processor's counter is ahead of the VM's.
    pub(crate) tsc_adjustment: u64,
    pub(crate) time_page: TimePage,
    pub(crate) wall_clock: u64,
    pub(crate) plain: [u64; PLAIN.len()],
    pub(crate) mtrrs: Mtrrs,
    pub(crate) cpuid: Vec<CpuidLeaf>,
}

impl Platform {
    pub(crate) fn new(apics: Arc<Apics>, index: u8, ram: Ram, vm_time: Arc<VmTime>) -> Self {
        Self {
            apic: LocalApic::new(apics, index),
            ram,
            time: vm_time.view(),
            vm_time,
            tsc_adjustment: 0,
            time_page: TimePage::default(),
            wall_clock: 0,
            plain: [0; PLAIN.len()],
            mtrrs: Mtrrs::default(),
            cpuid: vec![],
        }
    }

    /// The counter of this processor.
    pub(crate) fn tsc_at(&self, ns: u64) -> u64 {
        self.time.tsc_at(ns).wrapping_add(self.tsc_adjustment)
    }

    /// Sets what this processor's counter is ahead of the VM's.
    pub(crate) fn adjust_tsc(&mut self, adjustment: u64) {
        self.tsc_adjustment = adjustment;
        let deadline = self.apic.tsc_deadline();
        if deadline != 0 {
            let now = clock::now_ns();
            let at = self.time.time_of_tsc(deadline, adjustment, now);
            self.apic.set_tsc_deadline(deadline, at);
        }
        self.update_time_page();
    }

    /// Takes the VM's time as it is now.
    pub(crate) fn refresh_time(&mut self) {
        self.time = self.vm_time.view();
        self.update_time_page();
    }

    pub(crate) fn update_time_page(&mut self) {
        self.time_page
            .update(&self.ram, &self.time, self.tsc_adjustment);
    }
}

/// Answers of KVM, by whose name the CPU model tells of a paravirtual clock: a guest that finds the
/// name makes calls (Linux's `ptp_kvm` does) and takes no for an answer, but not an exception.
const NO_SUCH_CALL: u64 = (-1000_i64).cast_unsigned();
const NOT_FOR_USERS: u64 = (-1_i64).cast_unsigned();

/// A platform and the machine behind it, while the processor runs.
pub(crate) struct Surroundings<'a> {
    pub(crate) platform: &'a mut Platform,
    pub(crate) io: &'a dyn GuestIo,
}

impl Environment for Surroundings<'_> {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let mut bytes = [0; 4];
        self.io
            .port_read(port, &mut bytes[..usize::from(size.clamp(1, 4))]);
        u32::from_le_bytes(bytes)
    }

    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        let bytes = value.to_le_bytes();
        self.io
            .port_write(port, &bytes[..usize::from(size.clamp(1, 4))]);
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        match self.platform.apic.register_at(address) {
            Some(offset) => self.platform.apic.page_read(offset, data, clock::now_ns()),
            None => self.io.mmio_read(address, data),
        }
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        match self.platform.apic.register_at(address) {
            Some(offset) => {
                self.platform
                    .apic
                    .page_write(offset, data, clock::now_ns(), self.io);
            }
            None => self.io.mmio_write(address, data),
        }
    }

    fn msr_read(&mut self, index: u32) -> Option<u64> {
        self.platform.msr_read(index)
    }

    fn msr_write(&mut self, index: u32, value: u64) -> bool {
        self.platform.msr_write(index, value, self.io)
    }

    fn cpuid(&mut self, leaf: u32, index: u32) -> [u32; 4] {
        let mut result = cpuid::look_up(&self.platform.cpuid, leaf, index);
        if matches!(leaf, 1 | 0x8000_0001) && self.platform.apic.base() & APIC_ENABLED == 0 {
            result[3] &= !CPUID_APIC;
        }
        result
    }

    fn tsc(&mut self) -> u64 {
        self.platform.tsc_at(clock::now_ns())
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // Eight bytes come whole once the host's generator is ready, and it is by now.
        let _ = getrandom(&mut bytes, GetRandomFlags::empty());
        u64::from_le_bytes(bytes)
    }

    fn take_interrupt(&mut self) -> Option<u8> {
        self.platform.apic.take()
    }

    fn take_nmi(&mut self) -> bool {
        self.platform.apic.inbox().take_nmi()
    }

    fn hypercall(&mut self, is_supervisor: bool) -> Option<u64> {
        Some(if is_supervisor {
            NO_SUCH_CALL
        } else {
            NOT_FOR_USERS
        })
    }

    fn task_priority(&mut self) -> u8 {
        self.platform.apic.task_priority() >> 4
    }

    fn set_task_priority(&mut self, value: u8) {
        self.platform.apic.set_task_priority(value << 4);
    }
}
