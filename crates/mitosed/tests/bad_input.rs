//! What no request should say and no host should do: it is told, nothing is lost, the daemon stays.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use std::path::Path;
use std::process::{Command, Stdio};

use api_types::{ErrorKind, ForkRequest, PrepareRequest, ReconfigureRequest, SnapshotRequest};
use serde_json::{Value, json};

use bed::{Bed, clones};
use http::ask;

/// Names that no object has.
fn bad_names() -> Vec<String> {
    let plain = [
        "", " ", "a/b", "..", "../a", ".", "-a", "a\u{0}b", "a\nb", "ü", "🐛", "a b\t",
    ];
    let mut names: Vec<_> = plain.iter().map(|name| (*name).to_owned()).collect();
    names.push("x".repeat(300));
    names
}

#[test]
fn names_that_cannot_be_are_refused_for_every_kind() {
    let bed = Bed::new();
    bed.run("a", "");
    let requests = |name: &str| {
        [
            ("POST", "/vms", json!({ "name": name }), "name"),
            (
                "POST",
                "/vms/a/fork",
                json!({ "names": [name] }),
                "names[0]",
            ),
            ("POST", "/vms/a/snapshots", json!({ "name": name }), "name"),
            ("POST", "/vms/a/prepare", json!({ "name": name }), "name"),
            ("POST", "/folders", json!({ "name": name }), "name"),
            ("POST", "/networks", json!({ "name": name }), "name"),
            ("POST", "/respools", json!({ "name": name }), "name"),
            (
                "POST",
                "/tokens",
                json!({ "name": name, "role": "viewer" }),
                "name",
            ),
            (
                "POST",
                "/datastores",
                json!({ "name": name, "path": "/" }),
                "name",
            ),
            (
                "POST",
                "/diskpools",
                json!({ "name": name, "source": "a", "datastore": "datastore1", "count": 1 }),
                "name",
            ),
            (
                "POST",
                "/images",
                json!({ "action": "import", "name": name, "file": "/x" }),
                "name",
            ),
            (
                "POST",
                "/import",
                json!({ "path": "/x", "name": name }),
                "name",
            ),
            ("PATCH", "/vms/a", json!({ "name": name }), "name"),
            (
                "PATCH",
                "/datastores/datastore1",
                json!({ "name": name }),
                "name",
            ),
        ]
    };
    for name in bad_names() {
        for (method, path, body, field) in requests(&name) {
            let path = format!("/api/v1{path}");
            let answer = ask(&bed, method, &path, &[], &body.to_string());
            assert_eq!(answer.status, 400, "{path} {name:?}: {answer:?}");
            let problem = answer.json();
            assert_eq!(problem["field"], field, "{path} {name:?}: {problem}");
            assert!(problem["remedy"].is_string(), "{path} {name:?}: {problem}");
        }
    }
    assert_eq!(bed.client.tokens().unwrap(), []);
    assert_eq!(bed.client.folders().unwrap().len(), 1);
    bed.assert_only(&["a"]);
}

#[test]
fn counts_that_cannot_be_are_refused() {
    let bed = Bed::new();
    bed.run("a", "");
    let pool = |count: Value| json!({ "source": "a", "datastore": "datastore1", "count": count });
    for count in [
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(1.5),
        json!("1"),
        json!(true),
    ] {
        for (path, body, field) in [
            ("/forkpoints/p/fork", json!({ "count": count }), "count"),
            ("/vms/a/prepare", json!({ "children": count }), "children"),
            ("/vms", json!({ "name": "b", "cpus": count }), "cpus"),
            (
                "/vms",
                json!({ "name": "b", "memory_bytes": count }),
                "memory_bytes",
            ),
            ("/diskpools", pool(count.clone()), "count"),
            ("/vms/a/stop", json!({ "timeout_s": count }), "timeout_s"),
        ] {
            let answer = ask(
                &bed,
                "POST",
                &format!("/api/v1{path}"),
                &[],
                &body.to_string(),
            );
            assert_eq!(answer.status, 400, "{path} {body}: {answer:?}");
            let problem = answer.json();
            assert_eq!(problem["field"], field, "{path} {body}: {problem}");
            assert!(problem["remedy"].is_string(), "{path} {body}: {problem}");
        }
    }
    let many: Vec<_> = (0..1000).map(|n| format!("c{n}")).collect();
    let request = ForkRequest {
        names: many,
        ..ForkRequest::default()
    };
    let refused = bed.client.fork("a", &request).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Invalid), "{refused}");
    bed.assert_only(&["a"]);
}

/// A file that not even root can write, for as long as this lives.
struct Immutable<'a>(Vec<&'a Path>);

impl<'a> Immutable<'a> {
    fn new(paths: &[&'a Path]) -> Option<Self> {
        let made = Self(paths.to_vec());
        made.set("+i").then_some(made)
    }

    fn set(&self, flag: &str) -> bool {
        let mut command = Command::new("chattr");
        command.arg(flag).args(&self.0).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        self.set("-i");
    }
}

#[test]
fn an_inventory_that_is_read_only_is_told_and_nothing_is_lost() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let annotate = |text: &str| {
        let change = ReconfigureRequest {
            annotation: Some(text.to_owned()),
            ..ReconfigureRequest::default()
        };
        bed.client.reconfigure("a", None, &change)
    };
    annotate("before").unwrap();
    let (file, log) = (
        bed.home().join("inventory.db"),
        bed.home().join("inventory.db-wal"),
    );
    let Some(sealed) = Immutable::new(&[&file, &log]) else {
        eprintln!("skipped: this file system has no immutable files");
        return;
    };
    let before = bed.client.object("a").unwrap();
    let error = annotate("while it cannot be written").unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    let error = bed.client.fork("a", &clones(&["b"])).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
    assert_eq!(bed.client.object("a").unwrap(), before);
    assert_eq!(bed.state("a"), "running");
    drop(sealed);
    annotate("after").unwrap();
    bed.client.fork("a", &clones(&["b"])).unwrap();
    // One that cannot be written from the start is refused, with what to do.
    bed.kill();
    let sealed = Immutable::new(&[&file]).unwrap();
    let refused = bed.command().output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{told}");
    let line = told
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap();
    assert!(
        line.contains("inventory.db") && line.contains("; "),
        "{line}"
    );
    drop(sealed);
    bed.start();
    let kept = bed.client.object("a").unwrap();
    assert_eq!(kept.labels.annotation, "after");
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_clock_that_was_set_back_changes_no_order() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let snapshot = |bed: &Bed, name: &str| {
        let request = SnapshotRequest {
            name: name.to_owned(),
            ..SnapshotRequest::default()
        };
        bed.client.create_snapshot("a", &request, |_| {}).unwrap();
    };
    let prepare = |bed: &Bed, name: &str| {
        let request = PrepareRequest {
            name: Some(name.to_owned()),
            ..PrepareRequest::default()
        };
        bed.client.prepare("a", &request, |_| {}).unwrap();
    };
    snapshot(&bed, "first");
    prepare(&bed, "p-first");
    // All that is there was written by a clock that is years ahead.
    bed.kill();
    let inventory = rusqlite::Connection::open(bed.home().join("inventory.db")).unwrap();
    for (table, member) in [
        ("objects", "created_at_ms"),
        ("tasks", "started_at_ms"),
        ("tasks", "ended_at_ms"),
    ] {
        let change = format!(
            "UPDATE {table} SET doc = json_set(doc, '$.{member}', 9000000000000) \
             WHERE json_extract(doc, '$.{member}') IS NOT NULL"
        );
        inventory.execute(&change, []).unwrap();
    }
    drop(inventory);
    bed.start();
    snapshot(&bed, "second");
    prepare(&bed, "p-second");
    let names: Vec<_> = bed.client.snapshots("a").unwrap();
    let names: Vec<_> = names.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(
        bed.client.fork_point("a").unwrap().name,
        "p-second",
        "the latest one"
    );
    let tasks = bed.client.tasks().unwrap();
    assert!(tasks.is_sorted_by(|a, b| a.id > b.id), "latest first");
    for task in tasks {
        assert!(task.ended_at_ms.unwrap() >= task.started_at_ms, "{task:?}");
    }
    assert_eq!(bed.state("a"), "running");
}

#[test]
fn daemons_of_two_directories_live_side_by_side() {
    let (one, mut two) = (Bed::new(), Bed::new());
    for bed in [&one, &two] {
        bed.run("same", "");
        bed.client.fork("same", &clones(&["clone"])).unwrap();
    }
    let pid = |bed: &Bed| bed.detail("same").pid.unwrap();
    assert_ne!(pid(&one), pid(&two));
    let before = pid(&one);
    two.restart();
    two.client.remove("same", true).unwrap();
    assert_eq!((one.state("same").as_str(), pid(&one)), ("running", before));
    one.assert_only(&["clone", "same"]);
    two.assert_only(&["clone"]);
    // A second one of the same directory is refused.
    let refused = one.command().output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("another mitosed runs for"), "{told}");
}

#[test]
fn what_the_host_refuses_names_the_member_of_the_request_and_what_to_do() {
    let bed = Bed::new();
    bed.run("a", "");
    let run = |change: Value| {
        let mut body = serde_json::to_value(bed.request("b", "")).unwrap();
        let body = body.as_object_mut().unwrap();
        body.extend(change.as_object().unwrap().clone());
        ("/vms", Value::Object(body.clone()))
    };
    let disk = json!({ "path": bed.file("kernel"), "read_only": true });
    for ((path, body), status, field) in [
        (
            run(json!({ "disks": [disk, { "path": "/none" }] })),
            409,
            "disks[1].path",
        ),
        (
            run(json!({ "nets": [{ "tap": "nonesuch" }] })),
            409,
            "nets[0].tap",
        ),
        (
            run(json!({ "nets": [{ "network": "nods" }] })),
            404,
            "nets[0].network",
        ),
        (
            run(json!({ "memory_limit_bytes": 1 << 20 })),
            409,
            "memory_limit_bytes",
        ),
        (run(json!({ "datastore": "nods" })), 404, "datastore"),
        (run(json!({ "pool": "nods" })), 404, "pool"),
        (
            (
                "/vms/a/fork",
                json!({ "names": ["c"], "keep_mac": true, "nets": [{}] }),
            ),
            409,
            "nets",
        ),
    ] {
        let dry = format!("/api/v1{path}?dry_run=true");
        let answer = ask(&bed, "POST", &dry, &[], &body.to_string());
        let found = answer.json()["problems"].clone();
        let problem = found.as_array().into_iter().flatten();
        let problem = problem.into_iter().find(|one| one["field"] == field);
        let problem = problem.unwrap_or_else(|| panic!("{field}: {answer:?}"));
        assert_eq!(problem["status"], status, "{problem}");
        let message = problem["detail"].as_str().unwrap();
        let remedy = problem["remedy"].as_str();
        assert!(remedy.is_some_and(|remedy| message.ends_with(remedy)) || field.contains("disks"));
    }
    let short = json!({ "uuid": "1" });
    let answer = ask(&bed, "POST", "/api/v1/vms", &[], &run(short).1.to_string());
    assert_eq!(answer.json()["remedy"], "give 36 characters", "{answer:?}");
    let states = |state: &str| {
        let path = format!("/api/v1/vms?state={state}");
        ask(&bed, "GET", &path, &[], "")
    };
    assert_eq!(states("running").json().as_array().unwrap().len(), 1);
    assert_eq!(states("paused:%20no%20space").status, 200);
    let answer = states("bogus");
    assert_eq!(
        (answer.status, &answer.json()["field"]),
        (400, &json!("state"))
    );
    bed.assert_only(&["a"]);
}
