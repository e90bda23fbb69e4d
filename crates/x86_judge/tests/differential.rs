//! The same instructions on the host CPU and on the software CPU: everything that the manual
//! defines is equal.
//!
//! `MITOSE_TEST_SCALE` multiplies the number of cases, `MITOSE_TEST_FULL` runs at least a million.
//! `MITOSE_JUDGE_FIRST` is the first seed, so that other cases are run than usual.
//! `MITOSE_JUDGE_CODE` (a part of an iced code name), `MITOSE_JUDGE_SEED` and
//! `MITOSE_JUDGE_REPORTS` help to find the cause of a difference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use x86_judge::{Case, Draft, Generator, Native, Random, Soft, compare, differential_codes};

/// Cases of each code per run.
const VARIANTS: u64 = 12;
/// Sequences per run.
const SEQUENCES: u64 = 12_000;
/// Factor that makes both together more than a million.
const FULL: u64 = 48;
/// Differences after which a run gives up.
const REPORTS: usize = 5;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let digits = text.strip_prefix("0x");
    let number = match digits {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn scale() -> u64 {
    let full = std::env::var("MITOSE_TEST_FULL").is_ok_and(|value| value == "1");
    let scale = number("MITOSE_TEST_SCALE").unwrap_or(1);
    if full { scale.max(FULL) } else { scale }
}

fn seeds(count: u64) -> Range<u64> {
    let first = number("MITOSE_JUDGE_FIRST").unwrap_or(0);
    first..first + count
}

/// Names of the fields that differ.
fn fields_of(differences: &[String]) -> Vec<String> {
    let field = |text: &String| text.split(':').next().unwrap_or("").to_owned();
    differences.iter().map(field).collect()
}

/// Both processors.
struct Judges {
    native: Native,
    soft: Soft,
    runs: u64,
    reports: BTreeMap<String, String>,
}

impl Judges {
    fn new() -> Self {
        Self {
            native: Native::new().unwrap(),
            soft: Soft::new(),
            runs: 0,
            reports: BTreeMap::new(),
        }
    }

    /// Returns what differs.
    fn differences(&mut self, case: &Case) -> Vec<String> {
        let native = match self.native.run(case) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.native = Native::new().unwrap();
                return vec![format!("native: {error}")];
            }
        };
        // How the run is cut up makes no difference.
        let budget = Random::new(case.seed).pick(&[1, 2, 5, 1000, 1000, 1000]);
        let run = catch_unwind(AssertUnwindSafe(|| self.soft.run(case, budget)));
        match run {
            Ok(Ok(soft)) => {
                let differences = compare(case, &native, &soft);
                differences.iter().map(ToString::to_string).collect()
            }
            Ok(Err(error)) => vec![format!("soft: {error:?}, native {:?}", native.trap)],
            Err(_) => {
                self.soft = Soft::new();
                vec!["soft: panic".to_owned()]
            }
        }
    }

    fn check(&mut self, draft: &Draft, name: &str) {
        let case = draft.assemble().unwrap();
        self.runs += 1;
        let fields = fields_of(&self.differences(&case));
        if fields.is_empty() || self.reports.contains_key(name) {
            return;
        }
        let shrunk = draft.shrink(|case| fields_of(&self.differences(case)) == fields);
        let case = shrunk.assemble().unwrap();
        let list = self.differences(&case).join("\n  ");
        let report = format!("native but soft:\n  {list}\n{case}\n");
        self.reports.insert(name.to_owned(), report);
    }

    fn finish(self) {
        eprintln!("{} cases", self.runs);
        let names: Vec<_> = self.reports.keys().collect();
        let shown = number("MITOSE_JUDGE_REPORTS").unwrap_or(REPORTS as u64) as usize;
        let reports = self.reports.iter().take(shown);
        let text: String = reports
            .map(|(name, report)| format!("{name}: {report}\n"))
            .collect();
        assert!(
            names.is_empty(),
            "{} differ: {names:?}\n{text}",
            names.len()
        );
    }
}

#[test]
fn every_code_does_what_the_host_does() {
    let generator = Generator::new();
    let mut judges = Judges::new();
    let wanted = std::env::var("MITOSE_JUDGE_CODE").unwrap_or_default();
    for code in differential_codes() {
        let name = format!("{code:?}");
        if !name.contains(&wanted) {
            continue;
        }
        for seed in seeds(VARIANTS * scale()) {
            judges.check(&generator.single(code, seed), &name);
        }
    }
    judges.finish();
}

#[test]
fn sequences_do_what_the_host_does() {
    let generator = Generator::new();
    let mut judges = Judges::new();
    let seeds = match number("MITOSE_JUDGE_SEED") {
        Some(seed) => seed..seed + 1,
        None => seeds(SEQUENCES * scale()),
    };
    for seed in seeds {
        judges.check(&generator.sequence(seed), &format!("sequence {seed:#x}"));
        if judges.reports.len() >= REPORTS {
            break;
        }
    }
    judges.finish();
}
