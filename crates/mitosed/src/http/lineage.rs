//! Endpoints of families of VMs and what they cost.

use std::sync::Arc;

use api_types::{Lineage, LineageVm};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, blocking};
use super::vms::VmPath;
use crate::host::Host;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(all))
        .routes(routes!(family))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LineageQuery {
    /// With figures of the host's memory, which take a moment for each VM.
    #[serde(default)]
    memory: bool,
}

/// All VMs with where they come from
#[utoipa::path(get, path = "/lineage", tag = "vms", operation_id = "list_lineage",
    params(LineageQuery), responses(
    (status = 200, description = "All VMs by name", body = Vec<LineageVm>),
))]
async fn all(State(host): Shared, Query(query): Query<LineageQuery>) -> Answer<Vec<LineageVm>> {
    blocking(move || Ok(host.lineages(query.memory))).await
}

/// Family of a VM
///
/// Parents, children, depth of disk and memory stacks, memory and space of the VM and of its family.
#[utoipa::path(get, path = "/vms/{vm}/lineage", tag = "vms", operation_id = "get_lineage",
    params(VmPath), responses((status = 200, description = "Its family", body = Lineage)))]
async fn family(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Lineage> {
    blocking(move || Ok(host.lineage(&host.find(&path.vm)?))).await
}
