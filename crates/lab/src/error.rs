//! What can go wrong when the lab is built or run, each with its subject and remedy.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A request that cannot be carried out as written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A size is not a number with an optional unit.
    #[error("size '{text}': expected a number with an optional unit K, M, G or T, such as 8G")]
    Size {
        /// The text as given.
        text: String,
    },
    /// A copy-in or copy-out is not two paths with a colon between them.
    #[error("copy '{text}': expected {form}")]
    Copy {
        /// The text as given.
        text: String,
        /// The expected form.
        form: &'static str,
    },
    /// A path inside the lab is not absolute.
    #[error("path '{path}' in the lab: must be absolute, without line breaks")]
    LabPath {
        /// The path as given.
        path: String,
    },
    /// An environment variable's name cannot be exported by a shell.
    #[error("environment '{text}': expected NAME=VALUE, NAME of letters, digits and '_'")]
    Environment {
        /// The text as given.
        text: String,
    },
    /// No command was given.
    #[error("command: missing, name the program to run in the lab after '--'")]
    NoCommand,
    /// An argument holds a NUL character.
    #[error("argument {index} of the command: must not contain a NUL character")]
    Nul {
        /// Position in the command, from 0.
        index: usize,
    },
    /// The machine size is out of range.
    #[error("{field}: {value} is outside {range}")]
    Range {
        /// The field's name.
        field: &'static str,
        /// The value as given.
        value: u64,
        /// The allowed values.
        range: &'static str,
    },
    /// The name of the Debian suite is not one.
    #[error("suite '{suite}': expected a Debian suite's name, such as trixie")]
    Suite {
        /// The name as given.
        suite: String,
    },
}

/// Why the lab's files could not be built or opened.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A program that the build or run needs is missing.
    #[error("find program '{program}': not installed, run scripts/setup.sh")]
    Tool {
        /// The program's name.
        program: &'static str,
    },
    /// The request is wrong.
    #[error("check the request")]
    Spec(#[source] SpecError),
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program could not be started or waited for.
    #[error("start '{program}'")]
    Spawn {
        /// The program's name.
        program: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A program reported failure.
    #[error("'{program}' failed with {status}: {message}")]
    Failed {
        /// The program's name.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        message: String,
    },
    /// The unpacked system lacks something that the lab needs.
    #[error("find {what} in the unpacked Debian suite '{suite}'")]
    Incomplete {
        /// The missing part.
        what: String,
        /// The suite.
        suite: String,
    },
}

/// Why a run gave no exit code.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The request is wrong.
    #[error("check the request")]
    Spec(#[source] SpecError),
    /// Preparing the run failed.
    #[error("prepare the run")]
    Prepare(#[source] BuildError),
    /// A file to copy into the lab cannot be read.
    #[error("copy in {}", path.display())]
    CopyIn {
        /// The file on the host.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file to copy out of the lab does not exist there or cannot be read.
    #[error("copy out {lab}: {problem} in the lab (the command ended with exit code {exit_code})")]
    CopyOut {
        /// The path in the lab.
        lab: String,
        /// What is wrong with it.
        problem: &'static str,
        /// The exit code of the command.
        exit_code: i32,
    },
    /// The lab could not put the copied files into place.
    #[error("place the copied files in the lab; its console ends with:\n{console}")]
    Place {
        /// The end of the lab's console.
        console: String,
    },
    /// The machine ended before the command did.
    #[error("run the lab: the machine ended ({status}) {stage}; its console ends with:\n{console}")]
    Died {
        /// How QEMU ended.
        status: String,
        /// When it happened.
        stage: &'static str,
        /// The end of the lab's console and of QEMU's messages.
        console: String,
    },
    /// The machine did not come up in time.
    #[error("boot the lab: not up after {} s; its console ends with:\n{console}", limit.as_secs())]
    BootTimeout {
        /// The limit.
        limit: Duration,
        /// The end of the lab's console.
        console: String,
    },
    /// The run took longer than its limit and was ended.
    #[error("run the command: not done after {} s", limit.as_secs_f64())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The caller asked to stop.
    #[error("run the command: interrupted")]
    Cancelled,
}
