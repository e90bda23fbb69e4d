//! The plain functions do what the resolved instructions do.

use iced_x86::{Code, Instruction, OpCodeOperandKind, OpKind, Register};

use super::cases::Random;
use crate::{FpState, Operand, Outside, fast, resolve};

type Binary = fn(u128, u128) -> u128;

const BINARY: &[(Code, Binary)] = &[
    (Code::Pand_xmm_xmmm128, fast::pand),
    (Code::Pandn_xmm_xmmm128, fast::pandn),
    (Code::Por_xmm_xmmm128, fast::por),
    (Code::Pxor_xmm_xmmm128, fast::pxor),
    (Code::Pcmpeqb_xmm_xmmm128, fast::pcmpeqb),
    (Code::Pcmpeqw_xmm_xmmm128, fast::pcmpeqw),
    (Code::Pcmpeqd_xmm_xmmm128, fast::pcmpeqd),
    (Code::Paddb_xmm_xmmm128, fast::paddb),
    (Code::Paddw_xmm_xmmm128, fast::paddw),
    (Code::Paddd_xmm_xmmm128, fast::paddd),
    (Code::Paddq_xmm_xmmm128, fast::paddq),
    (Code::Psubb_xmm_xmmm128, fast::psubb),
    (Code::Psubw_xmm_xmmm128, fast::psubw),
    (Code::Psubd_xmm_xmmm128, fast::psubd),
    (Code::Psubq_xmm_xmmm128, fast::psubq),
    (Code::Pminub_xmm_xmmm128, fast::pminub),
    (Code::Pmaxub_xmm_xmmm128, fast::pmaxub),
    (Code::Pmuludq_xmm_xmmm128, fast::pmuludq),
    (Code::Punpcklbw_xmm_xmmm128, fast::punpcklbw),
    (Code::Punpcklwd_xmm_xmmm128, fast::punpcklwd),
    (Code::Punpckldq_xmm_xmmm128, fast::punpckldq),
    (Code::Punpcklqdq_xmm_xmmm128, fast::punpcklqdq),
    (Code::Punpckhbw_xmm_xmmm128, fast::punpckhbw),
    (Code::Punpckhwd_xmm_xmmm128, fast::punpckhwd),
    (Code::Punpckhdq_xmm_xmmm128, fast::punpckhdq),
    (Code::Punpckhqdq_xmm_xmmm128, fast::punpckhqdq),
];

/// Runs `code` on register 1 and XMM2; returns XMM1 and RCX.
fn run(code: Code, first: u128, second: u128, immediate: u8) -> (u128, u64) {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    for (operand, kind) in code.op_code().op_kinds().iter().enumerate() {
        let operand = operand as u32;
        if *kind == OpCodeOperandKind::imm8 {
            instruction.set_op_kind(operand, OpKind::Immediate8);
            instruction.set_immediate8(immediate);
        } else {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, Register::XMM1 + operand);
        }
    }
    let operation = resolve(&instruction).expect("it resolves");
    let mut state = FpState::new();
    state.xmm[1] = first;
    state.xmm[2] = second;
    let (mut general, mut flags, mut memory) = ([0; 16], 2, Operand::new());
    let mut outside = Outside {
        general: &mut general,
        flags: &mut flags,
        memory: &mut memory,
    };
    (operation.run)(&mut state, &mut outside, operation.arguments).expect("it raises nothing");
    (state.xmm[1], general[1])
}

#[test]
fn plain_functions_are_the_instructions() {
    let mut random = Random::new(0xfa57);
    for _ in 0..200 {
        let mut number = || u128::from(random.next()) << 64 | u128::from(random.next());
        let (first, second) = (number(), number());
        // Equal bytes too, for comparisons.
        let second = second & first | second & !0xff_ffff_ffff;
        for &(code, function) in BINARY {
            let expected = run(code, first, second, 0).0;
            assert_eq!(function(first, second), expected, "{code:?}");
        }
        let immediate = first as u8;
        let shuffled = run(Code::Pshufd_xmm_xmmm128_imm8, first, second, immediate).0;
        assert_eq!(fast::pshufd(second, immediate), shuffled);
        for bytes in 0..16 {
            let (left, _) = run(Code::Pslldq_xmm_imm8, first, 0, bytes);
            let (right, _) = run(Code::Psrldq_xmm_imm8, first, 0, bytes);
            assert_eq!(fast::pslldq(first, bytes), left);
            assert_eq!(fast::psrldq(first, bytes), right);
        }
        let (_, mask) = run(Code::Pmovmskb_r32_xmm, first, second, 0);
        assert_eq!(u64::from(fast::pmovmskb(second)), mask);
    }
}

#[test]
fn quick_numbers_are_answered_where_no_flag_can_be_new() {
    let (quiet, inexact) = (0x1f80, 0x1fa0);
    let bits = f64::to_bits;
    assert_eq!(fast::addsd(quiet, bits(1.0), bits(2.0)), Some(bits(3.0)));
    assert_eq!(fast::addsd(quiet, bits(0.1), bits(0.2)), None);
    assert_eq!(
        fast::addsd(inexact, bits(0.1), bits(0.2)),
        Some(bits(0.1 + 0.2))
    );
    assert_eq!(fast::mulsd(quiet, bits(3.0), bits(7.0)), Some(bits(21.0)));
    assert_eq!(fast::mulsd(quiet, bits(0.1), bits(0.1)), None);
    assert_eq!(fast::divsd(quiet, bits(21.0), bits(7.0)), Some(bits(3.0)));
    assert_eq!(fast::divsd(quiet, bits(1.0), bits(3.0)), None);
    assert_eq!(fast::divsd(inexact, bits(1.0), bits(0.0)), None);
    assert_eq!(fast::addsd(inexact, bits(f64::MAX), bits(f64::MAX)), None);
    assert_eq!(fast::addsd(inexact | 0x6000, bits(1.0), bits(2.0)), None);
    assert_eq!(fast::truncate_64(quiet, bits(-3.0)), Some(-3_i64 as u64));
    assert_eq!(fast::truncate_64(quiet, bits(0.5)), None);
    assert_eq!(fast::double_of_64(quiet, u64::MAX >> 1), None);
}
