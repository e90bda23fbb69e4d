//! `mitose info`.

use api_types::{DiskDetail, MemoryUse, NicDetail, VmDetail};
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
    let detail = context.client()?.vm(&args.name)?;
    if context.format == Format::Json {
        output::json(&detail)?;
    } else {
        table(&detail).print()?;
    }
    Ok(0)
}

fn table(detail: &VmDetail) -> Table {
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
    let source = vm.source.clone().unwrap_or_else(|| "-".to_owned());
    row("source", format!("{source}, generation {}", vm.generation));
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
    for (index, nic) in detail.nics.iter().enumerate() {
        row(&format!("nic {index}"), nic_line(nic));
    }
    let ready = if vm.ready { "ready" } else { "not ready" };
    row("agent", ready.to_owned());
    if let Some(guest) = &detail.guest {
        row("  host name", guest.hostname.clone());
        for error in &guest.errors {
            row("  problem", error.clone());
        }
    }
    for (key, value) in &detail.guestinfo.0 {
        row(key, shortened(value));
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

fn nic_line(nic: &NicDetail) -> String {
    let tap = nic.tap.as_deref().unwrap_or("no link");
    let address = nic.address.as_ref().map(|ip| format!(", {ip}"));
    format!("{}, {tap}{}", nic.mac, address.unwrap_or_default())
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
