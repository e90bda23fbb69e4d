//! `mitose`: the command line. It asks the daemon for everything and holds no logic of its own.
//!
//! Data goes to standard output, all else to standard error. Exit codes: 0 done, 1 failed, 2 wrong
//! usage; `exec` gives the guest command's own.

#![forbid(unsafe_code)]

mod commands;
mod daemon;
mod output;
mod progress;
mod terminal;

use std::process::ExitCode;

use client::ClientError;

use crate::commands::Context;

fn main() -> ExitCode {
    let cli = match commands::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => match commands::one_line(&error) {
            Some(line) => return ExitCode::from(output::usage(&line)),
            None => error.exit(),
        },
    };
    let context = Context::new(&cli);
    let options = cli.options().to_vec();
    match cli.command.run(&context) {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = output::chain_line(&error);
            if let Some(ClientError::Refused(_)) = error.downcast_ref() {
                line = commands::in_options(&options, &line).unwrap_or(line);
            }
            eprintln!("error: {line}");
            ExitCode::from(1)
        }
    }
}

/// A reader that has seen enough, such as `head`, is no failure.
fn is_closed_output(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    }) && error
        .chain()
        .any(|cause| cause.to_string().contains("output"))
}
