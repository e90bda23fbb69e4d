//! The guestinfo values, cached in a file so that scripts can read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_protocol::guestinfo::{self, GuestInfoError};

use crate::log;

/// Key-value pairs in memory and in one JSON file.
#[derive(Debug, Default)]
pub(crate) struct GuestInfo {
    file: PathBuf,
    values: Mutex<BTreeMap<String, String>>,
}

impl GuestInfo {
    /// Starts from what an earlier agent has left.
    pub(super) fn open(file: PathBuf) -> Self {
        let values = fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            file,
            values: Mutex::new(values),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &str) -> Option<String> {
        self.lock().get(key).cloned()
    }

    pub(super) fn all(&self) -> BTreeMap<String, String> {
        self.lock().clone()
    }

    /// Sets or, with an empty value, removes one.
    pub(super) fn set(&self, key: &str, value: &str) -> Result<(), GuestInfoError> {
        let mut values = self.lock();
        if guestinfo::set(&mut values, key, value)? {
            self.store(&values);
        }
        Ok(())
    }

    /// Whether [`GuestInfo::set`] would take the value.
    pub(super) fn check(&self, key: &str, value: &str) -> Result<(), GuestInfoError> {
        guestinfo::set(&mut self.lock().clone(), key, value).map(drop)
    }

    pub(super) fn replace(&self, new: BTreeMap<String, String>) {
        let mut values = self.lock();
        *values = new;
        self.store(&values);
    }

    fn store(&self, values: &BTreeMap<String, String>) {
        let written = serde_json::to_vec(values)
            .map_err(std::io::Error::other)
            .and_then(|bytes| {
                let partial = self.file.with_extension("part");
                fs::write(&partial, bytes)?;
                fs::rename(&partial, &self.file)
            });
        if let Err(error) = written {
            log(&format!("cannot write {}: {error}", self.file.display()));
        }
    }
}
