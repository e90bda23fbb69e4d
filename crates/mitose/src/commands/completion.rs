//! `mitose completion`.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose completion bash > /etc/bash_completion.d/mitose
  mitose completion zsh > ~/.zfunc/_mitose")]
pub struct Args {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    print(args.shell, &mut io::stdout().lock())?;
    Ok(0)
}

fn print(shell: Shell, output: &mut impl Write) -> anyhow::Result<()> {
    // What generates it panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mitose", &mut script);
    let written = output.write_all(&script).and_then(|()| output.flush());
    written.context("cannot write the output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_an_error_of_the_output() {
        let (reader, mut output) = io::pipe().unwrap();
        drop(reader);
        let error = print(Shell::Bash, &mut output).unwrap_err();
        assert_eq!(error.to_string(), "cannot write the output");
        let cause = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::BrokenPipe);
    }
}
