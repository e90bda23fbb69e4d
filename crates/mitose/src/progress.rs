//! Progress of long work on standard error: a bar on a terminal, plain lines otherwise.

use std::io::{self, IsTerminal};
use std::time::Duration;

use api_types::Task;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows a task's states.
#[derive(Debug)]
pub struct TaskProgress {
    bar: Option<ProgressBar>,
    last: String,
}

impl TaskProgress {
    /// Shows nothing yet.
    pub fn new(title: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(100).with_prefix(title.to_owned());
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3} % {wide_msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// Shows the present state.
    pub fn show(&mut self, task: &Task) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(task.percent.unwrap_or(0).into());
                bar.set_message(task.message.clone());
            }
            None if self.last != task.message => {
                eprintln!("{:>3} % {}", task.percent.unwrap_or(0), task.message);
                self.last.clone_from(&task.message);
            }
            None => {}
        }
    }

    /// Ends the display.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Tells that something is waited for, while it lives: a spinner, only on a terminal.
#[derive(Debug)]
pub struct Waiting(Option<ProgressBar>);

impl Waiting {
    /// Starts to tell.
    pub fn for_(what: String) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(what);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
