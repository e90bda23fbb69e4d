//! Endpoints of images.

use std::sync::Arc;

use api_types::{Image, ImageRequest, schema};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, TaskAnswers};
use crate::host::{Host, TaskSpec, kind_and_name};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(remove))
}

/// Which image.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ImagePath {
    /// Its name.
    #[param(schema_with = schema::name)]
    image: String,
}

/// Images
#[utoipa::path(get, path = "/images", tag = "images", operation_id = "list_images", responses(
    (status = 200, description = "All images", body = Vec<Image>),
))]
async fn list(State(host): Shared) -> Answer<Vec<Image>> {
    blocking(move || host.images()).await
}

/// Build or import an image
#[utoipa::path(post, path = "/images", tag = "images", operation_id = "make_image",
    params(CallQuery, DryRunQuery, KeyHeader), request_body = ImageRequest,
    responses(TaskAnswers))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: ImageRequest = body(&bytes)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_image(&request, None)).await;
    }
    let (kind, name) = kind_and_name(&request);
    let spec = TaskSpec::new(kind, name).cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |context| {
        worker.make_image(request, context)
    })
    .await
}

/// Remove an image
#[utoipa::path(delete, path = "/images/{image}", tag = "images", operation_id = "remove_image",
    params(ImagePath, DryRunQuery, KeyHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<ImagePath>,
    call: Call,
) -> Result<Response, HttpError> {
    if call.is_dry() {
        return call::dry_run(move || host.check_image_removal(&path.image)).await;
    }
    let spec = TaskSpec::new("image.remove", &path.image);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| worker.remove_image(&path.image)).await
}
