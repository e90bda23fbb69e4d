//! Archives as other programs see them: a name that has its ending belongs to a whole file.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Files that are not finished, where no daemon writes any.
pub fn halves(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none_or(|end| end != "tar"))
        .map(|path| format!("{} is left", path.display()))
        .collect()
}

/// What is wrong with archives; those in `seen` were whole before.
pub fn broken(archives: &[PathBuf], seen: &mut HashSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for path in archives {
        if !seen.insert(path.display().to_string()) {
            continue;
        }
        if let Err(error) = check(path) {
            found.push(format!("{}: {error}", path.display()));
        }
    }
    found
}

/// Unpacks an archive with `tar`, and compares each file that its manifest tells of.
fn check(path: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("folder");
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program)
            .args(args)
            .current_dir(folder.path())
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        }
    };
    run("tar", &["-xf", &path.display().to_string()])?;
    let manifest = fs::read(folder.path().join("manifest.json")).map_err(|e| e.to_string())?;
    let mut manifest: Value = serde_json::from_slice(&manifest).map_err(|e| e.to_string())?;
    if manifest["boot_left_out"] == true {
        manifest["machine"] = Value::Null;
    }
    let sums = run("sh", &["-c", "find . -type f -exec sha256sum {} +"])?;
    let mut wanted = Vec::new();
    wanted_sums(&manifest, &mut wanted);
    if wanted.is_empty() && manifest["since"].is_null() {
        return Err("its manifest names no file".to_owned());
    }
    match wanted.iter().find(|sum| !sums.contains(**sum)) {
        Some(sum) => Err(format!("it has no file with SHA-256 {sum}")),
        None => Ok(()),
    }
}

/// Hashes of all files that a manifest says are there.
fn wanted_sums<'a>(value: &'a Value, wanted: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| wanted_sums(item, wanted)),
        Value::Object(fields) if fields.get("included") != Some(&Value::Bool(false)) => {
            wanted.extend(fields.get("sha256").and_then(Value::as_str));
            // In place of the memory there may be its changes.
            let whole = |name: &str| name != "ram" || !fields.contains_key("changes");
            let items = fields.iter().filter(|(name, _)| whole(name));
            items.for_each(|(_, item)| wanted_sums(item, wanted));
        }
        _ => {}
    }
}
