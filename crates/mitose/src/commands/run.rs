//! `mitose run`.

use std::path::PathBuf;

use anyhow::Context as _;
use api_types::{
    DiskRequest, ExtraDiskRequest, ImageFormat, NetRequest, RunReply, RunRequest, SerialRequest,
    WaitFor,
};
use vm_spec::{EngineChoice, MacAddr, parse_size};

use super::Context;
use super::description::{self, Description};
use super::guest_options::GuestOptions;
use crate::output::{self, Format, microseconds};
use crate::progress::Waiting;

/// Make a VM and boot it
///
/// The VM boots an image, or a kernel file: a Linux bzImage or vmlinux, or any 64-bit ELF. Disks
/// that are given are read only; what the guest writes goes to a delta of the VM.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose run web1 --image debian --memory 1G --cpus 2
  mitose run web2 --image tiny --net tap=tap0
  mitose run t1 --kernel guest.elf --memory 2G --engine kvm
  mitose run base --image tiny --spare-disks 2
  mitose run job --image tiny --memory 1G --memory-limit 400M
  mitose run l1 --kernel vmlinuz --initrd initrd.img --cmdline 'console=ttyS0' --disk root.qcow2")]
#[command(group = clap::ArgGroup::new("boots").required(true).multiple(true).args(["image", "kernel"]))]
pub struct Args {
    /// Name of the new VM
    name: String,
    /// Image to boot; see 'mitose image ls'
    #[arg(long)]
    image: Option<String>,
    /// Kernel file to boot; replaces the image's
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk; replaces the image's
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line; replaces the image's
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Disk file, PATH[,format=raw|qcow2][,ro]; may be repeated
    #[arg(long = "disk", value_name = "PATH", value_parser = parse_disk)]
    disks: Vec<DiskRequest>,
    /// Empty disk slots: clones can be given disks there at the fork, see 'mitose clone --extra-disk'
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=11))]
    spare_disks: u32,
    /// Datastore of the VM [default: datastore1]
    #[arg(long, value_name = "NAME")]
    datastore: Option<String>,
    /// Number of vCPUs, 1 to 8
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Guest memory, with an optional unit K, M, G
    #[arg(long, default_value = "512M", value_parser = parse_memory)]
    memory: u64,
    /// Most host memory that the VM takes; it is powered off where it needs more [default: its
    /// memory and what its process needs]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_limit: Option<u64>,
    /// NIC: none, NETWORK or tap=NAME, then [,mac=ADDRESS][,disconnected]; may be repeated
    #[arg(long = "net", value_name = "SPEC", value_parser = parse_net)]
    nets: Vec<NetChoice>,
    /// Back end of a serial port: log, none, file=PATH, pty or unix=PATH; given again for COM2 to
    /// COM4 [default: log for COM1, no other ports]
    #[arg(long, value_name = "SPEC", value_parser = parse_serial)]
    serial: Vec<SerialRequest>,
    /// What executes the guest: auto, kvm or soft
    #[arg(long, default_value = "auto", value_parser = parse_engine)]
    engine: EngineChoice,
    /// Entry address that overrides the kernel file's own, hexadecimal with 0x or decimal
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    entry: Option<u64>,
    #[command(flatten)]
    description: Description,
    /// Only tell what stands in the way, all of it at once
    #[arg(long)]
    pub(super) check: bool,
    #[command(flatten)]
    guest: GuestOptions,
    /// Seconds to wait for the guest agent; 0 does not wait [default: 180 where the image has one].
    /// frozen or frozen=SECONDS: wait until the guest asked to be frozen, see 'mitose wait'
    #[arg(long, value_name = "SECONDS|frozen", value_parser = parse_wait)]
    wait: Option<Wait>,
}

/// `--wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For the agent, seconds.
    Ready(u64),
    /// Until the guest is frozen, seconds.
    Frozen(u64),
}

/// Wait for a guest to be frozen, where none is given, seconds.
const FROZEN_WAIT_S: u64 = 600;

/// One `--net`.
#[derive(Clone, Debug)]
pub(super) enum NetChoice {
    /// No NIC.
    None,
    /// A NIC.
    Nic(NetRequest),
}

impl NetChoice {
    /// The NICs of all `--net` options.
    pub(super) fn requests(choices: Vec<Self>) -> Vec<NetRequest> {
        let nic = |choice| match choice {
            Self::None => None,
            Self::Nic(net) => Some(net),
        };
        choices.into_iter().filter_map(nic).collect()
    }
}

/// Runs `run`.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let check = args.check;
    let frozen_wait_s = args.frozen_wait_s();
    let request = request(args)?;
    make(&request, check, frozen_wait_s, context)
}

impl Args {
    /// How long to wait until the guest is frozen, where that is wanted, seconds.
    fn frozen_wait_s(&self) -> Option<u64> {
        match self.wait {
            Some(Wait::Frozen(seconds)) if !self.check => Some(seconds),
            _ => None,
        }
    }
}

/// Makes a VM, or tells what stands in the way of it.
pub(super) fn make(
    request: &RunRequest,
    check: bool,
    frozen_wait_s: Option<u64>,
    context: &Context,
) -> anyhow::Result<u8> {
    let client = context.client()?;
    if check {
        return description::tell(&client.check_run(request)?, context.format);
    }
    let doing = if request.powered_off {
        "is made"
    } else {
        "boots"
    };
    let waiting = Waiting::for_(format!("{} {doing}", request.name));
    let mut reply = client.run(request)?;
    if let Some(seconds) = frozen_wait_s {
        reply.vm = client.wait_for(&request.name, WaitFor::Frozen, seconds)?;
    }
    drop(waiting);
    for note in &reply.notes {
        eprintln!("note: {note}");
    }
    print(&reply, context.format)?;
    Ok(0)
}

fn print(reply: &RunReply, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(reply);
    }
    let mut line = format!("{} {}", reply.vm.name, reply.vm.state);
    if let Some(first_run) = reply.first_run_us {
        line.push_str(&format!(", first run after {}", microseconds(first_run)));
    }
    if let Some(ready) = reply.ready_us {
        line.push_str(&format!(", ready after {}", microseconds(ready)));
    }
    output::text_line(&line)
}

pub(super) fn request(args: Args) -> anyhow::Result<RunRequest> {
    let absolute = |path: Option<PathBuf>| path.map(absolute_path).transpose();
    let mut disks = args.disks;
    for disk in &mut disks {
        disk.path = absolute_path(std::mem::take(&mut disk.path)).context("--disk")?;
    }
    let mut serial = absolute_serial(args.serial)?.into_iter();
    let (guestinfo, addresses) = args.guest.into_parts();
    Ok(RunRequest {
        name: args.name,
        image: args.image,
        kernel: absolute(args.kernel).context("--kernel")?,
        initrd: absolute(args.initrd).context("--initrd")?,
        cmdline: args.cmdline,
        disks,
        spare_disks: args.spare_disks,
        datastore: args.datastore,
        cpus: args.cpus,
        memory_bytes: args.memory,
        memory_limit_bytes: args.memory_limit,
        nets: NetChoice::requests(args.nets),
        serial: serial.next().unwrap_or_default(),
        more_serial: serial.collect(),
        engine: args.engine,
        entry: args.entry,
        powered_off: false,
        folder: args.description.folder,
        pool: args.description.pool,
        annotation: args.description.annotation,
        attributes: args.description.attributes.into_iter().collect(),
        uuid: args.description.uuid,
        bios_uuid: args.description.bios_uuid,
        addresses,
        guestinfo,
        wait_ready_s: args.wait.map(|wait| match wait {
            Wait::Ready(seconds) => seconds,
            Wait::Frozen(_) => 0,
        }),
    })
}

/// Makes a path absolute: the daemon has another working directory.
fn absolute_path(path: PathBuf) -> anyhow::Result<PathBuf> {
    if path.to_str().is_none() {
        anyhow::bail!("{path:?} is not UTF-8; give the file another name");
    }
    Ok(std::path::absolute(path)?)
}

fn parse_wait(text: &str) -> Result<Wait, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    match text.split_once('=') {
        Some(("frozen", seconds)) => number(seconds).map(Wait::Frozen),
        None if text == "frozen" => Ok(Wait::Frozen(FROZEN_WAIT_S)),
        _ => number(text).map(Wait::Ready),
    }
}

pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

pub(super) fn parse_disk(text: &str) -> Result<DiskRequest, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err("a path is missing".to_owned());
    }
    let mut disk = DiskRequest {
        path: path.into(),
        format: None,
        read_only: false,
    };
    for part in parts {
        match part {
            "format=raw" => disk.format = Some(ImageFormat::Raw),
            "format=qcow2" => disk.format = Some(ImageFormat::Qcow2),
            "ro" => disk.read_only = true,
            other => {
                return Err(format!("{other:?} is not format=raw, format=qcow2 or ro"));
            }
        }
    }
    Ok(disk)
}

/// A disk for an empty slot: `size=SIZE`, `image=NAME`, or a file as with `--disk`.
pub(super) fn parse_extra_disk(text: &str) -> Result<ExtraDiskRequest, String> {
    match text.split_once('=') {
        Some(("size", size)) => Ok(ExtraDiskRequest {
            size_bytes: Some(parse_memory(size)?),
            ..ExtraDiskRequest::default()
        }),
        Some(("image", "")) => Err("the name of an image is missing".to_owned()),
        Some(("image", name)) => Ok(ExtraDiskRequest {
            image: Some(name.to_owned()),
            ..ExtraDiskRequest::default()
        }),
        _ => {
            let disk = parse_disk(text)?;
            if disk.read_only {
                return Err("a disk for a spare slot is always writable; leave ro out".to_owned());
            }
            Ok(ExtraDiskRequest {
                path: Some(disk.path),
                format: disk.format,
                ..ExtraDiskRequest::default()
            })
        }
    }
}

/// Makes the paths in `disks` absolute: the daemon has another working directory.
pub(super) fn absolute_disks(
    option: &'static str,
    mut disks: Vec<ExtraDiskRequest>,
) -> anyhow::Result<Vec<ExtraDiskRequest>> {
    for path in disks.iter_mut().filter_map(|disk| disk.path.as_mut()) {
        *path = std::path::absolute(&*path).context(option)?;
    }
    Ok(disks)
}

pub(super) fn parse_net(text: &str) -> Result<NetChoice, String> {
    if text == "none" {
        return Ok(NetChoice::None);
    }
    let mut net = NetRequest {
        tap: None,
        network: None,
        mac: None,
        disconnected: false,
    };
    for (index, part) in text.split(',').enumerate() {
        match part.split_once('=') {
            None if part == "disconnected" => net.disconnected = true,
            None if part == "none" => {
                return Err(
                    "none makes no NIC, so nothing goes with it; give it alone, or leave it \
                     out for a NIC on no network"
                        .to_owned(),
                );
            }
            None if index == 0 && !part.is_empty() => net.network = Some(part.to_owned()),
            Some(("network", name)) if !name.is_empty() => net.network = Some(name.to_owned()),
            Some(("tap", name)) if !name.is_empty() => net.tap = Some(name.to_owned()),
            Some(("mac", mac)) => {
                net.mac = Some(mac.parse::<MacAddr>().map_err(|error| error.to_string())?);
            }
            _ => {
                return Err(format!(
                    "{part:?} is not none, NETWORK, tap=NAME, mac=ADDRESS or disconnected"
                ));
            }
        }
    }
    Ok(NetChoice::Nic(net))
}

/// Makes the paths in `ports` absolute: the daemon has another working directory.
pub(super) fn absolute_serial(ports: Vec<SerialRequest>) -> anyhow::Result<Vec<SerialRequest>> {
    let absolute = |path| std::path::absolute(path).context("--serial");
    let ports = ports.into_iter().map(|port| {
        Ok(match port {
            SerialRequest::File(path) => SerialRequest::File(absolute(path)?),
            SerialRequest::Unix(path) => SerialRequest::Unix(absolute(path)?),
            other => other,
        })
    });
    ports.collect()
}

pub(super) fn parse_serial(text: &str) -> Result<SerialRequest, String> {
    match text.split_once('=') {
        None if text == "log" => Ok(SerialRequest::Log),
        None if text == "none" => Ok(SerialRequest::None),
        None if text == "pty" => Ok(SerialRequest::Pty),
        Some(("file", path)) if !path.is_empty() => Ok(SerialRequest::File(path.into())),
        Some(("unix", path)) if !path.is_empty() => Ok(SerialRequest::Unix(path.into())),
        _ => Err(format!(
            "{text:?} is not log, none, file=PATH, pty or unix=PATH"
        )),
    }
}

pub(super) fn parse_engine(text: &str) -> Result<EngineChoice, String> {
    match text {
        "auto" => Ok(EngineChoice::Auto),
        "kvm" => Ok(EngineChoice::Kvm),
        "soft" => Ok(EngineChoice::Soft),
        _ => Err(format!("{text:?} is not auto, kvm or soft")),
    }
}

fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not an address"))
}
