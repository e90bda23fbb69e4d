//! The CPU model of a cold boot: what the host's KVM supports, with this machine's topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vcpu::EngineError;

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

/// CPUID.1 ECX: VMX.
const VMX: u32 = 1 << 5;
/// CPUID.0x8000_0001 ECX: SVM.
const SVM: u32 = 1 << 2;
/// Extended topology (SDM 2A, CPUID leaf 0xb).
const TOPOLOGY: u32 = 0xb;
/// The same in its second version, which nothing needs for one package.
const TOPOLOGY_V2: u32 = 0x1f;

/// Returns the leaves of one vCPU.
pub(crate) fn for_vcpu(supported: &CpuId, at: Topology) -> Result<CpuId, EngineError> {
    let mut leaves: Vec<_> = supported.as_slice().to_vec();
    let has_topology = leaves
        .iter()
        .any(|leaf| leaf.function == 0 && leaf.eax >= TOPOLOGY);
    // Newer kernels return subleaf 0 alone, without content: the levels are this machine's, not theirs.
    leaves.retain(|leaf| ![TOPOLOGY, TOPOLOGY_V2].contains(&leaf.function));
    for leaf in &mut leaves {
        adjust(leaf, at);
    }
    if has_topology {
        leaves.extend((0..3).map(|level| topology(level, at)));
    }
    CpuId::from_entries(&leaves).map_err(|_| EngineError::Missing("room for all CPUID leaves"))
}

/// Levels of leaf 0xb: threads of a core, cores of the package, the end.
fn topology(level: u32, at: Topology) -> kvm_cpuid_entry2 {
    let count = u32::from(at.count);
    let (shift, logical, kind) = match level {
        0 => (0, 1, 1),
        1 => (id_bits(count), count, 2),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index: level,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: (kind << 8) | level,
        edx: at.index.into(),
        ..kvm_cpuid_entry2::default()
    }
}

/// Bits of an APIC id that tell `count` cores apart.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().ilog2()
}

/// One package of `count` cores, one thread each (SDM 2A CPUID leaves 1 and 4; APM 3 leaves
/// 0x8000_0008 and 0x8000_001e). No virtualization within: a checkpoint has no state of guests' guests.
fn adjust(leaf: &mut kvm_cpuid_entry2, at: Topology) {
    let (index, count) = (u32::from(at.index), u32::from(at.count));
    let id_bits = id_bits(count);
    match leaf.function {
        1 => {
            leaf.ecx = (leaf.ecx & !VMX) | TSC_DEADLINE | X2APIC | HYPERVISOR;
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
        0x8000_0001 => leaf.ecx &= !SVM,
        0x8000_0008 => leaf.ecx = (id_bits << 12) | (count - 1),
        0x8000_000a => {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
        0x8000_001e => {
            leaf.eax = index;
            leaf.ebx = index;
            leaf.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x20,
            ecx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn model(at: Topology) -> Vec<kvm_cpuid_entry2> {
        // What Linux 6.2 and later return of the topology.
        let given = [
            (0, 0),
            (1, 0),
            (0xb, 0),
            (0x1f, 0),
            (0x8000_0001, 0),
            (0x8000_000a, 0),
        ];
        let given = given.map(|(function, index)| leaf(function, index));
        let supported = CpuId::from_entries(&given).unwrap();
        for_vcpu(&supported, at).unwrap().as_slice().to_vec()
    }

    #[test]
    fn the_vcpus_are_cores_of_one_package() {
        let model = model(Topology { index: 2, count: 3 });
        let levels = model.iter().filter(|leaf| leaf.function == 0xb);
        let levels: Vec<_> = levels
            .map(|leaf| (leaf.index, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
            .collect();
        let wanted = [(0, 0, 1, 0x100, 2), (1, 2, 3, 0x201, 2), (2, 0, 0, 2, 2)];
        assert_eq!(levels, wanted);
        assert!(model.iter().all(|leaf| leaf.function != 0x1f));
    }

    #[test]
    fn guests_are_offered_no_virtualization() {
        let model = model(Topology { index: 0, count: 1 });
        let ecx = |function| {
            model
                .iter()
                .find(|leaf| leaf.function == function)
                .unwrap()
                .ecx
        };
        assert_eq!(ecx(1) & VMX, 0);
        assert_ne!(ecx(1) & X2APIC, 0);
        assert_eq!(ecx(0x8000_0001), !SVM);
        assert_eq!(ecx(0x8000_000a), 0);
    }
}
