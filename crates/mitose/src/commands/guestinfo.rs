//! `mitose guestinfo`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use api_types::{GuestInfo, GuestInfoPatch};

use super::Context;
use super::guest_options::whole_key;
use crate::output::{self, Format};

/// Show and set the key-value pairs of a VM
///
/// Programs in the guest read and set them too, with 'mitose-guest guestinfo'. Keys begin with
/// 'guestinfo.', which may be left out here.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose guestinfo web1 ls
  mitose guestinfo web1 get role
  mitose guestinfo web1 set role db
  mitose guestinfo web1 rm role")]
pub struct Args {
    /// Name of the VM
    name: String,
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print all pairs
    Ls,
    /// Print one value
    Get {
        /// Its key
        key: String,
    },
    /// Set one value; a running guest is told at once
    Set {
        /// Its key
        key: String,
        /// Its value
        value: String,
    },
    /// Remove values
    Rm {
        /// Their keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let patch = |pairs: BTreeMap<String, Option<String>>| {
        client.set_guestinfo(&args.name, &GuestInfoPatch(pairs))
    };
    match args.action {
        Action::Ls => print_all(&client.guestinfo(&args.name)?, context.format)?,
        Action::Get { key } => {
            let key = whole_key(&key);
            let values = client.guestinfo(&args.name)?.0;
            let missing = || format!("guestinfo: {} has no {key}", args.name);
            print_one(values.get(&key).with_context(missing)?, context.format)?;
        }
        Action::Set { key, value } => {
            let all = patch(BTreeMap::from([(whole_key(&key), Some(value))]))?;
            print_changed(&all, context.format)?;
        }
        Action::Rm { keys } => {
            let all = patch(keys.iter().map(|key| (whole_key(key), None)).collect())?;
            print_changed(&all, context.format)?;
        }
    }
    Ok(0)
}

fn print_all(values: &GuestInfo, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(values);
    }
    for (key, value) in &values.0 {
        output::text_line(&format!("{key}={}", one_line(value)))?;
    }
    Ok(())
}

/// A value without what would end its line or move the cursor.
fn one_line(value: &str) -> String {
    let mut line = String::new();
    for c in value.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

fn print_one(value: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(&value),
        Format::Table => output::text_line(value),
    }
}

/// A change prints nothing for people.
fn print_changed(values: &GuestInfo, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(values),
        Format::Table => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_listed_in_one_line() {
        assert_eq!(one_line("a\n\tb\r\\ü"), r"a\n\tb\r\\ü");
        assert_eq!(one_line("plain = text"), "plain = text");
    }
}
