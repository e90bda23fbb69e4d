//! `mitose ls`.

use std::collections::HashSet;

use api_types::Vm;
use vm_spec::format_size;

use super::Context;
use crate::output::{self, Format, Table};

/// List the VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose ls
  mitose ls -o json")]
pub struct Args {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
}

/// The names by which other commands know the VMs: with their folders where several have the same.
fn shown_names(vms: &[Vm], context: &Context) -> anyhow::Result<Vec<String>> {
    let mut seen = HashSet::new();
    let twice: HashSet<&str> = vms
        .iter()
        .map(|vm| &*vm.name)
        .filter(|name| !seen.insert(*name))
        .collect();
    if twice.is_empty() {
        return Ok(vms.iter().map(|vm| vm.name.clone()).collect());
    }
    let folders = context.client()?.folders()?;
    let name_of = |vm: &Vm| {
        let folder = folders.iter().find(|folder| folder.object.id == vm.folder);
        match folder {
            Some(folder) if twice.contains(&*vm.name) => match folder.path.trim_matches('/') {
                "" => format!("{}/{}", folder.object.name, vm.name),
                path => format!("{path}/{}", vm.name),
            },
            _ => vm.name.clone(),
        }
    };
    Ok(vms.iter().map(name_of).collect())
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let vms = context.client()?.vms()?;
    if context.format == Format::Json {
        output::json(&vms)?;
        return Ok(0);
    }
    let names = shown_names(&vms, context)?;
    if args.quiet {
        for name in &names {
            output::text_line(name)?;
        }
        return Ok(0);
    }
    let headings = [
        "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "SOURCE", "GEN", "READY",
    ];
    let mut table = Table::new(&headings);
    for (vm, name) in vms.into_iter().zip(names) {
        table.row(vec![
            name,
            if vm.template {
                "template".to_owned()
            } else {
                vm.state
            },
            vm.engine,
            vm.cpus.to_string(),
            format_size(vm.memory_bytes),
            vm.source.unwrap_or_else(|| "-".to_owned()),
            vm.generation.to_string(),
            if vm.ready { "yes" } else { "-" }.to_owned(),
        ]);
    }
    table.print()?;
    Ok(0)
}
