//! A directory for the files of one run, removed at its end or by a later run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::build::file_error;
use crate::error::BuildError;

const PREFIX: &str = "run-";
const LOCK: &str = "lock";

/// The files of one run.
///
/// A lock on a file in it, which ends with the process, tells later runs whether it is in use.
#[derive(Debug)]
pub(crate) struct RunDir {
    directory: TempDir,
    _lock: File,
}

impl RunDir {
    /// Makes a directory in `runs` and removes those whose owners are gone.
    pub(crate) fn create(runs: &Path) -> Result<Self, BuildError> {
        fs::create_dir_all(runs).map_err(|e| file_error("create", runs, e))?;
        // Held while a directory has no locked file yet, so that nobody takes it for left over.
        let gate_path = runs.join(LOCK);
        let gate = File::create(&gate_path).map_err(|e| file_error("create", &gate_path, e))?;
        flock(&gate, FlockOperation::LockExclusive)
            .map_err(|e| file_error("lock", &gate_path, e.into()))?;
        remove_unowned(runs);
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(runs)
            .map_err(|e| file_error("create a directory in", runs, e))?;
        let lock_path = directory.path().join(LOCK);
        let lock = File::create(&lock_path).map_err(|e| file_error("create", &lock_path, e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| file_error("lock", &lock_path, e.into()))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

fn remove_unowned(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let owned = File::open(entry.path().join(LOCK))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
        if !owned {
            // What cannot be removed stays for the next run to try.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unowned_directories_are_removed() {
        let runs = tempfile::tempdir().unwrap();
        let left = runs.path().join("run-left");
        fs::create_dir(&left).unwrap();
        File::create(left.join(LOCK)).unwrap();
        let first = RunDir::create(runs.path()).unwrap();
        assert!(!left.exists());
        let second = RunDir::create(runs.path()).unwrap();
        assert!(first.path().exists() && second.path().exists());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }
}
