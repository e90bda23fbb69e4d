//! The document is what is committed, and what the check of requests understands.

use std::path::Path;

use serde_json::{Value, json};

use super::check::{KEYWORDS, Schemas, TELLING};

/// The committed document; `MITOSE_UPDATE_OPENAPI=1` writes it anew.
#[test]
fn the_committed_document_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/mitose-v1.json");
    let made = format!("{:#}\n", super::openapi());
    if std::env::var_os("MITOSE_UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "openapi/mitose-v1.json is not what the code says; write it anew with \
         MITOSE_UPDATE_OPENAPI=1 cargo test --release -p mitosed document"
    );
}

#[test]
fn the_document_uses_only_keywords_that_are_enforced() {
    let document = super::openapi();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        known_keywords(schema, name);
    }
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                known_keywords(&parameter["schema"], path);
            }
        }
    }
}

fn known_keywords(schema: &Value, at: &str) {
    for (keyword, value) in schema.as_object().into_iter().flatten() {
        let known = KEYWORDS.contains(&keyword.as_str()) || TELLING.contains(&keyword.as_str());
        assert!(known, "{at}: nothing enforces the keyword {keyword}");
        match keyword.as_str() {
            "properties" => {
                let members = value.as_object().unwrap();
                members
                    .iter()
                    .for_each(|(name, s)| known_keywords(s, &format!("{at}.{name}")));
            }
            "oneOf" | "anyOf" | "allOf" => {
                value
                    .as_array()
                    .unwrap()
                    .iter()
                    .for_each(|s| known_keywords(s, at));
            }
            "items" => known_keywords(value, at),
            _ => {}
        }
    }
}

#[test]
fn every_operation_has_its_own_id_and_a_success() {
    let document = super::openapi();
    let mut ids = std::collections::HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} is used twice");
            let answers = operation["responses"].as_object().unwrap();
            assert!(
                answers.keys().any(|status| status.starts_with('2')),
                "{method} {path}"
            );
            assert!(answers.contains_key("400"), "{method} {path}");
        }
    }
    assert!(ids.len() > 10);
}

#[test]
fn operations_that_answer_with_a_stale_version_take_one() {
    let document = super::openapi();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let mut tags = parameters.filter(|p| p["name"] == "If-Match" && p["in"] == "header");
            let stale = !operation["responses"]["412"].is_null();
            assert_eq!(tags.next().is_some(), stale, "{method} {path}");
            count += usize::from(stale);
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn the_document_knows_all_states_of_vms() {
    use crate::inventory::PowerState;
    let all = [
        PowerState::Creating,
        PowerState::Running,
        PowerState::Paused,
        PowerState::Frozen,
        PowerState::PausedNoSpace,
        PowerState::PoweredOff,
        PowerState::OutOfMemory,
        PowerState::Suspended,
    ];
    assert_eq!(all.map(PowerState::word), api_types::schema::STATES);
}

#[test]
fn every_reference_leads_somewhere() {
    fn follow(value: &Value, document: &Value) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    let found = document.pointer(reference.trim_start_matches('#'));
                    assert!(found.is_some(), "{reference}");
                }
                members.values().for_each(|member| follow(member, document));
            }
            Value::Array(items) => items.iter().for_each(|item| follow(item, document)),
            _ => {}
        }
    }
    let document = super::openapi();
    follow(&document, &document);
}

/// Checks a body against a schema of the document: `Ok`, or fields and what is wrong with them.
fn check(name: &str, body: &Value) -> Result<(), String> {
    let document = super::openapi();
    let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
    let found = Schemas::new(&document).check(body, &schema, "");
    let told: Vec<_> = found.iter().map(|v| v.to_problem().detail).collect();
    match told.is_empty() {
        true => Ok(()),
        false => Err(told.join("\n")),
    }
}

#[test]
fn bounds_are_enforced_as_the_document_has_them() {
    let run = |change: Value| {
        let mut body = json!({ "name": "a" });
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        check("RunRequest", &body)
    };
    for good in [
        json!({}),
        json!({ "cpus": 8, "memory_bytes": 16 << 20 }),
        json!({ "kernel": null, "serial": "pty" }),
        json!({ "serial": { "file": "/a" }, "nets": [{ "mac": "52:54:00:12:34:56" }] }),
    ] {
        assert_eq!(run(good.clone()), Ok(()), "{good}");
    }
    for (bad, told) in [
        (
            json!({ "name": "" }),
            "name: has 0 characters; give 1 to 63",
        ),
        (json!({ "name": "a/b" }), "name: \"a/b\" is not of the form"),
        (json!({ "name": "é" }), "name: \"é\" is not of the form"),
        (
            json!({ "name": "a\n" }),
            "name: \"a\\n\" is not of the form",
        ),
        (json!({ "name": "x".repeat(64) }), "name: has 64 characters"),
        (json!({ "name": 7 }), "name: is a number; give string"),
        (json!({ "cpus": 0 }), "cpus: 0 is not between 1 and 8"),
        (json!({ "cpus": 1.5 }), "cpus: is a number; give integer"),
        (
            json!({ "memory_bytes": (16 << 20) + 1 }),
            "memory_bytes: 16777217 is not a multiple of 1 MiB; give one, such as 16 MiB",
        ),
        (
            json!({ "memory_bytes": 1_u64 << 40 }),
            "memory_bytes: 1 TiB is not between 16 MiB and 512 GiB; give one of these",
        ),
        (
            json!({ "memory_bytes": u64::MAX }),
            "memory_bytes: 18446744073709551615 is not between",
        ),
        (json!({ "colour": 1 }), "colour: is not known; leave it out"),
        (
            json!({ "kernel": "relative" }),
            "kernel: \"relative\" is not of the form",
        ),
        (
            json!({ "kernel": "/a\0" }),
            "kernel: \"/a\\0\" is not of the form",
        ),
        (
            json!({ "engine": "warp" }),
            "engine: \"warp\" is not known; give \"auto\" or",
        ),
        (
            json!({ "serial": "file:/a" }),
            "serial: \"file:/a\" is not known; give \"log\" or \"none\" or \"pty\" or \
             {\"file\": \"...\"} or {\"unix\": \"...\"}",
        ),
        (
            json!({ "more_serial": ["log", 7] }),
            "more_serial[1]: is a number; give \"log\" or",
        ),
        (json!({ "serial": { "file": "b" } }), "serial.file: "),
        (
            json!({ "nets": [{}, { "mac": "01:00:00:00:00:00" }] }),
            "nets[1].mac: ",
        ),
        (
            json!({ "disks": vec![json!({ "path": "/a" }); 12] }),
            "disks: has 12 items; give at most 11",
        ),
    ] {
        let found = run(bad.clone()).expect_err(&bad.to_string());
        assert!(found.contains(told), "{found:?} lacks {told:?}");
    }
    let twice = check("ForkRequest", &json!({ "names": ["a", "a"] })).unwrap_err();
    assert!(twice.contains("names: has \"a\" twice"), "{twice}");
    let missing = check("ForkRequest", &json!({})).unwrap_err();
    assert_eq!(missing, "names: is missing; give it");
    let many = run(json!({ "name": "a/b", "cpus": 0, "nets": [{ "mac": "x" }, { "tap": "" }] }));
    let many = many.unwrap_err();
    for told in ["name: ", "cpus: ", "nets[0].mac: ", "nets[1].tap: "] {
        assert!(many.contains(told), "{many:?} lacks {told:?}");
    }
}
