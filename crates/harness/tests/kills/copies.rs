//! Ready copies of disk pools, by QEMU's own tools: whole, standing alone, and of the right content.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::walker::{Database, read, store_dirs, text};

/// What is wrong with ready copies. Those of the VM `template` show what `original` does; copies in
/// `seen` were right before.
pub fn broken(
    home: &Path,
    template: &str,
    original: &Path,
    seen: &mut HashSet<String>,
) -> Vec<String> {
    let Ok(database) = read(home) else {
        return vec!["the database cannot be read".to_owned()];
    };
    let mut found = Vec::new();
    for (kind, id, doc) in &database.others {
        if kind != "disk_pool" {
            continue;
        }
        let is_known = doc["source"]["vm"] == id_of(&database, template);
        for (_, store) in store_dirs(home, &database) {
            for copy in ready(&store.join("pool").join(id)) {
                let Ok(file) = fs::metadata(copy.join("disk0.qcow2")) else {
                    // Somebody took it, or it is being drained.
                    continue;
                };
                let key = format!("{} {} {}", copy.display(), file.ino(), file.mtime_nsec());
                if !seen.insert(key) {
                    continue;
                }
                let disk = copy.join("disk0.qcow2");
                let wrong = wrong_with(&disk, is_known.then_some(original));
                // It may go while it is looked at.
                found.extend(wrong.filter(|_| disk.exists()));
            }
        }
    }
    found
}

fn id_of(database: &Database, name: &str) -> Value {
    let vm = database.vms.iter().find(|vm| text(vm, "name") == name);
    vm.map_or(Value::Null, |vm| vm["id"].clone())
}

/// Folders of copies that pretend to be whole.
fn ready(pool: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pool).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none())
        .collect()
}

fn wrong_with(disk: &Path, original: Option<&Path>) -> Option<String> {
    let shown = disk.display().to_string();
    let run = |args: &[&str]| {
        let done = Command::new("qemu-img").args(args).output();
        match done {
            Ok(done) if done.status.success() => {
                Ok(String::from_utf8_lossy(&done.stdout).into_owned())
            }
            Ok(done) => Err(format!(
                "{shown}: {}{}",
                String::from_utf8_lossy(&done.stdout),
                String::from_utf8_lossy(&done.stderr)
            )),
            Err(error) => Err(format!("qemu-img: {error}")),
        }
    };
    let info = match run(&["check", "-q", &shown]).and_then(|_| run(&["info", &shown])) {
        Ok(info) => info,
        Err(error) => return Some(error),
    };
    if info.contains("backing file") {
        return Some(format!("{shown} does not stand alone"));
    }
    let original = original?.display().to_string();
    run(&["compare", "-f", "qcow2", "-F", "raw", &shown, &original]).err()
}
