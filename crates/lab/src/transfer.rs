//! The transfer disk: carries the command and the copied files into the lab and back.
//!
//! It is a file system made and read without mounting, so no privilege is needed. `debugfs` opens
//! host files through links with fixed names in the run's directory, which spares quoting.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::build::file_error;
use crate::error::{BuildError, RunError};
use crate::run_dir::RunDir;
use crate::shell::quote;
use crate::spec::{CopyIn, RunSpec};
use crate::tools;

/// Name of the disk in the run's directory.
pub(crate) const DISK: &str = "transfer.ext4";

/// Room for what is copied out and for growth of what is copied in; the file is sparse.
const SPARE_BYTES: u64 = 32 << 30;
/// Files above this size are bind mounted in the lab instead of copied.
const COPY_BYTES_MAX: u64 = 32 << 20;
const SUPERBLOCK_BYTES: u64 = 1 << 20;

/// Makes the transfer disk for a run.
pub(crate) fn prepare(spec: &RunSpec, run: &RunDir) -> Result<(), RunError> {
    let mut commands = String::new();
    let mut plan = String::from("copy_in_all() {\n:\n");
    let mut content_bytes = SUPERBLOCK_BYTES;
    for (index, copy) in spec.copy_in.iter().enumerate() {
        let (bytes, line) = stage(index, copy, run)?;
        content_bytes += bytes;
        plan.push_str(&line);
        commands.push_str(&format!("write in{index} in{index}\n"));
    }
    plan.push_str("}\ncopy_out_all() {\n:\n");
    for (index, copy) in spec.copy_out.iter().enumerate() {
        plan.push_str(&format!("copy_out {index} {}\n", quote(&copy.lab)));
    }
    plan.push_str("}\n");
    for (name, text) in [("plan", plan), ("cmd", command_script(spec))] {
        let path = run.file(name);
        fs::write(&path, text).map_err(|e| RunError::Prepare(file_error("write", &path, e)))?;
        commands.push_str(&format!("write {name} {name}\n"));
    }
    make_disk(run, content_bytes, &commands).map_err(RunError::Prepare)
}

/// Takes the file or directory of index `index` off the disk to its place on the host.
pub(crate) fn extract(index: usize, host: &Path, run: &RunDir) -> Result<(), BuildError> {
    let tar = format!("out{index}");
    debugfs(&["-R", &format!("dump {tar} {tar}"), DISK], run)?;
    let parent = match host.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(|e| file_error("create", &parent, e))?;
    let staging = tempfile::Builder::new()
        .prefix(".mitose-lab-")
        .tempdir_in(&parent)
        .map_err(|e| file_error("create a directory in", &parent, e))?;
    let tar_path = run.file(&tar);
    let arguments = [
        "-xSf".as_ref(),
        tar_path.as_os_str(),
        "--no-same-owner".as_ref(),
    ];
    tools::run("tar", &arguments, staging.path())?;
    let mut entries =
        fs::read_dir(staging.path()).map_err(|e| file_error("read", staging.path(), e))?;
    let entry = entries
        .next()
        .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
        .map_err(|e| file_error("read", staging.path(), e))?;
    let target = if host.is_dir() {
        host.join(entry.file_name())
    } else {
        host.to_owned()
    };
    fs::rename(entry.path(), &target).map_err(|e| file_error("store", &target, e))
}

/// Makes `inN` in the run's directory; returns its size and its line of the plan.
fn stage(index: usize, copy: &CopyIn, run: &RunDir) -> Result<(u64, String), RunError> {
    let fail = |source| RunError::CopyIn {
        path: copy.host.clone(),
        source,
    };
    let host = fs::canonicalize(&copy.host).map_err(fail)?;
    let staged = run.file(&format!("in{index}"));
    let lab = quote(&copy.lab);
    if host.is_dir() {
        let arguments = [
            "-cSf".as_ref(),
            staged.as_os_str(),
            "-C".as_ref(),
            host.as_os_str(),
            ".".as_ref(),
        ];
        tools::run("tar", &arguments, run.path()).map_err(RunError::Prepare)?;
        let bytes = fs::metadata(&staged).map_err(fail)?.len();
        return Ok((bytes, format!("copy_in_tree {index} {lab} || return 1\n")));
    }
    let metadata = File::open(&host)
        .and_then(|file| file.metadata())
        .map_err(fail)?;
    if !metadata.is_file() {
        return Err(fail(io::Error::other("neither a file nor a directory")));
    }
    symlink(&host, &staged).map_err(fail)?;
    let name = host.file_name().unwrap_or_default().to_string_lossy();
    let lab = if copy.lab.ends_with('/') {
        quote(&format!("{}{name}", copy.lab))
    } else {
        lab
    };
    let how = if metadata.len() > COPY_BYTES_MAX {
        "bind"
    } else {
        "copy"
    };
    let line = format!(
        "copy_in_file {index} {lab} {} {how} || return 1\n",
        quote(&name)
    );
    Ok((metadata.len(), line))
}

/// Returns the script that becomes the command.
fn command_script(spec: &RunSpec) -> String {
    let mut script = String::from("cd /root\n");
    for (name, value) in &spec.environment {
        script.push_str(&format!("export {name}={}\n", quote(value)));
    }
    script.push_str("exec");
    for argument in &spec.command {
        script.push(' ');
        script.push_str(&quote(argument));
    }
    script.push('\n');
    script
}

fn make_disk(run: &RunDir, content_bytes: u64, commands: &str) -> Result<(), BuildError> {
    let disk = run.file(DISK);
    // A fifth more than the content holds its block tables with room to spare.
    let bytes = SPARE_BYTES + content_bytes + content_bytes / 5;
    File::create(&disk)
        .and_then(|file| file.set_len(bytes.next_multiple_of(1 << 20)))
        .map_err(|e| file_error("create", &disk, e))?;
    let options = [
        "-q",
        "-F",
        "-m",
        "0",
        "-N",
        "4096",
        "-O",
        "^has_journal,^resize_inode",
    ];
    let lazy = ["-E", "lazy_itable_init=1,nodiscard", DISK];
    tools::run("mkfs.ext4", &[&options[..], &lazy[..]].concat(), run.path())?;
    let script = run.file("debugfs.commands");
    fs::write(&script, commands).map_err(|e| file_error("write", &script, e))?;
    debugfs(&["-w", "-f", "debugfs.commands", DISK], run)
}

/// Runs `debugfs`, which reports failures only as text.
fn debugfs(arguments: &[&str], run: &RunDir) -> Result<(), BuildError> {
    let stderr = tools::run("debugfs", arguments, run.path())?;
    let message: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.starts_with("debugfs "))
        .collect();
    if message.is_empty() {
        return Ok(());
    }
    let message = tools::last_chars(&message.join("\n"));
    Err(BuildError::Failed {
        program: "debugfs",
        status: "messages".to_owned(),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_script_quotes_every_part() {
        let spec = RunSpec::new(["echo", "it's", "$HOME"]).env("A", "b c");
        let expected = "cd /root\nexport A='b c'\nexec 'echo' 'it'\\''s' '$HOME'\n";
        assert_eq!(command_script(&spec), expected);
    }

    #[test]
    fn staged_files_are_on_the_disk() {
        let runs = tempfile::tempdir().unwrap();
        let source = runs.path().join("a file's name");
        fs::write(&source, "content").unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        let tree = runs.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("leaf"), "leaf").unwrap();
        let spec = RunSpec::new(["true"])
            .copy_in(&source, "/x/")
            .copy_in(&tree, "/y");
        prepare(&spec, &run).unwrap();
        let plan = fs::read_to_string(run.file("plan")).unwrap();
        assert!(
            plan.contains(r"copy_in_file 0 '/x/a file'\''s name'"),
            "{plan}"
        );
        assert!(plan.contains("copy_in_tree 1 '/y'"), "{plan}");
        // What the lab does for each file to copy out.
        tools::run("tar", &["-cf", "out9", "-C", "..", "tree"], run.path()).unwrap();
        debugfs(&["-w", "-R", "write out9 out9", DISK], &run).unwrap();
        fs::remove_file(run.file("out9")).unwrap();
        let target = runs.path().join("target");
        extract(9, &target, &run).unwrap();
        assert_eq!(fs::read_to_string(target.join("leaf")).unwrap(), "leaf");
    }

    #[test]
    fn missing_file_is_named() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path()).unwrap();
        let spec = RunSpec::new(["true"]).copy_in("/no/such/file", "/x");
        let message = prepare(&spec, &run).unwrap_err().to_string();
        assert!(message.contains("/no/such/file"), "{message}");
    }
}
