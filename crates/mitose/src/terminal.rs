//! The user's terminal in raw mode, for consoles and interactive commands.

use std::io;

use agent_protocol::WindowSize;
use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Keeps standard input in raw mode; puts it back when dropped.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Starts raw mode where standard input is a terminal.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let input = io::stdin();
        if !isatty(&input) {
            return Ok(None);
        }
        let before = tcgetattr(&input).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw).context("cannot set the terminal's mode")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Size of the terminal at standard output, or a usual one.
pub fn window_size() -> WindowSize {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => WindowSize { rows: 24, cols: 80 },
    }
}
