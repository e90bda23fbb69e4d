//! `mitose pool`.

use api_types::{DiskPool, DiskPoolChangeRequest, DiskPoolRequest, DiskPoolState};
use clap::Subcommand;
use vm_spec::parse_size;

use super::Context;
use crate::output::{self, Format, Table};

/// Make, list, change and remove disk pools
///
/// A disk pool has full copies of the disks of a VM, template or image ready on a datastore;
/// 'mitose clone --mode full' takes them in no time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose pool create debian --datastore datastore1 --count 4
  mitose pool create web --datastore fast --count 8 --rate 50M
  mitose pool ls
  mitose pool set debian --count 10
  mitose pool rm debian")]
pub struct Args {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Make a pool; it is filled in the background
    Create(CreateArgs),
    /// List the pools
    Ls,
    /// Show one pool
    Info {
        /// Its id or name
        pool: String,
    },
    /// Change a pool's number of copies or its speed
    Set(SetArgs),
    /// Remove a pool and its copies; clones made of them stay
    Rm {
        /// Its id or name
        pool: String,
    },
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// VM, template or image to copy the disks of; image:NAME where a VM has the name too
    source: String,
    /// Datastore of the copies
    #[arg(long)]
    datastore: String,
    /// Copies to keep ready
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1000))]
    count: u64,
    /// Name of the pool [default: the source's]
    #[arg(long)]
    name: Option<String>,
    /// Most bytes that are copied in a second [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    rate: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// Its id or name
    pool: String,
    /// Copies to keep ready
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1000))]
    count: Option<u64>,
    /// Most bytes that are copied in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    rate: Option<u64>,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    match args.command {
        PoolCommand::Create(args) => {
            let pool = client.make_disk_pool(&DiskPoolRequest {
                source: args.source,
                datastore: args.datastore,
                count: args.count,
                name: args.name,
                rate_bytes_per_s: args.rate,
            })?;
            print_one(&pool, context.format)?;
        }
        PoolCommand::Ls => print_all(&client.disk_pools()?, context.format)?,
        PoolCommand::Info { pool } => print_one(&client.disk_pool(&pool)?, context.format)?,
        PoolCommand::Set(args) => {
            let request = DiskPoolChangeRequest {
                count: args.count,
                rate_bytes_per_s: args.rate,
                version: None,
            };
            print_one(
                &client.change_disk_pool(&args.pool, &request)?,
                context.format,
            )?;
        }
        PoolCommand::Rm { pool } => client.remove_disk_pool(&pool)?,
    }
    Ok(0)
}

fn print_one(pool: &DiskPool, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(pool);
    }
    print_all(std::slice::from_ref(pool), format)?;
    if let Some(reason) = &pool.reason {
        output::text_line(reason)?;
    }
    Ok(())
}

fn print_all(pools: &[DiskPool], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&pools);
    }
    let headings = [
        "NAME",
        "ID",
        "SOURCE",
        "DATASTORE",
        "READY",
        "STATE",
        "HITS",
        "MISSES",
    ];
    let mut table = Table::new(&headings);
    for pool in pools {
        table.row(vec![
            pool.name.clone(),
            pool.id.clone(),
            pool.source.clone(),
            pool.datastore.clone(),
            format!("{}/{}", pool.ready, pool.count),
            match pool.state {
                DiskPoolState::Full => "full",
                DiskPoolState::Filling => "filling",
                DiskPoolState::Paused => "paused",
            }
            .to_owned(),
            pool.hits.to_string(),
            pool.misses.to_string(),
        ]);
    }
    table.print()
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}
