//! Calls that come again with the same idempotency key.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use bed::Bed;
use http::{Answer, ask};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Sends a call twice with the same key; both answers are the same.
fn twice(bed: &Bed, (method, path): (&str, &str), key: &str, body: &str) -> Answer {
    let headers = [JSON, ("Idempotency-Key", key)];
    let path = format!("/api/v1{path}");
    let mut answers = (0..2).map(|_| ask(bed, method, &path, &headers, body));
    let (first, second) = (answers.next().unwrap(), answers.next().unwrap());
    let told = |answer: &Answer| {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        assert_eq!(body.is_none(), answer.body.is_empty());
        (
            answer.status,
            body,
            answer.header("etag").map(str::to_owned),
        )
    };
    assert_eq!(told(&first), told(&second), "{method} {path}");
    first
}

#[test]
fn a_repeated_call_is_answered_as_the_first_was() {
    let bed = Bed::new();
    bed.run("a", "");
    let clone = json!({ "names": ["b"] }).to_string();
    let cloned = twice(&bed, ("POST", "/vms/a/fork?wait=true"), "fork", &clone);
    assert_eq!(cloned.json()["state"], "success");
    let rename = json!({ "name": "c" }).to_string();
    let renamed = twice(&bed, ("PATCH", "/vms/b"), "rename", &rename);
    assert_eq!(
        (renamed.status, &renamed.json()["name"]),
        (200, &json!("c"))
    );
    assert!(renamed.header("etag").is_some());
    let words = json!({ "annotation": "new" }).to_string();
    let id = renamed.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/objects/{id}");
    assert_eq!(twice(&bed, ("PATCH", &path), "words", &words).status, 200);
    let told = json!({ "guestinfo.x": "1" }).to_string();
    let path = "/vms/c/guestinfo";
    assert_eq!(twice(&bed, ("PATCH", path), "told", &told).status, 200);
    let refused = twice(&bed, ("DELETE", "/vms/c"), "early", "");
    assert_eq!(refused.status, 409, "it runs: {refused:?}");
    let removed = twice(&bed, ("DELETE", "/vms/c?force=true"), "remove", "");
    assert_eq!(removed.status, 204);
    let folder = json!({ "name": "f" }).to_string();
    assert_eq!(twice(&bed, ("POST", "/folders"), "f1", &folder).status, 200);
    assert_eq!(twice(&bed, ("DELETE", "/folders/f"), "f2", "").status, 204);
    let pool = json!({ "name": "p" }).to_string();
    assert_eq!(twice(&bed, ("POST", "/respools"), "p1", &pool).status, 200);
    assert_eq!(twice(&bed, ("DELETE", "/respools/p"), "p2", "").status, 204);
    let path = "/vms/a/prepare?wait=true";
    assert_eq!(twice(&bed, ("POST", path), "prepare", "{}").status, 200);
    let children = json!({ "count": 1 }).to_string();
    let path = "/forkpoints/a/fork?wait=true";
    assert_eq!(
        twice(&bed, ("POST", path), "children", &children).status,
        200
    );
    let path = "/vms/a-1?force=true";
    assert_eq!(twice(&bed, ("DELETE", path), "child", "").status, 204);
    let path = "/forkpoints/a";
    assert_eq!(twice(&bed, ("DELETE", path), "unprepare", "").status, 204);
    let path = "/vms/a/stop?wait=true";
    let off = json!({ "force": true }).to_string();
    assert_eq!(twice(&bed, ("POST", path), "stop", &off).status, 200);
    bed.assert_only(&["a"]);
}

#[test]
fn a_key_is_one_calls_own_also_after_a_restart() {
    let mut bed = Bed::new();
    bed.run("a", "");
    bed.run("b", "");
    let remove = |bed: &Bed, name: &str| {
        let path = format!("/api/v1/vms/{name}?force=true");
        ask(bed, "DELETE", &path, &[("Idempotency-Key", "k")], "")
    };
    assert_eq!(remove(&bed, "a").status, 204);
    bed.restart();
    assert_eq!(remove(&bed, "a").status, 204);
    let other = remove(&bed, "b");
    assert_eq!(other.status, 409, "{other:?}");
    assert_eq!(other.json()["field"], "Idempotency-Key");
    let key = [JSON, ("Idempotency-Key", "k2")];
    let rename = |body: &str| ask(&bed, "PATCH", "/api/v1/vms/b", &key, body);
    assert_eq!(rename(r#"{"annotation":"x"}"#).status, 200);
    assert_eq!(rename(r#"{"annotation":"y"}"#).status, 409);
    assert_eq!(ask(&bed, "DELETE", "/api/v1/vms/a", &[], "").status, 404);
    bed.assert_only(&["b"]);
}

#[test]
fn calls_with_one_key_at_the_same_time_are_one_call() {
    let bed = Bed::new();
    for round in 0..20 {
        bed.run("a", "");
        let key = format!("k{round}");
        let path = "/api/v1/vms/a?force=true";
        let statuses: Vec<_> = std::thread::scope(|scope| {
            let ask = || ask(&bed, "DELETE", path, &[("Idempotency-Key", &key)], "").status;
            let calls: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert_eq!(statuses, [204; 4]);
    }
    bed.assert_only(&[]);
}
