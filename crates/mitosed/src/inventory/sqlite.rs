//! The inventory in one SQLite file: write-ahead log, synchronous=NORMAL.
//!
//! A commit does not wait for the disk (that is [`Inventory::sync`]'s work), so it costs some ten
//! microseconds and survives the daemon's SIGKILL, not the host's.

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::{Event, Task, TaskState};
use rusqlite::{Connection, OptionalExtension, params};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::migrations::{FORM, migrate};
use super::quiet::QuietTimes;
use super::{
    Changes, Contents, Inventory, InventoryError, LayerRow, NewEvent, ObjectRow, RESTORE,
    VM_FOLDER, VmRow,
};
use crate::clock::now_ms;

/// Events kept; older ones are forgotten.
const MAX_EVENTS: i64 = 100_000;

/// Tasks kept; older ones that have ended are forgotten.
const MAX_TASKS: i64 = 20_000;

/// Space that is reserved for the log, which SQLite moves into the file at about 4 MiB, bytes.
const LOG_RESERVE_BYTES: u64 = 8 << 20;
/// Space that is reserved for the file to grow, bytes.
const FILE_RESERVE_BYTES: u64 = 4 << 20;
/// Nothing is reserved where there is less than this, bytes.
const RESERVE_BELOW_BYTES: u64 = 64 << 20;

/// Inventory in a SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    connection: Mutex<Connection>,
    /// The file itself. Nobody else in this process may open and close it: with the first descriptor
    /// that is closed go all of SQLite's locks (fcntl(2), "Record locks"), and a program that looks
    /// into the inventory would take the log away from below the daemon.
    file: File,
    path: PathBuf,
    log: PathBuf,
    quiet: QuietTimes,
}

impl Sqlite {
    /// Opens or makes the file at `path`.
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        let failed = |source| InventoryError::Open {
            path: path.display().to_string(),
            remedy: remedy_of(&source),
            source,
        };
        protect(path).map_err(InventoryError::Protect)?;
        let mut connection = Connection::open(path).map_err(failed)?;
        // The daemon alone uses the file, by the lock of its directory.
        let pragmas = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; \
                       PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000; \
                       PRAGMA foreign_keys=ON;";
        connection.execute_batch(pragmas).map_err(failed)?;
        check_whole(&connection, path)?;
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
        migrate(&mut connection, found).map_err(failed)?;
        let log = beside(path, "-wal");
        sync_directory(path.parent().unwrap_or(Path::new("/"))).map_err(InventoryError::Sync)?;
        let file = File::options().read(true).write(true).open(path);
        let store = Self {
            connection: Mutex::new(connection),
            file: file.map_err(InventoryError::Protect)?,
            path: path.to_owned(),
            log,
            quiet: QuietTimes::default(),
        };
        store.reserve_space();
        Ok(store)
    }

    /// Takes space of the file system for what is still to be written, so that on one that guests
    /// have filled VMs can be ended and removed: nothing else would make room.
    fn reserve_space(&self) {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let free = statvfs(dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
        if free < RESERVE_BELOW_BYTES {
            return;
        }
        let reserve = |file: &File, from: u64, bytes: u64| -> std::io::Result<()> {
            Ok(fallocate(file, FallocateFlags::KEEP_SIZE, from, bytes)?)
        };
        // SQLite begins its log anew from the front, so there all of it counts.
        let log = File::options().write(true).open(&self.log);
        let in_log = log.and_then(|log| reserve(&log, 0, LOG_RESERVE_BYTES));
        let end = self.file.metadata().map(|found| found.len());
        let in_file = end.and_then(|end| reserve(&self.file, end, FILE_RESERVE_BYTES));
        for error in [in_log.err(), in_file.err()].into_iter().flatten() {
            tracing::debug!(%error, "no space is reserved for the inventory");
        }
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

    /// Events that a condition, with order and limit, picks out.
    fn find_events(
        &self,
        which: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<Event>, InventoryError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached(&format!(
                "SELECT id, at_ms, subject, kind, message, object, task, data, user FROM events
                 WHERE {which}"
            ))
            .map_err(access("read"))?;
        let rows = statement
            .query_map(values, |row| {
                Ok(Event {
                    id: row.get(0)?,
                    at_ms: row.get(1)?,
                    subject: row.get(2)?,
                    kind: row.get(3)?,
                    message: row.get(4)?,
                    object: row.get(5)?,
                    task: row.get(6)?,
                    data: data_of(row.get(7)?),
                    user: row.get(8)?,
                })
            })
            .map_err(access("read"))?;
        rows.collect::<Result<_, _>>().map_err(access("read"))
    }

    fn objects(&self) -> Result<Vec<ObjectRow>, InventoryError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare("SELECT id, kind, parent, name, version, doc FROM objects WHERE kind <> 'vm'")
            .map_err(access("read"))?;
        let rows = statement
            .query_map([], |row| {
                let doc: String = row.get(5)?;
                Ok((object_of(row)?, doc))
            })
            .map_err(access("read"))?;
        let mut all = Vec::new();
        for row in rows {
            let (mut object, doc) = row.map_err(access("read"))?;
            object.doc = parse(&object.id, &doc)?;
            all.push(object);
        }
        Ok(all)
    }
}

/// Makes the file, and lets its owner alone read it and those beside it: they hold what guests are
/// told in secret. SQLite gives those that it makes the mode of the first.
fn protect(path: &Path) -> std::io::Result<()> {
    let private = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o600));
    let made = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    if let Err(error) = made {
        // Opening the database tells it better.
        tracing::debug!(%error, "cannot make the inventory");
        return Ok(());
    }
    private(path)?;
    for ending in ["-wal", "-shm", ".bak", ".bak.new"] {
        match private(&beside(path, ending)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The file that has `ending` behind the name of another.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

/// Refuses a file whose pages do not fit together, before anything relies on it or replaces the
/// backup.
fn check_whole(connection: &Connection, path: &Path) -> Result<(), InventoryError> {
    let damaged = |found: String| InventoryError::Damaged {
        path: path.display().to_string(),
        found,
    };
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| damaged(error.to_string()))?;
    if found == "ok" {
        Ok(())
    } else {
        Err(damaged(found.replace('\n', " ")))
    }
}

fn document_of(task: &Task) -> Result<String, InventoryError> {
    serde_json::to_string(task).map_err(|source| InventoryError::Row {
        id: task.id.to_string(),
        source,
    })
}

/// An object but for its document.
fn object_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<ObjectRow> {
    Ok(ObjectRow {
        id: row.get(0)?,
        kind: row.get(1)?,
        parent: row.get(2)?,
        name: row.get(3)?,
        version: row.get::<_, i64>(4)?.cast_unsigned(),
        doc: serde_json::Value::Null,
    })
}

impl Inventory for Sqlite {
    fn load(&self) -> Result<Contents, InventoryError> {
        Ok(Contents {
            vms: self.documents::<VmRow>("SELECT id, doc FROM objects WHERE kind = 'vm'")?,
            objects: self.objects()?,
            layers: self.documents::<LayerRow>("SELECT id, doc FROM layers")?,
        })
    }

    fn apply(&self, changes: &Changes) -> Result<Vec<Event>, InventoryError> {
        let mut connection = self.lock();
        write_all(&mut connection, changes).map_err(access("change"))
    }

    fn last_number(&self, prefix: &str) -> Result<u64, InventoryError> {
        let last: Option<i64> = self
            .lock()
            .query_row(
                "SELECT last FROM counters WHERE prefix = ?1",
                [prefix],
                |row| row.get(0),
            )
            .optional()
            .map_err(access("read"))?;
        Ok(last.unwrap_or(0).cast_unsigned())
    }

    fn take_numbers(&self, prefix: &str, count: u64) -> Result<u64, InventoryError> {
        let count = count.cast_signed();
        let last = take_numbers(&mut self.lock(), prefix, count).map_err(access("change"))?;
        Ok((last - count + 1).cast_unsigned())
    }

    fn give_numbers_back(&self, prefix: &str, first: u64, end: u64) -> Result<(), InventoryError> {
        let give = "UPDATE counters SET last = ?2 WHERE prefix = ?1 AND last = ?3";
        let [before, last] = [first, end].map(|number| number.cast_signed() - 1);
        self.lock()
            .execute(give, params![prefix, before, last])
            .map_err(access("change"))?;
        Ok(())
    }

    fn sync(&self) -> Result<(), InventoryError> {
        // What is no longer in the log was synced by the checkpoint that moved it.
        match File::open(&self.log) {
            Ok(log) => log.sync_all().map_err(InventoryError::Sync),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(InventoryError::Sync(error)),
        }
    }

    fn tidy_up(&self) -> Result<(), InventoryError> {
        let moved = self.quiet.look(&self.lock());
        moved.map(drop).map_err(access("change"))
    }

    fn back_up(&self) -> Result<(), InventoryError> {
        let (new, kept) = (beside(&self.path, ".bak.new"), beside(&self.path, ".bak"));
        let _ = std::fs::remove_file(&new);
        // An empty file is filled, and keeps its mode.
        protect(&new).map_err(InventoryError::Backup)?;
        {
            let connection = self.lock();
            check_whole(&connection, &self.path)?;
            let target = new.to_string_lossy();
            connection
                .execute("VACUUM INTO ?1", [&*target])
                .map_err(access("copy"))?;
        }
        let placed = File::open(&new)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&new, &kept))
            .and_then(|()| sync_directory(kept.parent().unwrap_or(Path::new("/"))));
        self.reserve_space();
        placed.map_err(InventoryError::Backup)
    }

    fn events(&self, after: i64, limit: usize) -> Result<Vec<Event>, InventoryError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.find_events("id > ?1 ORDER BY id LIMIT ?2", params![after, limit])
    }

    fn events_of_task(&self, task: i64) -> Result<Vec<Event>, InventoryError> {
        self.find_events("task = ?1 ORDER BY id", params![task])
    }

    fn last_event(&self) -> Result<i64, InventoryError> {
        self.lock()
            .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| {
                row.get(0)
            })
            .map_err(access("read"))
    }

    fn add_task(&self, task: &Task, asked: Option<&str>) -> Result<i64, InventoryError> {
        let doc = document_of(task)?;
        let running = task.state == TaskState::Running;
        let connection = self.lock();
        let values = params![running, doc, task.idempotency_key, asked];
        connection
            .prepare_cached("INSERT INTO tasks (running, doc, key, asked) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| insert.execute(values))
            .map_err(access("change"))?;
        let id = connection.last_insert_rowid();
        if id % 1000 == 0 {
            connection
                .execute(
                    "DELETE FROM tasks WHERE id <= ?1 AND NOT running",
                    [id - MAX_TASKS],
                )
                .map_err(access("change"))?;
        }
        Ok(id)
    }

    fn put_task(&self, task: &Task) -> Result<(), InventoryError> {
        let doc = document_of(task)?;
        let running = task.state == TaskState::Running;
        self.lock()
            .prepare_cached("UPDATE tasks SET running = ?2, doc = ?3 WHERE id = ?1")
            .and_then(|mut update| update.execute(params![task.id, running, doc]))
            .map_err(access("change"))?;
        Ok(())
    }

    fn task_of_key(&self, key: &str) -> Result<Option<(i64, Option<String>)>, InventoryError> {
        self.lock()
            .query_row("SELECT id, asked FROM tasks WHERE key = ?1", [key], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(access("read"))
    }

    fn tasks(&self, before: i64, limit: usize) -> Result<Vec<Task>, InventoryError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT id, doc FROM tasks WHERE id < ?1 ORDER BY id DESC LIMIT ?2")
            .map_err(access("read"))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![before, limit], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
            })
            .map_err(access("read"))?;
        let mut tasks = Vec::new();
        for row in rows {
            let (id, doc) = row.map_err(access("read"))?;
            let mut task: Task = parse(&id.to_string(), &doc)?;
            task.id = id;
            tasks.push(task);
        }
        Ok(tasks)
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

/// Takes numbers; returns the last.
fn take_numbers(connection: &mut Connection, prefix: &str, count: i64) -> rusqlite::Result<i64> {
    // By itself the statement gives its row before it is committed, and nobody hears that this failed.
    let transaction = connection.transaction()?;
    let last = transaction
        .prepare_cached(
            "INSERT INTO counters (prefix, last) VALUES (?1, ?2)
             ON CONFLICT (prefix) DO UPDATE SET last = last + ?2 RETURNING last",
        )?
        .query_row(params![prefix, count], |row| row.get(0))?;
    transaction.commit()?;
    Ok(last)
}

fn write_all(connection: &mut Connection, changes: &Changes) -> rusqlite::Result<Vec<Event>> {
    let encode = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(error.into());
    let transaction = connection.transaction()?;
    let mut events = Vec::with_capacity(changes.events.len());
    {
        let mut remove_object = transaction.prepare_cached("DELETE FROM objects WHERE id = ?1")?;
        for id in changes.removed_vms.iter().chain(&changes.removed_objects) {
            remove_object.execute([id])?;
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
        let mut put_object = transaction.prepare_cached(
            "INSERT INTO objects (id, kind, parent, name, version, doc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET parent = excluded.parent, name = excluded.name,
                 version = excluded.version, doc = excluded.doc",
        )?;
        for object in &changes.objects {
            let doc = serde_json::to_string(&object.doc).map_err(encode)?;
            let (id, kind) = (&object.id, &object.kind);
            let version = object.version.cast_signed();
            put_object.execute(params![id, kind, object.parent, object.name, version, doc])?;
        }
        for vm in &changes.vms {
            let doc = serde_json::to_string(vm).map_err(encode)?;
            let folder = vm.folder.as_deref().unwrap_or(VM_FOLDER);
            let version = vm.version.cast_signed();
            put_object.execute(params![vm.id, "vm", folder, vm.name, version, doc])?;
        }
        add_events(&transaction, &changes.events, &mut events)?;
        let crossed = |last: &&Event| last.id / 1000 != (events[0].id - 1) / 1000;
        if let Some(last) = events.last().filter(crossed) {
            transaction.execute("DELETE FROM events WHERE id <= ?1", [last.id - MAX_EVENTS])?;
        }
    }
    transaction.commit()?;
    Ok(events)
}

fn add_events(
    transaction: &rusqlite::Transaction<'_>,
    new: &[NewEvent],
    events: &mut Vec<Event>,
) -> rusqlite::Result<()> {
    let mut put_event = transaction.prepare_cached(
        "INSERT INTO events (at_ms, subject, kind, message, object, task, data, user)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for event in new {
        let at_ms = now_ms();
        let data = event.data.as_ref().map(ToString::to_string);
        put_event.execute(params![
            at_ms,
            event.subject,
            event.kind,
            event.message,
            event.object,
            event.task,
            data,
            event.user
        ])?;
        events.push(Event {
            id: transaction.last_insert_rowid(),
            at_ms,
            subject: event.subject.clone(),
            kind: event.kind.to_owned(),
            message: event.message.clone(),
            object: event.object.clone(),
            task: event.task,
            user: event.user.clone(),
            data: event.data.clone(),
        });
    }
    Ok(())
}

/// Makes the entries of a directory durable.
pub fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn data_of(text: Option<String>) -> Option<serde_json::Value> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

fn access(action: &'static str) -> impl Fn(rusqlite::Error) -> InventoryError {
    move |source| InventoryError::Access {
        action,
        remedy: remedy_of(&source),
        source,
    }
}

/// What to do where SQLite fails.
fn remedy_of(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "make space on the file system of the data directory",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "make the data directory and inventory.db in it writable for mitosed"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "end the program that holds inventory.db open, then try again"
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => RESTORE,
        Some(ErrorCode::ConstraintViolation) => {
            "an object that it names was changed meanwhile; try again"
        }
        Some(ErrorCode::SystemIoFailure) => "look for errors of the disk in the kernel's log",
        _ => "see the daemon's log",
    }
}

fn parse<T: serde::de::DeserializeOwned>(id: &str, doc: &str) -> Result<T, InventoryError> {
    serde_json::from_str(doc).map_err(|source| InventoryError::Row {
        id: id.to_owned(),
        source,
    })
}
