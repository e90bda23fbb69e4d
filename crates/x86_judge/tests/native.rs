//! The native runner and the generator by themselves: the judge must be sure of its own ground.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use x86_judge::{Case, Generator, Native, Outcome, compare, differential_codes};

/// Random cases per code or run; the rest is left to the differential test.
const VARIANTS: u64 = 3;

fn twice(native: &mut Native, case: &Case) -> Outcome {
    let first = native
        .run(case)
        .unwrap_or_else(|error| panic!("{error}\n{case}"));
    let second = native.run(case).unwrap();
    let differences = compare(case, &first, &second);
    assert!(differences.is_empty(), "{differences:?}\n{case}");
    first
}

#[test]
fn every_code_runs_and_runs_again_alike() {
    let generator = Generator::new();
    let mut native = Native::new().unwrap();
    let mut missing = Vec::new();
    let mut never_done = Vec::new();
    for code in differential_codes() {
        let mut done = 0;
        for seed in 0..VARIANTS {
            let draft = generator.single(code, seed);
            let case = draft.assemble().unwrap();
            if !case
                .steps
                .iter()
                .any(|step| step.instruction.code() == code)
            {
                missing.push(code);
                break;
            }
            let outcome = twice(&mut native, &case);
            done += u64::from(outcome.trap.is_none());
        }
        if done == 0 {
            never_done.push(code);
        }
    }
    assert!(missing.is_empty(), "no operands found: {missing:?}");
    eprintln!("never ran to the end: {never_done:?}");
}

#[test]
fn sequences_run_and_run_again_alike() {
    let generator = Generator::new();
    let mut native = Native::new().unwrap();
    let mut vectors: BTreeMap<Option<u8>, u64> = BTreeMap::new();
    for seed in 0..2000 {
        let case = generator.sequence(seed).assemble().unwrap();
        let outcome = twice(&mut native, &case);
        *vectors
            .entry(outcome.trap.map(|trap| trap.vector))
            .or_default() += 1;
    }
    eprintln!("ends of sequences by vector: {vectors:?}");
    assert!(
        vectors[&None] > 1000,
        "most sequences run to their end: {vectors:?}"
    );
}
