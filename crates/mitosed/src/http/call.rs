//! How a request that changes something is carried out: as a task of the host.
//!
//! Without `wait` the answer is the task as it begins (202); with it, the task as it ended (200).

use std::sync::Arc;
use std::time::Duration;

use api_types::{DryRun, ErrorKind, Problem, Task, TaskState, schema};
use axum::Json;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::{IntoParams, IntoResponses};

use super::access::User;
use super::answer::{HttpError, run_blocking, set_status};
use super::once::Asked;
use crate::error::{OpError, OpResult};
use crate::host::{self, Host, TaskContext, TaskHandle, TaskSpec};
use crate::inventory::{Kind, Object};

/// Header with the key of a call that is to be carried out once.
pub const KEY_HEADER: &str = "idempotency-key";
/// Longest time that an answer waits for the end of a task: clients and what is between them and
/// the daemon give up on answers that take longer.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// Parameters of every call about a task.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CallQuery {
    /// Answer when the task has ended, or after some seconds as it is then.
    #[serde(default)]
    wait: bool,
}

/// Parameters of calls that change something.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DryRunQuery {
    /// Only tell all that stands in the way; nothing is changed.
    #[serde(default)]
    dry_run: bool,
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

/// Header of calls that are to be carried out on an object as the client knows it.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct MatchHeader {
    /// Version that the object must have, in quotes, as `ETag` gives it; `*` for any.
    #[serde(rename = "If-Match")]
    #[param(schema_with = schema::version_tag, required = false)]
    #[expect(
        dead_code,
        reason = "it is read from the headers; this is its documentation"
    )]
    version: Option<String>,
}

/// Answers of calls that start a task.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation of `run`")]
pub enum TaskAnswers {
    /// The task has ended, with `wait=true`; its state tells how.
    #[response(status = 200)]
    Ended(Task),
    /// The task is in work.
    #[response(status = 202)]
    Begun(Task),
}

/// How a call is to be carried out.
#[derive(Clone, Debug)]
pub struct Call {
    user: User,
    wait: bool,
    dry_run: bool,
    key: Option<String>,
    asked: Option<String>,
    expected: Option<u64>,
}

impl Call {
    /// Version of the object that the client knows, where it names one.
    pub fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Refuses an object that is not in the version that the client knows.
    pub fn check_version<T: Kind>(&self, object: &Object<T>) -> OpResult<()> {
        host::check_version(T::NOUN, &object.name, self.expected, object.version)
    }

    /// Whether it is only to be looked at.
    pub fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// Whether the answer waits for the task's end.
    pub fn waits(&self) -> bool {
        self.wait
    }

    /// Who asks.
    pub fn user(&self) -> &User {
        &self.user
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Call {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, HttpError> {
        let wait = Query::<CallQuery>::try_from_uri(&parts.uri);
        let dry_run = Query::<DryRunQuery>::try_from_uri(&parts.uri);
        let key = parts.headers.get(KEY_HEADER);
        let key = key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
        Ok(Self {
            user: parts.extensions.get().cloned().unwrap_or_default(),
            wait: wait.is_ok_and(|query| query.wait),
            dry_run: dry_run.is_ok_and(|query| query.dry_run),
            key,
            asked: parts.extensions.get().map(|Asked(asked)| asked.clone()),
            expected: if_match(&parts.headers),
        })
    }
}

/// Version that a request names in `If-Match`; none for any. The document refuses all other tags.
fn if_match(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::IF_MATCH)?.to_str().unwrap_or_default();
    let version = text.strip_prefix('"')?.strip_suffix('"')?;
    version.parse().ok()
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
    let begun = start(host, call, spec, work);
    let (handle, ended) = match wait {
        true => begun.ended().await?,
        false => (begun.handle().await?, false),
    };
    match ended {
        true => Ok(Json(handle.task()).into_response()),
        false => Ok(accepted(handle.task())),
    }
}

/// Runs `work` as a task to its end and answers with what it gave; its failure is the answer's. One
/// that takes longer than an answer can wait is answered as a task in work.
pub async fn give<T: Serialize + DeserializeOwned>(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<T> + Send + 'static,
    answer: impl FnOnce(T) -> Response,
) -> Result<Response, HttpError> {
    let (handle, ended) = start(host, call, spec, work).ended().await?;
    if !ended {
        return Ok(accepted(handle.task()));
    }
    let task = handle.task();
    if task.state != TaskState::Success {
        return Err(OpError::of_task(&task).into());
    }
    let given = serde_json::from_value(task.result.unwrap_or_default());
    let given = given.map_err(|error| OpError::caused(ErrorKind::Failed, error))?;
    Ok(answer(given))
}

/// As [`give`], for work that gives nothing.
pub async fn run_to_end(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<()> + Send + 'static,
) -> Result<Response, HttpError> {
    give(host, call, spec, work, |()| {
        StatusCode::NO_CONTENT.into_response()
    })
    .await
}

/// The answer to what is in work.
pub fn accepted(task: Task) -> Response {
    let place = format!("{}/tasks/{}", api_types::API_PREFIX, task.id);
    let answer = (
        StatusCode::ACCEPTED,
        [(header::LOCATION, place)],
        Json(task),
    );
    answer.into_response()
}

/// A task that a thread was asked to begin.
struct Begun {
    handle: oneshot::Receiver<OpResult<TaskHandle>>,
    /// Nothing is sent: it closes when the thread has no more to do for the task.
    over: oneshot::Receiver<()>,
}

impl Begun {
    /// The task as it begins.
    async fn handle(self) -> Result<TaskHandle, HttpError> {
        let broke_off = |_| OpError::failed("the operation broke off; see the daemon's log");
        Ok(self.handle.await.map_err(broke_off)??)
    }

    /// The task when it has ended, or as long as an answer can wait; says whether it has ended.
    async fn ended(mut self) -> Result<(TaskHandle, bool), HttpError> {
        // Nobody is woken when it begins: that would take the processor from the work.
        let waited = tokio::time::timeout(WAIT_MAX, &mut self.over).await;
        let mut handle = self.handle().await?;
        let over = match waited {
            // An earlier call with the same key may be at work for it.
            Ok(_) => ended(&mut handle).await?,
            Err(_) => handle.task().state != TaskState::Running,
        };
        Ok((handle, over))
    }
}

fn start<T: Serialize>(
    host: Arc<Host>,
    call: Call,
    spec: TaskSpec,
    work: impl FnOnce(&TaskContext) -> OpResult<T> + Send + 'static,
) -> Begun {
    let spec = spec.user(&call.user.name).key(call.key).asked(call.asked);
    let (tell, handle) = oneshot::channel();
    let (working, over) = oneshot::channel::<()>();
    let work = move || {
        let (begun, run) = match host.begin_task(spec) {
            Ok((handle, run)) => (Ok(handle), run),
            Err(error) => (Err(error), None),
        };
        // The work is done also where nobody waits for the answer any more.
        let _ = tell.send(begun);
        if let Some(run) = run {
            run.run(work);
        }
        drop(working);
    };
    // This thread records the task and works for it as soon as it has left the request: a clone would
    // wait until another is awake. Another one goes on with requests, when it is.
    tokio::spawn(async { tokio::task::block_in_place(work) });
    Begun { handle, over }
}

/// Waits for the end of a task, as long as an answer can wait; says whether it has ended.
pub async fn ended(handle: &mut TaskHandle) -> Result<bool, HttpError> {
    let ended = handle
        .progress
        .wait_for(|task| task.state != TaskState::Running);
    match tokio::time::timeout(WAIT_MAX, ended).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(_)) => {
            let error = OpError::failed("the operation broke off; see the daemon's log");
            Err(error.into())
        }
        Err(_) => Ok(false),
    }
}

/// Answer to a dry run: what stands in the way, and what would be made.
pub async fn tried(check: impl FnOnce() -> DryRun + Send + 'static) -> Result<Response, HttpError> {
    let mut found = run_blocking(move || Ok(check())).await?;
    found.problems.iter_mut().for_each(set_status);
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
