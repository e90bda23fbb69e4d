//! Numbers of new objects, some of them taken from the inventory ahead: a clone waits for its id.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::inventory::{Inventory, InventoryError};

/// Numbers that are taken at once. A daemon that is killed leaves those out that it had not given.
const AHEAD: u64 = 32;

/// Numbers that the inventory counts as given, and that are not, by prefix: the next one, and the one
/// behind the last.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<HashMap<String, (u64, u64)>>);

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `count` numbers in a row that were never given with `prefix`; returns the first.
    pub fn take(
        &self,
        inventory: &dyn Inventory,
        prefix: &str,
        count: u64,
    ) -> Result<u64, InventoryError> {
        let mut ahead = self.lock();
        let (first, end) = ahead.get(prefix).copied().unwrap_or((0, 0));
        if end - first >= count {
            ahead.insert(prefix.to_owned(), (first + count, end));
            return Ok(first);
        }
        let more = count + AHEAD - (end - first);
        let taken = inventory.take_numbers(prefix, more)?;
        // Nobody else takes any, so that they go on where those before end.
        let first = if taken == end { first } else { taken };
        ahead.insert(prefix.to_owned(), (first + count, taken + more));
        Ok(first)
    }

    /// Gives the numbers back that nobody was given.
    pub fn give_back(&self, inventory: &dyn Inventory) -> Result<(), InventoryError> {
        for (prefix, (first, end)) in self.lock().drain() {
            inventory.give_numbers_back(&prefix, first, end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Sqlite;

    #[test]
    fn numbers_rise_by_one_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
        let numbers = Numbers::default();
        let mut expected = 1;
        for count in [1, 3, AHEAD, 1, 5 * AHEAD, AHEAD - 1, 2] {
            assert_eq!(numbers.take(&store, "vm", count).unwrap(), expected);
            expected += count;
            // Nothing that was given can be given by a daemon that comes after.
            assert!(store.last_number("vm").unwrap() >= expected - 1);
        }
        assert_eq!(numbers.take(&store, "snapshot", 2).unwrap(), 1);
        numbers.give_back(&store).unwrap();
        assert_eq!(store.last_number("vm").unwrap(), expected - 1);
        assert_eq!(store.last_number("snapshot").unwrap(), 2);
        assert_eq!(numbers.take(&store, "vm", 1).unwrap(), expected);
    }

    #[test]
    fn numbers_that_somebody_else_took_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
        let numbers = Numbers::default();
        assert_eq!(numbers.take(&store, "vm", 1).unwrap(), 1);
        let other = store.take_numbers("vm", 10).unwrap();
        let first = numbers.take(&store, "vm", 2 * AHEAD).unwrap();
        assert!(first >= other + 10, "{first}");
    }
}
