//! `mitose respool`.

use api_types::{ObjectRequest, PoolRequest, ResourcePool};
use clap::Subcommand;
use vm_spec::format_size;

use super::Context;
use super::run::parse_memory;
use crate::output::{self, Format, Table};

/// Resource pools: VMs that share limits
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose respool create students --vms 20 --memory 8G
  mitose run s1 --image tiny --pool students
  mitose respool set students --vms 30
  mitose respool rm students")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the pools
    #[command(after_help = "Example:\n  mitose respool ls -o json")]
    Ls,
    /// Make a pool
    #[command(after_help = "Example:\n  mitose respool create students --vms 20 --memory 8G")]
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Change the limits of a pool
    #[command(after_help = "Example:\n  mitose respool set students --vms 0")]
    Set {
        /// Its name or id
        pool: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Remove a pool that no VM belongs to
    #[command(after_help = "Example:\n  mitose respool rm students")]
    Rm {
        /// Its name or id
        pool: String,
    },
}

#[derive(Debug, clap::Args)]
struct Limits {
    /// Most VMs in it; 0 for any number
    #[arg(long, value_name = "COUNT")]
    vms: Option<u32>,
    /// Most guest memory of its VMs; 0 for any amount
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let pools = match &args.command {
        Command::Ls => client.resource_pools()?,
        Command::Create { name, limits } => vec![client.make_resource_pool(&PoolRequest {
            name: name.clone(),
            vms_max: limits.vms,
            memory_bytes_max: limits.memory,
        })?],
        Command::Set { pool, limits } => {
            let id = client.resource_pool(pool)?.object.id;
            client.change_object(
                &id,
                &ObjectRequest {
                    vms_max: limits.vms,
                    memory_bytes_max: limits.memory,
                    ..ObjectRequest::default()
                },
            )?;
            vec![client.resource_pool(&id)?]
        }
        Command::Rm { pool } => {
            let found = client.resource_pool(pool)?;
            client.remove_resource_pool(&found.object.id)?;
            vec![found]
        }
    };
    if context.format == Format::Json {
        output::json(&pools)?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "ID", "VMS", "MEMORY"]);
    pools.into_iter().for_each(|pool| table.row(row(pool)));
    table.print()?;
    Ok(0)
}

fn row(pool: ResourcePool) -> Vec<String> {
    let of = |used: String, most: Option<String>| match most {
        Some(most) => format!("{used} of {most}"),
        None => used,
    };
    vec![
        pool.object.name,
        pool.object.id,
        of(pool.vms.to_string(), pool.vms_max.map(|n| n.to_string())),
        of(
            format_size(pool.memory_bytes),
            pool.memory_bytes_max.map(format_size),
        ),
    ]
}
