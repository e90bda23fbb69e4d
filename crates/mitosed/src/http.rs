//! The HTTP interface. Handlers translate and call the host.
//!
//! A request passes who it comes from (`access`), what it says (`conform`), whether it came before
//! (`once`), and its handler.

mod access;
mod answer;
mod archives;
mod call;
mod check;
mod conform;
mod daemon;
mod datastores;
mod disk_pools;
mod document;
mod dry_run;
mod events;
mod exec;
mod folders;
mod fork_points;
mod group;
mod guests;
mod images;
mod lineage;
mod listen;
mod metrics;
mod networks;
mod newcomers;
mod objects;
mod once;
mod page;
mod relay;
mod respools;
mod snapshots;
mod streams;
mod tasks;
mod tokens;
mod vms;

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;

use self::answer::HttpError;
use crate::clock::monotonic_ns;
use crate::config::Config;
use crate::host::Host;

/// When a request came, `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Arrived(u64);

/// Wakes the server to end.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<Notify>);

/// Where requests come in besides the Unix socket, which is made when the host is ready.
#[derive(Debug)]
pub struct Doors {
    tls: Option<listen::Tls>,
    newcomers: Arc<newcomers::Newcomers>,
}

impl Doors {
    /// Listens on the port that is asked for, and makes sure of the group.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        listen::check_group(config)?;
        let newcomers = Arc::<newcomers::Newcomers>::default();
        let tls = match config.listen.address {
            Some(address) => {
                Some(listen::Tls::bind(config, address, Arc::clone(&newcomers)).await?)
            }
            None => None,
        };
        Ok(Self { tls, newcomers })
    }
}

/// Serves until a signal or a request ends it.
pub async fn serve(host: Arc<Host>, doors: Doors) -> anyhow::Result<()> {
    let path = host.config.home.socket();
    let listener = listen::unix(&host.config)?;
    let tls = doors.tls;
    let stop = Stop::default();
    let app = Api::new(&host, &stop, doors.newcomers);
    tracing::info!(socket = %path.display(), "serving");
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let local = app.router(false);
    let local = listen::serve(
        listener,
        local,
        listen::local_peer,
        listen::nobody,
        listen::PATIENCE,
    );
    let remote = app.router(true);
    let remote = async move {
        match tls {
            Some(tls) => {
                tracing::info!(url = %format!("https://{}", tls.address()), "serving");
                let (peer, newcomer) = (listen::Tls::peer, listen::Tls::newcomer);
                listen::serve(tls, remote, peer, newcomer, listen::PATIENCE).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = local => {}
        () = remote => {}
        _ = terminate.recv() => tracing::info!("ending by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("ending by SIGINT"),
        () = stop.0.notified() => tracing::info!("ending by request"),
    }
    let _ = fs::remove_file(&path);
    Ok(())
}

/// Handlers' view of the host.
type Shared = State<Arc<Host>>;

/// All routes that the document describes, with what they told of themselves.
fn described() -> OpenApiRouter<Arc<Host>> {
    let api = OpenApiRouter::new()
        .merge(vms::routes())
        .merge(fork_points::routes())
        .merge(guests::routes())
        .merge(images::routes())
        .merge(objects::routes())
        .merge(folders::routes())
        .merge(networks::routes())
        .merge(respools::routes())
        .merge(lineage::routes())
        .merge(snapshots::routes())
        .merge(archives::routes())
        .merge(tasks::routes())
        .merge(events::routes())
        .merge(datastores::routes())
        .merge(disk_pools::routes())
        .merge(daemon::routes())
        .merge(exec::routes())
        .merge(tokens::routes())
        .merge(document::routes());
    document::router()
        .nest(api_types::API_PREFIX, api)
        .merge(metrics::routes())
}

/// The interface's OpenAPI document.
pub fn openapi() -> Value {
    document::complete(&described().into_openapi())
}

/// What the routers of both listeners share.
struct Api {
    host: Arc<Host>,
    stop: Stop,
    document: Arc<Value>,
    rules: Arc<conform::Rules>,
    once: Arc<once::Once>,
    gate: Arc<access::Gate>,
    counters: Arc<metrics::Counters>,
    newcomers: Arc<newcomers::Newcomers>,
}

impl Api {
    fn new(host: &Arc<Host>, stop: &Stop, newcomers: Arc<newcomers::Newcomers>) -> Self {
        let document = Arc::new(openapi());
        Self {
            rules: conform::Rules::new(&document),
            once: once::Once::new(Arc::clone(host), &document),
            gate: access::Gate::new(Arc::clone(host)),
            counters: metrics::Counters::follow(host),
            newcomers,
            host: Arc::clone(host),
            stop: stop.clone(),
            document,
        }
    }

    /// The routes; where requests come from the network, the document says that they need a token.
    fn router(&self, remote: bool) -> Router {
        let document = match remote {
            true => Arc::new(document::for_network(&self.document)),
            false => Arc::clone(&self.document),
        };
        let (routes, _) = described().split_for_parts();
        routes
            .nest(api_types::API_PREFIX, streams::routes())
            .fallback(async || {
                HttpError::not_found(
                    "there is no such path in this interface; see /api/v1/openapi.json",
                )
            })
            // The last layer is the first that a request meets.
            .layer(middleware::from_fn_with_state(
                Arc::clone(&self.once),
                once::once,
            ))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&self.rules),
                conform::conform,
            ))
            .layer(middleware::from_fn_with_state(
                Arc::clone(&self.gate),
                access::enter,
            ))
            .layer(middleware::from_fn(stamp))
            .layer(Extension(document))
            .layer(Extension(self.stop.clone()))
            .layer(Extension(Arc::clone(&self.counters)))
            .layer(Extension(Arc::clone(&self.newcomers)))
            .with_state(Arc::clone(&self.host))
    }
}

async fn stamp(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Arrived(monotonic_ns()));
    next.run(request).await
}

#[cfg(test)]
mod tests;
