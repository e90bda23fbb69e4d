//! `mitose image`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use api_types::{BuildKind, ImageRequest, InitKind, TaskState};
use clap::Subcommand;
use vm_spec::{format_size, parse_size};

use super::Context;
use crate::output::{self, Format, Table};
use crate::progress::TaskProgress;

/// Make, list and remove images
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose image build tiny
  mitose image build debian --include redis-server,python3 --name redis
  mitose image import disk.qcow2 --name mine
  mitose image ls
  mitose image rm mine")]
pub struct Args {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image from Debian's packages
    Build(BuildArgs),
    /// Make an image of a disk (raw, qcow2) or an OCI or Docker archive
    Import(ImportArgs),
    /// List the images
    Ls,
    /// Remove images
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// tiny: kernel, busybox and agent in memory; debian: Debian on a disk
    #[arg(value_parser = parse_kind)]
    kind: BuildKind,
    /// Debian release, such as trixie or bookworm
    #[arg(long)]
    suite: Option<String>,
    /// Packages to add, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PACKAGES")]
    include: Vec<String>,
    /// First process: agent or systemd
    #[arg(long, default_value = "agent", value_parser = parse_init)]
    init: InitKind,
    /// Size of the disk, with an optional unit
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    disk_size: Option<u64>,
    /// Name of the image [default: the kind]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// File to import
    file: PathBuf,
    /// Name of the image
    #[arg(long)]
    name: String,
    /// Partition of a disk that has the root file system [default: the one that holds a system]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=255))]
    root_partition: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// Names of the images
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    match args.command {
        ImageCommand::Build(args) => {
            let name = args.name.unwrap_or_else(|| match args.kind {
                BuildKind::Tiny => "tiny".to_owned(),
                BuildKind::Debian => "debian".to_owned(),
            });
            let request = ImageRequest::Build {
                name: name.clone(),
                kind: args.kind,
                suite: args.suite,
                include: args.include,
                init: args.init,
                disk_bytes: args.disk_size,
            };
            make(&name, &request, context)
        }
        ImageCommand::Import(args) => {
            let request = ImageRequest::Import {
                name: args.name.clone(),
                file: std::path::absolute(args.file).context("FILE")?,
                root_partition: args.root_partition,
            };
            make(&args.name, &request, context)
        }
        ImageCommand::Ls => list(context),
        ImageCommand::Rm(args) => remove(&args, context),
    }
}

fn make(name: &str, request: &ImageRequest, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let task = client.make_image(request)?;
    let mut progress = TaskProgress::new(name);
    let ended = client.follow_task(task.id, |task| progress.show(task));
    progress.finish();
    let ended = ended?;
    if ended.state != TaskState::Success {
        let reason = ended
            .error
            .unwrap_or_else(|| "no reason was given".to_owned());
        bail!("image {name} was not made: {reason}");
    }
    let images = client.images()?;
    let made = images.iter().find(|image| image.name == name);
    match (context.format, made) {
        (Format::Json, made) => output::json(&made)?,
        (Format::Table, _) => output::text_line(name)?,
    }
    Ok(0)
}

fn list(context: &Context) -> anyhow::Result<u8> {
    let images = context.client()?.images()?;
    if context.format == Format::Json {
        output::json(&images)?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "DISK", "SPACE", "AGENT", "DESCRIPTION"]);
    for image in images {
        table.row(vec![
            image.name,
            image.disk_bytes.map_or("-".to_owned(), format_size),
            format_size(image.allocated_bytes),
            if image.agent { "yes" } else { "-" }.to_owned(),
            image.description,
        ]);
    }
    table.print()?;
    Ok(0)
}

fn remove(args: &RmArgs, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let mut removed = Vec::new();
    let mut code = 0;
    for name in &args.names {
        match client.remove_image(name) {
            Ok(()) => removed.push(name),
            Err(error) => {
                eprintln!("error: {}", output::chain_line(&error.into()));
                code = 1;
            }
        }
    }
    if context.format == Format::Json {
        output::json(&removed)?;
    } else {
        for name in removed {
            output::text_line(name)?;
        }
    }
    Ok(code)
}

fn parse_kind(text: &str) -> Result<BuildKind, String> {
    match text {
        "tiny" => Ok(BuildKind::Tiny),
        "debian" => Ok(BuildKind::Debian),
        _ => Err(format!("{text:?} is not tiny or debian")),
    }
}

fn parse_init(text: &str) -> Result<InitKind, String> {
    match text {
        "agent" => Ok(InitKind::Agent),
        "systemd" => Ok(InitKind::Systemd),
        _ => Err(format!("{text:?} is not agent or systemd")),
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}
