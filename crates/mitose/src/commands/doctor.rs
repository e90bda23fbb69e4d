//! `mitose doctor`.

use api_types::CheckLevel;

use super::Context;
use crate::output::{self, Format};

/// Check what this host offers to VMs
///
/// Exit code 1 where VMs cannot run.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose doctor
  mitose doctor -o json")]
pub struct Args {}

/// Runs the command.
pub fn run(_: &Args, context: &Context) -> anyhow::Result<u8> {
    let checks = context.client()?.doctor()?;
    let failed = checks.iter().any(|check| check.level == CheckLevel::Fail);
    if context.format == Format::Json {
        output::json(&checks)?;
        return Ok(u8::from(failed));
    }
    for check in checks {
        let level = match check.level {
            CheckLevel::Ok => "ok  ",
            CheckLevel::Warn => "warn",
            CheckLevel::Fail => "FAIL",
        };
        let mut line = format!("{level}  {:<14}  {}", check.name, check.found);
        if let Some(remedy) = check.remedy {
            line.push_str(&format!(" ({remedy})"));
        }
        output::text_line(&line)?;
    }
    Ok(u8::from(failed))
}
