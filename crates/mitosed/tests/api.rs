//! What every path of the HTTP interface does alike: problems, tasks, pages, versions.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use std::time::{Duration, Instant};

use api_types::{CloneMode, ForkRequest, TaskState};
use serde_json::{Value, json};

use bed::{Bed, clones};
use http::{Answer, ask};

fn get(bed: &Bed, path: &str) -> Answer {
    ask(bed, "GET", path, &[], "")
}

fn post(bed: &Bed, path: &str, body: &Value) -> Answer {
    ask(bed, "POST", path, &[], &body.to_string())
}

#[test]
fn every_refusal_is_a_problem_with_its_status() {
    let bed = Bed::new();
    bed.run("a", "");
    let json = ("Content-Type", "application/json");
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(5 << 20));
    let deep = "[".repeat(100_000);
    for (answer, status, kind, field) in [
        (get(&bed, "/api/v1/nothing"), 404, "not_found", None),
        (get(&bed, "/vms"), 404, "not_found", None),
        (get(&bed, "/api/v1/vms/none"), 404, "not_found", None),
        (
            get(&bed, "/api/v1/vms/a%2F..%2F"),
            400,
            "invalid",
            Some("vm"),
        ),
        (get(&bed, "/api/v1/vms/%FF"), 400, "invalid", Some("path")),
        (
            get(&bed, "/api/v1/vms?limit=0"),
            400,
            "invalid",
            Some("limit"),
        ),
        (
            get(&bed, "/api/v1/vms?limit=x"),
            400,
            "invalid",
            Some("limit"),
        ),
        (
            get(&bed, "/api/v1/vms?limit=1&limit=2"),
            400,
            "invalid",
            Some("limit"),
        ),
        (
            get(&bed, "/api/v1/vms?colour=red"),
            400,
            "invalid",
            Some("colour"),
        ),
        (
            get(&bed, "/api/v1/tasks/99999999999999999999"),
            400,
            "invalid",
            Some("task"),
        ),
        (
            ask(&bed, "PATCH", "/api/v1/vms", &[json], "{}"),
            405,
            "invalid",
            None,
        ),
        (
            ask(&bed, "DELETE", "/api/v1/daemon", &[], ""),
            405,
            "invalid",
            None,
        ),
        (
            ask(
                &bed,
                "POST",
                "/api/v1/vms",
                &[("Content-Type", "text/plain")],
                "{}",
            ),
            415,
            "invalid",
            Some("Content-Type"),
        ),
        (
            ask(&bed, "POST", "/api/v1/vms", &[json], &long),
            413,
            "invalid",
            Some("body"),
        ),
        (
            ask(&bed, "POST", "/api/v1/vms", &[json], "{\"name\""),
            400,
            "invalid",
            Some("body"),
        ),
        (
            ask(&bed, "POST", "/api/v1/vms", &[json], &deep),
            400,
            "invalid",
            Some("body"),
        ),
        (
            ask(&bed, "POST", "/api/v1/vms", &[json], ""),
            400,
            "invalid",
            Some("body"),
        ),
        (
            post(&bed, "/api/v1/vms", &json!([])),
            400,
            "invalid",
            Some("body"),
        ),
        (
            post(&bed, "/api/v1/vms", &json!({ "name": "x".repeat(300) })),
            400,
            "invalid",
            Some("name"),
        ),
        (
            post(&bed, "/api/v1/vms", &json!({ "name": "🐛" })),
            400,
            "invalid",
            Some("name"),
        ),
        (
            post(&bed, "/api/v1/vms/a/fork", &json!({ "names": ["../b"] })),
            400,
            "invalid",
            Some("names[0]"),
        ),
        (
            post(&bed, "/api/v1/vms/a/stop", &json!({ "timeout_s": -1 })),
            400,
            "invalid",
            Some("timeout_s"),
        ),
        (
            get(&bed, "/api/v1/vms/a/console"),
            426,
            "invalid",
            Some("Upgrade"),
        ),
    ] {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{answer:?}"
        );
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["kind"], kind, "{problem}");
        assert_eq!(problem["field"].as_str(), field, "{problem}");
        assert!(!problem["detail"].as_str().unwrap().contains('\n'));
        assert!(problem["title"].is_string() && problem["type"].is_string());
        if status == 405 {
            assert!(
                answer.header("allow").unwrap().contains("GET"),
                "{answer:?}"
            );
        }
    }
    bed.assert_only(&["a"]);
}

#[test]
fn what_changes_something_is_a_task() {
    let bed = Bed::new();
    bed.run("a", "");
    let begun = post(&bed, "/api/v1/vms/a/fork", &json!({ "names": ["b", "c"] }));
    assert_eq!(begun.status, 202, "{begun:?}");
    let place = begun.header("location").unwrap().to_owned();
    bed.until("the task has ended", || {
        get(&bed, &place).json()["state"] != "running"
    });
    let task = get(&bed, &place).json();
    assert_eq!(task["state"], "success", "{task}");
    assert_eq!(task["kind"], "vm.fork");
    assert_eq!(task["user"], "root");
    assert_eq!(task["result"]["clones"][1]["name"], "c");
    assert_eq!(
        task["items"][0],
        json!({ "name": "b", "state": "success", "error": null })
    );
    let ended = post(&bed, "/api/v1/vms/a/pause?wait=true", &Value::Null);
    assert_eq!(
        (ended.status, &ended.json()["result"]["state"]),
        (200, &json!("paused"))
    );
    let failed = post(&bed, "/api/v1/vms/a/start?wait=true", &Value::Null);
    assert_eq!(
        (failed.status, &failed.json()["state"]),
        (200, &json!("failed"))
    );
    let failed = failed.json();
    assert_eq!(failed["error_kind"], "conflict");
    assert_eq!(failed["remedy"], "'mitose resume a' lets it run on");
    let taken = json!({ "names": ["c"] });
    let taken = post(&bed, "/api/v1/vms/a/fork?wait=true", &taken).json();
    assert_eq!(taken["field"], "name", "{taken}");
    let gone = ask(&bed, "DELETE", "/api/v1/vms/b", &[], "");
    assert_eq!(gone.status, 409, "it runs: {gone:?}");
    assert_eq!(
        ask(&bed, "DELETE", "/api/v1/vms/b?force=true", &[], "").status,
        204
    );
    assert_eq!(get(&bed, "/api/v1/vms/b").status, 404);
    bed.assert_only(&["a", "c"]);
}

#[test]
fn a_key_makes_a_call_happen_once() {
    let bed = Bed::new();
    let request = bed.request("a", "");
    let body = serde_json::to_string(&request).unwrap();
    let key = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "k1"),
    ];
    let run = || ask(&bed, "POST", "/api/v1/vms?wait=true", &key, &body).json();
    let (first, second) = (run(), run());
    assert_eq!(first["state"], "success", "{first}");
    assert_eq!(first["id"], second["id"]);
    assert_eq!(first["result"], second["result"]);
    let other = ask(
        &bed,
        "POST",
        "/api/v1/vms/a/pause",
        &[("Idempotency-Key", "k1")],
        "",
    );
    assert_eq!(other.status, 409, "{other:?}");
    let long = "k".repeat(129);
    let refused = ask(
        &bed,
        "POST",
        "/api/v1/vms/a/pause",
        &[("Idempotency-Key", &long)],
        "",
    );
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (400, &json!("Idempotency-Key"))
    );
    bed.assert_only(&["a"]);
}

#[test]
fn a_dry_run_tells_what_stands_in_the_way_and_makes_nothing() {
    let bed = Bed::new();
    bed.run("a", "");
    let run = |name: &str| {
        let body = serde_json::to_value(bed.request(name, "")).unwrap();
        post(&bed, "/api/v1/vms?dry_run=true", &body)
    };
    assert_eq!(run("b").json()["problems"], json!([]));
    let taken = run("a").json();
    assert_eq!(taken["problems"][0]["kind"], "conflict", "{taken}");
    let fork = |name: &str| {
        post(
            &bed,
            "/api/v1/vms/a/fork?dry_run=true",
            &json!({ "names": [name] }),
        )
        .json()
    };
    assert_eq!(fork("b")["problems"], json!([]));
    assert_eq!(fork("a")["problems"][0]["kind"], "conflict");
    let image = json!({ "action": "import", "name": "i", "file": "/x" });
    assert_eq!(
        post(&bed, "/api/v1/images?dry_run=true", &image).status,
        200
    );
    let token = json!({ "name": "t", "role": "viewer" });
    assert_eq!(
        post(&bed, "/api/v1/tokens?dry_run=true", &token).json()["problems"],
        json!([])
    );
    assert_eq!(get(&bed, "/api/v1/tokens").json(), json!([]));
    bed.assert_only(&["a"]);
}

#[test]
fn long_lists_come_in_pages_and_filtered() {
    let bed = Bed::new();
    bed.run("web-1", "");
    bed.client
        .fork("web-1", &clones(&["db-1", "web-2", "web-3"]))
        .unwrap();
    bed.client.pause("web-2").unwrap();
    let names = |answer: &Answer| -> Vec<String> {
        let list = answer.json();
        let name = |vm: &Value| vm["name"].as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(name).collect()
    };
    let mut path = "/api/v1/vms?name=web-*&limit=2".to_owned();
    let first = get(&bed, &path);
    assert_eq!(names(&first), ["web-1", "web-2"]);
    path = first.next().unwrap();
    let second = get(&bed, &path);
    assert_eq!(names(&second), ["web-3"]);
    assert_eq!(second.next(), None);
    assert_eq!(names(&get(&bed, "/api/v1/vms?state=paused")), ["web-2"]);
    assert_eq!(names(&get(&bed, "/api/v1/vms?folder=folder-999")), [""; 0]);
    assert_eq!(
        names(&get(&bed, "/api/v1/vms?attribute=tier%3Dweb")),
        [""; 0]
    );
    let tasks = get(&bed, "/api/v1/tasks?kind=vm.pause");
    assert_eq!(tasks.json().as_array().unwrap().len(), 1);
    let latest = get(&bed, "/api/v1/tasks?limit=1");
    assert_eq!(latest.json()[0]["kind"], "vm.pause");
    let older = get(&bed, &latest.next().unwrap());
    assert_eq!(older.json()[0]["kind"], "vm.fork");
    let mut seen = Vec::new();
    let mut page = Some("/api/v1/events?after=0&limit=2".to_owned());
    while let Some(path) = page {
        let answer = get(&bed, &path);
        seen.extend(
            answer
                .json()
                .as_array()
                .unwrap()
                .iter()
                .map(|e| e["id"].as_i64().unwrap()),
        );
        page = answer.next();
    }
    let all = bed.client.events(Some(0)).unwrap();
    assert_eq!(seen, all.iter().map(|event| event.id).collect::<Vec<_>>());
    assert!(seen.len() > 4, "{seen:?}");
    let forked = get(&bed, "/api/v1/events?after=0&kind=vm.forked");
    assert_eq!(forked.json()[0]["data"]["clones"], 3, "{forked:?}");
}

#[test]
fn a_version_protects_from_changes_that_were_not_seen() {
    let bed = Bed::new();
    bed.run("a", "");
    let tag = get(&bed, "/api/v1/vms/a")
        .header("etag")
        .unwrap()
        .to_owned();
    let remove = |tag: &str| {
        ask(
            &bed,
            "DELETE",
            "/api/v1/vms/a?force=true",
            &[("If-Match", tag)],
            "",
        )
        .status
    };
    assert_eq!(remove("\"999\""), 412);
    for wrong in ["nonsense", "W/\"1\"", "\"1\", \"2\"", "\"\"", "1"] {
        let answer = remove(wrong);
        assert_eq!(answer, 400, "{wrong}");
    }
    assert_eq!(remove(&tag), 204);
    bed.assert_only(&[]);
}

#[test]
fn objects_of_all_kinds_are_removed_in_the_version_that_was_seen() {
    let bed = Bed::new();
    let make = |path: &str, body: Value| {
        let answer = ask(&bed, "POST", path, &[], &body.to_string());
        assert!((200..300).contains(&answer.status), "{answer:?}");
    };
    let directory = bed.file("more");
    std::fs::create_dir(&directory).unwrap();
    let store = json!({ "name": "more", "path": directory });
    make("/api/v1/datastores?wait=true", store);
    make("/api/v1/folders", json!({ "name": "f" }));
    make("/api/v1/networks", json!({ "name": "n" }));
    make("/api/v1/respools", json!({ "name": "r" }));
    make("/api/v1/tokens", json!({ "name": "t", "role": "viewer" }));
    bed.run("a", "");
    make("/api/v1/vms/a/prepare?wait=true", json!({ "name": "p" }));
    for path in [
        "datastores/more",
        "folders/f",
        "networks/n",
        "respools/r",
        "tokens/t",
        "forkpoints/p",
    ] {
        let path = format!("/api/v1/{path}?dry_run=false");
        let with = |tag: &str| ask(&bed, "DELETE", &path, &[("If-Match", tag)], "");
        let answer = with("\"999\"");
        assert_eq!(answer.status, 412, "{path}: {answer:?}");
        assert_eq!(answer.json()["kind"], "stale");
        let answer = with("W/\"1\"");
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert_eq!(answer.json()["field"], "If-Match");
        assert_eq!(
            with("").status,
            412,
            "{path}: no version is none that it has"
        );
        assert!(matches!(with("*").status, 200 | 202 | 204), "{path}");
    }
    let change = |tag: &str| {
        let body = json!({ "reserve_bytes": 1 << 20 }).to_string();
        let path = "/api/v1/datastores/datastore1?wait=true";
        ask(&bed, "PATCH", path, &[("If-Match", tag)], &body).status
    };
    let answer = get(&bed, "/api/v1/datastores/datastore1").json();
    let tag = format!("\"{}\"", answer["version"]);
    assert_eq!((change("\"999\""), change(&tag)), (412, 200));
    assert_eq!(change(&tag), 412);
}

#[test]
fn vms_are_found_by_id_too() {
    let bed = Bed::new();
    bed.run("a", "");
    let id = bed.detail("a").vm.id;
    assert_eq!(bed.detail(&id).vm.name, "a");
    assert_eq!(bed.client.pause(&id).unwrap().state, "paused");
}

#[test]
fn event_streams_are_taken_up_where_they_ended() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.pause("a").unwrap();
    let events = bed.client.events(Some(0)).unwrap();
    let last = &events[events.len() - 2];
    let id = last.id.to_string();
    let headers = [
        ("Accept", "text/event-stream"),
        ("Last-Event-ID", id.as_str()),
    ];
    let line = http::first_data(&bed, "/api/v1/events", &headers);
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["id"], events[events.len() - 1].id);
}

#[test]
fn the_document_is_served_and_metrics_are_told() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let document = get(&bed, "/api/v1/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let told = || String::from_utf8(get(&bed, "/metrics").body).unwrap();
    bed.until("the fork is counted", || {
        told().contains("mitose_stun_seconds_count 1\n")
    });
    let text = told();
    for line in [
        "mitose_vms{state=\"running\"} 2",
        "mitose_clones_total 1",
        "mitose_shells_wanted 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_thousand_vms_are_listed_in_no_time() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client
        .stop("a", &api_types::StopRequest::default())
        .unwrap();
    for batch in 0..5 {
        let request = ForkRequest {
            names: (0..200).map(|n| format!("w-{batch}-{n}")).collect(),
            mode: CloneMode::Linked,
            ..ForkRequest::default()
        };
        bed.client.fork("a", &request).unwrap();
    }
    let took = |path: &str, count: usize| {
        let began = Instant::now();
        let answer = get(&bed, path);
        let took = began.elapsed();
        assert_eq!(answer.json().as_array().unwrap().len(), count);
        took
    };
    // The best of several: other work on the machine counts for nothing.
    let best = (0..20).map(|_| took("/api/v1/vms", 1001)).min().unwrap();
    assert!(best < Duration::from_millis(50), "{best:?}");
    let page = (0..20)
        .map(|_| took("/api/v1/vms?name=w-4-*&limit=100", 100))
        .min()
        .unwrap();
    assert!(page < Duration::from_millis(50), "{page:?}");
    let tasks = bed.client.tasks().unwrap();
    // Disks are kept short beside.
    let fork = tasks.iter().find(|task| task.kind == "vm.fork").unwrap();
    assert_eq!(fork.state, TaskState::Success);
    // A stream that begins far back leaves none out.
    let mut seen = Vec::new();
    let followed = bed.client.follow_events(Some(0), |event| {
        seen.push(event.id);
        event.subject != "w-4-199"
    });
    followed.unwrap();
    assert!(seen.len() > 1000 && seen[0] == 1, "{}", seen.len());
    assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1));
}
