//! `mitose clone`.

use api_types::{
    CloneMode, Cloned, Consistency, ExtraDiskRequest, ForkRequest, MAX_CLONES, SerialRequest,
};
use clap::CommandFactory;

use super::description::{self, Description};
use super::guest_options::GuestOptions;
use super::run::{
    NetChoice, absolute_disks, absolute_serial, parse_extra_disk, parse_memory, parse_net,
    parse_serial,
};
use super::{Cli, Context};
use crate::output::{self, Format, Table, microseconds};
use crate::progress::{TaskProgress, Waiting};

/// Clone a VM
///
/// By default the clones are made from the source's running state with one short stop of the
/// source, and run at once. Each has its own name, machine id, hardware addresses and disks.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose clone web1 --name web2
  mitose clone web1 --count 20 --prefix w- -o json
  mitose clone web1 --name web3 --net tap=tap3
  mitose clone web1 --count 5 --prefix t --memory-limit 64M
  mitose clone web1 --count 9 --prefix w --guestinfo job={index} --net-ip 0=10.0.0.11/24,gw=10.0.0.1
  mitose clone web1 --count 4 --prefix db --extra-disk size=10G
  mitose clone base --name disk-copy --mode linked
  mitose clone base --count 8 --prefix f --mode full
  mitose clone web1 --name backup --mode full --quiesce
  mitose clone web1 --snapshot before-update --name web4")]
pub struct Args {
    /// Name of the source
    source: String,
    /// Name of the one clone
    #[arg(long, required_unless_present = "count", conflicts_with = "prefix")]
    name: Option<String>,
    /// Number of clones, made in one call; named PREFIX1, PREFIX2, ...
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLONES)))]
    count: Option<u32>,
    /// Beginning of the clones' names [default: the source's name and a dash]
    #[arg(long, requires = "count")]
    prefix: Option<String>,
    /// Snapshot of the source to clone; an instant clone needs one with memory
    #[arg(long)]
    snapshot: Option<String>,
    /// instant: live; linked: powered off, on the source's disks; full: powered off, with copies of
    /// the source's disks. Where the source runs, the latter two boot from its disks of this instant,
    /// as after a power cut
    #[arg(long, default_value = "instant", value_parser = parse_mode)]
    mode: CloneMode,
    /// Datastore of the clones [default: the source's; for full clones those with ready copies or
    /// the most space]
    #[arg(long, value_name = "NAME")]
    datastore: Option<String>,
    /// Most bytes that full clones copy in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    rate: Option<u64>,
    /// Have the guest of a running source sync its file systems before full or linked clones
    #[arg(long)]
    quiesce: bool,
    /// Most host memory that each clone takes beside what it shares [default: the source's]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_limit: Option<u64>,
    /// NIC of the clone as with run, in the source's order; only with --name [default: on the
    /// source's networks]
    #[arg(long = "net", value_name = "SPEC", value_parser = parse_net, conflicts_with = "count")]
    nets: Vec<NetChoice>,
    /// Back end of a serial port of the clone, as with run, COM1 first; only with --name [default:
    /// logs, and pseudo-terminals where the source has such]
    #[arg(long, value_name = "SPEC", value_parser = parse_serial, conflicts_with = "count")]
    serial: Vec<SerialRequest>,
    /// Disk that each clone gets at the fork, in the source's spare slots in their order:
    /// size=SIZE (empty), image=NAME, or PATH[,format=raw|qcow2]; may be repeated
    #[arg(long = "extra-disk", value_name = "SPEC", value_parser = parse_extra_disk)]
    extra_disks: Vec<ExtraDiskRequest>,
    #[command(flatten)]
    description: Description,
    /// The clones stand still at the fork point until they are resumed
    #[arg(long)]
    paused: bool,
    /// Only tell what stands in the way, all of it at once
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    guest: GuestOptions,
    /// keep-mac: the clones keep the source's hardware addresses and links
    #[arg(long, value_name = "RULE", value_parser = ["keep-mac"])]
    nic: Option<String>,
    /// Do not wait for the guest agents
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Seconds to wait for the guest agents [default: 120 where the source has one]
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Longest time that disk requests in flight may take, milliseconds
    #[arg(long, value_name = "MS")]
    drain_ms: Option<u32>,
    /// Step at which the fork is to fail, for tests
    #[arg(long, hide = true, env = "MITOSE_FAIL_AT")]
    fail_at: Option<String>,
}

/// Names of the clones.
pub(super) fn clone_names(args: &Args) -> Result<Vec<String>, clap::Error> {
    match (&args.name, args.count, &args.prefix) {
        (Some(_), Some(2..), _) => {
            let told = "'--name' is the name of one clone; use '--prefix' for the names of several";
            let conflict = clap::error::ErrorKind::ArgumentConflict;
            Err(Cli::command().error(conflict, told))
        }
        (None, Some(count), prefix) => {
            let default = format!("{}-", args.source);
            let prefix = prefix.as_ref().unwrap_or(&default);
            Ok((1..=count).map(|n| format!("{prefix}{n}")).collect())
        }
        (name, ..) => Ok(name.iter().cloned().collect()),
    }
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let names = clone_names(&args).unwrap_or_else(|error| error.exit());
    let (guestinfo, addresses) = args.guest.into_parts();
    let request = ForkRequest {
        each: args.description.each(names.len())?,
        names,
        folder: args.description.folder,
        pool: args.description.pool,
        annotation: args.description.annotation,
        attributes: args.description.attributes.into_iter().collect(),
        paused: args.paused,
        extra_disks: absolute_disks("--extra-disk", args.extra_disks)?,
        guestinfo,
        addresses,
        mode: args.mode,
        snapshot: args.snapshot,
        datastore: args.datastore,
        rate_bytes_per_s: args.rate,
        quiesce: args.quiesce,
        nets: NetChoice::requests(args.nets),
        serial: absolute_serial(args.serial)?,
        keep_mac: args.nic.is_some(),
        memory_limit_bytes: args.memory_limit,
        wait_ready_s: if args.no_wait { Some(0) } else { args.wait },
        drain_ms_max: args.drain_ms,
        fail_at: args.fail_at,
    };
    let client = context.client()?;
    if args.check {
        return description::tell(&client.check_fork(&args.source, &request)?, context.format);
    }
    let title = format!("{} is cloned", args.source);
    let cloned = if args.mode == CloneMode::Full {
        let mut progress = TaskProgress::new(&title);
        let cloned = client.copy(&args.source, &request, |task| progress.show(task));
        progress.finish();
        cloned?
    } else {
        let waiting = Waiting::for_(title);
        let cloned = client.fork(&args.source, &request);
        drop(waiting);
        cloned?
    };
    print(&cloned, args.mode, context.format)?;
    let mut failed = 0;
    for clone in &cloned.clones {
        if let Some(error) = &clone.error {
            eprintln!("error: {}: {error}", clone.name);
            failed += 1;
        }
    }
    Ok(u8::from(failed > 0))
}

fn print(cloned: &Cloned, mode: CloneMode, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(cloned);
    }
    if mode == CloneMode::Instant || cloned.io_held_us > 0 {
        output::text_line(&format!(
            "{} stood still for {} (disk queues held for {})",
            cloned.source,
            microseconds(cloned.stun_us),
            microseconds(cloned.io_held_us)
        ))?;
    }
    match cloned.consistency {
        Consistency::Instant | Consistency::AtRest => {}
        Consistency::Crash => output::text_line(
            "The clones boot from the disks of that instant, as after a power cut (crash-consistent); \
             --quiesce has the guest sync its file systems before",
        )?,
        Consistency::Synced => output::text_line(
            "The clones boot from the disks of that instant, whose file systems the guest has synced",
        )?,
    }
    if mode == CloneMode::Full {
        return print_full(cloned);
    }
    let shown = |us: Option<u64>| us.map_or("-".to_owned(), microseconds);
    let mut table = Table::new(&["CLONE", "FIRST RUN", "READY"]);
    for clone in &cloned.clones {
        table.row(vec![
            clone.name.clone(),
            shown(clone.first_run_us),
            shown(clone.ready_us),
        ]);
    }
    table.print()
}

fn print_full(cloned: &Cloned) -> anyhow::Result<()> {
    let mut table = Table::new(&["CLONE", "DATASTORE", "DISKS", "WHY"]);
    for clone in &cloned.clones {
        let Some(disks) = &clone.disks else { continue };
        table.row(vec![
            clone.name.clone(),
            disks.datastore.clone(),
            disks.how.clone(),
            disks.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.print()
}

fn parse_mode(text: &str) -> Result<CloneMode, String> {
    match text {
        "instant" => Ok(CloneMode::Instant),
        "linked" => Ok(CloneMode::Linked),
        "full" => Ok(CloneMode::Full),
        _ => Err(format!("{text:?} is not instant, linked or full")),
    }
}
