//! systemd's journal after a change of the machine id, of which it has a directory by that name:
//! `journalctl` looks only into the directory of the id in force.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_protocol::control::is_machine_id;

use crate::{Root, log};

/// Where journals are: those that last, and those of this boot.
const PLACES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Bytes of a journal file's header that are read.
const HEADER: usize = 192;

/// Has a running journal go on under the machine id `new`, with all that it has under `old`. This
/// takes its time and nothing waits for it.
pub(super) fn follow(root: &Root, old: &str, new: &str) {
    let old = old.trim();
    let is_running = || Path::new("/run/systemd/journal/socket").exists();
    if old == new || !is_machine_id(old) || !root.is_live() || !is_running() {
        return;
    }
    let places: Vec<PathBuf> = PLACES.iter().map(|place| root.path(place)).collect();
    if !places.iter().any(|place| place.join(old).is_dir()) {
        return;
    }
    let (old, new) = (old.to_owned(), new.to_owned());
    std::thread::spawn(move || {
        // The id is read once by each process; lines that come meanwhile wait in the socket, which
        // is systemd's.
        let restarted = Command::new("systemctl")
            .args(["restart", "systemd-journald.service"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !restarted.is_ok_and(|status| status.success()) {
            log("the journal goes on under the former machine id: it cannot be restarted");
            return;
        }
        for place in places {
            if let Err(error) = move_files(&place, &old, &new) {
                log(&format!(
                    "journals in {} stay where they are: {error}",
                    place.display()
                ));
            }
        }
    });
}

/// Moves the files of one id to those of another, under names of files that are complete.
fn move_files(place: &Path, old: &str, new: &str) -> io::Result<()> {
    let (from, to) = (place.join(old), place.join(new));
    let Ok(entries) = fs::read_dir(&from) else {
        return Ok(());
    };
    if !to.is_dir() {
        let meta = fs::metadata(&from)?;
        fs::create_dir(&to)?;
        std::os::unix::fs::chown(&to, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let complete = match name.strip_suffix(".journal") {
            Some(kind) if !kind.contains('@') => complete_name(kind, &entry.path())?,
            _ => name,
        };
        fs::rename(entry.path(), to.join(complete))?;
    }
    fs::remove_dir(from)
}

/// The name that the journal itself gives a file which it will write no more:
/// `KIND@SEQUENCE-FIRST-TIME.journal` (systemd: journal file format, header).
fn complete_name(kind: &str, path: &Path) -> io::Result<String> {
    const SEQUENCE: usize = 72;
    const FIRST: usize = 168;
    const TIME: usize = 184;
    let mut header = [0u8; HEADER];
    File::open(path)?.read_exact(&mut header)?;
    let sequence: String = header[SEQUENCE..SEQUENCE + 16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let number = |at: usize| {
        let bytes = header[at..at + 8].iter().rev();
        bytes.fold(0u64, |all, &byte| all << 8 | u64::from(byte))
    };
    let (first, time) = (number(FIRST), number(TIME));
    Ok(format!(
        "{kind}@{sequence}-{first:016x}-{time:016x}.journal"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_move_under_names_of_complete_ones() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = ("a".repeat(32), "b".repeat(32));
        let from = place.path().join(&old);
        fs::create_dir(&from).unwrap();
        let mut header = [0u8; 300];
        header[72..88].fill(0xab);
        header[168] = 7;
        header[185] = 1;
        fs::write(from.join("system.journal"), header).unwrap();
        fs::write(from.join("user-1000.journal"), header).unwrap();
        fs::write(from.join("system@x.journal"), "done").unwrap();
        // What the journal has begun under its new id stays.
        let to = place.path().join(&new);
        fs::create_dir(&to).unwrap();
        fs::write(to.join("system.journal"), "new").unwrap();
        move_files(place.path(), &old, &new).unwrap();
        let mut names: Vec<_> = fs::read_dir(&to)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let rest = format!(
            "{}-0000000000000007-0000000000000100.journal",
            "ab".repeat(16)
        );
        let wanted = [
            "system.journal".to_owned(),
            format!("system@{rest}"),
            "system@x.journal".to_owned(),
            format!("user-1000@{rest}"),
        ];
        assert_eq!(names, wanted);
        assert_eq!(fs::read(to.join("system.journal")).unwrap(), b"new");
        assert!(!from.exists());
        move_files(place.path(), &old, &new).unwrap();
    }
}
