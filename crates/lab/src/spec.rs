//! What to run in the lab.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::error::SpecError;
use crate::shell;

const MEMORY_BYTES_DEFAULT: u64 = 8 << 30;
const MEMORY_BYTES_MIN: u64 = 512 << 20;
const MEMORY_BYTES_MAX: u64 = 1 << 40;
const CPUS_MAX: u32 = 64;

/// A file or directory of the host that appears in the lab.
///
/// A directory's content is copied into the lab's directory. A file of more than 32 MiB is bind
/// mounted: it can be read and written, but not be renamed or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyIn {
    /// Path on the host.
    pub host: PathBuf,
    /// Absolute path in the lab; with a `/` at its end, the directory that gets the file.
    pub lab: String,
}

/// A file or directory of the lab that is stored on the host when the command has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    /// Absolute path in the lab.
    pub lab: String,
    /// Path on the host; where a directory stands there, it gets the file.
    pub host: PathBuf,
}

/// Where the command's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// To this process's own standard output and error, as it comes.
    #[default]
    Stream,
    /// Into [`Outcome`](crate::Outcome).
    Capture,
}

/// One run of the lab: the machine, the files, the command.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Program and arguments; the program is looked up in the lab's `PATH`.
    pub command: Vec<String>,
    /// Variables for the command besides `PATH`, `HOME`, `TERM` and `LANG`.
    pub environment: Vec<(String, String)>,
    /// Files to put into the lab first.
    pub copy_in: Vec<CopyIn>,
    /// Files to take out of the lab at the end, whatever the command's exit code.
    pub copy_out: Vec<CopyOut>,
    /// Number of CPUs, 1 to 64.
    pub cpus: u32,
    /// Memory in bytes, 512 MiB to 1 TiB; the host gives only what is touched.
    pub memory_bytes: u64,
    /// Limit of the whole run, boot included.
    pub timeout: Option<Duration>,
    /// Where the output goes.
    pub output: Output,
    /// Ends the run when it becomes true.
    pub cancel: Arc<AtomicBool>,
}

impl RunSpec {
    /// Makes a run of `command` on 2 CPUs with 8 GiB, without files and without limit.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            copy_in: Vec::new(),
            copy_out: Vec::new(),
            cpus: 2,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            timeout: None,
            output: Output::Stream,
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Adds a file or directory to copy in.
    #[must_use]
    pub fn copy_in(mut self, host: impl Into<PathBuf>, lab: impl Into<String>) -> Self {
        self.copy_in.push(CopyIn {
            host: host.into(),
            lab: lab.into(),
        });
        self
    }

    /// Adds a file or directory to copy out.
    #[must_use]
    pub fn copy_out(mut self, lab: impl Into<String>, host: impl Into<PathBuf>) -> Self {
        self.copy_out.push(CopyOut {
            lab: lab.into(),
            host: host.into(),
        });
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the limit of the whole run.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Captures the command's output instead of streaming it.
    #[must_use]
    pub fn capture(mut self) -> Self {
        self.output = Output::Capture;
        self
    }

    /// Checks every field.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if self.command.is_empty() {
            return Err(SpecError::NoCommand);
        }
        if let Some(index) = self
            .command
            .iter()
            .position(|argument| argument.contains('\0'))
        {
            return Err(SpecError::Nul { index });
        }
        check_range(
            "cpus",
            u64::from(self.cpus),
            1,
            u64::from(CPUS_MAX),
            "1 to 64",
        )?;
        let (min, max) = (MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
        check_range("memory", self.memory_bytes, min, max, "512M to 1T")?;
        for (name, value) in &self.environment {
            if !shell::is_variable_name(name) || value.contains('\0') {
                return Err(SpecError::Environment { text: name.clone() });
            }
        }
        let paths = self.copy_in.iter().map(|copy| &copy.lab);
        for path in paths.chain(self.copy_out.iter().map(|copy| &copy.lab)) {
            if !path.starts_with('/') || path.contains(['\n', '\0']) {
                return Err(SpecError::LabPath { path: path.clone() });
            }
        }
        Ok(())
    }
}

impl FromStr for CopyIn {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (host, lab) = split(text, "HOSTPATH:LABPATH")?;
        Ok(Self {
            host: host.into(),
            lab: lab.to_owned(),
        })
    }
}

impl FromStr for CopyOut {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (lab, host) = split(text, "LABPATH:HOSTPATH")?;
        Ok(Self {
            lab: lab.to_owned(),
            host: host.into(),
        })
    }
}

fn split<'a>(text: &'a str, form: &'static str) -> Result<(&'a str, &'a str), SpecError> {
    match text.split_once(':') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from, to)),
        _ => Err(SpecError::Copy {
            text: text.to_owned(),
            form,
        }),
    }
}

fn check_range(
    field: &'static str,
    value: u64,
    min: u64,
    max: u64,
    range: &'static str,
) -> Result<(), SpecError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(SpecError::Range {
            field,
            value,
            range,
        })
    }
}

/// Reads a size such as `512M` or `8G` (powers of 1024) or a number of bytes.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let fail = || SpecError::Size {
        text: text.to_owned(),
    };
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(fail()),
    };
    let number: u64 = digits.parse().map_err(|_| fail())?;
    number.checked_mul(1 << shift).ok_or_else(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [("7", 7), ("2K", 2048), ("8g", 8 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "1.5G", "-1", "8X", "99999999999T", "8 G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn copies_are_two_paths() {
        let copy: CopyIn = "a/b:/c".parse().unwrap();
        assert_eq!(
            copy,
            CopyIn {
                host: "a/b".into(),
                lab: "/c".to_owned()
            }
        );
        let copy: CopyOut = "/c:a".parse().unwrap();
        assert_eq!(
            copy,
            CopyOut {
                lab: "/c".to_owned(),
                host: "a".into()
            }
        );
        for bad in ["", ":", "a:", ":/b", "a"] {
            assert!(bad.parse::<CopyIn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        let good = || RunSpec::new(["true"]);
        assert_eq!(good().check(), Ok(()));
        let no_command = RunSpec::new(Vec::<String>::new());
        let cases = [
            (no_command, "command"),
            (RunSpec::new(["a\0"]), "argument 0"),
            (RunSpec { cpus: 0, ..good() }, "cpus"),
            (
                RunSpec {
                    memory_bytes: 1,
                    ..good()
                },
                "memory",
            ),
            (good().env("a-b", "c"), "environment 'a-b'"),
            (good().copy_in("/a", "b"), "path 'b'"),
            (good().copy_out("/a\n", "b"), "path"),
        ];
        for (spec, text) in cases {
            let message = spec.check().unwrap_err().to_string();
            assert!(message.contains(text), "{message} lacks {text}");
        }
    }
}
