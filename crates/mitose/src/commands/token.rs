//! `mitose token`.

use api_types::{Role, TokenRequest};
use clap::{Subcommand, ValueEnum};

use super::Context;
use crate::output::{self, Format, Table};

/// Make, list and remove tokens of clients on the network
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose token create ci --role operator
  mitose token ls
  mitose token rm ci
  MITOSE_URL=https://host:8443 MITOSE_TOKEN=… MITOSE_CA=cert.pem mitose ls")]
pub struct Args {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print its secret, which is shown only this once
    Create {
        /// Its name; tasks show it as their user
        name: String,
        /// What its bearer may do
        #[arg(long, value_enum, default_value_t = RoleArg::Viewer)]
        role: RoleArg,
    },
    /// List the tokens
    Ls,
    /// Remove tokens
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What a client may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    /// Read
    Viewer,
    /// Everything with VMs
    Operator,
    /// Everything
    Admin,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    match args.command {
        TokenCommand::Create { name, role } => {
            let role = match role {
                RoleArg::Viewer => Role::Viewer,
                RoleArg::Operator => Role::Operator,
                RoleArg::Admin => Role::Admin,
            };
            let made = client.make_token(&TokenRequest { name, role })?;
            match context.format {
                Format::Json => output::json(&made)?,
                Format::Table => output::text_line(&made.secret)?,
            }
        }
        TokenCommand::Ls => {
            let tokens = client.tokens()?;
            if context.format == Format::Json {
                output::json(&tokens)?;
                return Ok(0);
            }
            let mut table = Table::new(&["NAME", "ROLE", "ID"]);
            for token in tokens {
                let role = format!("{:?}", token.role).to_lowercase();
                table.row(vec![token.name, role, token.id]);
            }
            table.print()?;
        }
        TokenCommand::Rm { names } => {
            for name in &names {
                client.remove_token(name)?;
            }
            match context.format {
                Format::Json => output::json(&names)?,
                Format::Table => names.iter().try_for_each(|name| output::text_line(name))?,
            }
        }
    }
    Ok(0)
}
