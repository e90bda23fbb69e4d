//! Endpoints of VMs.

use std::sync::Arc;

use api_types::{Cloned, ForkRequest, RunReply, RunRequest, StopRequest, Vm, VmDetail};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Deserialize;

use super::answer::{Answer, blocking, body};
use super::{Arrived, streams};
use crate::error::OpResult;
use crate::host::{self, Host};

type Shared = State<Arc<Host>>;

pub fn routes() -> Router<Arc<Host>> {
    Router::new()
        .route("/vms", get(list).post(run))
        .route("/vms/{name}", get(detail).delete(remove))
        .route("/vms/{name}/fork", post(fork))
        .route("/vms/{name}/start", post(start))
        .route("/vms/{name}/stop", post(stop))
        .route("/vms/{name}/pause", post(pause))
        .route("/vms/{name}/resume", post(resume))
        .route("/vms/{name}/reset", post(reset))
        .route("/vms/{name}/log", get(streams::log))
        .route("/vms/{name}/console", get(streams::console))
        .route("/vms/{name}/vsock/{port}", get(streams::vsock))
}

async fn list(State(host): Shared) -> Answer<Vec<Vm>> {
    blocking(move || Ok(host.all().iter().map(|vm| host.show(vm)).collect())).await
}

async fn run(
    State(host): Shared,
    Extension(Arrived(at)): Extension<Arrived>,
    bytes: Bytes,
) -> Answer<RunReply> {
    let request: RunRequest = body(&bytes)?;
    blocking(move || host.run(request, at)).await
}

async fn detail(State(host): Shared, Path(name): Path<String>) -> Answer<VmDetail> {
    blocking(move || {
        let vm = host.find(&name)?;
        Ok(host.detail(&vm))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

async fn remove(
    State(host): Shared,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer<()> {
    blocking(move || host.remove(&host.find(&name)?, query.force)).await
}

async fn fork(
    State(host): Shared,
    Path(name): Path<String>,
    Extension(Arrived(at)): Extension<Arrived>,
    bytes: Bytes,
) -> Answer<Cloned> {
    let request: ForkRequest = body(&bytes)?;
    blocking(move || host.fork(&host.find(&name)?, &request, at)).await
}

async fn stop(State(host): Shared, Path(name): Path<String>, bytes: Bytes) -> Answer<Vm> {
    let request: StopRequest = body(&bytes)?;
    act(host, name, move |host, vm| host.power_off(vm, &request)).await
}

async fn start(State(host): Shared, Path(name): Path<String>) -> Answer<Vm> {
    act(host, name, Host::start).await
}

async fn pause(State(host): Shared, Path(name): Path<String>) -> Answer<Vm> {
    act(host, name, |host, vm| host.pause(vm)).await
}

async fn resume(State(host): Shared, Path(name): Path<String>) -> Answer<Vm> {
    act(host, name, |host, vm| host.resume(vm)).await
}

async fn reset(State(host): Shared, Path(name): Path<String>) -> Answer<Vm> {
    act(host, name, Host::reset).await
}

/// Runs an operation on a VM and answers with the VM.
async fn act(
    host: Arc<Host>,
    name: String,
    operation: impl FnOnce(&Arc<Host>, &Arc<host::Vm>) -> OpResult<()> + Send + 'static,
) -> Answer<Vm> {
    blocking(move || {
        let vm = host.find(&name)?;
        operation(&host, &vm)?;
        Ok(host.show(&vm))
    })
    .await
}
