//! Tests of names and wire forms.

use super::*;

#[test]
fn names_that_are_host_names_are_taken_and_others_refused() {
    for good in ["a", "web1", "db-2.test", "A_b"] {
        assert_eq!(name_problem(good), None, "{good}");
    }
    for bad in ["", "-a", "a-", "a b", "a/b", "..", "a\n", &"x".repeat(64)] {
        assert!(name_problem(bad).is_some(), "{bad:?}");
    }
}

#[test]
fn requests_refuse_unknown_fields() {
    let text = r#"{"name":"a","cpus":1,"memory_bytes":1,"memmory":2}"#;
    assert!(serde_json::from_str::<RunRequest>(text).is_err());
}

#[test]
fn a_run_request_needs_only_its_name() {
    let request: RunRequest = serde_json::from_str(r#"{"name":"a"}"#).unwrap();
    assert_eq!(request.cpus, 1);
    assert_eq!(request.memory_bytes, 512 << 20);
}
