//! Dry runs tell all that is wrong at once: members that break the document are left out, the
//! operation looks at the others, and what both found is one answer.

use api_types::{DryRun, Problem};
use axum::body::to_bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::answer::HttpError;
use super::check::{Schemas, Violation};
use super::conform::MAX_BODY_BYTES;
use crate::clock::random_hex;

/// What breaks the document in a body, kept until the operation has looked at the rest.
#[derive(Clone, Debug)]
pub struct Sifted(Vec<Problem>);

impl Sifted {
    /// Keeps violations.
    pub fn new(found: &[Violation]) -> Self {
        Self(found.iter().map(Violation::to_problem).collect())
    }
}

/// Whether a request is a dry run.
pub fn is_dry(query: &[(String, String)]) -> bool {
    query
        .iter()
        .any(|(name, value)| name == "dry_run" && value == "true")
}

/// The rest of a body without what breaks its schema. Members that it cannot do without have a
/// value that nobody has; none where there is no such value.
pub fn sift(
    schemas: &Schemas,
    schema: &Value,
    value: &Value,
    found: &[Violation],
) -> Option<Value> {
    let schema = schemas.resolve(schema);
    let mut rest = Map::new();
    for (name, member) in value.as_object()? {
        if !found.iter().any(|one| is_in(&one.field, name)) {
            rest.insert(name.clone(), member.clone());
            continue;
        }
        let rule = &schema["properties"][name];
        let items = member.as_array().into_iter().flatten();
        let mut kept: Vec<Value> = Vec::new();
        for item in items {
            if !kept.contains(item) && schemas.check(item, &rule["items"], "").is_empty() {
                kept.push(item.clone());
            }
        }
        let kept = Value::Array(kept);
        if schemas.check(&kept, rule, "").is_empty() && !rule.is_null() {
            rest.insert(name.clone(), kept);
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if !rest.contains_key(name) {
            rest.insert(name.to_owned(), stand_in(&schema["properties"][name])?);
        }
    }
    let rest = Value::Object(rest);
    schemas.check(&rest, schema, "").is_empty().then_some(rest)
}

/// Whether a field is a member or within it.
fn is_in(field: &str, member: &str) -> bool {
    let rest = field.strip_prefix(member);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A value of a required member that was wrong or missing.
fn stand_in(schema: &Value) -> Option<Value> {
    match schema["type"].as_str()? {
        "string" => Some(json!(format!("x{}", random_hex::<8>()))),
        "integer" => Some(schema["minimum"].clone()),
        "array" => Some(json!([stand_in(&schema["items"])?])),
        _ => None,
    }
}

/// Puts what was sifted out in front of what the operation found.
pub async fn merge(response: Response, sifted: Sifted) -> Response {
    let succeeded = response.status().is_success();
    let body = to_bytes(response.into_body(), MAX_BODY_BYTES).await;
    let body = body.unwrap_or_default();
    let mut problems = sifted.0;
    if succeeded {
        let found: DryRun = serde_json::from_slice(&body).unwrap_or_default();
        problems.extend(found.problems);
    } else {
        problems.extend(serde_json::from_slice::<Problem>(&body).ok());
    }
    match HttpError::broken(problems) {
        Some(error) => error.into_response(),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}
