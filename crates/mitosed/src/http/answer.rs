//! Results of operations as HTTP answers: the one place that knows both.

use api_types::{ErrorKind, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::error::{OpError, OpResult};

/// Content type of problems (RFC 9457).
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// An answer with a JSON body.
pub type Answer<T> = Result<Json<T>, HttpError>;

/// An error as an answer.
#[derive(Debug)]
pub struct HttpError {
    status: StatusCode,
    problem: Box<Problem>,
}

impl HttpError {
    /// An answer of `status`.
    pub fn new(status: StatusCode, error: &OpError) -> Self {
        let mut problem = Box::new(problem_of(error));
        problem.status = status.as_u16();
        Self { status, problem }
    }

    /// The answer to a request that breaks the interface's document, or none where nothing was found.
    pub fn broken(mut problems: Vec<Problem>) -> Option<Self> {
        let status = StatusCode::BAD_REQUEST;
        let mut first = Box::new(problems.first()?.clone());
        first.status = status.as_u16();
        if problems.len() > 1 {
            problems
                .iter_mut()
                .for_each(|problem| problem.status = status.as_u16());
            first.problems = problems;
        }
        Some(Self {
            status,
            problem: first,
        })
    }

    /// An object or path does not exist.
    pub fn not_found(message: &str) -> Self {
        OpError::new(ErrorKind::NotFound, message).into()
    }
}

/// A request that breaks the interface's document never gets as far as an operation: what an
/// operation refuses fits the document, but not the present state of the host or an object.
impl From<OpError> for HttpError {
    fn from(error: OpError) -> Self {
        Self::new(status_of(error.kind), &error)
    }
}

impl From<OpError> for Problem {
    fn from(error: OpError) -> Self {
        problem_of(&error)
    }
}

fn problem_of(error: &OpError) -> Problem {
    let mut problem = Problem::new(error.kind, error.message());
    problem.status = status_of(error.kind).as_u16();
    problem.field = error.field().map(str::to_owned);
    problem.remedy = error.remedy().map(str::to_owned);
    problem
}

/// Gives a problem that is told beside others the status that it would have alone.
pub fn set_status(problem: &mut Problem) {
    problem.status = status_of(problem.kind).as_u16();
}

fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::Timeout => {
            StatusCode::CONFLICT
        }
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Stale => StatusCode::PRECONDITION_FAILED,
        ErrorKind::Limited => StatusCode::TOO_MANY_REQUESTS,
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        response
    }
}

/// Gives a refusal of the framework the form of all others; its headers stay.
pub fn as_problem(response: Response) -> Response {
    let status = response.status();
    let told = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == PROBLEM_TYPE);
    if told || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = match status {
        StatusCode::NOT_FOUND => OpError::new(
            ErrorKind::NotFound,
            "there is no such path in this interface; see /api/v1/openapi.json",
        ),
        StatusCode::METHOD_NOT_ALLOWED => OpError::invalid(
            "this path does not take that method; the header 'Allow' names those that it takes",
        ),
        status if status.is_client_error() => {
            OpError::invalid(format!("the request cannot be read ({status})"))
        }
        _ => OpError::failed("the daemon could not answer; see its log"),
    };
    let mut problem = HttpError::new(status, &error).into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
}

/// Runs a blocking operation; it goes on to its end when the client goes away.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> OpResult<T> + Send + 'static,
) -> Answer<T> {
    Ok(Json(run_blocking(work).await?))
}

/// Runs a blocking operation on a thread for such.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> OpResult<T> + Send + 'static,
) -> Result<T, HttpError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            tracing::error!(%error, "an operation broke off");
            Err(OpError::failed("the operation broke off; see the daemon's log").into())
        }
    }
}

/// Reads a JSON body that was checked against the document; an empty one is an empty object.
pub fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, HttpError> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        let error = OpError::invalid(format!("body: {error}; see /api/v1/openapi.json"));
        HttpError::new(StatusCode::BAD_REQUEST, &error)
    })
}
