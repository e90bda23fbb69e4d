//! Calls with an idempotency key are carried out once: the same call with the same key is answered
//! from the task of the first, also where what it was about is gone or has another name since.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::{Task, TaskState};
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::answer::{HttpError, run_blocking};
use super::call::{KEY_HEADER, accepted, ended, tagged};
use super::conform::MAX_BODY_BYTES;
use super::dry_run;
use crate::error::OpError;
use crate::host::{Host, TaskHandle};

/// How a call that was carried out is answered, as the document tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// With the task itself.
    Task,
    /// With what the task gave; with its version, where it is tagged.
    Result { tagged: bool },
    /// Without a body.
    Nothing,
}

/// Calls that take a key.
pub struct Once {
    host: Arc<Host>,
    forms: HashMap<(String, String), Form>,
}

/// Digest of a call that has a key.
#[derive(Clone, Debug)]
pub struct Asked(pub String);

impl Once {
    /// Calls of the document.
    pub fn new(host: Arc<Host>, document: &Value) -> Arc<Self> {
        let mut forms = HashMap::new();
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                if let Some(form) = form_of(operation) {
                    forms.insert((path.clone(), method.to_uppercase()), form);
                }
            }
        }
        Arc::new(Self { host, forms })
    }

    fn form(&self, request: &Request) -> Option<Form> {
        let path = request.extensions().get::<MatchedPath>()?;
        let method = request.method().as_str().to_owned();
        self.forms.get(&(path.as_str().to_owned(), method)).copied()
    }
}

/// How an operation answers; none where it takes no key.
fn form_of(operation: &Value) -> Option<Form> {
    let mut parameters = operation["parameters"].as_array()?.iter();
    parameters.find(|parameter| parameter["name"] == "Idempotency-Key")?;
    if operation["responses"]["204"].is_object() {
        return Some(Form::Nothing);
    }
    let done = &operation["responses"]["200"];
    let schema = &done["content"]["application/json"]["schema"];
    let is_task = |schema: &Value| schema["$ref"] == "#/components/schemas/Task";
    let mut variants = schema["anyOf"].as_array().into_iter().flatten();
    Some(match is_task(schema) || variants.any(is_task) {
        true => Form::Task,
        false => Form::Result {
            tagged: done["headers"]["ETag"].is_object(),
        },
    })
}

/// A call with a key, which may have come before.
struct Repeatable {
    key: String,
    asked: String,
    form: Form,
    wait: bool,
}

impl Repeatable {
    /// The answer of the task that was begun with the key, or why the key cannot be used.
    async fn answer(&self, host: &Arc<Host>) -> Option<Response> {
        let (host, key) = (Arc::clone(host), self.key.clone());
        let asked = self.asked.clone();
        match run_blocking(move || host.task_asked_for(&key, &asked)).await {
            Ok(Some(task)) => {
                let answer = self.answer_from(task).await;
                Some(answer.unwrap_or_else(IntoResponse::into_response))
            }
            Ok(None) => None,
            Err(error) => Some(error.into_response()),
        }
    }

    async fn answer_from(&self, mut handle: TaskHandle) -> Result<Response, HttpError> {
        if self.form == Form::Task && !self.wait || !ended(&mut handle).await? {
            return Ok(accepted(handle.task()));
        }
        let task = handle.task();
        match self.form {
            Form::Task => Ok(Json(task).into_response()),
            _ if task.state != TaskState::Success => Err(OpError::of_task(&task).into()),
            Form::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
            Form::Result { tagged } => Ok(result_of(task, tagged)),
        }
    }
}

fn result_of(task: Task, with_tag: bool) -> Response {
    let result = task.result.unwrap_or_default();
    match result["version"].as_u64().filter(|_| with_tag) {
        Some(version) => tagged(version, result),
        None => Json(result).into_response(),
    }
}

/// Answers a call that came before, and lets a handler see all others.
pub async fn once(State(once): State<Arc<Once>>, request: Request, next: Next) -> Response {
    let key = request.headers().get(KEY_HEADER);
    let key = key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let (Some(key), Some(form)) = (key, once.form(&request)) else {
        return next.run(request).await;
    };
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
    let query = query.map(|query| query.0).unwrap_or_default();
    if dry_run::is_dry(&query) {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_BODY_BYTES).await else {
        let error = OpError::invalid("body: it broke off; send all of it");
        return HttpError::new(StatusCode::BAD_REQUEST, &error).into_response();
    };
    let call = Repeatable {
        key,
        asked: digest(&parts, &query, &bytes),
        form,
        wait: query
            .iter()
            .any(|(name, value)| name == "wait" && value == "true"),
    };
    if let Some(answer) = call.answer(&once.host).await {
        return answer;
    }
    parts.extensions.insert(Asked(call.asked.clone()));
    let answer = next
        .run(Request::from_parts(parts, Body::from(bytes)))
        .await;
    // The first may have begun, and changed what this one was to find, after the look for it.
    match answer.status().is_client_error() {
        true => call.answer(&once.host).await.unwrap_or(answer),
        false => answer,
    }
}

/// Digest of all of a call but whether its answer waits.
fn digest(parts: &Parts, query: &[(String, String)], body: &[u8]) -> String {
    let mut query: Vec<_> = query.iter().filter(|(name, _)| name != "wait").collect();
    query.sort();
    let version = parts.headers.get(header::IF_MATCH);
    let version = version
        .map(|version| version.as_bytes())
        .unwrap_or_default();
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    };
    add(parts.method.as_str().as_bytes());
    add(parts.uri.path().as_bytes());
    add(version);
    add(body);
    for (name, value) in query {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_tells_how_calls_are_answered() {
        let document = super::super::openapi();
        let form = |path: &str, method: &str| {
            form_of(&document["paths"][format!("/api/v1{path}")][method])
        };
        assert_eq!(form("/vms", "post"), Some(Form::Task));
        assert_eq!(form("/vms/{vm}/fork", "post"), Some(Form::Task));
        assert_eq!(form("/vms/{vm}", "delete"), Some(Form::Nothing));
        let tagged = Some(Form::Result { tagged: true });
        assert_eq!(form("/vms/{vm}", "patch"), tagged);
        assert_eq!(form("/objects/{object}", "patch"), tagged);
        let plain = Some(Form::Result { tagged: false });
        assert_eq!(form("/folders", "post"), plain);
        assert_eq!(form("/vms/{vm}/exec", "post"), None);
        assert_eq!(form("/vms", "get"), None);
    }
}
