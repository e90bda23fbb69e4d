//! `mitose task`.

use std::time::Duration;

use api_types::{Task, TaskState};
use clap::{Subcommand, ValueEnum};
use client::{Client, TaskFilter};

use super::Context;
use crate::output::{self, Format, Table, time_of_day};
use crate::progress::TaskProgress;

/// List, follow and cancel tasks
///
/// Whatever changes something is a task, whichever client asked for it. The numbers of tasks are in
/// 'mitose task ls' and in answers of the API.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose task ls --state running
  mitose task show 12 -o json
  mitose task wait 12 --timeout 600
  mitose task cancel 12")]
pub struct Args {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List tasks, latest first
    #[command(after_help = "Examples:
  mitose task ls
  mitose task ls --state failed --kind vm.fork --limit 20 -o json")]
    Ls {
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<StateArg>,
        /// Only those of this kind, such as vm.fork
        #[arg(long)]
        kind: Option<String>,
        /// Only those that work on the object with this id
        #[arg(long, value_name = "ID")]
        object: Option<String>,
        /// Most tasks to list
        #[arg(long, value_name = "COUNT", default_value_t = 100,
            value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a task: what it made so far, what it gave, why it failed
    #[command(after_help = "Example:
  mitose task show 12")]
    Show {
        /// Its number
        id: i64,
    },
    /// Wait for the end of a task; fails where the task did
    #[command(after_help = "Examples:
  mitose task wait 12
  mitose task wait 12 --timeout 600 -o json")]
    Wait {
        /// Its number
        id: i64,
        /// Longest wait, seconds [default: until it has ended]
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Ask tasks to end; 'mitose task wait' tells when they have
    #[command(after_help = "Example:
  mitose task cancel 12 13")]
    Cancel {
        /// Their numbers
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

/// State of a task.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateArg {
    /// In work
    Running,
    /// Done
    Success,
    /// Failed
    Failed,
    /// Ended because somebody asked
    Cancelled,
}

impl From<StateArg> for TaskState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Running => Self::Running,
            StateArg::Success => Self::Success,
            StateArg::Failed => Self::Failed,
            StateArg::Cancelled => Self::Cancelled,
        }
    }
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    match args.command {
        TaskCommand::Ls {
            state,
            kind,
            object,
            limit,
        } => {
            let filter = TaskFilter {
                state: state.map(TaskState::from),
                kind,
                object,
                limit: Some(limit),
            };
            list(&client.tasks_that(&filter)?, context.format)?;
            Ok(0)
        }
        TaskCommand::Show { id } => {
            show(&client.task(id)?, context.format)?;
            Ok(0)
        }
        TaskCommand::Wait { id, timeout } => wait(&client, id, timeout, context.format),
        TaskCommand::Cancel { ids } => {
            let asked: Result<Vec<_>, _> = ids.iter().map(|id| client.cancel_task(*id)).collect();
            list(&asked?, context.format)?;
            Ok(0)
        }
    }
}

fn wait(client: &Client, id: i64, timeout: Option<u64>, format: Format) -> anyhow::Result<u8> {
    let task = match timeout {
        Some(seconds) => client.wait_task(id, Duration::from_secs(seconds))?,
        None => {
            let mut progress = TaskProgress::new(&format!("task {id}"));
            let ended = client.follow_task(id, |task| progress.show(task));
            progress.finish();
            ended?
        }
    };
    show(&task, format)?;
    match (task.state, timeout) {
        (TaskState::Success, _) => Ok(0),
        (TaskState::Running, Some(seconds)) => anyhow::bail!(
            "task {id} ({}) has not ended within {seconds} s; wait longer, or cancel it with \
             'mitose task cancel {id}'",
            task.kind
        ),
        _ => Ok(1),
    }
}

fn list(tasks: &[Task], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&tasks);
    }
    let headings = [
        "ID", "STARTED", "KIND", "SUBJECT", "USER", "STATE", "%", "TOLD",
    ];
    let mut table = Table::new(&headings);
    for task in tasks {
        table.row(vec![
            task.id.to_string(),
            time_of_day(task.started_at_ms),
            task.kind.clone(),
            task.subject.clone(),
            task.user.clone(),
            word(task.state).to_owned(),
            task.percent
                .map_or("-".to_owned(), |percent| percent.to_string()),
            task.error.clone().unwrap_or_else(|| task.message.clone()),
        ]);
    }
    table.print()
}

fn show(task: &Task, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(task);
    }
    let mut lines = vec![
        format!("task      {} ({})", task.id, task.kind),
        format!("subject   {}", task.subject),
        format!("user      {}", task.user),
        format!("state     {}", word(task.state)),
        format!("started   {}", time_of_day(task.started_at_ms)),
    ];
    lines.extend(
        task.ended_at_ms
            .map(|at| format!("ended     {}", time_of_day(at))),
    );
    lines.extend(task.percent.map(|percent| format!("done      {percent} %")));
    if !task.message.is_empty() {
        lines.push(format!("told      {}", task.message));
    }
    lines.extend(
        task.error
            .as_ref()
            .map(|error| format!("error     {error}")),
    );
    if task.state == TaskState::Running {
        let how = if task.cancellable { "yes" } else { "no" };
        lines.push(format!("can be cancelled: {how}"));
    }
    for item in &task.items {
        let error = item
            .error
            .as_deref()
            .map_or(String::new(), |error| format!(": {error}"));
        lines.push(format!("  {}  {}{error}", word(item.state), item.name));
    }
    if let Some(result) = &task.result {
        lines.push(format!("result    {result}"));
    }
    output::text_line(&lines.join("\n"))
}

fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "running",
        TaskState::Success => "success",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}
