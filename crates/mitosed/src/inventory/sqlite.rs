//! The inventory in one SQLite file: write-ahead log, synchronous=NORMAL.
//!
//! A commit does not wait for the disk (that is [`Inventory::sync`]'s work), so it costs some ten
//! microseconds and survives the daemon's SIGKILL, not the host's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::{Event, Task, TaskState};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Changes, Contents, Inventory, InventoryError, LayerRow, VmRow};
use crate::clock::now_ms;

/// Form of the tables.
const FORM: i64 = 1;
/// Events kept; older ones are forgotten.
const MAX_EVENTS: i64 = 100_000;

const TABLES: &str = "
CREATE TABLE vms (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, doc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (id TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL,
    subject TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE tasks (id INTEGER PRIMARY KEY AUTOINCREMENT, running INTEGER NOT NULL,
    doc TEXT NOT NULL);
";

/// Inventory in a SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    connection: Mutex<Connection>,
    log: PathBuf,
}

impl Sqlite {
    /// Opens or makes the file at `path`.
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        let failed = |source| InventoryError::Open {
            path: path.display().to_string(),
            source,
        };
        let connection = Connection::open(path).map_err(failed)?;
        // The daemon alone uses the file, by the lock of its directory.
        let pragmas = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; \
                       PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;";
        connection.execute_batch(pragmas).map_err(failed)?;
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(failed)?;
        if found > FORM {
            return Err(InventoryError::Newer {
                path: path.display().to_string(),
                found,
                known: FORM,
            });
        }
        if found == 0 {
            let batch = format!("BEGIN; {TABLES} PRAGMA user_version={FORM}; COMMIT;");
            connection.execute_batch(&batch).map_err(failed)?;
        }
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = PathBuf::from(log);
        sync_directory(path.parent().unwrap_or(Path::new("/"))).map_err(InventoryError::Sync)?;
        Ok(Self {
            connection: Mutex::new(connection),
            log,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn documents<T: serde::de::DeserializeOwned>(
        &self,
        query: &str,
    ) -> Result<Vec<T>, InventoryError> {
        let connection = self.lock();
        let mut statement = connection.prepare(query).map_err(access("read"))?;
        let rows = statement
            .query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })
            .map_err(access("read"))?;
        let mut all = Vec::new();
        for row in rows {
            let (id, doc) = row.map_err(access("read"))?;
            all.push(parse(&id, &doc)?);
        }
        Ok(all)
    }
}

impl Inventory for Sqlite {
    fn load(&self) -> Result<Contents, InventoryError> {
        Ok(Contents {
            vms: self.documents::<VmRow>("SELECT id, doc FROM vms")?,
            layers: self.documents::<LayerRow>("SELECT id, doc FROM layers")?,
        })
    }

    fn apply(&self, changes: &Changes) -> Result<Vec<Event>, InventoryError> {
        let mut connection = self.lock();
        write_all(&mut connection, changes).map_err(access("change"))
    }

    fn sync(&self) -> Result<(), InventoryError> {
        // What is no longer in the log was synced by the checkpoint that moved it.
        match File::open(&self.log) {
            Ok(log) => log.sync_all().map_err(InventoryError::Sync),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(InventoryError::Sync(error)),
        }
    }

    fn events(&self, after: i64, limit: usize) -> Result<Vec<Event>, InventoryError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached(
                "SELECT id, at_ms, subject, kind, message FROM events WHERE id > ?1
                 ORDER BY id LIMIT ?2",
            )
            .map_err(access("read"))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![after, limit], |row| {
                Ok(Event {
                    id: row.get(0)?,
                    at_ms: row.get(1)?,
                    subject: row.get(2)?,
                    kind: row.get(3)?,
                    message: row.get(4)?,
                })
            })
            .map_err(access("read"))?;
        rows.collect::<Result<_, _>>().map_err(access("read"))
    }

    fn last_event(&self) -> Result<i64, InventoryError> {
        self.lock()
            .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| {
                row.get(0)
            })
            .map_err(access("read"))
    }

    fn put_task(&self, task: &Task) -> Result<i64, InventoryError> {
        let doc = serde_json::to_string(task).map_err(|source| InventoryError::Row {
            id: task.id.to_string(),
            source,
        })?;
        let running = task.state == TaskState::Running;
        let connection = self.lock();
        if task.id > 0 {
            connection
                .prepare_cached("UPDATE tasks SET running = ?2, doc = ?3 WHERE id = ?1")
                .and_then(|mut update| update.execute(params![task.id, running, doc]))
                .map_err(access("change"))?;
            return Ok(task.id);
        }
        connection
            .prepare_cached("INSERT INTO tasks (running, doc) VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute(params![running, doc]))
            .map_err(access("change"))?;
        Ok(connection.last_insert_rowid())
    }

    fn task(&self, id: i64) -> Result<Option<Task>, InventoryError> {
        let doc: Option<String> = self
            .lock()
            .query_row("SELECT doc FROM tasks WHERE id = ?1", [id], |row| {
                row.get(0)
            })
            .optional()
            .map_err(access("read"))?;
        let Some(doc) = doc else { return Ok(None) };
        let mut task: Task = parse(&id.to_string(), &doc)?;
        task.id = id;
        Ok(Some(task))
    }

    fn running_tasks(&self) -> Result<Vec<Task>, InventoryError> {
        let ids: Vec<i64> = {
            let connection = self.lock();
            let mut statement = connection
                .prepare("SELECT id FROM tasks WHERE running")
                .map_err(access("read"))?;
            let rows = statement
                .query_map([], |row| row.get(0))
                .map_err(access("read"))?;
            rows.collect::<Result<_, _>>().map_err(access("read"))?
        };
        let mut tasks = Vec::new();
        for id in ids {
            tasks.extend(self.task(id)?);
        }
        Ok(tasks)
    }
}

fn write_all(connection: &mut Connection, changes: &Changes) -> rusqlite::Result<Vec<Event>> {
    let encode = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(error.into());
    let transaction = connection.transaction()?;
    let mut events = Vec::with_capacity(changes.events.len());
    {
        let mut remove_vm = transaction.prepare_cached("DELETE FROM vms WHERE id = ?1")?;
        for id in &changes.removed_vms {
            remove_vm.execute([id])?;
        }
        let mut remove_layer = transaction.prepare_cached("DELETE FROM layers WHERE id = ?1")?;
        for id in &changes.removed_layers {
            remove_layer.execute([id])?;
        }
        let mut put_layer = transaction.prepare_cached(
            "INSERT INTO layers (id, doc) VALUES (?1, ?2)
             ON CONFLICT (id) DO UPDATE SET doc = excluded.doc",
        )?;
        for layer in &changes.layers {
            let doc = serde_json::to_string(layer).map_err(encode)?;
            put_layer.execute(params![layer.id, doc])?;
        }
        let mut put_vm = transaction.prepare_cached(
            "INSERT INTO vms (id, name, doc) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, doc = excluded.doc",
        )?;
        for vm in &changes.vms {
            let doc = serde_json::to_string(vm).map_err(encode)?;
            put_vm.execute(params![vm.id, vm.name, doc])?;
        }
        let mut put_event = transaction.prepare_cached(
            "INSERT INTO events (at_ms, subject, kind, message) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for event in &changes.events {
            let at_ms = now_ms();
            put_event.execute(params![at_ms, event.subject, event.kind, event.message])?;
            events.push(Event {
                id: transaction.last_insert_rowid(),
                at_ms,
                subject: event.subject.clone(),
                kind: event.kind.to_owned(),
                message: event.message.clone(),
            });
        }
        let crossed = |last: &&Event| last.id / 1000 != (events[0].id - 1) / 1000;
        if let Some(last) = events.last().filter(crossed) {
            transaction.execute("DELETE FROM events WHERE id <= ?1", [last.id - MAX_EVENTS])?;
        }
    }
    transaction.commit()?;
    Ok(events)
}

/// Makes the entries of a directory durable.
pub fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn access(action: &'static str) -> impl Fn(rusqlite::Error) -> InventoryError {
    move |source| InventoryError::Access { action, source }
}

fn parse<T: serde::de::DeserializeOwned>(id: &str, doc: &str) -> Result<T, InventoryError> {
    serde_json::from_str(doc).map_err(|source| InventoryError::Row {
        id: id.to_owned(),
        source,
    })
}
