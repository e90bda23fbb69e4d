//! What CPUID offers of what the processor itself has to know.

use crate::Environment;

/// Asked once, as CPUID does not change while a processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// Width of physical addresses, 32 to 52.
    pub(crate) physical_bits: u8,
    /// 1 GiB pages.
    pub(crate) huge_pages: bool,
    /// EFER.NXE.
    pub(crate) no_execute: bool,
    /// Long mode.
    pub(crate) long_mode: bool,
    /// SYSCALL and SYSRET.
    pub(crate) syscall: bool,
    /// EFER.FFXSR.
    pub(crate) fast_fxsave: bool,
    /// RDTSCP and TSC_AUX.
    pub(crate) rdtscp: bool,
    /// CR4.SMEP.
    pub(crate) smep: bool,
    /// CR4.UMIP.
    pub(crate) umip: bool,
    /// CR4.FSGSBASE and its instructions.
    pub(crate) fsgsbase: bool,
    /// RDPID.
    pub(crate) rdpid: bool,
    /// RDRAND.
    pub(crate) rdrand: bool,
    /// RDSEED.
    pub(crate) rdseed: bool,
    /// SYSENTER behaves as Intel's: legal in long mode too.
    pub(crate) intel: bool,
}

fn bit(word: u32, number: u32) -> bool {
    word >> number & 1 != 0
}

impl Features {
    pub(super) fn ask(env: &mut dyn Environment) -> Self {
        let leaf = |env: &mut dyn Environment, leaf| env.cpuid(leaf, 0);
        let vendor = leaf(env, 0);
        let basic = leaf(env, 1);
        let structured = if vendor[0] >= 7 { leaf(env, 7) } else { [0; 4] };
        let extended_max = leaf(env, 0x8000_0000)[0];
        let extended = if extended_max >= 0x8000_0001 {
            leaf(env, 0x8000_0001)
        } else {
            [0; 4]
        };
        let sizes = if extended_max >= 0x8000_0008 {
            leaf(env, 0x8000_0008)[0] & 0xff
        } else {
            36
        };
        Self {
            physical_bits: sizes.clamp(32, 52) as u8,
            huge_pages: bit(extended[3], 26),
            no_execute: bit(extended[3], 20),
            long_mode: bit(extended[3], 29),
            syscall: bit(extended[3], 11),
            fast_fxsave: bit(extended[3], 25),
            rdtscp: bit(extended[3], 27),
            smep: bit(structured[1], 7),
            umip: bit(structured[2], 2),
            fsgsbase: bit(structured[1], 0),
            rdpid: bit(structured[2], 22),
            rdrand: bit(basic[2], 30),
            rdseed: bit(structured[1], 18),
            // "GenuineIntel", of which EBX has the first four letters.
            intel: vendor[1] == u32::from_le_bytes(*b"Genu"),
        }
    }
}
