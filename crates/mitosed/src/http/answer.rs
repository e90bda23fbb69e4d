//! Results of operations as HTTP answers: the one place that knows both.

use api_types::{ApiError, ErrorKind};
use axum::Json;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::error::{OpError, OpResult};

/// An answer with a JSON body.
pub type Answer<T> = Result<Json<T>, HttpError>;

/// An error as an answer.
#[derive(Debug)]
pub struct HttpError(ApiError);

impl HttpError {
    /// An object or path does not exist.
    pub fn not_found(message: &str) -> Self {
        OpError::new(ErrorKind::NotFound, message).into()
    }
}

impl From<OpError> for HttpError {
    fn from(error: OpError) -> Self {
        Self(ApiError {
            kind: error.kind,
            error: error.message(),
        })
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Stale => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}

/// Runs a blocking operation; it goes on to its end when the client goes away.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> OpResult<T> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(Json(result?)),
        Err(error) => {
            tracing::error!(%error, "an operation broke off");
            Err(OpError::failed("the operation broke off; see the daemon's log").into())
        }
    }
}

/// Reads a JSON body; an empty one is an empty object.
pub fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, HttpError> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes)
        .map_err(|error| OpError::invalid(format!("request body: {error}")).into())
}
