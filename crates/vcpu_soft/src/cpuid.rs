//! The CPU model: x86-64-v2 without AVX and XSAVE, of a vendor and family for which Linux has few
//! workarounds, with the paravirtual clock of KVM.

use vcpu::{CpuidLeaf, EngineError};

/// Which vCPU of how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    pub(crate) index: u8,
    pub(crate) count: u8,
}

/// Family 15, model 107, stepping 1.
const SIGNATURE: u32 = 0x0006_0fb1;
/// Highest basic, extended and hypervisor leaf.
const BASIC_MAX: u32 = 0xb;
const EXTENDED_MAX: u32 = 0x8000_0008;
const HYPERVISOR_MAX: u32 = 0x4000_0001;
/// Widths of physical and linear addresses.
const ADDRESS_BITS: u32 = 48 << 8 | 40;

/// Bit numbers of the features of one register.
const fn bits(numbers: &[u32]) -> u32 {
    let mut all = 0;
    let mut index = 0;
    while index < numbers.len() {
        all |= 1 << numbers[index];
        index += 1;
    }
    all
}

/// Leaf 1 ECX: SSE3, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, RDRAND, hypervisor.
const FEATURES_ECX: u32 = bits(&[0, 9, 13, 19, 20, 21, 23, 24, 30, 31]);
/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, CLFLUSH, MMX,
/// FXSR, SSE, SSE2. Machine checks have no bank; without them Linux logs an error at boot.
const FEATURES_EDX: u32 = bits(&[
    0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 19, 23, 24, 25, 26,
]);
/// Several logical processors in a package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: LAHF in long mode, prefetch.
const EXTENDED_ECX: u32 = bits(&[0, 8]);
/// Several cores in a package.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001 EDX, beside those it repeats of leaf 1: SYSCALL, NX, 1 GiB pages, long mode.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 29]);
/// What leaf 0x8000_0001 EDX repeats of leaf 1.
const REPEATED: u32 = 0x0183_f3ff;
/// Leaf 7 EBX: TSC_ADJUST (with it Linux trusts the counter), fast string operations.
const STRUCTURED_EBX: u32 = bits(&[1, 9]);
/// KVM's features: no delay after port writes, clock, clock that is stable.
const KVM_FEATURES: u32 = bits(&[1, 3, 24]);

/// Bits that a checkpoint of another engine may have although this one does not offer them: they
/// describe the machine and add no instruction, register or state.
const HARMLESS: &[(u32, u32, [u32; 4])] = &[
    // VME, machine checks, MTRRs, PSE-36, DTES64, monitor line, HTT.
    (
        1,
        0,
        [0, 0, bits(&[2, 3]), bits(&[1, 7, 12, 14, 17, 27, 28])],
    ),
    // FSRM and what only describes cures of side channels.
    (7, 0, [u32::MAX, bits(&[6, 13]), 0, bits(&[4, 10])]),
    (
        0x8000_0001,
        0,
        [0, 0, bits(&[1, 8, 9, 22]), bits(&[1, 7, 12, 14, 17, 18])],
    ),
];

/// Returns the leaves of one vCPU.
pub(crate) fn model(at: Topology) -> Vec<CpuidLeaf> {
    let (index, count) = (u32::from(at.index), u32::from(at.count));
    let id_bits = count.next_power_of_two().ilog2();
    let many = count > 1;
    let flag = |bit: u32| if many { bit } else { 0 };
    let leaf = |function: u32, result: [u32; 4]| CpuidLeaf {
        function,
        index: 0,
        indexed: false,
        result,
    };
    let indexed = |function: u32, index: u32, result: [u32; 4]| CpuidLeaf {
        function,
        index,
        indexed: true,
        result,
    };
    let [vendor_b, vendor_d, vendor_c] = words(*b"AuthenticAMD");
    let [kvm_b, kvm_c, kvm_d] = words(*b"KVMKVMKVM\0\0\0");
    let edx = FEATURES_EDX | flag(HTT);
    let mut leaves = vec![
        leaf(0, [BASIC_MAX, vendor_b, vendor_c, vendor_d]),
        // CLFLUSH of 64 bytes.
        leaf(
            1,
            [
                SIGNATURE,
                index << 24 | count << 16 | 8 << 8,
                FEATURES_ECX,
                edx,
            ],
        ),
        // The timer of the local APIC runs always.
        leaf(6, [1 << 2, 0, 0, 0]),
        indexed(7, 0, [0, STRUCTURED_EBX, 0, 0]),
        indexed(0xb, 0, [0, 1, 1 << 8, index]),
        indexed(0xb, 1, [id_bits, count, 2 << 8 | 1, index]),
        leaf(0x4000_0000, [HYPERVISOR_MAX, kvm_b, kvm_c, kvm_d]),
        leaf(0x4000_0001, [KVM_FEATURES, 0, 0, 0]),
        leaf(0x8000_0000, [EXTENDED_MAX, vendor_b, vendor_c, vendor_d]),
        leaf(
            0x8000_0001,
            [
                SIGNATURE,
                0,
                EXTENDED_ECX | flag(CMP_LEGACY),
                EXTENDED_EDX | FEATURES_EDX & REPEATED,
            ],
        ),
        // Caches and TLBs: 64 KiB each of instructions and data, 512 KiB of both.
        leaf(
            0x8000_0005,
            [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
        ),
        leaf(0x8000_0006, [0, 0x4200_4200, 0x0200_8140, 0]),
        // The counter runs at one rate always.
        leaf(0x8000_0007, [0, 0, 0, 1 << 8]),
        leaf(
            0x8000_0008,
            [ADDRESS_BITS, 0, id_bits << 12 | (count - 1), 0],
        ),
    ];
    let brand = *b"Mitose software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (function, part) in (0x8000_0002..).zip(brand.as_chunks::<16>().0) {
        leaves.push(leaf(function, words(*part)));
    }
    leaves
}

fn words<const BYTES: usize, const WORDS: usize>(text: [u8; BYTES]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(text.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// Answers CPUID from `leaves`; leaves that do not exist are zero.
pub(crate) fn look_up(leaves: &[CpuidLeaf], function: u32, index: u32) -> [u32; 4] {
    leaves
        .iter()
        .find(|l| l.function == function && (!l.indexed || l.index == index))
        .map_or([0; 4], |l| l.result)
}

/// Leaves and registers whose bits are features, with how to name them.
const FEATURE_WORDS: &[(u32, u32, usize, &str)] = &[
    (1, 0, 2, "CPUID.1:ECX"),
    (1, 0, 3, "CPUID.1:EDX"),
    (7, 0, 1, "CPUID.7:EBX"),
    (7, 0, 2, "CPUID.7:ECX"),
    (7, 0, 3, "CPUID.7:EDX"),
    (0x4000_0001, 0, 0, "CPUID.40000001H:EAX"),
    (0x8000_0001, 0, 2, "CPUID.80000001H:ECX"),
    (0x8000_0001, 0, 3, "CPUID.80000001H:EDX"),
];

/// Names of features that tell most to somebody who reads an error.
const NAMES: &[(&str, u32, &str)] = &[
    ("CPUID.1:ECX", 1, "PCLMULQDQ"),
    ("CPUID.1:ECX", 3, "MONITOR"),
    ("CPUID.1:ECX", 12, "FMA"),
    ("CPUID.1:ECX", 17, "PCID"),
    ("CPUID.1:ECX", 22, "MOVBE"),
    ("CPUID.1:ECX", 25, "AES"),
    ("CPUID.1:ECX", 26, "XSAVE"),
    ("CPUID.1:ECX", 28, "AVX"),
    ("CPUID.1:ECX", 29, "F16C"),
    ("CPUID.7:EBX", 0, "FSGSBASE"),
    ("CPUID.7:EBX", 3, "BMI1"),
    ("CPUID.7:EBX", 5, "AVX2"),
    ("CPUID.7:EBX", 7, "SMEP"),
    ("CPUID.7:EBX", 8, "BMI2"),
    ("CPUID.7:EBX", 10, "INVPCID"),
    ("CPUID.7:EBX", 16, "AVX512F"),
    ("CPUID.7:EBX", 18, "RDSEED"),
    ("CPUID.7:EBX", 19, "ADX"),
    ("CPUID.7:EBX", 20, "SMAP"),
    ("CPUID.7:EBX", 29, "SHA"),
    ("CPUID.80000001H:ECX", 2, "SVM"),
    ("CPUID.80000001H:ECX", 5, "ABM"),
    ("CPUID.80000001H:EDX", 27, "RDTSCP"),
];

/// Checks that a guest that was given `leaves` finds here all that it was promised.
pub(crate) fn check(leaves: &[CpuidLeaf]) -> Result<(), EngineError> {
    let offered = model(Topology { index: 0, count: 2 });
    let mut missing = vec![];
    for (function, index, register, name) in FEATURE_WORDS {
        let harmless = HARMLESS
            .iter()
            .find(|(f, i, _)| (f, i) == (function, index))
            .map_or(0, |(_, _, words)| words[*register]);
        let here = look_up(&offered, *function, *index)[*register] | harmless;
        let lacking = look_up(leaves, *function, *index)[*register] & !here;
        for bit in (0..32).filter(|bit| lacking & 1 << bit != 0) {
            let known = NAMES.iter().find(|(w, b, _)| w == name && *b == bit);
            missing.push(known.map_or_else(
                || format!("{name}[{bit}]"),
                |(_, _, feature)| (*feature).to_owned(),
            ));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "the guest uses {} of its processor, which the software engine does not have",
        missing.join(", ")
    );
    Err(EngineError::Unfit {
        field: "CPUID",
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u8, count: u8) -> Vec<CpuidLeaf> {
        model(Topology { index, count })
    }

    #[test]
    fn the_model_fits_itself() {
        for count in 1..=8 {
            for index in 0..count {
                check(&at(index, count)).unwrap();
            }
        }
    }

    #[test]
    fn the_vendor_reads_in_the_order_of_the_manual() {
        let [max, b, c, d] = look_up(&at(0, 1), 0, 0);
        assert_eq!(max, BASIC_MAX);
        let text: Vec<u8> = [b, d, c].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"AuthenticAMD");
        let [max, b, c, d] = look_up(&at(0, 1), 0x4000_0000, 0);
        assert_eq!(max, HYPERVISOR_MAX);
        let text: Vec<u8> = [b, c, d].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"KVMKVMKVM\0\0\0");
    }

    #[test]
    fn ids_follow_the_index() {
        for count in [1, 2, 3, 4, 8] {
            for index in 0..count {
                let leaves = at(index, count);
                assert_eq!(look_up(&leaves, 1, 0)[1] >> 24, index.into());
                assert_eq!(look_up(&leaves, 1, 0)[1] >> 16 & 0xff, count.into());
                assert_eq!(look_up(&leaves, 0xb, 1)[3], index.into());
                assert_eq!(look_up(&leaves, 0xb, 2), [0; 4]);
                assert_eq!(look_up(&leaves, 1, 0)[3] & HTT != 0, count > 1);
            }
        }
    }

    #[test]
    fn a_guest_with_more_features_is_refused_by_their_names() {
        let mut leaves = at(0, 1);
        for leaf in &mut leaves {
            if leaf.function == 1 {
                leaf.result[2] |= 1 << 26 | 1 << 28;
            }
            if leaf.function == 7 {
                leaf.result[1] |= 1 << 5;
                leaf.result[2] |= 1 << 2;
            }
        }
        let text = check(&leaves).unwrap_err().to_string();
        for name in ["XSAVE", "AVX", "AVX2", "CPUID.7:ECX[2]"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn unknown_leaves_are_zero() {
        assert_eq!(look_up(&at(0, 1), 0x1234, 0), [0; 4]);
        assert_eq!(look_up(&at(0, 1), 7, 1), [0; 4]);
    }
}
