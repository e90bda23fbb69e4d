//! Endpoints of VMs.

use std::sync::Arc;

use api_types::{Cloned, ForkRequest, RunReply, RunRequest, StopRequest, Vm, VmDetail, schema};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{HttpError, body, run_blocking};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, MatchHeader, TaskAnswers};
use super::page::{self, VmQuery};
use super::{Arrived, Shared, streams};
use crate::error::OpResult;
use crate::host::{self, Host, Operation, TaskSpec};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, run))
        .routes(routes!(detail, remove))
        .routes(routes!(fork))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(reset))
        .routes(routes!(streams::log))
}

/// Which VM.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct VmPath {
    /// Its id or name, or its name behind those of its folders.
    #[param(schema_with = schema::reference)]
    pub vm: String,
}

/// VMs
///
/// By name. Where there are more, the header `Link` tells where the list goes on.
#[utoipa::path(get, path = "/vms", tag = "vms", operation_id = "list_vms", params(VmQuery),
    responses((status = 200, description = "VMs that fit", body = Vec<Vm>)))]
async fn list(State(host): Shared, Query(query): Query<VmQuery>) -> Result<Response, HttpError> {
    run_blocking(move || Ok(page::vms(&host, &query))).await
}

/// Make a VM and start it
///
/// The task's result is a `RunReply`.
#[utoipa::path(post, path = "/vms", tag = "vms", operation_id = "run_vm",
    params(CallQuery, DryRunQuery, KeyHeader), request_body = RunRequest,
    responses(TaskAnswers))]
async fn run(
    State(host): Shared,
    Extension(Arrived(at)): Extension<Arrived>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: RunRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_run(&request)).await;
    }
    let spec = TaskSpec::new("vm.run", &request.name);
    let worker = Arc::clone(&host);
    call::run::<RunReply>(host, call, spec, move |_| worker.run(request, at)).await
}

/// One VM
#[utoipa::path(get, path = "/vms/{vm}", tag = "vms", operation_id = "get_vm", params(VmPath),
    responses((status = 200, description = "All that is known of it", body = VmDetail,
        headers(("ETag" = String, description = "Its version")))))]
async fn detail(State(host): Shared, Path(path): Path<VmPath>) -> Result<Response, HttpError> {
    let detail = run_blocking(move || {
        let vm = host.find(&path.vm)?;
        Ok(host.detail(&vm))
    });
    let detail = detail.await?;
    Ok(call::tagged(detail.vm.version, detail))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Also where it runs.
    #[serde(default)]
    force: bool,
}

/// Remove a VM
#[utoipa::path(delete, path = "/vms/{vm}", tag = "vms", operation_id = "remove_vm",
    params(VmPath, RemoveQuery, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<RemoveQuery>,
    call: Call,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    host::check_version("VM", &vm.name(), call.expected(), vm.row().version)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_removal(&vm, query.force)).await;
    }
    let spec = TaskSpec::new("vm.remove", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| worker.remove(&vm, query.force)).await
}

/// Clone a VM
///
/// The task's result is a `Cloned`.
#[utoipa::path(post, path = "/vms/{vm}/fork", tag = "vms", operation_id = "fork_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader), request_body = ForkRequest,
    responses(TaskAnswers))]
async fn fork(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Extension(Arrived(at)): Extension<Arrived>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: ForkRequest = body(&bytes)?;
    call.user().may_have_fail(request.fail_at.as_deref())?;
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_fork(&vm, &request)).await;
    }
    let spec = host::clone_task(&vm, &request);
    let worker = Arc::clone(&host);
    call::run::<Cloned>(host, call, spec, move |context| {
        let cloned = worker.clone_vm(&vm, &request, at, context)?;
        for (index, clone) in cloned.clones.iter().enumerate() {
            context.item_done(index, clone.error.clone().map_or(Ok(()), Err));
        }
        Ok(cloned)
    })
    .await
}

/// Power a VM off
///
/// The task's result is a `Vm`.
#[utoipa::path(post, path = "/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader), request_body(content = Option<StopRequest>),
    responses(TaskAnswers))]
async fn stop(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: Option<StopRequest> = body(&bytes)?;
    let request = request.unwrap_or_default();
    let operation = match request.force {
        true => Operation::PowerOff,
        false => Operation::ShutDown,
    };
    Act::new("vm.stop", operation)
        .run(host, path, call, move |host, vm| {
            host.power_off(vm, &request)
        })
        .await
}

/// Power a VM on
///
/// It boots from its disks. The task's result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/start",
    tag = "vms",
    operation_id = "start_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn start(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
) -> Result<Response, HttpError> {
    Act::new("vm.start", Operation::Start)
        .run(host, path, call, Host::start)
        .await
}

/// Stop a VM's vCPUs
///
/// The task's result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/pause",
    tag = "vms",
    operation_id = "pause_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn pause(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
) -> Result<Response, HttpError> {
    Act::new("vm.pause", Operation::Pause)
        .run(host, path, call, |host, vm| host.pause(vm))
        .await
}

/// Let a VM's vCPUs run on
///
/// The task's result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/resume",
    tag = "vms",
    operation_id = "resume_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn resume(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
) -> Result<Response, HttpError> {
    Act::new("vm.resume", Operation::Resume)
        .run(host, path, call, |host, vm| host.resume(vm))
        .await
}

/// Reset a VM
///
/// The task's result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/reset",
    tag = "vms",
    operation_id = "reset_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn reset(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
) -> Result<Response, HttpError> {
    Act::new("vm.reset", Operation::Reset)
        .run(host, path, call, Host::reset)
        .await
}

/// An operation on a VM whose result is the VM.
struct Act {
    /// Kind of its task.
    kind: &'static str,
    /// What the table of states is asked.
    operation: Operation,
}

impl Act {
    fn new(kind: &'static str, operation: Operation) -> Self {
        Self { kind, operation }
    }

    async fn run(
        self,
        host: Arc<Host>,
        path: VmPath,
        call: Call,
        operation: impl FnOnce(&Arc<Host>, &Arc<host::Vm>) -> OpResult<()> + Send + 'static,
    ) -> Result<Response, HttpError> {
        let vm = host.find(&path.vm)?;
        if call.is_dry() {
            return call::tried(move || host.check_power(&vm, self.operation)).await;
        }
        let spec = TaskSpec::new(self.kind, &vm.name()).about(&vm.id);
        let worker = Arc::clone(&host);
        call::run::<Vm>(host, call, spec, move |_| {
            operation(&worker, &vm)?;
            Ok(worker.show(&vm))
        })
        .await
    }
}
