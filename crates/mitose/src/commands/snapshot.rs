//! `mitose snapshot`.

use api_types::{Snapshot, SnapshotMemory, SnapshotRequest};
use clap::Subcommand;
use vm_spec::format_size;

use super::Context;
use crate::output::{self, Format, Table, microseconds, time_of_day};
use crate::progress::TaskProgress;

/// Make and remove snapshots of VMs, and return to them
///
/// A snapshot keeps the disks of a VM as they are, and with --memory its memory and processors too:
/// the VM returns to that instant. The VM stands still for less than a few milliseconds.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose snapshot create web1 before-update --memory
  mitose snapshot tree web1
  mitose snapshot revert web1 before-update
  mitose snapshot rm web1 before-update --children
  mitose clone web1 --snapshot before-update --name web2")]
pub struct Args {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Make a snapshot
    #[command(after_help = "Example:
  mitose snapshot create web1 before-update --memory --description 'all is well'")]
    Create(CreateArgs),
    /// List the snapshots of a VM, oldest first
    #[command(after_help = "Example:
  mitose snapshot ls web1 -o json")]
    Ls(VmArgs),
    /// Show the snapshots of a VM as a tree
    #[command(after_help = "Example:
  mitose snapshot tree web1")]
    Tree(VmArgs),
    /// Return a VM to a snapshot; its present state is lost
    #[command(after_help = "Example:
  mitose snapshot revert web1 before-update")]
    Revert(OneArgs),
    /// Remove a snapshot; those that continue it stay
    #[command(after_help = "Examples:
  mitose snapshot rm web1 before-update
  mitose snapshot rm web1 before-update --children")]
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Name of the VM
    vm: String,
    /// Name of the snapshot
    name: String,
    /// Keep memory and processors too, where the VM runs
    #[arg(long)]
    memory: bool,
    /// What it is
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
}

#[derive(Debug, clap::Args)]
struct VmArgs {
    /// Name of the VM
    vm: String,
}

#[derive(Debug, clap::Args)]
struct OneArgs {
    /// Name of the VM
    vm: String,
    /// Name of the snapshot
    name: String,
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// Name of the VM
    vm: String,
    /// Name of the snapshot
    name: String,
    /// With all snapshots that continue it
    #[arg(long)]
    children: bool,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    match args.command {
        SnapshotCommand::Create(args) => create(args, context),
        SnapshotCommand::Ls(args) => list(&args, context),
        SnapshotCommand::Tree(args) => tree(&args, context),
        SnapshotCommand::Revert(args) => revert(&args, context),
        SnapshotCommand::Rm(args) => remove(&args, context),
    }
}

fn create(args: CreateArgs, context: &Context) -> anyhow::Result<u8> {
    let request = SnapshotRequest {
        name: args.name,
        description: args.description,
        memory: args.memory,
    };
    let client = context.client()?;
    let mut progress = TaskProgress::new(&request.name);
    let made = client.create_snapshot(&args.vm, &request, |task| progress.show(task));
    progress.finish();
    let made = made?;
    if context.format == Format::Json {
        output::json(&made)?;
    } else {
        output::text_line(&format!(
            "{} stood still for {}",
            made.vm,
            microseconds(made.stun_us)
        ))?;
    }
    Ok(0)
}

fn list(args: &VmArgs, context: &Context) -> anyhow::Result<u8> {
    let snapshots = context.client()?.snapshots(&args.vm)?;
    if context.format == Format::Json {
        output::json(&snapshots)?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "ID", "TIME", "MEMORY", "STUN", "DESCRIPTION"]);
    for snapshot in snapshots {
        table.row(vec![
            snapshot.name.clone(),
            snapshot.id.clone(),
            time_of_day(snapshot.created_at_ms),
            memory_of(&snapshot),
            microseconds(snapshot.stun_us),
            snapshot.description,
        ]);
    }
    table.print()?;
    Ok(0)
}

fn memory_of(snapshot: &Snapshot) -> String {
    match (snapshot.memory, snapshot.memory_bytes) {
        (SnapshotMemory::None, _) => "-".to_owned(),
        (SnapshotMemory::Writing, _) => "writing".to_owned(),
        (SnapshotMemory::Files, bytes) => format_size(bytes.unwrap_or(0)),
    }
}

fn tree(args: &VmArgs, context: &Context) -> anyhow::Result<u8> {
    let snapshots = context.client()?.snapshots(&args.vm)?;
    if context.format == Format::Json {
        output::json(&snapshots)?;
        return Ok(0);
    }
    for line in drawn(&snapshots) {
        output::text_line(&line)?;
    }
    Ok(0)
}

/// The tree, one line for each snapshot, with a mark at the one that the VM continues.
fn drawn(snapshots: &[Snapshot]) -> Vec<String> {
    fn below(all: &[Snapshot], parent: Option<&str>, depth: usize, lines: &mut Vec<String>) {
        // Depth is bounded by the number of snapshots, should their parents form a loop.
        if depth > all.len() {
            return;
        }
        for snapshot in all.iter().filter(|s| s.parent.as_deref() == parent) {
            let mark = if snapshot.current { " <- the VM" } else { "" };
            let memory = match snapshot.memory {
                SnapshotMemory::None => "",
                SnapshotMemory::Writing => " (memory: writing)",
                SnapshotMemory::Files => " (memory)",
            };
            let indent = "  ".repeat(depth);
            lines.push(format!("{indent}{}{memory}{mark}", snapshot.name));
            below(all, Some(&snapshot.id), depth + 1, lines);
        }
    }
    let mut lines = Vec::new();
    below(snapshots, None, 0, &mut lines);
    lines
}

fn revert(args: &OneArgs, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let mut progress = TaskProgress::new(&args.vm);
    let vm = client.revert(&args.vm, &args.name, |task| progress.show(task));
    progress.finish();
    let vm = vm?;
    if context.format == Format::Json {
        output::json(&vm)?;
    } else {
        output::text_line(&format!("{} is at {}, {}", vm.name, args.name, vm.state))?;
    }
    Ok(0)
}

fn remove(args: &RmArgs, context: &Context) -> anyhow::Result<u8> {
    let gone = context
        .client()?
        .remove_snapshot(&args.vm, &args.name, args.children)?;
    if context.format == Format::Json {
        output::json(&gone.removed)?;
    } else {
        for name in gone.removed {
            output::text_line(&name)?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, parent: Option<&str>) -> Snapshot {
        Snapshot {
            id: id.into(),
            name: format!("name-{id}"),
            vm: "web".into(),
            vm_id: "vm-1".into(),
            description: String::new(),
            parent: parent.map(str::to_owned),
            current: id == "c",
            created_at_ms: 0,
            memory: SnapshotMemory::None,
            memory_bytes: None,
            layers: Vec::new(),
            stun_us: 0,
            io_held_us: 0,
        }
    }

    #[test]
    fn children_stand_below_their_parents() {
        let all = [
            snapshot("a", None),
            snapshot("b", Some("a")),
            snapshot("c", Some("b")),
            snapshot("d", Some("a")),
        ];
        let lines = ["name-a", "  name-b", "    name-c <- the VM", "  name-d"];
        assert_eq!(drawn(&all), lines);
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let all = [snapshot("a", Some("a"))];
        assert!(drawn(&all).is_empty());
    }
}
