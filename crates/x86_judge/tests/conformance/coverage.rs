//! Every instruction that Debian's kernel and programs execute has a test: the differential one
//! for what a program may execute, a case of this suite for the rest.

use std::collections::{BTreeMap, BTreeSet};

use x86_judge::allowed_codes;

/// Instructions that only a kernel executes, or whose result is the platform's: the case that covers
/// each.
const BY_CONFORMANCE: &[(&str, &str)] = &[
    ("Cli", "sti_holds_back_one_instruction"),
    ("Clts", "no_fpu_while_task_switched"),
    ("Cpuid", "identification"),
    ("Hlt", "timer_wakes_a_halted_processor"),
    ("In_AL_DX", "ports"),
    ("In_AL_imm8", "ports"),
    ("In_AX_DX", "ports"),
    ("In_EAX_DX", "ports"),
    ("Int3", "breakpoint_is_a_trap"),
    ("Int_imm8", "software_interrupt"),
    ("Invlpg_m", "invlpg_drops_a_translation"),
    ("Lgdt_m1664", "descriptor_table_registers"),
    ("Lidt_m1664", "descriptor_table_registers"),
    ("Lldt_r32m16", "task_and_local_descriptor_registers"),
    ("Ltr_r32m16", "task_and_local_descriptor_registers"),
    ("Mov_cr_r64", "control_registers"),
    ("Mov_dr_r64", "debug_registers"),
    ("Mov_r64_cr", "control_registers"),
    ("Mov_r64_dr", "debug_registers"),
    ("Out_DX_AL", "ports"),
    ("Out_DX_AX", "ports"),
    ("Out_DX_EAX", "ports"),
    ("Out_imm8_AL", "ports"),
    ("Rdmsr", "msr_values_are_checked"),
    ("Rdrand_r64", "random_numbers"),
    ("Rdtsc", "time_stamp_counter_advances"),
    ("Sgdt_m1664", "descriptor_table_registers"),
    ("Sti", "sti_holds_back_one_instruction"),
    ("Swapgs", "swapgs_exchanges_bases"),
    ("Syscall", "syscall_and_sysret"),
    ("Sysretq", "syscall_and_sysret"),
    ("Tzcnt_r32_rm32", "bit_scan_with_rep_prefix"),
    ("Tzcnt_r64_rm64", "bit_scan_with_rep_prefix"),
    ("Ud2", "undefined_opcode"),
    ("Verw_r32m16", "descriptor_queries"),
    ("Wbinvd", "no_operations"),
    ("Wrmsr", "msr_values_are_checked"),
];

#[test]
fn every_seen_code_is_tested() {
    let allowed = allowed_codes();
    let differential: BTreeSet<String> = allowed.iter().map(|code| format!("{code:?}")).collect();
    let conformance: BTreeMap<&str, &str> = BY_CONFORMANCE.iter().copied().collect();
    let seen = include_str!("../data/seen_codes.tsv");
    let lines = seen.lines().filter(|line| !line.starts_with('#'));
    let codes: BTreeSet<&str> = lines.map(|line| line.split('\t').next().unwrap()).collect();
    let tested = |code: &&str| differential.contains(*code) || conformance.contains_key(code);
    let missing: Vec<_> = codes.iter().filter(|code| !tested(code)).collect();
    assert!(codes.len() > 500, "the list is there");
    assert!(missing.is_empty(), "no test: {missing:?}");
    let cases: BTreeSet<&str> = crate::cases().iter().map(|(name, _)| *name).collect();
    for (code, case) in BY_CONFORMANCE {
        assert!(cases.contains(case), "{code}: no case {case}");
    }
}
