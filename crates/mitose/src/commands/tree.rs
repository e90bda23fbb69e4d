//! `mitose tree`.

use std::collections::{BTreeMap, BTreeSet};

use api_types::Vm;
use serde::Serialize;

use super::Context;
use crate::output::{self, Format};

/// Show which VM was cloned from which
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose tree
  mitose tree -o json")]
pub struct Args {}

/// A VM and its clones.
#[derive(Debug, Serialize)]
struct Node {
    name: String,
    /// None for a source that was removed.
    state: Option<String>,
    clones: Vec<Node>,
}

/// Runs the command.
pub fn run(_: &Args, context: &Context) -> anyhow::Result<u8> {
    let roots = grow(&context.client()?.vms()?);
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

fn grow(vms: &[Vm]) -> Vec<Node> {
    let states: BTreeMap<&str, &str> = vms.iter().map(|v| (&*v.name, &*v.state)).collect();
    let mut clones: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut roots = BTreeSet::new();
    for vm in vms {
        match &vm.source {
            Some(source) => {
                clones.entry(source).or_default().insert(&vm.name);
                if !states.contains_key(&**source) {
                    roots.insert(&**source);
                }
            }
            None => {
                roots.insert(&*vm.name);
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut nodes: Vec<Node> = roots
        .iter()
        .map(|name| node(name, &states, &clones, &mut seen))
        .collect();
    // A name that was given again can make a ring of sources: its members are still shown.
    for vm in vms {
        if !seen.contains(&*vm.name) {
            nodes.push(node(&vm.name, &states, &clones, &mut seen));
        }
    }
    nodes
}

fn node<'a>(
    name: &'a str,
    states: &BTreeMap<&'a str, &'a str>,
    clones: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    seen: &mut BTreeSet<&'a str>,
) -> Node {
    seen.insert(name);
    let below = clones.get(name).into_iter().flatten();
    let new: Vec<&str> = below.copied().filter(|name| !seen.contains(name)).collect();
    Node {
        name: name.to_owned(),
        state: states.get(name).map(|state| (*state).to_owned()),
        clones: new
            .into_iter()
            .map(|name| node(name, states, clones, seen))
            .collect(),
    }
}

fn label(node: &Node) -> String {
    format!(
        "{} ({})",
        node.name,
        node.state.as_deref().unwrap_or("removed")
    )
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

    fn vm(name: &str, source: Option<&str>) -> Vm {
        Vm {
            name: name.into(),
            state: "running".into(),
            engine: "kvm".into(),
            cpus: 1,
            memory_bytes: 1,
            source: source.map(str::to_owned),
            generation: 0,
            ready: false,
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
    fn a_ring_of_names_is_shown_once() {
        let vms = [vm("a", Some("b")), vm("b", Some("a"))];
        assert_eq!(shape(&grow(&vms)), "a[b[]]");
    }
}
