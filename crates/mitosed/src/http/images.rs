//! Endpoints of images.

use std::sync::Arc;

use api_types::{Image, ImageRequest, Task, schema};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, blocking_empty, body, run_blocking};
use crate::host::Host;

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
    request_body = ImageRequest, responses(
    (status = 202, description = "The task that makes it", body = Task),
))]
async fn make(State(host): Shared, bytes: Bytes) -> Result<(StatusCode, Json<Task>), HttpError> {
    let request: ImageRequest = body(&bytes)?;
    let task = run_blocking(move || host.make_image(request)).await?;
    Ok((StatusCode::ACCEPTED, Json(task)))
}

/// Remove an image
#[utoipa::path(delete, path = "/images/{image}", tag = "images", operation_id = "remove_image",
    params(ImagePath), responses((status = 204, description = "It is gone")))]
async fn remove(State(host): Shared, Path(path): Path<ImagePath>) -> Result<StatusCode, HttpError> {
    blocking_empty(move || host.remove_image(&path.image)).await
}
