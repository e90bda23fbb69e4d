//! `mitose export`, `import`.

use std::path::PathBuf;

use anyhow::Context as _;
use api_types::{ExportRequest, Exported, ImportAs, ImportRequest, Imported};
use vm_spec::format_size;

use super::{Context, description};
use crate::output::{self, Format};
use crate::progress::TaskProgress;

/// Write a VM, a snapshot or a fork point to an archive, from which another host runs or forks it
///
/// A VM that runs is exported with the memory of one instant and runs on. The archive is a tar
/// file of the disk layers, the kernel and the memory, with a manifest of sizes and SHA-256.
///
/// With --since an archive has only the disk layers and the pages of memory that changed since an
/// earlier export, which may have been made with --since itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose export web1 /backup/web1.tar
  mitose export web1@before-update /backup/web1-before.tar
  mitose export web1 /backup/web1-2.tar --since 6f1c...   only what changed since that export
  mitose export forkpoint-3 /backup/parent.tar            for 'mitose fork' on another host")]
pub struct ExportArgs {
    /// VM, VM@SNAPSHOT, or id of a fork point; its name where no VM has it
    source: String,
    /// Archive to make; it must not be there
    file: PathBuf,
    /// Leave out disk layers and pages of memory that an earlier export had, by its id
    #[arg(long, value_name = "EXPORT_ID")]
    since: Option<String>,
    /// Leave out base images: the importing host has the same files
    #[arg(long)]
    without_base: bool,
}

/// Make a VM or a fork point of an archive
///
/// Everything is verified before it is visible. A VM with memory is suspended: 'mitose start' lets
/// it go on from the instant of the export, 'mitose clone --mode instant' runs clones of it. Snapshots
/// become VMs too. The archive of a fork point becomes a fork point, for 'mitose fork'.
///
/// What an archive made with --since leaves out is found on this host, where the earlier ones were
/// imported, or in their archives.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose import /backup/web1.tar
  mitose import /backup/web1.tar --name web2 --new-identity
  mitose import /backup/web1-3.tar --earlier /backup/web1.tar --earlier /backup/web1-2.tar
  mitose import /backup/web1-2.tar --replace       what changed, into the import of web1.tar
  mitose import /backup/parent.tar --name web && mitose fork web --count 20
  mitose import /backup/parent.tar --as vm")]
pub struct ImportArgs {
    /// The archive
    file: PathBuf,
    /// What to make: vm or forkpoint [default: forkpoint for the archive of one, vm for others]
    #[arg(long = "as", value_name = "KIND", value_parser = kind_of)]
    import_as: Option<ImportAs>,
    /// Earlier archive that has what this one leaves out; repeated, in any order
    #[arg(long, value_name = "ARCHIVE")]
    earlier: Vec<PathBuf>,
    /// Name of the VM or fork point [default: its name in the archive]
    #[arg(long)]
    name: Option<String>,
    /// Datastore for its disks and its memory [default: datastore1]
    #[arg(long)]
    datastore: Option<String>,
    /// Another machine than the exported one: new hardware addresses, UUID, machine id and keys;
    /// children of a fork point always are
    #[arg(long)]
    new_identity: bool,
    /// Take the place of an earlier import of the same machine that has not run or been changed since;
    /// its name, networks and serial back ends stay, and so does it until all of the new one is there
    #[arg(long, conflicts_with = "new_identity")]
    replace: bool,
    /// Tell what stands in the way, and make nothing
    #[arg(long)]
    check: bool,
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
    let of_point = request.snapshot.is_none() && is_point(&client, &source);
    let exported = if of_point {
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

/// Whether a source is a fork point: by its id, or by its name where no VM has it.
fn is_point(client: &client::Client, source: &str) -> bool {
    let named = || client.vm(source).is_err() && client.fork_point(source).is_ok();
    source.starts_with("forkpoint-") || named()
}

fn kind_of(text: &str) -> Result<ImportAs, String> {
    match text {
        "vm" => Ok(ImportAs::Vm),
        "forkpoint" => Ok(ImportAs::Forkpoint),
        _ => Err("give vm or forkpoint".to_owned()),
    }
}

fn told(exported: &Exported) -> String {
    let left_out = match exported.layers_left_out {
        0 => String::new(),
        count => format!(", {count} left out"),
    };
    let memory = match (exported.memory, &exported.memory_whole_because) {
        (false, _) => String::new(),
        (true, Some(why)) => format!(
            ", memory whole, {}: {why}",
            format_size(exported.memory_bytes)
        ),
        (true, None) if exported.memory_left_out_bytes > 0 => format!(
            ", memory {} and {} left out",
            format_size(exported.memory_bytes),
            format_size(exported.memory_left_out_bytes)
        ),
        (true, None) => format!(", memory {}", format_size(exported.memory_bytes)),
    };
    format!(
        "export {}: {} ({} disk layers{left_out}{memory})",
        exported.id,
        format_size(exported.archive_bytes),
        exported.layers
    )
}

fn what_came(imported: &Imported) -> String {
    let name = &imported.name;
    let instead = match imported.replaced {
        true => ", in place of an earlier import",
        false => "",
    };
    match &imported.fork_point_id {
        Some(id) => {
            format!("fork point {name} ({id}) is kept{instead}: mitose fork {id} --count N")
        }
        None => format!("{name} is {}{instead}", imported.state),
    }
}

/// Runs `import`.
pub fn import(args: ImportArgs, context: &Context) -> anyhow::Result<u8> {
    let earlier = args.earlier.into_iter().map(std::path::absolute);
    let request = ImportRequest {
        path: std::path::absolute(args.file).context("FILE")?,
        import_as: args.import_as,
        earlier: earlier.collect::<Result<_, _>>().context("--earlier")?,
        name: args.name,
        datastore: args.datastore,
        new_identity: args.new_identity,
        replace: args.replace,
    };
    let client = context.client()?;
    if args.check {
        return description::tell(&client.check_import(&request)?, context.format);
    }
    let mut progress = TaskProgress::new("import");
    let imported = client.import(&request, |task| progress.show(task));
    progress.finish();
    let imported = imported?;
    if context.format == Format::Json {
        output::json(&imported)?;
    } else {
        output::text_line(&what_came(&imported))?;
    }
    Ok(0)
}
