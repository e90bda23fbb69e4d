//! Tests of whole stacks. `qemu-img` judges every file made here; a missing `qemu-img` fails.

mod backing;
mod chain;
mod copy;
mod crash;
mod foreign;
mod hostile;
mod mem;
mod merge;
mod model;
mod qemu;
mod stack;

/// Number of property cases: `n`, times the factor in `MITOSE_TEST_SCALE` for long runs.
fn cases(n: u32) -> u32 {
    n * scale()
}

/// The same where a case starts `qemu-img` hundreds of times: ten seconds and more each.
fn judged_cases(n: u32) -> u32 {
    n * scale().min(2)
}

fn scale() -> u32 {
    let scale = std::env::var("MITOSE_TEST_SCALE").ok();
    scale.and_then(|scale| scale.parse().ok()).unwrap_or(1)
}
