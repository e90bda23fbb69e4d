//! `mitose network`.

use api_types::{Network, NetworkRequest};
use clap::Subcommand;

use super::Context;
use crate::output::{self, Format, Table};

/// Networks that NICs connect to
///
/// A NIC on a network joins its bridge when its VM starts: '--net NAME' with run, create and clone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose network create lan --bridge br0
  mitose network create lab --isolated
  mitose run web1 --image tiny --net lab
  mitose network rm lab")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the networks
    #[command(after_help = "Example:\n  mitose network ls -o json")]
    Ls,
    /// Make a network; without a bridge its NICs have no link
    #[command(after_help = "Example:\n  mitose network create lab --isolated")]
    Create {
        /// Its name
        name: String,
        /// Existing bridge of the host
        #[arg(long, value_name = "INTERFACE", conflicts_with = "isolated")]
        bridge: Option<String>,
        /// Make a bridge that leads nowhere else
        #[arg(long)]
        isolated: bool,
    },
    /// Remove a network that no NIC is on
    #[command(after_help = "Example:\n  mitose network rm lab")]
    Rm {
        /// Its name or id
        network: String,
    },
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    match &args.command {
        Command::Ls => {
            let networks = client.networks()?;
            if context.format == Format::Json {
                output::json(&networks)?;
                return Ok(0);
            }
            let mut table = Table::new(&["NAME", "ID", "BRIDGE", "NICS"]);
            for network in networks {
                table.row(row(network));
            }
            table.print()?;
        }
        Command::Create {
            name,
            bridge,
            isolated,
        } => {
            let request = NetworkRequest {
                name: name.clone(),
                bridge: bridge.clone(),
                isolated: *isolated,
            };
            let made = client.make_network(&request)?;
            if context.format == Format::Json {
                output::json(&made)?;
            } else {
                output::text_line(&made.object.name)?;
            }
        }
        Command::Rm { network } => {
            client.remove_network(network)?;
            if context.format == Format::Json {
                output::json(&[network])?;
            } else {
                output::text_line(network)?;
            }
        }
    }
    Ok(0)
}

fn row(network: Network) -> Vec<String> {
    let bridge = match (network.bridge, network.isolated) {
        (Some(bridge), true) => format!("{bridge} (its own)"),
        (Some(bridge), false) => bridge,
        (None, _) => "none".to_owned(),
    };
    vec![
        network.object.name,
        network.object.id,
        bridge,
        network.nics.to_string(),
    ]
}
