//! Endpoints of what a guest is told and tells: guestinfo, and waiting for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{GuestInfo, GuestInfoPatch, Vm, WaitFor, schema};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, DryRunQuery, KeyHeader, MatchHeader};
use super::vms::VmPath;
use crate::host::{Host, TaskContext, TaskSpec};

/// First and longest pause between two looks at a VM that is waited for.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(80);

/// Wait, where the request names none, seconds.
const DEFAULT_WAIT_S: u64 = 5;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(guestinfo, set_guestinfo))
        .routes(routes!(wait))
}

/// guestinfo of a VM
#[utoipa::path(get, path = "/vms/{vm}/guestinfo", tag = "vms", operation_id = "get_guestinfo",
    params(VmPath), responses((status = 200, description = "Values by key", body = GuestInfo)))]
async fn guestinfo(State(host): Shared, Path(path): Path<VmPath>) -> Answer<GuestInfo> {
    blocking(move || Ok(GuestInfo(host.find(&path.vm)?.row().guestinfo))).await
}

/// Set and remove guestinfo of a VM
///
/// All changes or none. A running guest is told at once.
#[utoipa::path(patch, path = "/vms/{vm}/guestinfo", tag = "vms", operation_id = "set_guestinfo",
    params(VmPath, DryRunQuery, KeyHeader, MatchHeader), request_body = GuestInfoPatch, responses(
    (status = 200, description = "All values by key", body = GuestInfo),
))]
async fn set_guestinfo(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let GuestInfoPatch(patch) = body(&bytes)?;
    let expected = call.expected();
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_guestinfo(&vm, &patch, expected)).await;
    }
    let spec = TaskSpec::new("vm.guestinfo", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| worker.set_guestinfo(&vm, &patch, expected).map(GuestInfo);
    let answer = |values: GuestInfo| Json(values).into_response();
    call::give(host, call, spec, work, answer).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// What to wait for.
    #[serde(rename = "for")]
    #[param(inline)]
    what: WaitFor,
    /// Longest wait, seconds. Who wants to wait longer asks again.
    #[param(schema_with = schema::wait_seconds, required = false)]
    timeout_s: Option<u64>,
}

/// Wait until a VM is frozen, ready, running or off
///
/// Answers with a problem of the kind `timeout` when it is not after the wait.
#[utoipa::path(get, path = "/vms/{vm}/wait", tag = "vms", operation_id = "wait_for_vm",
    params(VmPath, WaitQuery), responses((status = 200, description = "It is", body = Vm)))]
async fn wait(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<WaitQuery>,
) -> Answer<Vm> {
    let vm = host.find(&path.vm)?;
    let timeout_s = query.timeout_s.unwrap_or(DEFAULT_WAIT_S);
    let deadline = Instant::now() + Duration::from_secs(timeout_s);
    let mut pause = PAUSE_MIN;
    while !host.has_happened(&vm, query.what)? {
        if Instant::now() >= deadline {
            return Err(host.waited_in_vain(&vm, query.what, timeout_s).into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(Json(host.show(&vm)))
}
