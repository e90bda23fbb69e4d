//! Moves SQLite's log into its file while nobody waits.
//!
//! SQLite does so itself at the end of the transaction that makes the log longer than 1000 pages: it syncs
//! the log, copies pages and syncs the file, 10 to 25 ms, for which one call in about fifty would wait.

use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

/// A log of fewer changed rows is not worth moving.
const ROWS_MIN: i64 = 100;

/// Which changes were seen, as numbers of rows that were changed since the file was opened.
#[derive(Debug, Default)]
struct Seen {
    at_last_look: i64,
    at_last_move: i64,
}

/// Looks at one connection.
#[derive(Debug, Default)]
pub(super) struct QuietTimes(Mutex<Seen>);

impl QuietTimes {
    /// Moves the log where it is worth it and nothing was changed since the last look; says whether
    /// it did.
    pub(super) fn look(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = connection.query_row("SELECT total_changes()", [], |row| row.get(0))?;
        let quiet = changed == seen.at_last_look;
        seen.at_last_look = changed;
        if !quiet || changed - seen.at_last_move < ROWS_MIN {
            return Ok(false);
        }
        // Also where it fails: it is tried again after as many changes, and by SQLite itself.
        seen.at_last_move = changed;
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_moved_when_there_is_enough_and_nobody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.db");
        let connection = Connection::open(&path).unwrap();
        let form = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; CREATE TABLE t (a)";
        connection.execute_batch(form).unwrap();
        let write = |rows: i64| {
            for row in 0..rows {
                connection
                    .execute("INSERT INTO t VALUES (?1)", [row])
                    .unwrap();
            }
        };
        let in_file = || std::fs::metadata(&path).unwrap().len();
        let times = QuietTimes::default();
        let look = || times.look(&connection).unwrap();
        write(ROWS_MIN - 1);
        assert!(!look() && !look(), "too little");
        write(1);
        assert!(!look(), "somebody writes");
        let before = in_file();
        assert!(look());
        assert!(in_file() > before);
        assert!(!look(), "it was moved");
        write(ROWS_MIN);
        assert!(!look() && look() && !look());
    }
}
