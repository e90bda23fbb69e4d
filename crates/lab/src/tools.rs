//! Finds and runs the outside programs that the lab is built with.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::BuildError;

/// Where Debian puts administration programs, which a user's `PATH` may lack.
const ADMIN_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
const MESSAGE_CHARS_MAX: usize = 2000;

/// Returns the full path of `program`, or an error that names the remedy.
pub(crate) fn find(program: &'static str) -> Result<PathBuf, BuildError> {
    search_path()
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or(BuildError::Tool { program })
}

/// Returns the directories that programs are looked for in.
fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own: Vec<PathBuf> = env::split_paths(&path).collect();
    own.into_iter()
        .chain(ADMIN_DIRECTORIES.iter().map(PathBuf::from))
}

/// Runs `program` in `directory` to its end and returns its standard error.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &'static str,
    arguments: &[S],
    directory: &Path,
) -> Result<String, BuildError> {
    let output = finish(program, arguments, directory)?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs `program` to its end and returns its standard output.
pub(crate) fn capture<S: AsRef<OsStr>>(
    program: &'static str,
    arguments: &[S],
) -> Result<Vec<u8>, BuildError> {
    Ok(finish(program, arguments, Path::new("/"))?.stdout)
}

fn finish<S: AsRef<OsStr>>(
    program: &'static str,
    arguments: &[S],
    directory: &Path,
) -> Result<Output, BuildError> {
    let output = Command::new(find(program)?)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .envs(env::join_paths(search_path()).map(|path| ("PATH", path)))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| BuildError::Spawn { program, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status.to_string();
    Err(BuildError::Failed {
        program,
        status,
        message: last_chars(&stderr),
    })
}

/// Returns the end of a long text.
pub(crate) fn last_chars(text: &str) -> String {
    let text = text.trim_end();
    let skip = text.chars().count().saturating_sub(MESSAGE_CHARS_MAX);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_the_remedy() {
        let message = find("no-such-program").unwrap_err().to_string();
        assert!(
            message.contains("no-such-program") && message.contains("setup.sh"),
            "{message}"
        );
    }

    #[test]
    fn failure_carries_the_message() {
        let result = run("sh", &["-c", "echo why >&2; exit 3"], Path::new("/"));
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("why") && message.contains('3'),
            "{message}"
        );
    }

    #[test]
    fn long_text_keeps_its_end() {
        let text = "a".repeat(MESSAGE_CHARS_MAX) + "end\n";
        assert_eq!(last_chars(&text).len(), MESSAGE_CHARS_MAX);
        assert!(last_chars(&text).ends_with("end"));
    }
}
