//! Options about the place and the words of a VM, which several commands have.

use anyhow::bail;
use api_types::{CloneEdit, DryRun};

use crate::output::{self, Format};

/// Where a VM lies and what is said about it.
#[derive(Debug, clap::Args)]
pub(super) struct Description {
    /// Folder, such as lab/web [default: the first one, or the source's]
    #[arg(long, value_name = "PATH")]
    pub folder: Option<String>,
    /// Resource pool [default: the first one, or the source's]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Free text about it
    #[arg(long, value_name = "TEXT")]
    pub annotation: Option<String>,
    /// Custom attribute; may be repeated
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_attribute)]
    pub attributes: Vec<(String, String)>,
    /// Instance UUID [default: a random one]
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<String>,
    /// BIOS UUID [default: the instance's]
    #[arg(long, value_name = "UUID")]
    pub bios_uuid: Option<String>,
}

impl Description {
    /// What is special about each of `count` clones.
    pub fn each(&self, count: usize) -> anyhow::Result<Vec<CloneEdit>> {
        if self.uuid.is_none() && self.bios_uuid.is_none() {
            return Ok(Vec::new());
        }
        if count != 1 {
            bail!("--uuid and --bios-uuid can be given for one clone at a time; use --name");
        }
        Ok(vec![CloneEdit {
            uuid: self.uuid.clone(),
            bios_uuid: self.bios_uuid.clone(),
            ..CloneEdit::default()
        }])
    }
}

/// Prints what a request would lead to; the exit code says whether it can be carried out.
pub(super) fn tell(found: &DryRun, format: Format) -> anyhow::Result<u8> {
    if format == Format::Json {
        output::json(found)?;
    } else {
        for made in &found.would_make {
            let macs = made.macs.iter().flatten();
            let macs: Vec<_> = macs.map(|mac| format!(", {mac}")).collect();
            output::text_line(&format!(
                "would make {} with {}{}, {} on disk at once",
                made.path,
                vm_spec::format_size(made.memory_bytes),
                macs.concat(),
                vm_spec::format_size(made.disk_bytes)
            ))?;
        }
        for problem in &found.problems {
            eprintln!("error: {}", problem.detail);
        }
    }
    Ok(u8::from(!found.problems.is_empty()))
}

pub(super) fn parse_attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}
