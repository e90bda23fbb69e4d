//! `mitose ls`.

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

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let vms = context.client()?.vms()?;
    if context.format == Format::Json {
        output::json(&vms)?;
        return Ok(0);
    }
    if args.quiet {
        for vm in &vms {
            output::text_line(&vm.name)?;
        }
        return Ok(0);
    }
    let headings = [
        "NAME", "STATE", "ENGINE", "CPUS", "MEMORY", "SOURCE", "GEN", "READY",
    ];
    let mut table = Table::new(&headings);
    for vm in vms {
        table.row(vec![
            vm.name,
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
