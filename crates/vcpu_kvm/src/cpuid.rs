//! The CPU model of a cold boot: what the host's KVM supports, with this machine's topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Which vCPU of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    pub(crate) index: u8,
    pub(crate) count: u8,
}

/// CPUID.1 ECX: TSC-deadline timer, which the in-kernel local APIC has.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1 ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// CPUID.1 ECX: a hypervisor is there.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1 EDX: several logical processors in a package.
const HTT: u32 = 1 << 28;

/// Returns the leaves of one vCPU.
pub(crate) fn for_vcpu(supported: &CpuId, at: Topology) -> CpuId {
    let mut leaves = supported.clone();
    for leaf in leaves.as_mut_slice() {
        adjust(leaf, at);
    }
    leaves
}

/// One package of `count` cores, one thread each (SDM 2A CPUID leaves 1, 4, 0xb, 0x1f; APM 3
/// leaves 0x8000_0008 and 0x8000_001e).
fn adjust(leaf: &mut kvm_cpuid_entry2, at: Topology) {
    let (index, count) = (u32::from(at.index), u32::from(at.count));
    let id_bits = count.next_power_of_two().ilog2();
    match leaf.function {
        1 => {
            leaf.ecx |= TSC_DEADLINE | X2APIC | HYPERVISOR;
            leaf.ebx = (leaf.ebx & 0x0000_ffff) | (count << 16) | (index << 24);
            leaf.edx = if count > 1 {
                leaf.edx | HTT
            } else {
                leaf.edx & !HTT
            };
        }
        4 => {
            let cores = (1 << id_bits) - 1;
            let shared_by = if (leaf.eax >> 5) & 7 >= 3 { cores } else { 0 };
            leaf.eax = (leaf.eax & 0x0000_3fff) | (cores << 26) | (shared_by << 14);
        }
        0xb | 0x1f => {
            let (shift, logical, kind) = match leaf.index {
                0 => (0, 1, 1),
                1 => (id_bits, count, 2),
                _ => (0, 0, 0),
            };
            leaf.eax = shift;
            leaf.ebx = logical;
            leaf.ecx = (kind << 8) | leaf.index;
            leaf.edx = index;
        }
        0x8000_0008 => leaf.ecx = (id_bits << 12) | (count - 1),
        0x8000_001e => {
            leaf.eax = index;
            leaf.ebx = index;
            leaf.ecx = 0;
        }
        _ => {}
    }
}
