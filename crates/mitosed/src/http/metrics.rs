//! `/metrics`: figures of the host in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::{Datastore, DiskPool, Event, TaskState};
use axum::Extension;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{HttpError, run_blocking};
use super::newcomers::Newcomers;
use crate::error::OpResult;
use crate::host::Host;

/// Upper ends of the histogram of stuns, microseconds.
const STUN_BUCKETS_US: [u64; 12] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
];
/// Latest tasks that are counted by their state.
const TASKS: usize = 10_000;

/// What is counted from the events of this daemon.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    events: BTreeMap<String, u64>,
    clones: u64,
    stuns: [u64; STUN_BUCKETS_US.len()],
    stun_count: u64,
    stun_sum_us: u64,
}

impl Counters {
    /// Counts events for as long as the host tells some.
    pub fn follow(host: &Arc<Host>) -> Arc<Self> {
        let counters = Arc::new(Self::default());
        let mut news = host.subscribe();
        let counted = Arc::clone(&counters);
        tokio::spawn(async move {
            loop {
                match news.recv().await {
                    Ok(event) => counted.count(&event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        counters
    }

    fn count(&self, event: &Event) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.events.entry(event.kind.clone()).or_default() += 1;
        let figure = |name: &str| event.data.as_ref()?.get(name)?.as_u64();
        if event.kind != "vm.forked" {
            return;
        }
        counted.clones += figure("clones").unwrap_or(0);
        if let Some(stun_us) = figure("stun_us") {
            counted.stun_count += 1;
            counted.stun_sum_us += stun_us;
            for (end, count) in STUN_BUCKETS_US.iter().zip(&mut counted.stuns) {
                *count += u64::from(stun_us <= *end);
            }
        }
    }

    fn write(&self, text: &mut String) {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        head(
            text,
            "mitose_events_total",
            "counter",
            "Events since the daemon began.",
        );
        for (kind, count) in &counted.events {
            let _ = writeln!(text, "mitose_events_total{{kind=\"{kind}\"}} {count}");
        }
        head(
            text,
            "mitose_clones_total",
            "counter",
            "Clones that forks have made.",
        );
        let _ = writeln!(text, "mitose_clones_total {}", counted.clones);
        head(
            text,
            "mitose_stun_seconds",
            "histogram",
            "Time in which a fork held its source.",
        );
        for (end, count) in STUN_BUCKETS_US.iter().zip(counted.stuns) {
            let end = *end as f64 / 1e6;
            let _ = writeln!(text, "mitose_stun_seconds_bucket{{le=\"{end}\"}} {count}");
        }
        let (sum, count) = (counted.stun_sum_us as f64 / 1e6, counted.stun_count);
        let _ = writeln!(text, "mitose_stun_seconds_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "mitose_stun_seconds_sum {sum}");
        let _ = writeln!(text, "mitose_stun_seconds_count {count}");
    }
}

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Figures in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "daemon", responses(
    (status = 200, description = "Figures", body = String, content_type = "text/plain"),
))]
async fn metrics(
    State(host): Shared,
    Extension(counters): Extension<Arc<Counters>>,
    Extension(newcomers): Extension<Arc<Newcomers>>,
) -> Result<Response, HttpError> {
    let text = run_blocking(move || {
        let mut text = gauges(&host)?;
        counters.write(&mut text);
        write_ended(&mut text, &newcomers);
        Ok(text)
    });
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((kind, text.await?).into_response())
}

fn write_ended(text: &mut String, newcomers: &Newcomers) {
    let name = "mitose_connections_ended_total";
    let help =
        "Connections from the network that asked for nothing: turned away, or ended in time.";
    head(text, name, "counter", help);
    let (turned_away, late) = newcomers.ended();
    let _ = writeln!(text, "{name}{{reason=\"too_many\"}} {turned_away}");
    let _ = writeln!(text, "{name}{{reason=\"late\"}} {late}");
}

fn gauges(host: &Host) -> OpResult<String> {
    let mut text = String::new();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for vm in host.all() {
        *states.entry(vm.state().word()).or_default() += 1;
    }
    head(&mut text, "mitose_vms", "gauge", "VMs by state.");
    for (state, count) in states {
        let _ = writeln!(text, "mitose_vms{{state=\"{state}\"}} {count}");
    }
    let mut tasks: BTreeMap<&str, usize> = BTreeMap::new();
    for task in host.list_tasks(i64::MAX, TASKS)? {
        let word = match task.state {
            TaskState::Running => "running",
            TaskState::Success => "success",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        };
        *tasks.entry(word).or_default() += 1;
    }
    head(
        &mut text,
        "mitose_tasks",
        "gauge",
        "Tasks that are remembered, by state.",
    );
    for (state, count) in tasks {
        let _ = writeln!(text, "mitose_tasks{{state=\"{state}\"}} {count}");
    }
    let status = host.status();
    for (name, told, value) in [
        (
            "mitose_shells_ready",
            "Pre-started shells that wait.",
            status.shells_ready,
        ),
        (
            "mitose_shells_wanted",
            "Pre-started shells that are kept.",
            status.shells_wanted,
        ),
        ("mitose_layers", "Disk layers.", host.layer_count()),
    ] {
        head(&mut text, name, "gauge", told);
        let _ = writeln!(text, "{name} {value}");
    }
    write_pools(&mut text, &host.disk_pools());
    write_datastores(&mut text, &host.datastores());
    Ok(text)
}

/// Figures of disk pools.
fn write_pools(text: &mut String, pools: &[DiskPool]) {
    let mut family = |name: &str, kind: &str, told: &str, value: fn(&DiskPool) -> u64| {
        head(text, name, kind, told);
        for pool in pools {
            let (of, store) = (label(&pool.name), label(&pool.datastore));
            let labels = format!("pool=\"{of}\",datastore=\"{store}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {}", value(pool));
        }
    };
    family(
        "mitose_disk_pool_hits_total",
        "counter",
        "Full clones that took a ready copy, since the daemon began.",
        |pool| pool.hits,
    );
    family(
        "mitose_disk_pool_misses_total",
        "counter",
        "Full clones that found no ready copy, since the daemon began.",
        |pool| pool.misses,
    );
    family(
        "mitose_disk_pool_ready",
        "gauge",
        "Copies that are ready.",
        |pool| pool.ready,
    );
    family(
        "mitose_disk_pool_wanted",
        "gauge",
        "Copies that are kept ready.",
        |pool| pool.count,
    );
}

/// Space of datastores; those that are not there have none.
fn write_datastores(text: &mut String, stores: &[Datastore]) {
    let mut family = |name: &str, told: &str, value: fn(&Datastore) -> u64| {
        head(text, name, "gauge", told);
        for store in stores {
            let of = label(&store.name);
            let _ = writeln!(text, "{name}{{datastore=\"{of}\"}} {}", value(store));
        }
    };
    family(
        "mitose_datastore_capacity_bytes",
        "Size of a datastore's file system.",
        |store| store.capacity_bytes,
    );
    family(
        "mitose_datastore_free_bytes",
        "What can be written to a datastore.",
        |store| store.free_bytes,
    );
    family(
        "mitose_datastore_promised_bytes",
        "Of these, promised to operations under way.",
        |store| store.promised_bytes,
    );
}

/// A label's value as the format wants it.
fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn head(text: &mut String, name: &str, kind: &str, told: &str) {
    let _ = writeln!(text, "# HELP {name} {told}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_told_by_name_and_datastore() {
        let pool = DiskPool {
            id: "diskpool-1".into(),
            name: "we\"b".into(),
            datastore: "fast".into(),
            source: "web".into(),
            count: 8,
            ready: 3,
            state: api_types::DiskPoolState::Filling,
            reason: None,
            hits: 5,
            misses: 1,
            rate_bytes_per_s: None,
            version: 1,
        };
        let mut text = String::new();
        write_pools(&mut text, &[pool]);
        for line in [
            "mitose_disk_pool_hits_total{pool=\"we\\\"b\",datastore=\"fast\"} 5",
            "mitose_disk_pool_misses_total{pool=\"we\\\"b\",datastore=\"fast\"} 1",
            "mitose_disk_pool_ready{pool=\"we\\\"b\",datastore=\"fast\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn stuns_are_counted_up_to_their_bucket() {
        let counters = Counters::default();
        for stun_us in [90, 300, 2_000_000] {
            counters.count(&Event {
                id: 1,
                at_ms: 0,
                subject: "a".into(),
                kind: "vm.forked".into(),
                message: String::new(),
                object: None,
                task: None,
                user: None,
                data: Some(serde_json::json!({ "stun_us": stun_us, "clones": 2 })),
            });
        }
        let mut text = String::new();
        counters.write(&mut text);
        for line in [
            "mitose_events_total{kind=\"vm.forked\"} 3",
            "mitose_clones_total 6",
            "mitose_stun_seconds_bucket{le=\"0.0001\"} 1",
            "mitose_stun_seconds_bucket{le=\"0.0005\"} 2",
            "mitose_stun_seconds_bucket{le=\"1\"} 2",
            "mitose_stun_seconds_bucket{le=\"+Inf\"} 3",
            "mitose_stun_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
