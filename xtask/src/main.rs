//! Chores of the workspace: `cargo xtask tidy` checks the house rules, `cargo xtask ci` runs what
//! `.ci/run` runs.

#![forbid(unsafe_code)]

mod ci;
mod tidy;
mod workspace;

use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "usage: cargo xtask COMMAND

  tidy            check the house rules: dependency law, unsafe code, files, names, documents
  tidy --ratchet  the same, and lower the limits in xtask/ratchet.txt to today's values
  ci              formatting, clippy, tidy and `make test`, as .ci/run does";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["tidy"] => run_tidy(false),
        ["tidy", "--ratchet"] => run_tidy(true),
        ["ci"] => ci::run(),
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_tidy(ratchet: bool) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    if ratchet {
        tidy::lower_ratchet(&workspace)?;
    }
    let report = tidy::check(&workspace)?;
    for note in &report.notes {
        println!("note: {note}");
    }
    for finding in &report.findings {
        eprintln!("{finding}");
    }
    if report.findings.is_empty() {
        println!("tidy: {} files are in order", report.files);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} findings", report.findings.len());
    Ok(ExitCode::FAILURE)
}
