//! Tests of the SQLite store.

use api_types::TaskState;
use vm_spec::VmSpec;

use super::objects::Datacenter;
use super::*;

/// A VM with one processor, 64 MiB and no devices but a serial port.
pub(crate) fn vm(id: &str, name: &str) -> VmRow {
    let boot = BootSource {
        image: None,
        kernel: "/k".into(),
        initrd: None,
    };
    let spec = VmSpec {
        cpus: 1,
        memory_bytes: 64 << 20,
        cmdline: String::new(),
        entry: None,
        disks: vec![],
        nics: vec![],
        serial_ports: 1,
    };
    VmRow::new(id.into(), name.into(), "kvm".into(), boot, spec)
}

fn event(subject: &str) -> NewEvent {
    NewEvent {
        subject: subject.into(),
        kind: "vm.test",
        message: "happened".into(),
        object: Some("vm-1".into()),
        task: None,
        user: None,
        data: Some(serde_json::json!({ "stun_us": 7 })),
    }
}

/// Another process that opens the file must find it locked: SQLite in it would move the log into the
/// file and remove it.
#[test]
fn the_file_is_locked_for_as_long_as_it_is_open() {
    const TEST: &str = "inventory::tests::the_file_is_locked_for_as_long_as_it_is_open";
    const VARIABLE: &str = "MITOSE_TEST_OPENS";
    if let Some(path) = std::env::var_os(VARIABLE) {
        let other = rusqlite::Connection::open(path).unwrap();
        other
            .query_row("SELECT count(*) FROM objects", [], |_| Ok(()))
            .unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.db");
    let opens = || {
        let mut other = std::process::Command::new(std::env::current_exe().unwrap());
        let other = other.args(["--exact", TEST]).env(VARIABLE, &path).output();
        let told = String::from_utf8_lossy(&other.unwrap().stdout).into_owned();
        let locked = told.contains("database is locked");
        assert!(locked || told.contains("1 passed"), "{told}");
        !locked
    };
    let store = Sqlite::open(&path).unwrap();
    assert!(!opens(), "after it was opened");
    store.back_up().unwrap();
    store.sync().unwrap();
    assert!(!opens(), "after a backup");
    drop(store);
    assert!(opens());
}

#[test]
fn what_was_applied_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.db");
    let store = Sqlite::open(&path).unwrap();
    let changes = Changes {
        vms: vec![vm("1", "a"), vm("2", "b")],
        events: vec![event("a"), event("b")],
        ..Changes::default()
    };
    let events = store.apply(&changes).unwrap();
    assert_eq!(events.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 2]);
    store.sync().unwrap();
    drop(store);
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.load().unwrap().vms, changes.vms);
    assert_eq!(store.events(1, 10).unwrap(), events[1..]);
    let removal = Changes {
        removed_vms: vec!["1".into()],
        ..Changes::default()
    };
    store.apply(&removal).unwrap();
    assert_eq!(store.load().unwrap().vms, changes.vms[1..]);
}

#[test]
fn a_batch_with_a_duplicate_name_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
    let changes = Changes {
        vms: vec![vm("1", "a"), vm("2", "a")],
        events: vec![event("a")],
        ..Changes::default()
    };
    assert!(store.apply(&changes).is_err());
    assert!(store.load().unwrap().vms.is_empty());
    assert_eq!(store.last_event().unwrap(), 0);
}

#[test]
fn tasks_keep_their_number_and_running_ones_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
    let mut task = Task::new("image.build", "tiny");
    task.idempotency_key = Some("k".into());
    task.id = store.add_task(&task, Some("digest")).unwrap();
    assert_eq!(store.running_tasks().unwrap(), [task.clone()]);
    task.state = TaskState::Success;
    store.put_task(&task).unwrap();
    assert_eq!(store.task(task.id).unwrap(), Some(task.clone()));
    let found = store.task_of_key("k").unwrap();
    assert_eq!(found, Some((task.id, Some("digest".to_owned()))));
    assert_eq!(store.task_of_key("l").unwrap(), None);
    assert_eq!(store.tasks(i64::MAX, 10).unwrap(), [task]);
    assert!(store.running_tasks().unwrap().is_empty());
}

#[test]
fn numbers_are_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.db");
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.take_numbers("vm", 1).unwrap(), 1);
    assert_eq!(store.take_numbers("vm", 10).unwrap(), 2);
    drop(store);
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.take_numbers("vm", 1).unwrap(), 12);
    assert_eq!(store.take_numbers("datastore", 1).unwrap(), 2);
}

#[test]
fn numbers_whose_record_fails_are_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.db");
    drop(Sqlite::open(&path).unwrap());
    let change = |sql: &str| {
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch(sql)
    };
    // What breaks a deferred rule is found by the commit.
    change(
        "CREATE TABLE broken (of TEXT REFERENCES objects (id) DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER breaks AFTER INSERT ON counters WHEN new.prefix = 'vm'
         BEGIN INSERT INTO broken VALUES ('nobody'); END;",
    )
    .unwrap();
    let store = Sqlite::open(&path).unwrap();
    store.take_numbers("vm", 3).unwrap_err();
    assert_eq!(store.last_number("vm").unwrap(), 0);
    drop(store);
    change("DROP TRIGGER breaks").unwrap();
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.take_numbers("vm", 3).unwrap(), 1);
    // Only the last can be given back.
    store.give_numbers_back("vm", 1, 3).unwrap();
    assert_eq!(store.last_number("vm").unwrap(), 3);
    store.give_numbers_back("vm", 2, 4).unwrap();
    assert_eq!(store.last_number("vm").unwrap(), 1);
}

#[test]
fn a_new_inventory_has_one_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
    let objects = store.load().unwrap().objects;
    for (kind, name) in [
        (Datacenter::KIND, "dc1"),
        (Folder::KIND, "vm"),
        (HostSystem::KIND, "localhost"),
        (ResourcePool::KIND, "Resources"),
        (Datastore::KIND, "datastore1"),
        (Network::KIND, "VM Network"),
    ] {
        let found = objects.iter().find(|o| o.kind == kind && o.name == name);
        assert!(found.is_some(), "{kind} {name}");
    }
    let folder = objects.iter().find(|o| o.id == VM_FOLDER).unwrap();
    assert_eq!(Object::<Folder>::from_row(folder).unwrap().doc.holds, "vm");
}

#[test]
fn objects_need_a_place_and_cannot_leave_others_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&dir.path().join("i.db")).unwrap();
    let folder = Object {
        id: "folder-9".into(),
        parent: Some("nowhere".into()),
        name: "a".into(),
        version: 1,
        doc: Folder::default(),
    };
    let put = |folder: &Object<Folder>| {
        store.apply(&Changes {
            objects: vec![folder.to_row().unwrap()],
            ..Changes::default()
        })
    };
    assert!(put(&folder).is_err());
    let placed = Object {
        parent: Some(VM_FOLDER.into()),
        ..folder
    };
    put(&placed).unwrap();
    let removal = Changes {
        removed_objects: vec![VM_FOLDER.into()],
        ..Changes::default()
    };
    assert!(store.apply(&removal).is_err());
    assert!(
        store
            .load()
            .unwrap()
            .objects
            .iter()
            .any(|o| o.id == VM_FOLDER)
    );
}

#[test]
fn disks_of_earlier_daemons_are_read_and_slots_are_short() {
    let read = |text: &str| serde_json::from_str::<DiskRow>(text).unwrap();
    let earlier = read(r#"{"top":"a","pending":null}"#);
    assert_eq!(earlier, DiskRow::of(Some("a".into())));
    assert_eq!(read(r#"{"top":null}"#), DiskRow::default());
    let child = DiskRow {
        extra: Some(MediumRow::Blank { size_bytes: 512 }),
        ..DiskRow::default()
    };
    let written = serde_json::to_string(&child).unwrap();
    assert_eq!(
        written,
        r#"{"top":null,"pending":null,"extra":{"blank":{"size_bytes":512}}}"#
    );
    assert_eq!(read(&written), child);
}
