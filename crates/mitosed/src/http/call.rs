//! How a request that changes something is carried out: as a task of the host.
//!
//! Without `wait` the answer is the task as it begins (202); with it, the task as it ended (200).

use std::sync::Arc;

use api_types::{DryRun, ErrorKind, Problem, Task, TaskState, schema};
use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses};

use super::access::User;
use super::answer::{HttpError, run_blocking};
use crate::error::{OpError, OpResult};
use crate::host::{Host, TaskContext, TaskSpec};

/// Header with the key of a call that is to be carried out once.
const KEY_HEADER: &str = "idempotency-key";

/// Parameters of every call that starts a task.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallQuery {
    /// Answer when the task has ended.
    #[serde(default)]
    wait: bool,
}

/// Parameters of calls that make something.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DryRunQuery {
    /// Only tell what would stand in the way; nothing is made.
    #[serde(default)]
    pub dry_run: bool,
}

/// Header of calls that are to be carried out once.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct KeyHeader {
    /// The same call with the same key is carried out once; later ones get the same task.
    #[serde(rename = "Idempotency-Key")]
    #[param(schema_with = schema::key, required = false)]
    #[expect(
        dead_code,
        reason = "it is read from the headers; this is its documentation"
    )]
    key: Option<String>,
}

/// Answers of calls that start a task.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation of `run`")]
pub enum TaskAnswers {
    /// The task has ended, with `wait=true`; its state tells how.
    #[response(status = 200)]
    Ended(#[to_schema] Task),
    /// The task is in work.
    #[response(status = 202)]
    Begun(#[to_schema] Task),
}

/// A task, or what a dry run found.
#[derive(utoipa::ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "documentation of answers")]
pub enum TaskOrDryRun {
    Task(Box<Task>),
    DryRun(DryRun),
}

/// How a call is to be carried out.
#[derive(Clone, Debug)]
pub struct Call {
    user: User,
    wait: bool,
    key: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Call {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, HttpError> {
        let query = Query::<CallQuery>::try_from_uri(&parts.uri);
        let key = parts.headers.get(KEY_HEADER);
        let key = key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
        Ok(Self {
            user: parts.extensions.get().cloned().unwrap_or_default(),
            wait: query.is_ok_and(|query| query.wait),
            key,
        })
    }
}

/// Version that a request names in `If-Match`; none for any. A tag that is no version is one that no
/// object has.
pub fn if_match(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::IF_MATCH)?.to_str().unwrap_or_default();
    let version = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    match text {
        "*" => None,
        _ => Some(
            version
                .and_then(|text| text.parse().ok())
                .unwrap_or(u64::MAX),
        ),
    }
}

/// An object as an answer, with its version as `ETag`.
pub fn tagged<T: Serialize>(version: u64, object: T) -> Response {
    ([(header::ETAG, format!("\"{version}\""))], Json(object)).into_response()
}

/// Runs `work` as a task and answers with it.
pub async fn run<T: Serialize>(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<T> + Send + 'static,
) -> Result<Response, HttpError> {
    let wait = call.wait;
    let task = start(host, call, spec, work, wait).await?;
    if wait {
        return Ok(Json(task).into_response());
    }
    let place = format!("{}/tasks/{}", api_types::API_PREFIX, task.id);
    let answer = (
        StatusCode::ACCEPTED,
        [(header::LOCATION, place)],
        Json(task),
    );
    Ok(answer.into_response())
}

/// Runs `work` as a task to its end; its failure is the answer's.
pub async fn run_to_end(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<()> + Send + 'static,
) -> Result<StatusCode, HttpError> {
    let task = start(host, call, spec, work, true).await?;
    match task.state {
        TaskState::Success => Ok(StatusCode::NO_CONTENT),
        _ => {
            let kind = task.error_kind.unwrap_or(ErrorKind::Failed);
            Err(OpError::new(kind, task.error.unwrap_or_default()).into())
        }
    }
}

async fn start<T: Serialize>(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<T> + Send + 'static,
    wait: bool,
) -> Result<Task, HttpError> {
    let spec = spec.user(&call.user.name).key(call.key);
    let starter = Arc::clone(&host);
    let mut handle = run_blocking(move || starter.start_task(spec, work)).await?;
    if !wait {
        return Ok(handle.task());
    }
    let ended = handle
        .progress
        .wait_for(|task| task.state != TaskState::Running)
        .await
        .map(|task| task.clone());
    match ended {
        Ok(task) => Ok(task),
        Err(_) => {
            let error = OpError::failed("the operation broke off; see the daemon's log");
            Err(error.into())
        }
    }
}

/// Answer to a dry run: what stands in the way, and what would be made.
pub async fn tried(check: impl FnOnce() -> DryRun + Send + 'static) -> Result<Response, HttpError> {
    let found = run_blocking(move || Ok(check())).await?;
    Ok(Json(found).into_response())
}

/// Answer to a dry run of what has one check.
pub async fn dry_run(
    check: impl FnOnce() -> OpResult<()> + Send + 'static,
) -> Result<Response, HttpError> {
    tried(move || DryRun {
        problems: check().err().into_iter().map(Problem::from).collect(),
        would_make: Vec::new(),
    })
    .await
}
