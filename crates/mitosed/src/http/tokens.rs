//! Endpoints of tokens.

use std::sync::Arc;

use api_types::{NewToken, Token, TokenRequest, schema};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{HttpError, body, run_blocking};
use super::call::{self, Call, DryRunQuery, KeyHeader, MatchHeader};
use crate::host::{Host, TaskSpec, TokenRecord};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(remove))
}

/// Which token.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct TokenPath {
    /// Its id or name.
    #[param(schema_with = schema::name)]
    token: String,
}

/// Tokens
#[utoipa::path(get, path = "/tokens", tag = "tokens", operation_id = "list_tokens", responses(
    (status = 200, description = "All tokens, without their secrets", body = Vec<Token>),
))]
async fn list(State(host): Shared) -> Json<Vec<Token>> {
    Json(host.tokens())
}

/// Make a token
///
/// The answer is the only place where its secret is shown, so there is no task that would keep it.
#[utoipa::path(post, path = "/tokens", tag = "tokens", operation_id = "make_token",
    params(DryRunQuery), request_body = TokenRequest,
    responses((status = 201, description = "The token and its secret", body = NewToken)))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: TokenRequest = body(&bytes)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_token(&request)).await;
    }
    let made = run_blocking(move || host.make_token(&request)).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Remove a token
#[utoipa::path(delete, path = "/tokens/{token}", tag = "tokens", operation_id = "remove_token",
    params(TokenPath, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "Nobody comes in with it")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<TokenPath>,
    call: Call,
) -> Result<Response, HttpError> {
    call.check_version(&host.object::<TokenRecord>(&path.token)?)?;
    let own = call.user().token.clone();
    if call.is_dry() {
        let check = move || host.check_token_removal(&path.token, own.as_deref());
        return call::dry_run(move || check().map(drop)).await;
    }
    let worker = Arc::clone(&host);
    let spec = TaskSpec::new("token.remove", &path.token);
    call::run_to_end(host, call, spec, move |_| {
        worker.remove_token(&path.token, own.as_deref())
    })
    .await
}
