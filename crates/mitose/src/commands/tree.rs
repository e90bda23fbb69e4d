//! `mitose tree`.

use std::collections::{BTreeMap, BTreeSet};

use api_types::{Folder, LineageVm, Persistence, StunRecord};
use serde::Serialize;
use vm_spec::format_size;

use super::Context;
use crate::output::{self, Format, microseconds};

/// Show which VM was cloned from which, or what lies in which folder
///
/// Each VM stands below the one that it was cloned from, with its fork point, the layers of its
/// disks, its own disk space, its private and shared memory, and the stun of its latest fork.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose tree
  mitose tree --folders
  mitose tree -o json")]
pub struct Args {
    /// Show folders and what lies in them
    #[arg(long)]
    folders: bool,
    /// Do not look at memory, which takes a moment for each VM that runs
    #[arg(long)]
    no_memory: bool,
}

/// A VM and its clones.
#[derive(Debug, Serialize)]
struct Node {
    name: String,
    /// None for a source that was removed.
    state: Option<String>,
    #[serde(flatten)]
    details: Option<Details>,
    clones: Vec<Node>,
}

/// What a VM is and costs.
#[derive(Debug, Serialize)]
struct Details {
    id: String,
    folder: String,
    generation: u32,
    fork_point: Option<String>,
    persistence: Option<Persistence>,
    disk_depths: Vec<usize>,
    memory_depth: u32,
    disk_bytes: u64,
    private_kib: Option<u64>,
    shared_kib: Option<u64>,
    last_fork: Option<StunRecord>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let vms = client.lineages(!args.no_memory)?;
    if args.folders {
        return folders(&client.folders()?, &vms, context.format);
    }
    let roots = grow(&vms);
    if context.format == Format::Json {
        output::json(&roots)?;
        return Ok(0);
    }
    for root in &roots {
        output::text_line(&label(root))?;
        draw(root, "")?;
    }
    Ok(0)
}

/// A folder with what lies in it.
#[derive(Debug, Serialize)]
struct Place<'a> {
    path: &'a str,
    id: &'a str,
    vms: Vec<&'a LineageVm>,
}

fn folders(folders: &[Folder], vms: &[LineageVm], format: Format) -> anyhow::Result<u8> {
    let places: Vec<Place<'_>> = folders
        .iter()
        .map(|folder| Place {
            path: &folder.path,
            id: &folder.object.id,
            vms: vms.iter().filter(|vm| vm.folder == folder.path).collect(),
        })
        .collect();
    if format == Format::Json {
        output::json(&places)?;
        return Ok(0);
    }
    for place in places {
        output::text_line(place.path)?;
        for vm in place.vms {
            let state = vm.state.as_deref().unwrap_or("removed");
            output::text_line(&format!("  {} ({state}){}", vm.name, costs(&details(vm))))?;
        }
    }
    Ok(0)
}

fn grow(vms: &[LineageVm]) -> Vec<Node> {
    let by_id: BTreeMap<&str, &LineageVm> = vms.iter().map(|vm| (&*vm.id, vm)).collect();
    let mut clones: BTreeMap<&str, Vec<&LineageVm>> = BTreeMap::new();
    let mut roots = Vec::new();
    let mut lost = BTreeMap::new();
    for vm in vms {
        match &vm.source {
            Some(source) => {
                clones.entry(source).or_default().push(vm);
                if !by_id.contains_key(&**source) {
                    let name = vm.source_name.as_deref().unwrap_or(source);
                    lost.insert(&**source, name);
                }
            }
            None => roots.push(vm),
        }
    }
    let mut seen = BTreeSet::new();
    let mut nodes: Vec<Node> = roots
        .into_iter()
        .map(|vm| node(vm, &clones, &mut seen))
        .collect();
    for (id, name) in lost {
        let below = clones.get(id).into_iter().flatten();
        nodes.push(Node {
            name: name.to_owned(),
            state: None,
            details: None,
            clones: below.map(|vm| node(vm, &clones, &mut seen)).collect(),
        });
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

fn node<'a>(
    vm: &'a LineageVm,
    clones: &BTreeMap<&'a str, Vec<&'a LineageVm>>,
    seen: &mut BTreeSet<&'a str>,
) -> Node {
    seen.insert(&vm.id);
    let below = clones.get(&*vm.id).into_iter().flatten();
    let new: Vec<_> = below.filter(|vm| !seen.contains(&*vm.id)).collect();
    Node {
        name: vm.name.clone(),
        state: vm.state.clone(),
        details: Some(details(vm)),
        clones: new.into_iter().map(|vm| node(vm, clones, seen)).collect(),
    }
}

fn details(vm: &LineageVm) -> Details {
    Details {
        id: vm.id.clone(),
        folder: vm.folder.clone(),
        generation: vm.generation,
        fork_point: vm.fork_point.clone(),
        persistence: vm.persistence,
        disk_depths: vm.disk_depths.clone(),
        memory_depth: vm.memory_depth,
        disk_bytes: vm.disk_bytes,
        private_kib: vm.memory.map(|memory| memory.private_kib),
        shared_kib: vm.memory.map(|memory| memory.shared_kib),
        last_fork: vm.forks.last().cloned(),
    }
}

fn label(node: &Node) -> String {
    let state = node.state.as_deref().unwrap_or("removed");
    let costs = node.details.as_ref().map(costs).unwrap_or_default();
    format!("{} ({state}){costs}", node.name)
}

/// What a VM costs, behind its name.
fn costs(details: &Details) -> String {
    let mut text = String::new();
    if details.folder != "/" {
        text.push_str(&format!(" in {}", details.folder));
    }
    if let (Some(point), Some(persistence)) = (&details.fork_point, details.persistence) {
        text.push_str(&format!(", {} child of {point}", persistence.word()));
    }
    if !details.disk_depths.is_empty() {
        let depths: Vec<_> = details.disk_depths.iter().map(usize::to_string).collect();
        let own = format_size(details.disk_bytes);
        text.push_str(&format!(", disks {} deep, own {own}", depths.join("+")));
    }
    if let (Some(private), Some(shared)) = (details.private_kib, details.shared_kib)
        && details.memory_depth > 0
    {
        let (private, shared) = (format_size(private << 10), format_size(shared << 10));
        text.push_str(&format!(", memory {private} private, {shared} shared"));
    }
    if let Some(fork) = &details.last_fork {
        text.push_str(&format!(", stun {}", microseconds(fork.stun_us)));
    }
    text
}

fn draw(node: &Node, indent: &str) -> anyhow::Result<()> {
    for (index, clone) in node.clones.iter().enumerate() {
        let last = index + 1 == node.clones.len();
        let (branch, bar) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        output::text_line(&format!("{indent}{branch}{}", label(clone)))?;
        draw(clone, &format!("{indent}{bar}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, source: Option<&str>) -> LineageVm {
        LineageVm {
            id: format!("vm-{name}"),
            name: name.into(),
            folder: "/".into(),
            state: Some("running".into()),
            source: source.map(|name| format!("vm-{name}")),
            source_name: source.map(str::to_owned),
            generation: 0,
            fork_point: None,
            persistence: None,
            disk_depths: Vec::new(),
            memory_depth: 1,
            disk_bytes: 0,
            memory: None,
            forks: Vec::new(),
        }
    }

    fn shape(nodes: &[Node]) -> String {
        let one = |n: &Node| format!("{}[{}]", n.name, shape(&n.clones));
        nodes.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn clones_stand_below_their_sources_also_removed_ones() {
        let vms = [
            vm("a", None),
            vm("b", Some("a")),
            vm("c", Some("b")),
            vm("d", Some("gone")),
        ];
        assert_eq!(shape(&grow(&vms)), "a[b[c[]]] gone[d[]]");
    }

    #[test]
    fn a_name_that_was_given_again_is_another_vm() {
        let mut second = vm("a", Some("b"));
        second.id = "vm-9".into();
        let vms = [vm("a", None), vm("b", Some("a")), second];
        assert_eq!(shape(&grow(&vms)), "a[b[a[]]]");
    }
}
