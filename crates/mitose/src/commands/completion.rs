//! `mitose completion`.

use std::io;

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
    clap_complete::generate(args.shell, &mut Cli::command(), "mitose", &mut io::stdout());
    Ok(0)
}
