//! Runs the external programs: their words kept for error messages, stopped on cancellation.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{ImageError, Watch};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How long a cancelled program may take to clean up.
const GRACE: Duration = Duration::from_secs(10);

/// Last lines of a failed program's output that are looked through for its cause.
const LINES_KEPT: usize = 500;

/// Lines of such an output that an error repeats where none tells of a cause.
const LINES_TOLD: usize = 8;

/// Lines of a maintainer script that an error repeats.
const SCRIPT_LINES_TOLD: usize = 3;

/// How lines begin that tell what is done, not what went wrong.
const PROGRESS: [&str; 8] = [
    "I: ",
    "(Reading database",
    "Selecting previously",
    "Preparing to unpack",
    "Unpacking ",
    "Setting up ",
    "Processing triggers",
    "debconf: ",
];

/// One run of a program.
#[derive(Debug)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    command: Command,
    tolerated: Vec<i32>,
    log: Option<PathBuf>,
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
            log: None,
        }
    }

    /// Keeps all that the program says on its standard error in a file, if it fails.
    pub(crate) fn log(mut self, path: PathBuf) -> Self {
        self.log = Some(path);
        self
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
        let log = self.log.as_deref().and_then(make_log);
        let logged = log.is_some();
        let (stdout, lines, status) = thread::scope(|scope| {
            let stdout = scope.spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stdout) = stdout {
                    let _ = stdout.read_to_end(&mut bytes);
                }
                bytes
            });
            let lines =
                scope.spawn(move || stderr.map(|s| follow(s, log, on_line)).unwrap_or_default());
            let status = wait(&mut child, watch);
            (
                stdout.join().unwrap_or_default(),
                lines.join().unwrap_or_default(),
                status,
            )
        });
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        let is_good = code.is_some_and(|code| self.tolerated.contains(&code));
        let log = self.log.as_deref().filter(|_| logged);
        if is_good || watch.is_cancelled() {
            log.map(fs::remove_file);
        }
        watch.check()?;
        let status = status.map_err(|source| self.not_started(source))?;
        if is_good {
            return Ok(stdout);
        }
        let mut output = telling(lines);
        if let Some(log) = log {
            output = format!("{output} (all that it said is in {})", log.display());
        }
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

/// Makes the file of a log, and its directory; without one the program runs as well.
fn make_log(path: &Path) -> Option<File> {
    fs::create_dir_all(path.parent()?).ok()?;
    File::create(path).ok()
}

fn follow(stderr: impl Read, mut log: Option<File>, on_line: impl Fn(&str)) -> VecDeque<String> {
    let mut kept = VecDeque::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        if let Some(log) = &mut log {
            let _ = log.write_all(&[&line[..], b"\n"].concat());
        }
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

/// Joins the lines that say what went wrong: the first package that dpkg could not process, with the
/// last words of its script, or else those that apt and its kin mark as errors, the first of which is
/// the cause of the others, or else the last ones.
fn telling(lines: VecDeque<String>) -> String {
    let lines = Vec::from(lines);
    let failed = |line: &String| line.starts_with("dpkg: error processing");
    if let Some(at) = lines.iter().position(failed) {
        let words = lines[..at].iter().rev();
        let words = words.take_while(|line| !PROGRESS.iter().any(|begin| line.starts_with(begin)));
        let mut told: Vec<&str> = words
            .take(SCRIPT_LINES_TOLD)
            .map(|line| line.trim())
            .collect();
        told.reverse();
        let package = lines[at].trim_end_matches(':');
        let reason = lines.get(at + 1).filter(|line| line.starts_with(' '));
        let package = reason.map_or(package.to_owned(), |reason| {
            format!("{package}: {}", reason.trim())
        });
        told.push(&package);
        return told.join("; ");
    }
    let errors = || lines.iter().filter_map(|line| line.strip_prefix("E: "));
    // What a program runs says more than that it failed.
    let causes = errors().filter(|line| !is_command(line));
    let causes: Vec<&str> = causes.take(2).collect();
    if !causes.is_empty() {
        return causes.join("; ");
    }
    match errors().next() {
        Some(only) => only.to_owned(),
        None => lines[lines.len().saturating_sub(LINES_TOLD)..].join("; "),
    }
}

/// Whether an error only repeats the command that failed, as mmdebstrap's does.
fn is_command(line: &str) -> bool {
    ["apt-get ", "dpkg "].iter().any(|program| {
        let at = line.find(program);
        at.is_some_and(|at| line[at..].contains(" -") || line.starts_with("env "))
    })
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

    /// As mmdebstrap 1.3 and apt 2.6 say it, shortened.
    const FAILED_SCRIPT: &str = "\
I: installing remaining packages inside the chroot...
Reading package lists...
Unpacking crossed (1.0) ...
Setting up libc-bin (2.36) ...
Setting up crossed (1.0) ...
crossed: cannot reach the licence server
dpkg: error processing package crossed (--configure):
 installed crossed package post-installation script subprocess returned error exit status 9
dpkg: dependency problems prevent configuration of follower:
 follower depends on crossed; however:
  Package crossed is not configured yet.

dpkg: error processing package follower (--configure):
 dependency problems - leaving unconfigured
Errors were encountered while processing:
 crossed
 follower
E: Sub-process /usr/bin/dpkg returned an error code (1)
E: env --unset=TMPDIR apt-get --yes install -oAPT::Status-Fd=<$fd> bash crossed follower failed";

    #[test]
    fn the_package_that_failed_is_told_with_its_scripts_words() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        assert_eq!(
            telling(lines(FAILED_SCRIPT)),
            "crossed: cannot reach the licence server; dpkg: error processing package crossed \
             (--configure): installed crossed package post-installation script subprocess returned \
             error exit status 9"
        );
        let missing = "E: Unable to locate package nonsuch\n\
                       E: env --unset=TMPDIR apt-get --yes install -oAPT::X=1 nonsuch failed";
        assert_eq!(telling(lines(missing)), "Unable to locate package nonsuch");
        let only = "E: env apt-get update -oX failed";
        assert_eq!(telling(lines(only)), &only[3..]);
    }

    #[test]
    fn a_failed_programs_whole_output_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/debian.log");
        let run = |end: &str| {
            let script = format!("seq 1000 >&2; echo E: cause >&2; {end}");
            let tool = Tool::new("sh", "dash").args(["-c", &script]);
            tool.log(log.clone()).output(&Watch::default())
        };
        let error = run("exit 1").unwrap_err().to_string();
        let told = format!("cause (all that it said is in {})", log.display());
        assert!(error.ends_with(&told), "{error}");
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.starts_with("1\n2\n") && text.ends_with("1000\nE: cause\n"));
        run("true").unwrap();
        assert!(!log.exists());
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
