//! `mitose prepare`, `mitose fork`, `mitose unprepare`, `mitose forkpoints`, `mitose persist`.

use api_types::{
    ExtraDiskRequest, ForkPoint, MAX_CHILDREN, PointForkRequest, PointForked, PrepareRequest,
};

use super::Context;
use super::description;
use super::guest_options::GuestOptions;
use super::run::{absolute_disks, parse_extra_disk, parse_memory};
use crate::output::{self, Format, Table, microseconds};
use crate::progress::TaskProgress;

/// Turn a powered-on VM into a parent
///
/// Keeps a fork point of it, from which 'mitose fork' powers on any number of children without
/// stopping anybody. The fork point outlives the parent and the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose prepare web
  mitose prepare web --children 200 --quiesce --persistent
  mitose prepare web --exec 'python3 -c \"import numpy\"'
  mitose prepare web --durable --name web-v2")]
pub struct PrepareArgs {
    /// Name of the VM
    vm: String,
    /// Name of the fork point [default: the VM's]
    #[arg(long)]
    name: Option<String>,
    /// Children to make ahead: registered, with homes and disks, not started
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_CHILDREN)))]
    children: u32,
    /// Beginning of their names: PREFIX1, PREFIX2, ... [default: the fork point's name and a dash]
    #[arg(long)]
    prefix: Option<String>,
    /// Shell command that the guest runs before, so that what it starts and reads is in memory
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Longest time of that command, seconds [default: 600]
    #[arg(long, value_name = "SECONDS", requires = "exec")]
    exec_timeout: Option<u64>,
    /// Bring the guest to rest first: its file systems are synced, and it stays paused
    #[arg(long)]
    quiesce: bool,
    /// Write its memory to the datastore: it survives a restart of the host
    #[arg(long)]
    durable: bool,
    /// Datastore of that memory [default: the VM's]
    #[arg(long, value_name = "NAME", requires = "durable")]
    datastore: Option<String>,
    /// The children made ahead keep their disks over a power-off; needs --quiesce
    #[arg(long, requires = "quiesce")]
    persistent: bool,
}

/// Power on children of a prepared parent
///
/// Those that were made ahead come first, then new ones. A child that is not persistent returns to
/// the fork point when it is reset or powered off.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true), after_help = "Examples:
  mitose fork web --count 200
  mitose fork web --name lab-7 --persistent
  mitose fork web --count 20 --extra-disk size=10G --extra-disk image=data
  mitose fork forkpoint-3 --count 10 --prefix t- -o json")]
pub struct ForkArgs {
    /// Fork point: its id or name, or its parent's name
    fork_point: String,
    /// Name of one new child; may be repeated
    #[arg(long = "name", group = "which", conflicts_with = "prefix")]
    names: Vec<String>,
    /// How many
    #[arg(long, group = "which", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CHILDREN)))]
    count: Option<u32>,
    /// Beginning of the names of new children: PREFIX1, PREFIX2, ... [default: the fork point's name
    /// and a dash]
    #[arg(long)]
    prefix: Option<String>,
    /// They keep their disks over a power-off; only of a parent prepared with --quiesce
    #[arg(long)]
    persistent: bool,
    /// They stand still at the fork point until they are resumed
    #[arg(long)]
    paused: bool,
    /// They keep the parent's hardware addresses
    #[arg(long)]
    keep_mac: bool,
    /// Disk that each gets at the fork, in the parent's spare slots in their order: size=SIZE
    /// (empty), image=NAME, or PATH[,format=raw|qcow2]; may be repeated
    #[arg(long = "extra-disk", value_name = "SPEC", value_parser = parse_extra_disk)]
    extra_disks: Vec<ExtraDiskRequest>,
    /// Most host memory that each takes beside what it shares [default: the parent's]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_limit: Option<u64>,
    /// Only tell what stands in the way, all of it at once
    #[arg(long)]
    check: bool,
    /// Do not wait for the guest agents
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    #[command(flatten)]
    guest: GuestOptions,
    /// Seconds to wait for the guest agents [default: 120 where the parent has one]
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// End a parent: remove its fork point and children that were never started
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose unprepare web
  mitose unprepare forkpoint-3 --force")]
pub struct UnprepareArgs {
    /// Fork point: its id or name, or its parent's name
    fork_point: String,
    /// Also where children would return to it: they become ordinary VMs
    #[arg(long)]
    force: bool,
}

/// List kept fork points
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose forkpoints -o json")]
pub struct ListArgs {}

/// Keep a child's disks over a power-off, or not
///
/// It can be changed until the child is powered off for the first time; a persistent one that was
/// reset has kept its disks too, and stays persistent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose persist web-3
  mitose persist web-3 --off")]
pub struct PersistArgs {
    /// Name of the child
    vm: String,
    /// It returns to its fork point instead
    #[arg(long)]
    off: bool,
}

/// Runs `mitose prepare`.
pub fn prepare(args: PrepareArgs, context: &Context) -> anyhow::Result<u8> {
    let shell = |line| vec!["sh".to_owned(), "-c".to_owned(), line];
    let request = PrepareRequest {
        name: args.name,
        children: args.children,
        prefix: args.prefix,
        exec: args.exec.map(shell).unwrap_or_default(),
        exec_timeout_s: args.exec_timeout,
        quiesce: args.quiesce,
        durable: args.durable,
        datastore: args.datastore,
        persistent: args.persistent,
        drain_ms_max: None,
    };
    let mut progress = TaskProgress::new(&format!("preparing {}", args.vm));
    let prepared = context
        .client()?
        .prepare(&args.vm, &request, |task| progress.show(task));
    progress.finish();
    let prepared = prepared?;
    if context.format == Format::Json {
        output::json(&prepared)?;
        return Ok(0);
    }
    let point = &prepared.fork_point;
    output::text_line(&format!(
        "{} ({}): {} stood still for {}; {} children made ahead",
        point.name,
        point.id,
        point.parent,
        microseconds(point.stun_us),
        prepared.children.len()
    ))?;
    Ok(0)
}

/// Runs `mitose fork`.
pub fn fork(args: ForkArgs, context: &Context) -> anyhow::Result<u8> {
    let (guestinfo, addresses) = args.guest.into_parts();
    let request = PointForkRequest {
        names: args.names,
        guestinfo,
        addresses,
        count: args.count.unwrap_or(0),
        prefix: args.prefix,
        persistent: args.persistent.then_some(true),
        paused: args.paused,
        extra_disks: absolute_disks("--extra-disk", args.extra_disks)?,
        keep_mac: args.keep_mac,
        memory_limit_bytes: args.memory_limit,
        wait_ready_s: if args.no_wait { Some(0) } else { args.wait },
    };
    let client = context.client()?;
    if args.check {
        let found = client.check_children(&args.fork_point, &request)?;
        return description::tell(&found, context.format);
    }
    let mut progress = TaskProgress::new(&format!("forking {}", args.fork_point));
    let forked = client.fork_children(&args.fork_point, &request, |task| progress.show(task));
    progress.finish();
    let forked = forked?;
    print_forked(&forked, context.format)?;
    let mut failed = 0;
    for clone in &forked.cloned.clones {
        if let Some(error) = &clone.error {
            eprintln!("error: {}: {error}", clone.name);
            failed += 1;
        }
    }
    Ok(u8::from(failed > 0))
}

fn print_forked(forked: &PointForked, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(forked);
    }
    let shown = |us: Option<u64>| us.map_or("-".to_owned(), microseconds);
    let mut table = Table::new(&["CHILD", "FIRST RUN", "READY"]);
    for clone in &forked.cloned.clones {
        table.row(vec![
            clone.name.clone(),
            shown(clone.first_run_us),
            shown(clone.ready_us),
        ]);
    }
    table.print()
}

/// Runs `mitose unprepare`.
pub fn unprepare(args: &UnprepareArgs, context: &Context) -> anyhow::Result<u8> {
    context.client()?.unprepare(&args.fork_point, args.force)?;
    match context.format {
        Format::Json => output::json(&[&args.fork_point])?,
        Format::Table => output::text_line(&args.fork_point)?,
    }
    Ok(0)
}

/// Runs `mitose forkpoints`.
pub fn list(_: &ListArgs, context: &Context) -> anyhow::Result<u8> {
    let points = context.client()?.fork_points()?;
    if context.format == Format::Json {
        output::json(&points)?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "NAME", "PARENT", "KEPT IN", "QUIESCED", "CHILDREN"]);
    for point in &points {
        table.row(row(point));
    }
    table.print()?;
    Ok(0)
}

fn row(point: &ForkPoint) -> Vec<String> {
    vec![
        point.id.clone(),
        point.name.clone(),
        point.parent.clone(),
        point.memory.clone(),
        if point.quiesced { "yes" } else { "no" }.to_owned(),
        format!("{} ({} running)", point.children, point.children_running),
    ]
}

/// Runs `mitose persist`.
pub fn persist(args: &PersistArgs, context: &Context) -> anyhow::Result<u8> {
    let vm = context.client()?.set_persistence(&args.vm, !args.off)?;
    match context.format {
        Format::Json => output::json(&vm)?,
        Format::Table => output::text_line(&vm.name)?,
    }
    Ok(0)
}
