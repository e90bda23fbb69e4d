//! `mitose export`, `import`.

use std::path::PathBuf;

use anyhow::Context as _;
use api_types::{ExportRequest, Exported, ImportRequest};
use vm_spec::format_size;

use super::Context;
use crate::output::{self, Format};
use crate::progress::TaskProgress;

/// Write a VM to an archive, from which another host runs it
///
/// A VM that runs is exported with the memory of one instant and runs on. The archive is a tar
/// file of the VM's disk layers, its kernel and its memory, with a manifest of sizes and SHA-256.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose export web1 /backup/web1.tar
  mitose export web1@before-update /backup/web1-before.tar
  mitose export web1 /backup/web1-2.tar --since 6f1c...   only what changed since that export
  mitose export forkpoint-3 /backup/parent.tar")]
pub struct ExportArgs {
    /// VM, VM@SNAPSHOT, or id of a fork point
    source: String,
    /// Archive to make; it must not be there
    file: PathBuf,
    /// Leave out disk layers that an earlier export had, by its id
    #[arg(long, value_name = "EXPORT_ID")]
    since: Option<String>,
    /// Leave out base images: the importing host has the same files
    #[arg(long)]
    without_base: bool,
}

/// Make a VM of an archive
///
/// Everything is verified before the VM is visible. With memory in the archive the VM is suspended:
/// 'mitose start' lets it go on from the instant of the export.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose import /backup/web1.tar
  mitose import /backup/web1.tar --name web2 --new-identity")]
pub struct ImportArgs {
    /// The archive
    file: PathBuf,
    /// Name of the VM [default: its name in the archive]
    #[arg(long)]
    name: Option<String>,
    /// Datastore for its disks [default: datastore1]
    #[arg(long)]
    datastore: Option<String>,
    /// Another machine than the exported one: new hardware addresses, UUID, machine id and keys
    #[arg(long)]
    new_identity: bool,
}

/// Runs `export`.
pub fn export(args: ExportArgs, context: &Context) -> anyhow::Result<u8> {
    let (source, snapshot) = match args.source.rsplit_once('@') {
        Some((vm, snapshot)) => (vm.to_owned(), Some(snapshot.to_owned())),
        None => (args.source, None),
    };
    let request = ExportRequest {
        path: std::path::absolute(args.file).context("FILE")?,
        snapshot,
        since: args.since,
        without_base: args.without_base,
    };
    let client = context.client()?;
    let mut progress = TaskProgress::new(&source);
    let exported = if source.starts_with("forkpoint-") {
        client.export_fork_point(&source, &request, |task| progress.show(task))
    } else {
        client.export(&source, &request, |task| progress.show(task))
    };
    progress.finish();
    let exported = exported?;
    if context.format == Format::Json {
        output::json(&exported)?;
    } else {
        output::text_line(&told(&exported))?;
    }
    Ok(0)
}

fn told(exported: &Exported) -> String {
    let left_out = match exported.layers_left_out {
        0 => String::new(),
        count => format!(", {count} left out"),
    };
    let memory = if exported.memory { ", memory" } else { "" };
    format!(
        "export {}: {} ({} disk layers{left_out}{memory})",
        exported.id,
        format_size(exported.archive_bytes),
        exported.layers
    )
}

/// Runs `import`.
pub fn import(args: ImportArgs, context: &Context) -> anyhow::Result<u8> {
    let request = ImportRequest {
        path: std::path::absolute(args.file).context("FILE")?,
        name: args.name,
        datastore: args.datastore,
        new_identity: args.new_identity,
    };
    let client = context.client()?;
    let mut progress = TaskProgress::new("import");
    let imported = client.import(&request, |task| progress.show(task));
    progress.finish();
    let imported = imported?;
    if context.format == Format::Json {
        output::json(&imported)?;
    } else {
        output::text_line(&format!("{} is {}", imported.name, imported.state))?;
    }
    Ok(0)
}
