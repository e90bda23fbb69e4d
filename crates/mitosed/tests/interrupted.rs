//! Tasks that the daemon's sudden end cuts: the next daemon says what became of them.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use std::time::Duration;

use api_types::{PrepareRequest, Task, TaskState};
use bed::Bed;
use http::ask;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Begins a task; the key makes a second call the same.
fn post(bed: &Bed, path: &str, body: &Value) -> Task {
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "k"),
    ];
    let answer = ask(
        bed,
        "POST",
        &format!("/api/v1{path}"),
        &headers,
        &body.to_string(),
    );
    assert!(answer.status < 300, "{answer:?}");
    serde_json::from_value(answer.json()).unwrap()
}

/// The end of the task of a call that comes again.
fn again(bed: &Bed, path: &str, body: &Value) -> Task {
    let task = post(bed, path, body);
    bed.client.wait_task(task.id, bed::PATIENCE).unwrap()
}

/// What a task says of each name is so; returns how many were made.
fn assert_told(bed: &Bed, task: &Task, names: &[String]) -> usize {
    let there = bed.names();
    let told: Vec<&String> = task.items.iter().map(|item| &item.name).collect();
    assert_eq!(told, names.iter().collect::<Vec<_>>());
    for item in &task.items {
        let made = there.contains(&item.name);
        let state = if made {
            TaskState::Success
        } else {
            TaskState::Failed
        };
        assert_eq!(item.state, state, "{item:?} {}", bed.log());
        assert_eq!(item.error.is_none(), made);
    }
    let made = names.iter().filter(|name| there.contains(name)).count();
    let whole = made == names.len();
    let state = if whole {
        TaskState::Success
    } else {
        TaskState::Failed
    };
    assert_eq!(task.state, state);
    assert_eq!(task.error.is_none(), whole);
    if let Some(error) = &task.error {
        assert!(error.contains("interrupted"), "{error}");
    }
    assert_eq!(task.result.is_some(), made > 0);
    if let Some(result) = &task.result {
        let clones = result["clones"].as_array().unwrap();
        let living = clones.iter().filter(|clone| clone["error"].is_null());
        assert_eq!((clones.len(), living.count()), (names.len(), made));
        assert_eq!(result["source"], "a");
    }
    let events = bed.client.events(Some(0)).unwrap();
    let told = events.iter().filter(|event| names.contains(&event.subject));
    for event in told.filter(|event| ["vm.recovered", "vm.removed"].contains(&event.kind.as_str()))
    {
        assert_eq!(event.task, Some(task.id), "{event:?}");
    }
    made
}

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("c{number}")).collect()
}

#[test]
fn a_fork_that_is_cut_tells_which_clones_were_made() {
    for ms in [0, 20, 40, 60, 80, 100, 120, 160] {
        let mut bed = Bed::new();
        bed.run("a", "fork_ms=40");
        let names = names(12);
        let body = json!({ "names": names });
        let begun = post(&bed, "/vms/a/fork", &body);
        std::thread::sleep(Duration::from_millis(ms));
        bed.restart();
        let task = again(&bed, "/vms/a/fork", &body);
        assert_eq!(task.id, begun.id);
        assert_told(&bed, &task, &names);
    }
}

#[test]
fn a_fork_that_is_cut_after_its_clones_run_is_a_success() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let names = names(3);
    let body = json!({ "names": names, "wait_ready_s": 600 });
    let begun = post(&bed, "/vms/a/fork", &body);
    names
        .iter()
        .for_each(|name| bed.until_state(name, "running"));
    bed.restart();
    let task = again(&bed, "/vms/a/fork", &body);
    assert_eq!(task.id, begun.id);
    assert_eq!(assert_told(&bed, &task, &names), 3);
    assert_eq!(task.result.unwrap()["memory"], "layer");
}

#[test]
fn a_batch_of_children_that_is_cut_tells_which_were_made() {
    for given in [true, false] {
        let mut bed = Bed::new();
        bed.run("a", "");
        let request = PrepareRequest::default();
        bed.client.prepare("a", &request, |_| ()).unwrap();
        let names = match given {
            true => names(120),
            false => (1..=120).map(|number| format!("a-{number}")).collect(),
        };
        let body = match given {
            true => json!({ "names": names }),
            false => json!({ "count": 120 }),
        };
        let begun = post(&bed, "/forkpoints/a/fork", &body);
        bed.until("the first group runs", || {
            let task = bed.client.task(begun.id).unwrap();
            task.items
                .iter()
                .any(|item| item.state == TaskState::Success)
        });
        bed.restart();
        let task = again(&bed, "/forkpoints/a/fork", &body);
        assert_eq!(task.id, begun.id);
        let made = assert_told(&bed, &task, &names);
        assert!(made >= 50, "{made}");
        assert_eq!(task.result.unwrap()["memory"], "kept");
    }
}

#[test]
fn what_the_next_daemon_finishes_is_a_success() {
    for kind in ["vm.reset", "snapshot.revert", "vm.remove"] {
        let mut bed = Bed::new();
        bed.run("a", "");
        let snapshot = serde_json::from_value(json!({"name": "one", "memory": true})).unwrap();
        bed.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
        let pid = Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
        // It does not end before it goes on.
        kill_process(pid, Signal::STOP).unwrap();
        let client = bed.client.clone();
        let operate = std::thread::spawn(move || match kind {
            "vm.reset" => drop(client.reset("a")),
            "vm.remove" => drop(client.remove("a", true)),
            _ => drop(client.revert("a", "one", |_| ())),
        });
        let of_kind = |bed: &Bed| {
            let mut tasks = bed.client.tasks().unwrap();
            tasks.retain(|task| task.kind == kind);
            tasks.pop()
        };
        bed.until("the task is in work", || of_kind(&bed).is_some());
        // That it is begun is on record a moment later, which nobody tells.
        std::thread::sleep(Duration::from_millis(1500));
        bed.kill();
        operate.join().unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        bed.start();
        let task = of_kind(&bed).unwrap();
        assert_eq!(task.state, TaskState::Success, "{task:?} {}", bed.log());
        let there = kind != "vm.remove";
        assert_eq!(task.result.is_some(), there);
        let told = if there { "vm.recovered" } else { "vm.removed" };
        let events = bed.client.events(Some(0)).unwrap();
        let told = events.iter().find(|event| event.kind == told).unwrap();
        assert_eq!(told.task, Some(task.id));
        assert_eq!(bed.client.vm("a").is_ok(), there);
    }
}

#[test]
fn a_suspend_that_is_on_record_is_a_success() {
    for round in 0..6 {
        let mut bed = Bed::new();
        bed.run("a", "");
        let client = bed.client.clone();
        let suspend = std::thread::spawn(move || drop(client.suspend("a", |_| ())));
        bed.until("it is on its way", || {
            let tasks = bed.client.tasks().unwrap();
            tasks.iter().any(|task| task.kind == "vm.suspend")
        });
        std::thread::sleep(Duration::from_millis(4 * round));
        bed.restart();
        suspend.join().unwrap();
        let tasks = bed.client.tasks().unwrap();
        let task = tasks.iter().find(|task| task.kind == "vm.suspend").unwrap();
        let state = match bed.state("a").as_str() {
            "suspended" => TaskState::Success,
            _ => TaskState::Failed,
        };
        assert_eq!(task.state, state, "{task:?} {}", bed.log());
    }
}

#[test]
fn a_run_that_was_rolled_forward_is_a_success() {
    let mut bed = Bed::new();
    let mut request = serde_json::to_value(bed.request("a", "")).unwrap();
    request["wait_ready_s"] = json!(600);
    post(&bed, "/vms", &request);
    bed.until_state("a", "running");
    bed.restart();
    let task = again(&bed, "/vms", &request);
    assert_eq!(task.state, TaskState::Success);
    assert_eq!(task.result.unwrap()["name"], "a");
    bed.assert_only(&["a"]);
}

/// Has a task that has ended look as one that the daemon's end cut just before; returns its end.
fn cut(bed: &mut Bed, task: i64) -> Task {
    bed.kill();
    let database = rusqlite::Connection::open(bed.home().join("inventory.db")).unwrap();
    let doc: String = database
        .query_row("SELECT doc FROM tasks WHERE id = ?1", [task], |row| {
            row.get(0)
        })
        .unwrap();
    let mut doc: Task = serde_json::from_str(&doc).unwrap();
    doc.state = TaskState::Running;
    doc.result = None;
    doc.error = None;
    doc.ended_at_ms = None;
    let doc = serde_json::to_string(&doc).unwrap();
    let change = "UPDATE tasks SET running = 1, doc = ?2 WHERE id = ?1";
    let values = rusqlite::params![task, doc];
    assert_eq!(database.execute(change, values).unwrap(), 1);
    drop(database);
    bed.start();
    bed.client.task(task).unwrap()
}

/// The end of a task that `call` begins.
fn ended(bed: &Bed, path: &str, body: &Value) -> Task {
    let task = ask(
        bed,
        "POST",
        &format!("/api/v1{path}"),
        &[("Content-Type", "application/json")],
        &body.to_string(),
    );
    let task: Task = serde_json::from_value(task.json()).unwrap();
    bed.client.wait_task(task.id, bed::PATIENCE).unwrap()
}

fn assert_nothing_left(task: &Task) {
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    assert_eq!(task.result, None);
    let told = task.error.as_deref().unwrap();
    assert!(told.contains("nothing of it is left"), "{told}");
    assert_eq!(task.remedy.as_deref(), Some("make the call again"));
}

#[test]
fn what_was_made_whole_before_the_cut_is_a_success() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let off = bed.with_disk(bed.request("off", ""));
    bed.client.run(&off).unwrap();
    let stop = serde_json::from_str(r#"{"force":true}"#).unwrap();
    bed.client.stop("off", &stop).unwrap();
    let path = bed.file("off.tar");
    let export = json!({ "path": path });
    assert_eq!(
        ended(&bed, "/vms/off/export", &export).state,
        TaskState::Success
    );
    bed.client.remove("off", false).unwrap();
    let calls = [
        ("/vms/a/snapshots", json!({ "name": "s", "memory": true })),
        ("/vms/a/snapshots", json!({ "name": "disks" })),
        ("/vms/a/prepare", json!({ "name": "p" })),
        ("/vms/a/prepare", json!({ "name": "q", "children": 2 })),
        ("/import", json!({ "path": path })),
    ];
    for (path, body) in calls {
        let made = ended(&bed, path, &body);
        assert_eq!(made.state, TaskState::Success, "{made:?} {}", bed.log());
        let told = cut(&mut bed, made.id);
        assert_eq!(told.state, TaskState::Success, "{told:?} {}", bed.log());
        assert_eq!(told.result, made.result);
        assert_eq!((told.error, told.percent), (None, Some(100)));
    }
    assert_eq!(bed.names(), ["a", "off", "q-1", "q-2"]);
}

#[test]
fn a_cut_task_of_which_nothing_is_left_says_so() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let snapshot = ended(&bed, "/vms/a/snapshots", &json!({ "name": "s" }));
    bed.client.remove_snapshot("a", "s", false).unwrap();
    assert_nothing_left(&cut(&mut bed, snapshot.id));
    let prepared = json!({ "name": "p", "children": 2 });
    let prepared = ended(&bed, "/vms/a/prepare", &prepared);
    // The daemon ended before the children were on record.
    for child in ["p-1", "p-2"] {
        bed.client.remove(child, false).unwrap();
    }
    assert_nothing_left(&cut(&mut bed, prepared.id));
    assert!(bed.client.fork_points().unwrap().is_empty());
    let image = json!({ "action": "import", "name": "i", "file": "/none" });
    let image = ended(&bed, "/images", &image);
    assert_eq!(image.state, TaskState::Failed);
    assert_nothing_left(&cut(&mut bed, image.id));
    bed.make_image("i", 4096);
    let image = cut(&mut bed, image.id);
    assert_eq!((image.state, image.result), (TaskState::Success, None));
    let events = bed.client.events(None).unwrap();
    let told = events.iter().find(|event| event.kind == "image.made");
    assert_eq!(told.unwrap().task, Some(image.id));
    bed.assert_only(&["a"]);
}

#[test]
fn registered_children_stay_where_their_first_start_is_cut() {
    let mut bed = Bed::new();
    let request = bed.with_disk(bed.request("a", "restore_ms=2000 die=restore"));
    bed.client.run(&request).unwrap();
    let prepare = PrepareRequest {
        children: 2,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &prepare, |_| ()).unwrap();
    let body = json!({ "count": 3 });
    post(&bed, "/forkpoints/a/fork", &body);
    bed.until_state("a-3", "creating");
    // They are on record, and not restored yet.
    let there = |bed: &Bed| bed.detail("a-1").pid.is_some() && bed.detail("a-2").pid.is_some();
    bed.until("they have processes", || there(&bed));
    std::thread::sleep(Duration::from_millis(500));
    bed.restart();
    let task = again(&bed, "/forkpoints/a/fork", &body);
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    let point = bed.client.fork_point("a").unwrap();
    assert_eq!((point.children, point.children_registered), (2, 2));
    for name in ["a-1", "a-2"] {
        let detail = bed.detail(name);
        assert_eq!((detail.vm.state.as_str(), detail.pid), ("poweredOff", None));
    }
    let events = bed.client.events(Some(0)).unwrap();
    let gone = events.iter().filter(|event| event.kind == "vm.removed");
    let gone: Vec<_> = gone.map(|event| event.subject.as_str()).collect();
    assert_eq!(gone, ["a-3"], "{}", bed.log());
    bed.assert_only(&["a", "a-1", "a-2"]);
}
