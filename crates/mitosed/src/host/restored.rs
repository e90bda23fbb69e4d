//! An inventory that is older than what it lists: it was put back from its backup, or is gone.
//!
//! Each start of a daemon and each backup begins an *epoch*: a number in the inventory and in a file
//! beside it. A backup keeps the number of the epoch that ended with it, so an inventory whose number
//! is smaller than the file's was put back, and what it does not name may be VMs that are younger than
//! the backup. Their processes and files are left alone for as long as a note lies in the data
//! directory; who has looked after them removes the note.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};

use super::{Host, event};
use crate::config::Home;
use crate::datastore::StoreDir;
use crate::inventory::{RESTORE, sync_directory};
use crate::vmm;

/// File with the number of the epoch.
const EPOCH: &str = "inventory.epoch";
/// The note.
const NOTE: &str = "inventory.restored";
/// Counter of epochs.
const COUNTER: &str = "epoch";

/// Refuses to make a new inventory in a data directory that was in use.
pub fn refuse_lost(home: &Home) -> anyhow::Result<()> {
    let path = home.inventory();
    let how = match fs::metadata(&path) {
        Ok(found) if found.len() > 0 => return Ok(()),
        Ok(_) => "is empty",
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "is missing",
        // Opening it tells why.
        Err(_) => return Ok(()),
    };
    let path = path.display();
    let mut backup = home.inventory().into_os_string();
    backup.push(".bak");
    if Path::new(&backup).exists() {
        bail!(
            "{path} {how}, but its backup is there, so nothing was changed; {RESTORE} (to begin anew, \
             move the backup away and what is in {})",
            home.datastore().display()
        );
    }
    if let Some(content) = StoreDir::new(home.datastore()).foreign_content() {
        bail!(
            "{path} {how}, but {} holds files of VMs, so nothing was changed; put the inventory back, or \
             move that directory away to begin anew",
            content.display()
        );
    }
    Ok(())
}

impl Host {
    /// Whether what the inventory does not name is left alone.
    pub(super) fn keeps_unlisted(&self) -> bool {
        self.keeps_unlisted.load(Ordering::Relaxed)
    }

    /// Finds out whether the inventory was put back, and begins an epoch. To be called before anything
    /// is removed.
    pub(super) fn meet_epoch(&self) -> anyhow::Result<()> {
        let root = self.config.home.root();
        let seen = epoch_of(&fs::read_to_string(root.join(EPOCH)).unwrap_or_default());
        let own = self.inventory.last_number(COUNTER)?;
        let note = root.join(NOTE);
        if own < seen && !note.exists() {
            let text = "inventory.db was put back from a backup. Processes and files of VMs that it does not \
                        name are left alone for as long as this file is here.\n";
            fs::write(&note, text).with_context(|| format!("cannot write {}", note.display()))?;
        }
        self.keeps_unlisted.store(note.exists(), Ordering::Relaxed);
        self.begin_epoch(seen.max(own) + 1 - own);
        Ok(())
    }

    /// Begins the next epoch, after a backup.
    pub(super) fn end_epoch(&self) {
        self.begin_epoch(1);
    }

    /// The inventory has the number durably before the file has it: never the other way round, unless
    /// it was put back.
    fn begin_epoch(&self, more: u64) {
        let begun = self
            .inventory
            .take_numbers(COUNTER, more)
            .and_then(|first| self.inventory.sync().map(|()| first + more - 1))
            .map_err(anyhow::Error::from)
            .and_then(|number| write_epoch(self.config.home.root(), number));
        if let Err(error) = begun {
            let error = crate::error::chain_line(&error);
            tracing::warn!(
                "a backup that is put back will not be told from the inventory: {error}"
            );
        }
    }

    /// Sees to it that new VMs do not get in the way of those that the inventory does not name, and
    /// says what there is. Does nothing where everything has its row.
    pub(super) fn make_way_for_unlisted(&self) -> anyhow::Result<()> {
        if !self.keeps_unlisted() {
            return Ok(());
        }
        let listed: HashSet<i32> = self.all().iter().filter_map(|vm| vm.row().pid).collect();
        let keepers: HashSet<i32> = self.keeper_pids().into_iter().collect();
        let known = |pid| listed.contains(&pid) || keepers.contains(&pid);
        let processes = vmm::orphans_of(self.config.home.root(), known);
        for pid in &processes {
            // No other VM may run as the same user.
            vmm::uid_of(*pid)
                .into_iter()
                .for_each(|uid| self.pool.claim_uid(uid));
        }
        self.numbers.give_back(self.inventory.as_ref())?;
        for (prefix, number) in self.numbers_on_disk() {
            let last = self.inventory.last_number(&prefix)?;
            if last < number {
                self.inventory.take_numbers(&prefix, number - last)?;
            }
        }
        let note = self.config.home.root().join(NOTE);
        let message = format!(
            "inventory.db was put back from a backup: {} VM processes that it does not name run on, and \
             files that it does not name stay; remove {} and start mitosed again to have them removed",
            processes.len(),
            note.display()
        );
        tracing::warn!("{message}");
        self.commit_logged(
            &[],
            super::events::with_event(event("inventory", "inventory.restored", message)),
        );
        Ok(())
    }

    /// The highest number of each kind in names of files, such as 42 of `vm` in `vm-42-0-1.qcow2`.
    fn numbers_on_disk(&self) -> BTreeMap<String, u64> {
        let mut dirs = Vec::new();
        for (id, root) in self.stores.all_dirs() {
            if !self.stores.is_lost(&id) {
                let below = ["layers", "vms", "pool", "memory", "boot"];
                dirs.extend(below.map(|name| root.root().join(name)));
            }
        }
        let mut highest = BTreeMap::new();
        for name in dirs.iter().flat_map(names_in) {
            if let Some((prefix, number)) = number_of(&name) {
                let last = highest.entry(prefix.to_owned()).or_insert(0);
                *last = number.max(*last);
            }
        }
        highest
    }
}

fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Kind and number of the object whose id a name begins with.
fn number_of(name: &str) -> Option<(&str, u64)> {
    let (prefix, rest) = name.split_once('-')?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let number = digits.parse().ok().filter(|number| *number < 1 << 40)?;
    (!prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_lowercase()))
        .then_some((prefix, number))
}

/// The number in the file; 0, as in a new home, where its text is none that a daemon writes.
fn epoch_of(text: &str) -> u64 {
    let number = text.trim().parse().ok();
    number.filter(|number| *number < 1 << 62).unwrap_or(0)
}

fn write_epoch(root: &Path, number: u64) -> anyhow::Result<()> {
    let path = root.join(EPOCH);
    let new = root.join(format!("{EPOCH}.new"));
    let written = File::create(&new).and_then(|mut file| {
        writeln!(file, "{number}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_directory(root)
    });
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{epoch_of, number_of};

    #[test]
    fn a_damaged_epoch_is_none() {
        assert_eq!(epoch_of("42\n"), 42);
        for text in ["", "x", "-1", "18446744073709551615", "4611686018427387904"] {
            assert_eq!(epoch_of(text), 0, "{text}");
        }
    }

    #[test]
    fn names_tell_whose_they_are() {
        assert_eq!(number_of("vm-42-0-1.qcow2"), Some(("vm", 42)));
        assert_eq!(number_of("snapshot-7.ram"), Some(("snapshot", 7)));
        for name in [
            "mitosed.sock",
            "keys",
            "-1",
            "a b-1",
            "vm-",
            "vm-99999999999999999999",
        ] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
