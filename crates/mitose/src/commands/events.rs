//! `mitose events`.

use api_types::Event;

use super::Context;
use crate::output::{self, Format, time_of_day};

/// Show what happened
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose events
  mitose events --follow
  mitose events --after 120 -o json")]
pub struct Args {
    /// Go on with what happens later
    #[arg(short, long)]
    follow: bool,
    /// Only events with a higher number
    #[arg(long, value_name = "NUMBER")]
    after: Option<i64>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let json = context.format == Format::Json;
    if args.follow {
        let mut failed = None;
        client.follow_events(args.after, |event| {
            let printed = if json {
                // One document a line, so that a reader can take each as it comes.
                serde_json::to_string(&event)
                    .map_err(anyhow::Error::from)
                    .and_then(|text| output::text_line(&text))
            } else {
                output::text_line(&line(&event))
            };
            failed = printed.err();
            failed.is_none()
        })?;
        return failed.map_or(Ok(0), Err);
    }
    let events = client.events(args.after)?;
    if json {
        output::json(&events)?;
    } else {
        for event in &events {
            output::text_line(&line(event))?;
        }
    }
    Ok(0)
}

fn line(event: &Event) -> String {
    format!(
        "{:>6}  {}  {:<16}  {:<16}  {}",
        event.id,
        time_of_day(event.at_ms),
        event.kind,
        event.subject,
        event.message
    )
}
