//! Runs the external programs: their words kept for error messages, stopped on cancellation.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{ImageError, Watch};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How long a cancelled program may take to clean up.
const GRACE: Duration = Duration::from_secs(10);

/// Lines of a failed program's output that an error repeats.
const LINES_KEPT: usize = 8;

/// One run of a program.
#[derive(Debug)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    command: Command,
    tolerated: Vec<i32>,
}

impl Tool {
    /// Prepares a program that comes with a Debian package.
    pub(crate) fn new(program: &'static str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        // A user's PATH often lacks the directories of mkfs and its like.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env(
            "PATH",
            format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"),
        );
        Self {
            program,
            package,
            command,
            tolerated: vec![0],
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &std::path::Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs the program and returns its standard output.
    pub(crate) fn output(self, watch: &Watch) -> Result<Vec<u8>, ImageError> {
        self.run(watch, |_| {})
    }

    /// Runs the program; `on_line` gets each line of its standard error.
    pub(crate) fn run(
        mut self,
        watch: &Watch,
        on_line: impl Fn(&str) + Send,
    ) -> Result<Vec<u8>, ImageError> {
        watch.check()?;
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own, so that its children can be stopped with it.
        self.command.process_group(0);
        let mut child = self
            .command
            .spawn()
            .map_err(|source| self.not_started(source))?;
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let (stdout, lines, status) = thread::scope(|scope| {
            let stdout = scope.spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stdout) = stdout {
                    let _ = stdout.read_to_end(&mut bytes);
                }
                bytes
            });
            let lines = scope.spawn(move || stderr.map(|s| follow(s, on_line)).unwrap_or_default());
            let status = wait(&mut child, watch);
            (
                stdout.join().unwrap_or_default(),
                lines.join().unwrap_or_default(),
                status,
            )
        });
        watch.check()?;
        let status = status.map_err(|source| self.not_started(source))?;
        if status
            .code()
            .is_some_and(|code| self.tolerated.contains(&code))
        {
            return Ok(stdout);
        }
        let output = telling(lines);
        Err(ImageError::ToolFailed {
            program: self.program,
            status: status.to_string(),
            output,
        })
    }

    fn not_started(&self, source: io::Error) -> ImageError {
        match source.kind() {
            io::ErrorKind::NotFound => ImageError::ToolMissing {
                program: self.program,
                package: self.package,
            },
            _ => ImageError::File {
                action: "run",
                path: self.program.into(),
                source,
            },
        }
    }
}

fn follow(stderr: impl Read, on_line: impl Fn(&str)) -> VecDeque<String> {
    let mut kept = VecDeque::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line: String = line
            .trim_end()
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        on_line(&line);
        if line.is_empty() {
            continue;
        }
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept
}

/// Joins the lines that say what went wrong: those that apt and its kin mark as errors, the first
/// of which is the cause of the others, or else all.
fn telling(lines: VecDeque<String>) -> String {
    let first_errors: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("E: "))
        .take(2)
        .collect();
    if first_errors.is_empty() {
        Vec::from(lines).join("; ")
    } else {
        first_errors.join("; ")
    }
}

fn wait(child: &mut Child, watch: &Watch) -> io::Result<ExitStatus> {
    let mut deadline = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let group = Pid::from_raw(child.id().cast_signed());
        match (watch.is_cancelled(), deadline) {
            (true, None) => {
                deadline = Some(Instant::now() + GRACE);
                let _ = group.map(|group| kill_process_group(group, Signal::TERM));
            }
            (true, Some(at)) if Instant::now() > at => {
                let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            }
            _ => {}
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CancelToken;

    #[test]
    fn output_is_returned_and_failures_are_quoted() {
        let watch = Watch::default();
        let output = Tool::new("sh", "dash")
            .args(["-c", "echo hi; echo no >&2"])
            .output(&watch);
        assert_eq!(output.unwrap(), b"hi\n");
        let error = Tool::new("sh", "dash")
            .args(["-c", "echo bad >&2; exit 3"])
            .output(&watch);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("bad") && text.contains('3'), "{text}");
        let script = "echo I: start >&2; echo E: cause >&2; echo I: end >&2; exit 1";
        let error = Tool::new("sh", "dash")
            .args(["-c", script])
            .output(&watch)
            .unwrap_err();
        assert!(error.to_string().ends_with(": cause"), "{error}");
        let error = Tool::new("no-such-program", "some-package")
            .output(&watch)
            .unwrap_err();
        assert!(error.to_string().contains("some-package"));
    }

    #[test]
    fn cancelling_stops_a_program_and_its_children() {
        let token = CancelToken::default();
        let watch = Watch::new(|_, _| {}, token.clone());
        let guard = token.cancel_on_drop();
        let cancel_when_running = move |line: &str| {
            assert_eq!(line, "running");
            token.cancel();
        };
        let tool = Tool::new("sh", "dash").args(["-c", "echo running >&2; sleep 100; true"]);
        let begin = Instant::now();
        let result = tool.run(&watch, cancel_when_running);
        assert!(matches!(result, Err(ImageError::Cancelled)));
        assert!(begin.elapsed() < Duration::from_secs(60));
        drop(guard);
    }
}
