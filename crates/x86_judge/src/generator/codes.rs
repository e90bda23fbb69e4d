//! Which instructions the differential test knows.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// What kind of instruction a code is; sequences mix kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Integers, flags, addresses, stack.
    Integer,
    /// Jumps, calls, returns.
    Branch,
    /// String instructions.
    Text,
    /// x87.
    X87,
    /// MMX.
    Mmx,
    /// SSE to SSE4.2.
    Sse,
    /// Always ends in an exception in a user program.
    Forbidden,
}

const FEATURES: [CpuidFeature; 28] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::CLFSH,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PREFETCHW,
    CpuidFeature::MSR,
    CpuidFeature::CET_IBT,
    CpuidFeature::CET_SS,
];

/// Says whether a program must not run `code` natively, or its outcome is not the processor's
/// alone: it depends on the host's kernel, vendor or time.
fn excluded(code: Code) -> bool {
    use Mnemonic as M;
    let by_mnemonic = matches!(
        code.mnemonic(),
        // The host's kernel or its descriptor tables decide.
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw
        // FS holds the test's own thread pointer.
        | M::Lfs
        // Not the same on all vendors' processors.
        // (INT1: hypervisors that intercept it differ in the address that they report.)
        | M::Int1
        // (UD0, UD1: whether they have a ModR/M byte, which may lie on a page that is missing.)
        | M::Ud0 | M::Ud1 | M::Sysexit | M::Sysret | M::Sysenter | M::Rsm
        // Shadow stacks may be there; only RDSSP is a no-operation without them.
        | M::Wrssd | M::Wrssq | M::Wrussd | M::Wrussq | M::Incsspd | M::Incsspq
        | M::Rstorssp | M::Saveprevssp | M::Setssbsy | M::Clrssbsy | M::Endbr32
    );
    let by_code = matches!(
        code,
        // Offsets that do not reach the code pages.
        Code::Retfw | Code::Retfw_imm16 | Code::Retfd | Code::Retfd_imm16 | Code::Iretw
        | Code::Iretd | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Call_m1616 | Code::Call_m1632
        // Undefined result.
        | Code::Bswap_r16
        // FS again.
        | Code::Popw_FS | Code::Popq_FS
        // Operand size 16 of near branches: vendors differ.
        | Code::Retnw | Code::Retnw_imm16 | Code::Call_rm16 | Code::Jmp_rm16
        // A 64-bit offset: vendors differ.
        | Code::Jmp_m1664 | Code::Call_m1664 | Code::Lss_r64_m1664 | Code::Lgs_r64_m1664
        | Code::Lfs_r64_m1664
    );
    let name = format!("{code:?}");
    by_mnemonic || by_code || name.starts_with("Reservednop") || name.ends_with("_rel16")
}

/// Returns the kind of `code`; `None` where it is none of the differential test.
pub fn kind(code: Code) -> Option<Kind> {
    let about = code.op_code();
    let usable = about.is_instruction()
        && about.mode64()
        && about.encoding() == EncodingKind::Legacy
        && about.intel_decoder64()
        && about.amd_decoder64()
        && !about.fwait();
    let features = code.cpuid_features();
    let known = features.iter().all(|feature| FEATURES.contains(feature));
    if !usable || !known || excluded(code) {
        return None;
    }
    let operands = about.op_kinds();
    let has = |kinds: &[OpCodeOperandKind]| operands.iter().any(|kind| kinds.contains(kind));
    use OpCodeOperandKind as O;
    let is = |feature| features.contains(&feature);
    Some(if forbidden(code) || has(&[O::cr_reg, O::dr_reg]) {
        Kind::Forbidden
    } else if code.is_jcc_short_or_near()
        || has(&[O::br64_1, O::br64_4])
        || matches!(
            code.mnemonic(),
            Mnemonic::Jmp
                | Mnemonic::Call
                | Mnemonic::Ret
                | Mnemonic::Retf
                | Mnemonic::Iret
                | Mnemonic::Iretd
                | Mnemonic::Iretq
        )
    {
        Kind::Branch
    } else if text(code) {
        Kind::Text
    } else if is(CpuidFeature::FPU) || is(CpuidFeature::FPU287) || is(CpuidFeature::FPU387) {
        Kind::X87
    } else if has(&[O::mm_reg, O::mm_rm, O::mm_or_mem]) || code.mnemonic() == Mnemonic::Emms {
        Kind::Mmx
    } else if is_sse(code) {
        Kind::Sse
    } else {
        Kind::Integer
    })
}

/// String instructions proper.
pub fn text(code: Code) -> bool {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    let name = matches!(
        mnemonic,
        M::Movsb
            | M::Movsw
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
    );
    name || matches!(code, Code::Movsd_m32_m32 | Code::Cmpsd_m32_m32)
}

fn forbidden(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Hlt
            | M::Cli
            | M::Sti
            | M::In
            | M::Out
            | M::Insb
            | M::Insw
            | M::Insd
            | M::Outsb
            | M::Outsw
            | M::Outsd
            | M::Lgdt
            | M::Lidt
            | M::Lldt
            | M::Ltr
            | M::Lmsw
            | M::Clts
            | M::Invd
            | M::Wbinvd
            | M::Invlpg
            | M::Swapgs
            | M::Rdmsr
            | M::Wrmsr
            | M::Ud2
            | M::Int
            | M::Int3
    )
}

fn is_sse(code: Code) -> bool {
    const SSE: [CpuidFeature; 6] = [
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
    ];
    let mut features = code.cpuid_features().iter();
    features.any(|feature| SSE.contains(feature))
}

/// Returns all codes that the differential test runs.
pub fn differential_codes() -> Vec<Code> {
    Code::values()
        .filter(|code| kind(*code).is_some())
        .collect()
}

/// Returns those of [`differential_codes`] that do more than fault in a program.
pub fn allowed_codes() -> Vec<Code> {
    let allowed = |code: &Code| kind(*code) != Some(Kind::Forbidden);
    differential_codes().into_iter().filter(allowed).collect()
}
