//! Tests of the SQLite store.

use api_types::TaskState;
use vm_spec::VmSpec;

use super::*;

fn vm(id: &str, name: &str) -> VmRow {
    VmRow {
        id: id.into(),
        name: name.into(),
        state: PowerState::Creating,
        reason: None,
        created_at_ms: 1,
        engine: "kvm".into(),
        boot: BootSource {
            image: None,
            kernel: "/k".into(),
            initrd: None,
        },
        spec: VmSpec {
            cpus: 1,
            memory_bytes: 64 << 20,
            cmdline: String::new(),
            entry: None,
            disks: vec![],
            nics: vec![],
            serial_ports: 1,
        },
        disks: vec![],
        nics: vec![],
        serial: vec![api_types::SerialRequest::Log],
        uuid: "u".into(),
        machine_id: "m".into(),
        source: None,
        generation: 0,
        uid: None,
        pid: None,
        group: None,
        memory_limit_bytes: None,
        has_agent: false,
        ssh_host_key_kinds: vec![],
        has_host_keys: false,
        guest: None,
        stuns: vec![],
        next_layer: 0,
    }
}

fn event(subject: &str) -> NewEvent {
    NewEvent {
        subject: subject.into(),
        kind: "vm.test",
        message: "happened".into(),
    }
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
    assert_eq!(store.load().unwrap().vms, [vm("2", "b")]);
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
    let mut task = Task {
        id: 0,
        kind: "image.build".into(),
        subject: "tiny".into(),
        state: TaskState::Running,
        percent: None,
        message: String::new(),
        error: None,
    };
    task.id = store.put_task(&task).unwrap();
    assert_eq!(store.running_tasks().unwrap(), [task.clone()]);
    task.state = TaskState::Success;
    store.put_task(&task).unwrap();
    assert_eq!(store.task(task.id).unwrap(), Some(task));
    assert!(store.running_tasks().unwrap().is_empty());
}
