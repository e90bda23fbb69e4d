//! The open file, and what is not in it yet.

use std::ops::Deref;

use api_types::{Task, TaskState};
use rusqlite::{Connection, params};

use crate::inventory::InventoryError;

/// Tasks kept; older ones that have ended are forgotten.
const MAX_TASKS: i64 = 20_000;

/// A task that is to be added.
#[derive(Debug)]
pub(super) struct NewTask {
    id: i64,
    running: bool,
    doc: String,
    key: Option<String>,
    asked: Option<String>,
}

/// The open file, and tasks that are not in it yet.
#[derive(Debug)]
pub(super) struct Store {
    pub connection: Connection,
    pub waiting: Vec<NewTask>,
    /// Number of the latest task.
    last_task: i64,
}

impl Deref for Store {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Store {
    pub fn new(connection: Connection) -> rusqlite::Result<Self> {
        let last = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tasks'";
        Ok(Self {
            last_task: connection.query_row(last, [], |row| row.get(0))?,
            connection,
            waiting: Vec::new(),
        })
    }

    /// Takes a task that is to be added; returns its number.
    pub fn take(&mut self, task: &Task, asked: Option<&str>) -> Result<i64, InventoryError> {
        let doc = document_of(task)?;
        self.last_task += 1;
        self.waiting.push(NewTask {
            id: self.last_task,
            running: task.state == TaskState::Running,
            doc,
            key: task.idempotency_key.clone(),
            asked: asked.map(str::to_owned),
        });
        Ok(self.last_task)
    }

    /// The task with an idempotency key, where it still waits, and the digest of its call.
    pub fn waiting_of_key(&self, key: &str) -> Option<(i64, Option<String>)> {
        let mut waiting = self.waiting.iter();
        let task = waiting.find(|task| task.key.as_deref() == Some(key))?;
        Some((task.id, task.asked.clone()))
    }

    /// Adds the tasks that wait.
    pub fn add_waiting(&mut self) -> rusqlite::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        insert_tasks(&transaction, &self.waiting)?;
        transaction.commit()?;
        self.waiting.clear();
        Ok(())
    }
}

/// Adds tasks, and forgets old ones.
pub(super) fn insert_tasks(connection: &Connection, tasks: &[NewTask]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO tasks (id, running, doc, key, asked) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for task in tasks {
        insert.execute(params![
            task.id,
            task.running,
            task.doc,
            task.key,
            task.asked
        ])?;
        if task.id % 1000 == 0 {
            let old = "DELETE FROM tasks WHERE id <= ?1 AND NOT running";
            connection.execute(old, [task.id - MAX_TASKS])?;
        }
    }
    Ok(())
}

pub(super) fn document_of(task: &Task) -> Result<String, InventoryError> {
    serde_json::to_string(task).map_err(|source| InventoryError::Row {
        id: task.id.to_string(),
        source,
    })
}
