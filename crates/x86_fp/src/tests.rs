//! Every instruction against the host that this crate computes with, run natively in generated code.

mod cases;
mod native;
mod plain;

use iced_x86::{Code, CpuidFeature, Instruction};

use self::cases::{Random, edge_frame, faulting_frame, instruction_of, random_frame};
use self::native::{Frame, Native};
use crate::{FpFault, FpState, MXCSR_MASK, Memory, Operand, Outside, Unit, resolve};

/// Runs of each instruction and immediate.
const ROUNDS: usize = 16;

/// Codes that other parts of a processor run although they bear SSE's feature bits.
fn elsewhere(code: Code) -> bool {
    let name = format!("{code:?}");
    [
        "Prefetch", "Lfence", "Mfence", "Sfence", "Crc32", "Movnti", "Fstdw", "Fstsg", "Fnstdw",
        "Fnstsg", "Frstpm",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// Whether a code belongs to this crate.
fn covered(code: Code) -> bool {
    use CpuidFeature as F;
    let features = code.cpuid_features();
    let fp = |feature: &F| {
        matches!(
            feature,
            F::FPU
                | F::FPU287
                | F::FPU387
                | F::MMX
                | F::SSE
                | F::SSE2
                | F::SSE3
                | F::SSSE3
                | F::SSE4_1
                | F::SSE4_2
                | F::FXSR
        )
    };
    features.iter().any(fp)
        && features
            .iter()
            .all(|feature| fp(feature) || *feature == F::CMOV)
        && !elsewhere(code)
}

/// The crate's codes.
fn codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|&code| covered(code) || code == Code::Wait)
}

#[test]
fn every_code_of_the_sets_resolves() {
    let missing: Vec<Code> = codes()
        .filter(|&code| {
            let mut forms = instruction_of(code, &mut Random::new(1));
            forms.any(|instruction| resolve(&instruction).is_none())
        })
        .collect();
    assert_eq!(missing, []);
    assert!(codes().count() > 500);
}

#[test]
fn every_code_that_debian_was_seen_to_execute_resolves() {
    let known: Vec<String> = codes().map(|code| format!("{code:?}")).collect();
    for name in include_str!("tests/executed_codes.txt").lines() {
        assert!(known.iter().any(|code| code == name), "{name}");
    }
}

#[test]
fn newer_and_other_instructions_do_not_resolve() {
    for code in [
        Code::VEX_Vaddps_xmm_xmm_xmmm128,
        Code::Aesenc_xmm_xmmm128,
        Code::Pclmulqdq_xmm_xmmm128_imm8,
        Code::Extrq_xmm_xmm,
        Code::D3NOW_Pfadd_mm_mmm64,
        Code::Femms,
        Code::Add_rm32_r32,
        Code::Crc32_r32_rm32,
        Code::Movbe_r32_m32,
        Code::Xsave_mem,
        Code::Sha1msg1_xmm_xmmm128,
    ] {
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        assert!(resolve(&instruction).is_none(), "{code:?}");
    }
}

/// Runs an instruction on a copy of `frame` by this crate.
fn run_here(instruction: &Instruction, frame: &Frame) -> (Frame, Option<FpFault>) {
    let operation = resolve(instruction).expect("it resolves");
    let mut after = frame.clone();
    let mut state = FpState::from_fxsave(&frame.image);
    let mut operand = Operand::new();
    operand.0.fill(0xa5);
    match operation.memory {
        Memory::None | Memory::Store(_) => {}
        Memory::Load(len) | Memory::Both(len) => {
            let len = usize::from(len);
            operand.0[..len].copy_from_slice(&frame.memory[..len]);
        }
    }
    let mut outside = Outside {
        general: &mut after.general,
        flags: &mut after.flags,
        memory: &mut operand,
    };
    let outcome = (operation.run)(&mut state, &mut outside, operation.arguments);
    if outcome.is_ok()
        && let Memory::Store(len) | Memory::Both(len) = operation.memory
    {
        let len = usize::from(len);
        after.memory[..len].copy_from_slice(&operand.0[..len]);
    }
    after.image = state.to_fxsave();
    (after, outcome.err())
}

/// Compares what a code does here and natively, with what states `prepare` makes.
fn check(
    native: &Native,
    code: Code,
    random: &mut Random,
    prepare: fn(&mut Random, &Instruction, usize) -> Frame,
) {
    let forms: Vec<Instruction> = instruction_of(code, random).collect();
    for instruction in forms {
        let Some(runner) = native.prepare(&instruction) else {
            continue;
        };
        for round in 0..ROUNDS {
            let frame = prepare(random, &instruction, round);
            let mut expected = frame.clone();
            let faulted = runner.run(&mut expected);
            let (mut here, fault) = run_here(&instruction, &frame);
            for side in [&mut expected, &mut here] {
                side.forget_pointers(&instruction);
                // Whether a result beyond the range is exact shows only to a processor that computed
                // it with the exception unmasked.
                if fault == Some(FpFault::Simd) && side.image[24] & 0x18 != 0 {
                    side.image[24] &= !0x20;
                }
            }
            assert!(
                here == expected && fault.is_some() == faulted,
                "{instruction} ({code:?}), round {round}, fault {fault:?}, native {faulted}\n\
                 before {frame:?}\nnative {expected:?}\nhere   {here:?}\n{}",
                expected.difference(&here),
            );
        }
    }
}

#[test]
fn sse_and_mmx_do_what_the_host_does() {
    let native = Native::new();
    let mut random = Random::new(0x5eed);
    for code in codes().filter(|&code| !is_x87(code)) {
        check(&native, code, &mut random, random_frame);
    }
}

#[test]
fn x87_does_what_the_host_does() {
    let native = Native::new();
    let mut random = Random::new(0xf00d);
    for code in codes().filter(|&code| is_x87(code)) {
        check(&native, code, &mut random, random_frame);
    }
}

#[test]
fn unmasked_exceptions_are_the_faults_that_the_host_raises() {
    let native = Native::new();
    let mut random = Random::new(0xfa17);
    for code in codes() {
        check(&native, code, &mut random, faulting_frame);
    }
}

#[test]
fn scalar_numbers_at_the_edges_do_what_the_host_does() {
    let native = Native::new();
    let mut random = Random::new(0xed6e);
    for code in [
        Code::Addsd_xmm_xmmm64,
        Code::Subsd_xmm_xmmm64,
        Code::Mulsd_xmm_xmmm64,
        Code::Divsd_xmm_xmmm64,
        Code::Addss_xmm_xmmm32,
        Code::Subss_xmm_xmmm32,
        Code::Mulss_xmm_xmmm32,
        Code::Divss_xmm_xmmm32,
        Code::Cvttsd2si_r32_xmmm64,
        Code::Cvttsd2si_r64_xmmm64,
        Code::Cvtss2sd_xmm_xmmm32,
        Code::Ucomisd_xmm_xmmm64,
        Code::Comiss_xmm_xmmm32,
        Code::Cvtsi2sd_xmm_rm64,
    ] {
        for _ in 0..40 {
            check(&native, code, &mut random, edge_frame);
        }
    }
}

/// Whether a code is x87's.
fn is_x87(code: Code) -> bool {
    instruction_of(code, &mut Random::new(1))
        .any(|instruction| resolve(&instruction).is_some_and(|found| found.unit == Unit::X87))
}

#[test]
fn images_of_any_bytes_are_taken_and_kept() {
    let mut random = Random::new(7);
    for _ in 0..1000 {
        let mut bytes = [0; 512];
        bytes.fill_with(|| random.next() as u8);
        let state = FpState::from_fxsave(&bytes);
        assert_eq!(state.mxcsr & !MXCSR_MASK, 0);
        let image = state.to_fxsave();
        assert_eq!(image, FpState::from_fxsave(&image).to_fxsave());
        assert_eq!(image[160..416], bytes[160..416]);
    }
}
