//! `mitose set`, `mitose rename`, `mitose template`.

use anyhow::Context as _;
use api_types::{
    DiskRequest, ExtraDiskRequest, NicChange, ReconfigureRequest, SerialChange, VmDetail,
};
use vm_spec::EngineChoice;

use super::Context;
use super::description::parse_attribute;
use super::run::{
    NetChoice, absolute_disks, absolute_serial, parse_disk, parse_engine, parse_extra_disk,
    parse_memory, parse_net, parse_serial,
};
use crate::output::{self, Format};

/// Change a VM
///
/// Name, folder, pool, annotation, attributes, cables, serial ports and disks for empty slots change at
/// any time; the rest while the VM is powered off. NICs, disks and ports count from 0.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose set web1 --name web2 --folder lab/web
  mitose set web1 --annotation 'front end' --attribute owner=ana --remove-attribute old
  mitose set web1 --disconnect 0
  mitose set web1 --serial 0=pty
  mitose set web1 --insert-disk size=10G
  mitose set web1 --cpus 4 --memory 2G --add-disk extra.qcow2 --remove-nic 1")]
pub struct Args {
    /// Name of the VM
    vm: String,
    /// Only where the VM still has this version
    #[arg(long, value_name = "NUMBER")]
    version: Option<u64>,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// Folder to move it to, such as lab/web; / is the first one
    #[arg(long, value_name = "PATH")]
    folder: Option<String>,
    /// Resource pool to put it into
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// New annotation
    #[arg(long, value_name = "TEXT")]
    annotation: Option<String>,
    /// Custom attribute to set; may be repeated
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_attribute)]
    attributes: Vec<(String, String)>,
    /// Custom attribute to remove; may be repeated
    #[arg(long = "remove-attribute", value_name = "KEY")]
    removed_attributes: Vec<String>,
    /// NIC whose cable is plugged in; may be repeated
    #[arg(long, value_name = "NIC")]
    connect: Vec<u8>,
    /// NIC whose cable is pulled; may be repeated
    #[arg(long, value_name = "NIC")]
    disconnect: Vec<u8>,
    /// NIC to put on another network, NIC=NETWORK or NIC=tap:NAME; may be repeated
    #[arg(long = "nic", value_name = "SPEC", value_parser = parse_nic)]
    nics: Vec<NicChange>,
    /// Back end of a serial port, PORT=log, none, file:PATH, pty or unix:PATH; may be repeated
    #[arg(long, value_name = "SPEC", value_parser = parse_port)]
    serial: Vec<SerialChange>,
    /// Number of vCPUs
    #[arg(long)]
    cpus: Option<u32>,
    /// Guest memory
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Most host memory that it takes; 0 for what it needs
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_limit: Option<u64>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// What executes the guest: auto, kvm or soft
    #[arg(long, value_parser = parse_engine)]
    engine: Option<EngineChoice>,
    /// Instance UUID
    #[arg(long)]
    uuid: Option<String>,
    /// BIOS UUID
    #[arg(long)]
    bios_uuid: Option<String>,
    /// Number of serial ports
    #[arg(long, value_name = "COUNT")]
    serial_ports: Option<u8>,
    /// Number of empty disk slots
    #[arg(long, value_name = "COUNT")]
    spare_disks: Option<u32>,
    /// Disk to add, as with run; may be repeated
    #[arg(long = "add-disk", value_name = "PATH", value_parser = parse_disk)]
    add_disks: Vec<DiskRequest>,
    /// Disk to put into an empty slot, also while the VM runs: size=SIZE (empty), image=NAME, or
    /// PATH[,format=raw|qcow2]; may be repeated
    #[arg(long = "insert-disk", value_name = "SPEC", value_parser = parse_extra_disk)]
    insert_disks: Vec<ExtraDiskRequest>,
    /// Disk to remove with what the guest wrote to it; may be repeated
    #[arg(long = "remove-disk", value_name = "DISK")]
    remove_disks: Vec<u8>,
    /// NIC to add, as with run; may be repeated
    #[arg(long = "add-nic", value_name = "SPEC", value_parser = parse_net)]
    add_nics: Vec<NetChoice>,
    /// NIC to remove; may be repeated
    #[arg(long = "remove-nic", value_name = "NIC")]
    remove_nics: Vec<u8>,
}

/// Give a VM another name
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose rename web1 web2")]
pub struct RenameArgs {
    /// Name of the VM
    vm: String,
    /// Its new name
    name: String,
}

/// Mark a powered-off VM as a template, which is only cloned
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose template base
  mitose clone base --name web1 --mode linked
  mitose template base --off")]
pub struct TemplateArgs {
    /// Name of the VM
    vm: String,
    /// Take the mark off
    #[arg(long)]
    off: bool,
}

/// Runs `set`.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let (vm, version) = (args.vm.clone(), args.version);
    let request = request(args)?;
    change(&vm, version, &request, context)
}

/// Runs `rename`.
pub fn rename(args: RenameArgs, context: &Context) -> anyhow::Result<u8> {
    let request = ReconfigureRequest {
        name: Some(args.name),
        ..ReconfigureRequest::default()
    };
    change(&args.vm, None, &request, context)
}

/// Runs `template`.
pub fn template(args: &TemplateArgs, context: &Context) -> anyhow::Result<u8> {
    let request = ReconfigureRequest {
        template: Some(!args.off),
        ..ReconfigureRequest::default()
    };
    change(&args.vm, None, &request, context)
}

fn change(
    vm: &str,
    version: Option<u64>,
    request: &ReconfigureRequest,
    context: &Context,
) -> anyhow::Result<u8> {
    let changed: VmDetail = context.client()?.reconfigure(vm, version, request)?;
    if context.format == Format::Json {
        output::json(&changed)?;
    } else {
        let vm = &changed.vm;
        let state = if vm.template { "template" } else { &vm.state };
        output::text_line(&format!("{} {state}", vm.name))?;
    }
    Ok(0)
}

fn request(args: Args) -> anyhow::Result<ReconfigureRequest> {
    let mut nics = args.nics;
    let cable = |connected: bool| {
        move |nic: &u8| NicChange {
            nic: *nic,
            connected: Some(connected),
            ..NicChange::default()
        }
    };
    nics.extend(args.connect.iter().map(cable(true)));
    nics.extend(args.disconnect.iter().map(cable(false)));
    let mut attributes: std::collections::BTreeMap<_, _> = args
        .attributes
        .into_iter()
        .map(|(key, value)| (key, Some(value)))
        .collect();
    attributes.extend(args.removed_attributes.into_iter().map(|key| (key, None)));
    let mut serial = args.serial;
    for change in &mut serial {
        let absolute = absolute_serial(vec![change.backend.clone()])?;
        change.backend = absolute.into_iter().next().unwrap_or_default();
    }
    let mut add_disks = args.add_disks;
    for disk in &mut add_disks {
        disk.path = std::path::absolute(&disk.path).context("--add-disk")?;
    }
    Ok(ReconfigureRequest {
        name: args.name,
        folder: args.folder,
        pool: args.pool,
        annotation: args.annotation,
        attributes,
        template: None,
        nics,
        serial,
        cpus: args.cpus,
        memory_bytes: args.memory,
        memory_limit_bytes: args.memory_limit,
        cmdline: args.cmdline,
        engine: args.engine,
        uuid: args.uuid,
        bios_uuid: args.bios_uuid,
        serial_ports: args.serial_ports,
        spare_disks: args.spare_disks,
        add_disks,
        insert_disks: absolute_disks("--insert-disk", args.insert_disks)?,
        remove_disks: args.remove_disks,
        add_nics: NetChoice::requests(args.add_nics),
        remove_nics: args.remove_nics,
    })
}

fn numbered(text: &str, form: &str) -> Result<(u8, String), String> {
    let parts = text.split_once('=');
    let parts = parts.and_then(|(number, rest)| Some((number.parse().ok()?, rest.to_owned())));
    parts.ok_or_else(|| format!("{text:?} is not {form}"))
}

fn parse_nic(text: &str) -> Result<NicChange, String> {
    let (nic, to) = numbered(text, "NIC=NETWORK or NIC=tap:NAME")?;
    let tap = to.strip_prefix("tap:").map(str::to_owned);
    Ok(NicChange {
        nic,
        network: tap.is_none().then_some(to),
        tap,
        connected: None,
    })
}

fn parse_port(text: &str) -> Result<SerialChange, String> {
    let (port, backend) = numbered(text, "PORT=BACKEND")?;
    let parsed = parse_serial(&backend.replacen(':', "=", 1));
    let backend =
        parsed.map_err(|_| format!("{backend:?} is not log, none, file:PATH, pty or unix:PATH"))?;
    Ok(SerialChange { port, backend })
}
