//! What continuous integration runs after the machine is set up.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

const STEPS: &[(&str, &[&str])] = &[
    ("formatting", &["cargo", "fmt", "--all", "--check"]),
    ("house rules", &["cargo", "xtask", "tidy"]),
    (
        "lints",
        &[
            "cargo",
            "clippy",
            // The profile of `make test`, so that macros and build scripts are built once.
            "--release",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("tests", &["make", "test"]),
];

/// Runs all steps; the first one that fails ends it.
pub fn run() -> anyhow::Result<ExitCode> {
    for (name, command) in STEPS {
        println!("== {name}: {}", command.join(" "));
        let (program, args) = command.split_first().context("a step without a program")?;
        let status = Command::new(program)
            .args(args)
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        if !status.success() {
            bail!("{name}: `{}` ended with {status}", command.join(" "));
        }
    }
    Ok(ExitCode::SUCCESS)
}
