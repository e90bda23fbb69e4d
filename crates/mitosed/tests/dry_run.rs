//! Trying changes out: everything that stands in the way is told, and nothing changes.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use api_types::{PointForkRequest, PrepareRequest, StopRequest, TaskState};
use serde_json::{Value, json};

use bed::Bed;
use http::{Answer, ask};

fn get(bed: &Bed, path: &str) -> Answer {
    ask(bed, "GET", path, &[], "")
}

fn post(bed: &Bed, path: &str, body: &Value) -> Answer {
    ask(bed, "POST", path, &[], &body.to_string())
}

/// Members of a request, by the name of its schema, that the daemon could carry out.
fn good_body(operation: &str) -> Value {
    match operation {
        "run_vm" => json!({ "name": "n", "kernel": "/none", "engine": "kvm" }),
        "fork_vm" => json!({ "names": ["n"] }),
        "make_image" => json!({ "action": "import", "name": "n", "file": "/none" }),
        "make_token" => json!({ "name": "n", "role": "viewer" }),
        "add_datastore" => json!({ "name": "n", "path": "/none" }),
        "make_disk_pool" => json!({ "source": "off", "datastore": "datastore1", "count": 1 }),
        "change_disk_pool" => json!({ "count": 0 }),
        "export_vm" | "export_fork_point" => json!({ "path": "/none/n" }),
        "import_archive" => json!({ "path": "/none/n" }),
        "fork_fork_point" => json!({ "names": ["n"] }),
        "set_persistence" => json!({ "persistent": true }),
        "change_vm" | "change_object" => json!({ "annotation": "n" }),
        "set_guestinfo" => json!({ "guestinfo.n": "1" }),
        "change_datastore" => json!({ "maintenance": true }),
        "create_snapshot" | "make_folder" | "make_network" | "make_respool" => {
            json!({ "name": "n" })
        }
        _ => Value::Null,
    }
}

#[test]
fn every_change_can_be_tried_and_says_who_asked() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client
        .run(&bed.with_disk(bed.request("off", "")))
        .unwrap();
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    bed.client.stop("off", &force).unwrap();
    for (path, body) in [
        ("/vms/a/snapshots", json!({ "name": "s" })),
        ("/vms/a/prepare", json!({ "name": "p" })),
        ("/folders", json!({ "name": "f" })),
        ("/networks", json!({ "name": "w" })),
        ("/respools", json!({ "name": "r" })),
        (
            "/diskpools",
            json!({ "source": "off", "datastore": "datastore1", "count": 0, "name": "d" }),
        ),
        ("/tokens", json!({ "name": "t", "role": "viewer" })),
    ] {
        let path = format!("/api/v1{path}");
        let made = post(&bed, &path, &body);
        assert!((200..300).contains(&made.status), "{path}: {made:?}");
    }
    bed.until("all of it is made", || {
        let tasks = bed.client.tasks().unwrap();
        tasks.iter().all(|task| task.state != TaskState::Running)
    });
    let seen = || {
        let lists = ["vms", "objects", "tasks", "folders", "tokens", "forkpoints"];
        lists.map(|list| get(&bed, &format!("/api/v1/{list}")).json())
    };
    let (before, document) = (seen(), get(&bed, "/api/v1/openapi.json").json());
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            // Nothing could stand in their way.
            let plain = ["stop_daemon", "cancel_task", "exec_in_vm"].contains(&id);
            if method == "get" || plain {
                continue;
            }
            let places = [
                ("{vm}", if id.contains("start") { "off" } else { "a" }),
                ("{snapshot}", "s"),
                ("{fork_point}", "p"),
                ("{folder}", "f"),
                ("{network}", "w"),
                ("{pool}", "r"),
                ("{disk_pool}", "d"),
                ("{token}", "t"),
                ("{datastore}", "datastore1"),
                ("{object}", "folder-1"),
                ("{image}", "none"),
            ];
            let mut path = format!("{path}?dry_run=true");
            for (place, name) in places {
                path = path.replace(place, name);
            }
            let body = match good_body(id) {
                Value::Null => String::new(),
                body => body.to_string(),
            };
            let json = [("Content-Type", "application/json")];
            let answer = ask(&bed, &method.to_uppercase(), &path, &json, &body);
            assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
            assert!(answer.json()["problems"].is_array(), "{path}: {answer:?}");
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
    for (after, before) in seen().iter().zip(&before) {
        assert_eq!(after, before, "a dry run changed something");
    }
    let tasks = bed.client.tasks().unwrap();
    let nobodys: Vec<_> = tasks.iter().filter(|task| task.user != "root").collect();
    assert!(nobodys.is_empty(), "{nobodys:?}");
}

#[test]
fn a_dry_run_tells_what_each_operation_would() {
    let bed = Bed::new();
    bed.run("a", "");
    for (method, path, body, field, told) in [
        (
            "POST",
            "/vms/a/start",
            json!(null),
            None,
            "so it cannot be started",
        ),
        (
            "DELETE",
            "/vms/a",
            json!(null),
            None,
            "so it cannot be removed",
        ),
        (
            "DELETE",
            "/folders/folder-1",
            json!(null),
            Some("folder"),
            "the first folder",
        ),
        (
            "POST",
            "/folders",
            json!({ "name": "b", "parent": "none" }),
            Some("folder"),
            "no folder",
        ),
        (
            "DELETE",
            "/respools/Resources",
            json!(null),
            Some("pool"),
            "the first pool stays",
        ),
        (
            "DELETE",
            "/datastores/datastore1",
            json!(null),
            None,
            "part of the data directory",
        ),
        (
            "POST",
            "/datastores",
            json!({ "name": "datastore1", "path": "/" }),
            Some("name"),
            "already",
        ),
        (
            "POST",
            "/import",
            json!({ "path": "/none" }),
            Some("path"),
            "/none",
        ),
        (
            "POST",
            "/vms/a/export",
            json!({ "path": "/none/x" }),
            Some("path"),
            "no folder /none",
        ),
        (
            "PUT",
            "/vms/a/persistence",
            json!({ "persistent": true }),
            None,
            "no child",
        ),
        (
            "PATCH",
            "/vms/a",
            json!({ "cpus": 2 }),
            None,
            "so it cannot be reconfigured",
        ),
        ("DELETE", "/images/none", json!(null), None, "none"),
    ] {
        let path = format!("/api/v1{path}?dry_run=true");
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = ask(&bed, method, &path, &[], &body);
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        let found = answer.json();
        let problem = &found["problems"][0];
        assert!(
            problem["detail"].as_str().unwrap_or("").contains(told),
            "{path}: {found}"
        );
        assert_eq!(problem["field"].as_str(), field, "{path}: {found}");
    }
    // What breaks the document and what the host refuses, in one answer.
    let body = json!({ "name": "a/b", "path": "/etc/passwd", "colour": 1 });
    let answer = post(&bed, "/api/v1/datastores?dry_run=true", &body);
    assert_eq!(answer.status, 400, "{answer:?}");
    let fields: Vec<_> = answer.json()["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["field"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(fields, ["colour", "name", "path"]);
}

#[test]
fn a_child_that_starts_from_its_fork_point_keeps_the_machine_of_it() {
    let bed = Bed::new();
    bed.run("a", "");
    let prepare = PrepareRequest {
        quiesce: true,
        persistent: true,
        children: 1,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &prepare, |_| ()).unwrap();
    let fork = PointForkRequest {
        names: vec!["off".to_owned()],
        persistent: Some(false),
        ..PointForkRequest::default()
    };
    bed.client.fork_children("a", &fork, |_| ()).unwrap();
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    bed.client.stop("off", &force).unwrap();
    let parts = [
        ("cpus", json!(2)),
        ("memory_bytes", json!(32 << 20)),
        ("cmdline", json!("other")),
        ("engine", json!("soft")),
        ("serial_ports", json!(2)),
        ("spare_disks", json!(1)),
        ("add_nics", json!([{}])),
    ];
    let all = parts
        .iter()
        .map(|(field, value)| ((*field).to_owned(), value.clone()));
    let all = Value::Object(all.collect());
    for name in ["off", "a-1"] {
        let path = format!("/api/v1/vms/{name}");
        let change = |to: &Value| ask(&bed, "PATCH", &path, &[], &to.to_string());
        for (field, value) in &parts {
            let refused = change(&json!({ *field: value }));
            assert_eq!(refused.status, 409, "{refused:?}");
            let refused = refused.json();
            assert_eq!(refused["field"], *field);
            let said = refused["detail"].as_str().unwrap();
            assert!(
                said.contains(&format!("{name} starts from its fork point")),
                "{said}"
            );
            let remedy = refused["remedy"].as_str().unwrap();
            assert!(
                remedy.contains(&format!("mitose clone {name} --mode linked")),
                "{remedy}"
            );
        }
        let tried = ask(
            &bed,
            "PATCH",
            &format!("{path}?dry_run=true"),
            &[],
            &all.to_string(),
        );
        let problems = tried.json()["problems"].as_array().unwrap().clone();
        let fields: Vec<_> = problems.iter().map(|problem| &problem["field"]).collect();
        for (field, _) in &parts {
            assert!(
                fields.contains(&&json!(field)),
                "{field} is not among {fields:?}"
            );
        }
        // What is the same, and what the guest does not see, may be said.
        let same = json!({
            "cpus": 1, "memory_bytes": 16 << 20, "cmdline": "", "engine": "kvm", "serial_ports": 1,
            "memory_limit_bytes": 1 << 30,
        });
        assert_eq!(change(&same).status, 200);
        bed.client.start(name).unwrap();
    }
    // A persistent one that was powered off is a machine like any other.
    bed.client.stop("a-1", &force).unwrap();
    let changed = ask(&bed, "PATCH", "/api/v1/vms/a-1", &[], r#"{ "cpus": 2 }"#);
    assert_eq!(changed.status, 200, "{changed:?}");
    bed.client.start("a-1").unwrap();
    assert_eq!(bed.detail("a-1").vm.cpus, 2);
}
