//! `suite`: whole-system tests with Linux guests, through the command line.
//!
//! `suite HOME IMAGE ENGINE SCENARIO…`: the test `linux` runs it here on what the machine has, the
//! test `lab` on real KVM in the lab. Each scenario ends with a line `ok NAME` or `FAILED NAME: why`.

#![forbid(unsafe_code)]

mod busy;
mod frozen;
mod guest;
mod identity;
mod idle;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use harness::Cli;

use crate::guest::Place;

type Scenario = fn(&Place) -> anyhow::Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("generations", idle::generations),
    ("power_cycle", idle::power_cycle),
    ("failures", idle::failures_leave_the_source),
    ("daemon_killed", idle::daemon_killed_in_a_fork),
    ("machine_uuid", identity::machine_uuid),
    ("copies", identity::copies),
    ("frozen", frozen::frozen),
    ("busy", busy::forked_while_busy),
    ("busy_smp", busy::forked_while_busy_on_four_cpus),
    ("repeated", busy::forked_twenty_times),
    ("repeated_long", busy::forked_fifty_times),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [home, image, engine, wanted @ ..] = args.as_slice() else {
        eprintln!("usage: suite HOME IMAGE ENGINE [SCENARIO…]");
        return ExitCode::from(2);
    };
    let mut failed = 0;
    for (name, scenario) in SCENARIOS {
        if !wanted.is_empty() && !wanted.iter().any(|other| other == name) {
            continue;
        }
        let started = Instant::now();
        match play(Path::new(home), image, engine, *scenario) {
            Ok(()) => println!("ok {name} ({:.1} s)", started.elapsed().as_secs_f64()),
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn play(home: &Path, image: &str, engine: &str, scenario: Scenario) -> anyhow::Result<()> {
    let place = Place {
        cli: Cli::new(home)?,
        image: image.to_owned(),
        engine: engine.to_owned(),
    };
    let result = scenario(&place).and_then(|()| place.check_logs());
    if let Err(error) = &result {
        eprintln!("{error:#}\n{}", place.daemon_log());
    }
    place.cli.clean_up();
    result.and_then(|()| place.check_nothing_left())
}
