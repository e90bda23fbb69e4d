//! Forms of the tables, oldest first. A file of an older form is brought forward in one transaction;
//! what was released is never edited, only followed by another step.

use rusqlite::Connection;

/// One step from a form to the next.
type Step = &'static str;

const STEPS: &[Step] = &[
    // 1
    "
CREATE TABLE vms (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, doc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (id TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL,
    subject TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE tasks (id INTEGER PRIMARY KEY AUTOINCREMENT, running INTEGER NOT NULL,
    doc TEXT NOT NULL);
",
    // 2: a tree of objects, of which VMs are one kind; typed events; tasks that can be asked again.
    "
CREATE TABLE counters (prefix TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (id TEXT PRIMARY KEY, kind TEXT NOT NULL,
    parent TEXT REFERENCES objects (id) DEFERRABLE INITIALLY DEFERRED, name TEXT NOT NULL,
    version INTEGER NOT NULL, doc TEXT NOT NULL, UNIQUE (parent, kind, name)) WITHOUT ROWID;
CREATE INDEX objects_kind ON objects (kind);
INSERT INTO objects (id, kind, parent, name, version, doc) VALUES
    ('datacenter-1', 'datacenter', NULL, 'dc1', 1, '{}'),
    ('folder-1', 'folder', 'datacenter-1', 'vm', 1, '{\"holds\":\"vm\"}'),
    ('folder-2', 'folder', 'datacenter-1', 'host', 1, '{\"holds\":\"host\"}'),
    ('folder-3', 'folder', 'datacenter-1', 'datastore', 1, '{\"holds\":\"datastore\"}'),
    ('folder-4', 'folder', 'datacenter-1', 'network', 1, '{\"holds\":\"network\"}'),
    ('host-1', 'host', 'folder-2', 'localhost', 1, '{}'),
    ('resgroup-1', 'resource_pool', 'host-1', 'Resources', 1, '{}'),
    ('datastore-1', 'datastore', 'folder-3', 'datastore1', 1, '{}'),
    ('network-1', 'network', 'folder-4', 'VM Network', 1, '{}');
INSERT INTO counters (prefix, last) VALUES ('datacenter', 1), ('folder', 4), ('host', 1),
    ('resgroup', 1), ('datastore', 1), ('network', 1);
INSERT INTO objects (id, kind, parent, name, version, doc)
    SELECT id, 'vm', 'folder-1', name, 1, doc FROM vms;
DROP TABLE vms;
ALTER TABLE events ADD COLUMN object TEXT;
ALTER TABLE events ADD COLUMN task INTEGER;
ALTER TABLE events ADD COLUMN data TEXT;
ALTER TABLE tasks ADD COLUMN key TEXT;
CREATE UNIQUE INDEX tasks_key ON tasks (key) WHERE key IS NOT NULL;
",
    // 3: events tell who asked for what they are about.
    "ALTER TABLE events ADD COLUMN user TEXT;",
    // 4: tasks know the call that their key came with.
    "ALTER TABLE tasks ADD COLUMN asked TEXT;",
    // 5: names are unique among objects that lie nowhere, too; of several of one name, those made
    // later get their id as an ending, and where that name is taken a random number behind it.
    "
UPDATE objects SET name = name || '-' || id || CASE WHEN EXISTS (
        SELECT 1 FROM objects AS other WHERE other.parent IS NULL AND other.kind = objects.kind
            AND other.name = objects.name || '-' || objects.id)
    THEN '-' || lower(hex(randomblob(4))) ELSE '' END WHERE parent IS NULL AND EXISTS (
    SELECT 1 FROM objects AS first WHERE first.parent IS NULL AND first.kind = objects.kind
        AND first.name = objects.name
        AND (length(first.id), first.id) < (length(objects.id), objects.id));
CREATE UNIQUE INDEX objects_nowhere ON objects (kind, name) WHERE parent IS NULL;
",
];

/// The form that this program knows.
pub const FORM: i64 = STEPS.len() as i64;

/// Brings a file of form `found` forward.
pub fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let from = usize::try_from(found).unwrap_or(0);
    for (number, step) in STEPS.iter().enumerate().skip(from) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of an older form.
    fn of_form(form: usize) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        for step in &STEPS[..form] {
            connection.execute_batch(step).unwrap();
        }
        connection
    }

    fn add(connection: &Connection, id: &str, kind: &str, name: &str) -> rusqlite::Result<usize> {
        connection.execute(
            "INSERT INTO objects (id, kind, parent, name, version, doc)
             VALUES (?1, ?2, NULL, ?3, 1, '{}')",
            [id, kind, name],
        )
    }

    #[test]
    fn names_that_several_objects_have_are_made_unique_once() {
        let mut connection = of_form(4);
        for id in ["token-9", "token-10", "token-11"] {
            add(&connection, id, "token", "ci").unwrap();
        }
        add(&connection, "fork-1", "fork_point", "ci").unwrap();
        migrate(&mut connection, 4).unwrap();
        let name = |id: &str| -> String {
            let query = "SELECT name FROM objects WHERE id = ?1";
            connection.query_row(query, [id], |row| row.get(0)).unwrap()
        };
        assert_eq!(name("token-9"), "ci");
        assert_eq!(name("token-10"), "ci-token-10");
        assert_eq!(name("token-11"), "ci-token-11");
        assert_eq!(name("fork-1"), "ci");
        assert!(add(&connection, "token-12", "token", "ci").is_err());
        add(&connection, "token-12", "token", "other").unwrap();
    }

    #[test]
    fn a_name_that_looks_like_a_numbered_one_stops_nothing() {
        let mut connection = of_form(4);
        for (id, name) in [
            ("token-9", "ci"),
            ("token-10", "ci"),
            ("token-11", "ci-token-10"),
        ] {
            add(&connection, id, "token", name).unwrap();
        }
        migrate(&mut connection, 4).unwrap();
        let query = "SELECT count(DISTINCT name) FROM objects WHERE kind = 'token'";
        let names: i64 = connection.query_row(query, [], |row| row.get(0)).unwrap();
        assert_eq!(names, 3);
    }

    #[test]
    fn vms_of_the_first_form_are_objects_of_the_second() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(STEPS[0]).unwrap();
        let row = "INSERT INTO vms (id, name, doc) VALUES ('ab', 'web', '{}')";
        connection.execute_batch(row).unwrap();
        migrate(&mut connection, 1).unwrap();
        let parent: String = connection
            .query_row("SELECT parent FROM objects WHERE id = 'ab'", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(parent, "folder-1");
        let form: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(form, FORM);
    }
}
