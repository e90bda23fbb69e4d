//! Endpoint of commands in guests.

use std::sync::Arc;

use api_types::{ExecReply, ExecRequest};
use axum::body::Bytes;
use axum::extract::{Path, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, blocking, body};
use super::vms::VmPath;
use crate::host::Host;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(exec))
}

/// Run a command in a guest
///
/// It needs the guest agent. The answer comes when the command has ended or its time is over.
#[utoipa::path(post, path = "/vms/{vm}/exec", tag = "vms", operation_id = "exec_in_vm",
    params(VmPath), request_body = ExecRequest, responses(
    (status = 200, description = "How it ended, and what it wrote", body = ExecReply),
))]
async fn exec(State(host): Shared, Path(path): Path<VmPath>, bytes: Bytes) -> Answer<ExecReply> {
    let request: ExecRequest = body(&bytes)?;
    blocking(move || host.exec(&*host.find(&path.vm)?, request)).await
}
