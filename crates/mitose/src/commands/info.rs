//! `mitose info`.

use api_types::{DiskDetail, MemoryUse, NicDetail, SerialDetail, SerialRequest, VmDetail};
use client::Client;
use vm_spec::format_size;

use super::Context;
use crate::output::{self, Format, Table, microseconds, time_of_day};

/// Show all about a VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose info web1
  mitose info web1 -o json")]
pub struct Args {
    /// Name of the VM
    name: String,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let detail = client.vm(&args.name)?;
    if context.format == Format::Json {
        output::json(&detail)?;
    } else {
        table(&detail, &Places::of(&detail, &client)).print()?;
    }
    Ok(0)
}

/// Names of what a VM lies in and is on; ids where somebody has removed it since.
struct Places {
    folder: String,
    datastore: String,
    pool: String,
    fork_point: Option<String>,
    /// Of each NIC that is on one.
    networks: Vec<Option<String>>,
}

impl Places {
    fn of(detail: &VmDetail, client: &Client) -> Self {
        let network = |id: &String| {
            let found = client.network(id).map(|network| network.object.name);
            found.unwrap_or_else(|_| id.clone())
        };
        let nics = detail.nics.iter();
        Self {
            folder: client
                .folder(&detail.vm.folder)
                .map_or_else(|_| detail.vm.folder.clone(), |folder| folder.path),
            datastore: client
                .datastore(&detail.datastore)
                .map_or_else(|_| detail.datastore.clone(), |store| store.name),
            pool: client
                .resource_pool(&detail.pool)
                .map_or_else(|_| detail.pool.clone(), |pool| pool.object.name),
            fork_point: detail.vm.fork_point.as_ref().map(|id| {
                let found = client.fork_point(id);
                found.map_or_else(|_| id.clone(), |point| format!("{} ({id})", point.name))
            }),
            networks: nics.map(|nic| nic.network.as_ref().map(network)).collect(),
        }
    }
}

fn table(detail: &VmDetail, places: &Places) -> Table {
    let vm = &detail.vm;
    let mut table = Table::new(&["name", &vm.name]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("state", vm.state.clone());
    if let Some(reason) = &detail.reason {
        row("reason", reason.clone());
    }
    row("id", detail.vm.id.clone());
    row("uuid", detail.uuid.clone());
    row("machine id", detail.machine_id.clone());
    row(
        "created",
        format!("{} UTC", time_of_day(detail.created_at_ms)),
    );
    row("folder", places.folder.clone());
    row("resource pool", places.pool.clone());
    row("datastore", places.datastore.clone());
    if !vm.annotation.is_empty() {
        row("annotation", shortened(&vm.annotation));
    }
    for (key, value) in &vm.attributes {
        row(&format!("  {key}"), shortened(value));
    }
    let source = vm.source.clone().unwrap_or_else(|| "-".to_owned());
    row("source", format!("{source}, generation {}", vm.generation));
    if let (Some(point), Some(persistence)) = (&places.fork_point, vm.persistence) {
        row("fork point", format!("{point}, {}", persistence.word()));
    }
    row("engine", vm.engine.clone());
    row("cpus", vm.cpus.to_string());
    row("memory", format_size(vm.memory_bytes));
    for (name, kib) in memory_rows(&detail.memory) {
        row(name, format_size(kib << 10));
    }
    row(
        "image",
        detail.image.clone().unwrap_or_else(|| "-".to_owned()),
    );
    row("kernel", detail.kernel.clone());
    row("cmdline", detail.cmdline.clone());
    for (name, layer) in disk_rows(&detail.disks) {
        row(&name, layer);
    }
    row("own disk space", format_size(detail.disk.delta_bytes));
    for (index, (nic, network)) in detail.nics.iter().zip(&places.networks).enumerate() {
        row(&format!("nic {index}"), nic_line(nic, network.as_deref()));
    }
    for port in &detail.serial_ports {
        row(&port.port, serial_line(port));
    }
    let ready = if vm.ready { "ready" } else { "not ready" };
    row("agent", ready.to_owned());
    for (name, value) in guest_rows(detail) {
        row(&name, value);
    }
    if let (Some(pid), Some(uid)) = (detail.pid, detail.uid) {
        row("process", format!("{pid}, user {uid}"));
    }
    for stun in &detail.stuns {
        let value = format!(
            "{} UTC, {} clones, stun {}",
            time_of_day(stun.at_ms),
            stun.clones,
            microseconds(stun.stun_us)
        );
        row("forked", value);
    }
    table
}

/// What the guest says of itself, and what it and its user set.
fn guest_rows(detail: &VmDetail) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    if let Some(guest) = &detail.guest {
        rows.push(("  host name".to_owned(), guest.hostname.clone()));
        let problem = |error: &String| ("  problem".to_owned(), error.clone());
        rows.extend(guest.errors.iter().map(problem));
    }
    let set = detail.guestinfo.0.iter();
    rows.extend(set.map(|(key, value)| (key.clone(), shortened(value))));
    rows
}

/// The layers of all disks, the first of each with the disk's place.
fn disk_rows(disks: &[DiskDetail]) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let read_only = if disk.read_only { " (read-only)" } else { "" };
        let mut name = format!("disk {index}{read_only}");
        if disk.layers.is_empty() {
            rows.push((name.clone(), "spare slot, empty".to_owned()));
        }
        for layer in &disk.layers {
            rows.push((std::mem::take(&mut name), layer.clone()));
        }
    }
    rows
}

fn nic_line(nic: &NicDetail, network: Option<&str>) -> String {
    let place = match (network, &nic.tap) {
        (Some(network), _) => format!("network {network}"),
        (None, Some(tap)) => tap.clone(),
        (None, None) => "no link".to_owned(),
    };
    let has_place = network.is_some() || nic.tap.is_some();
    let pulled = if has_place && !nic.connected {
        ", disconnected"
    } else {
        ""
    };
    let address = nic.address.as_ref().map(|ip| format!(", {ip}"));
    format!(
        "{}, {place}{pulled}{}",
        nic.mac,
        address.unwrap_or_default()
    )
}

fn serial_line(port: &SerialDetail) -> String {
    let to = port.path.as_ref().or(port.log.as_ref());
    let kind = match port.backend {
        SerialRequest::None => return "nothing".to_owned(),
        SerialRequest::Log => "log",
        SerialRequest::File(_) => "file",
        SerialRequest::Pty => "pseudo-terminal",
        SerialRequest::Unix(_) => "socket",
    };
    match to {
        Some(path) => format!("{kind} {path}"),
        None => kind.to_owned(),
    }
}

/// A value on one line: the table is for people.
fn shortened(value: &str) -> String {
    const MOST: usize = 60;
    let line = value.lines().next().unwrap_or_default();
    let cut: String = line
        .chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect();
    if cut == value {
        return cut;
    }
    format!("{cut}… ({} bytes)", value.len())
}

/// Figures of the host's memory, KiB.
fn memory_rows(memory: &MemoryUse) -> Vec<(&'static str, u64)> {
    let mut rows = vec![
        ("  private", memory.private_kib),
        ("  shared", memory.shared_kib),
        ("  proportional", memory.pss_kib),
    ];
    rows.extend(memory.limit_kib.map(|limit| ("  limit", limit)));
    rows
}
