//! What a kernel relies on: exceptions, paging, privilege, interrupts, system registers. Each case
//! is a bare-metal program that runs on every engine, through the seam.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Adds instructions to a kit.
macro_rules! emit {
    ($kit:expr; $($($name:ident($($operand:expr),*)).+);* $(;)?) => {{
        $( $kit.asm$(.$name($($operand),*))+.unwrap(); )*
    }};
}

mod coverage;
mod engines;
mod faults;
mod interrupts;
mod kit;
mod paging;
mod privilege;
mod registers;

use std::panic::{AssertUnwindSafe, catch_unwind};

use engines::{End, Engines};
use kit::{Check, Kit};

/// Cases that a KVM without hardware virtualization gets wrong, since the host kernel's instruction
/// emulator runs the guest: what it does instead. They run where a processor executes guest code.
const BEYOND_EMULATION: &[(&str, &str)] = &[
    (
        "access_over_two_pages",
        "writes the first page before it looks at the second",
    ),
    ("bit_scan_with_rep_prefix", "executes TZCNT as BSF"),
    ("control_registers", "takes reserved bits of CR4"),
    ("data_breakpoint", "has no debug registers"),
    ("flags_by_privilege", "lets POPF change IF in user mode"),
    (
        "higher_vector_first",
        "does not take interrupts between two instructions",
    ),
    (
        "iret_refuses_bad_frames",
        "checks the stack segment before the code segment",
    ),
    ("iret_to_user_mode", "does not take IOPL from IRET's frame"),
    (
        "mov_ss_holds_back_one_instruction",
        "does not take interrupts between two instructions",
    ),
    (
        "popf_lets_interrupts_in",
        "does not take interrupts between two instructions",
    ),
    ("program_of_32_bits", "has no INT3"),
    (
        "sti_holds_back_one_instruction",
        "does not take interrupts between two instructions",
    ),
    ("syscall_and_sysret", "has no INT3"),
    ("syscall_needs_efer", "has SYSCALL without EFER.SCE"),
    (
        "task_priority_holds_back",
        "does not take interrupts between two instructions",
    ),
];

/// Writes a program into the kit and returns what is true after it.
type Build = fn(&mut Kit) -> Check;

/// A case: its name and its program.
type Case = (&'static str, Build);

/// All cases.
fn cases() -> Vec<Case> {
    let groups = [
        faults::CASES,
        interrupts::CASES,
        paging::CASES,
        privilege::CASES,
        registers::CASES,
    ];
    groups.concat()
}

/// Whether the host kernel's emulator runs the guest: it knows no INT3.
fn is_emulated(engines: &Engines) -> bool {
    let mut kit = Kit::new();
    kit.trap(|kit| kit.asm.int3().unwrap());
    matches!(engines.run(&kit.finish()).0, End::Unsupported(_))
}

/// Runs all cases on `engines` and panics with those that fail.
fn run_all(engines: &Engines) {
    let emulated = is_emulated(engines);
    let wanted = std::env::var("MITOSE_CONFORMANCE_CASE").unwrap_or_default();
    let mut failed = Vec::new();
    let chosen = cases()
        .into_iter()
        .filter(|(name, _)| name.contains(&wanted));
    for (name, build) in chosen {
        let beyond = BEYOND_EMULATION.iter().find(|(case, _)| *case == name);
        if let (true, Some((_, reason))) = (emulated, beyond) {
            eprintln!("{name} skipped: the host kernel emulates guest code here, and {reason}");
            continue;
        }
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut kit = Kit::new();
            let check = build(&mut kit);
            let program = kit.finish();
            let (end, outcome) = engines.run(&program);
            match end {
                End::Finished => check(&outcome),
                End::Unsupported(reason) => eprintln!("{name} skipped: {reason}"),
                End::Wrong(reason) => panic!("{reason}\n{outcome:x?}"),
            }
        }));
        if run.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "on {}: {failed:?}", engines.name());
}

#[test]
fn the_software_engine_conforms() {
    run_all(&Engines::soft());
}

#[test]
fn kvm_conforms() {
    match Engines::kvm() {
        Ok(engines) => run_all(&engines),
        Err(reason) => eprintln!("skipped: {reason}"),
    }
}
