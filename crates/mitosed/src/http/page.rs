//! Parts of long lists: what fits a filter, and where the list goes on.

use api_types::{API_PREFIX, Event, Task, TaskState, Vm, schema};
use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::OpResult;
use crate::host::Host;

/// Items of one answer where the client names no number.
const DEFAULT_LIMIT: u32 = 100;
/// Rows that are read at a time while a filter looks for some that fit.
const BATCH: usize = 1000;

/// Which VMs, and how many of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmQuery {
    /// Name; `*` stands for any text.
    #[param(schema_with = schema::glob, required = false)]
    name: Option<String>,
    /// State, such as `running`.
    #[param(schema_with = schema::state, required = false)]
    state: Option<String>,
    /// Id of the folder that they lie in.
    #[param(schema_with = schema::word, required = false)]
    folder: Option<String>,
    /// Attribute that they have, or `attribute=value`.
    #[param(schema_with = schema::attribute, required = false)]
    attribute: Option<String>,
    /// Most VMs of the answer; all where not given.
    #[param(schema_with = schema::limit, required = false)]
    limit: Option<u32>,
    /// Where to go on: from the header `Link` of the answer before.
    #[param(schema_with = schema::cursor, required = false)]
    after: Option<String>,
}

/// Which tasks, latest first.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TaskQuery {
    /// State.
    #[param(inline, required = false)]
    state: Option<TaskState>,
    /// Kind, such as `vm.fork`.
    #[param(schema_with = schema::word, required = false)]
    kind: Option<String>,
    /// Id of the object that they work on.
    #[param(schema_with = schema::word, required = false)]
    object: Option<String>,
    /// Most tasks of the answer; 100 where not given.
    #[param(schema_with = schema::limit, required = false)]
    limit: Option<u32>,
    /// Only tasks with a lower number.
    #[param(schema_with = schema::number, required = false)]
    before: Option<i64>,
}

/// Which events, oldest first.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Number of the last event that the client knows; the latest ones where not given.
    #[param(schema_with = schema::number, required = false)]
    pub after: Option<i64>,
    /// Kind, such as `vm.started`.
    #[param(schema_with = schema::word, required = false)]
    kind: Option<String>,
    /// Id of the object that they are about.
    #[param(schema_with = schema::word, required = false)]
    object: Option<String>,
    /// Most events of the answer; 100 where not given.
    #[param(schema_with = schema::limit, required = false)]
    limit: Option<u32>,
}

/// VMs that fit, by name and folder.
pub fn vms(host: &Host, query: &VmQuery) -> Response {
    let limit = query.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut fitting = host
        .all()
        .into_iter()
        .map(|vm| host.show(&vm))
        .filter(|vm| query.fits(vm));
    let items: Vec<Vm> = fitting.by_ref().take(limit).collect();
    let more = fitting.next().is_some();
    let next = items.last().filter(|_| more).map(|vm| {
        let mut query = query.clone_filters();
        query.push(("after", cursor(vm)));
        link("vms", limit, &query)
    });
    answer(items, next)
}

/// Tasks that fit, latest first.
pub fn tasks(host: &Host, query: &TaskQuery) -> OpResult<Response> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT) as usize;
    let mut items: Vec<Task> = Vec::new();
    let mut before = query.before.unwrap_or(i64::MAX);
    let mut more = true;
    while more && items.len() <= limit {
        let batch = host.list_tasks(before, BATCH)?;
        more = batch.len() == BATCH;
        before = batch.last().map_or(0, |task| task.id);
        items.extend(batch.into_iter().filter(|task| query.fits(task)));
    }
    let next = (items.len() > limit).then(|| {
        items.truncate(limit);
        let last = items.last().map_or(0, |task| task.id);
        let state = query
            .state
            .and_then(|state| serde_json::to_value(state).ok());
        let filters = [
            (
                "state",
                state.and_then(|state| state.as_str().map(str::to_owned)),
            ),
            ("kind", query.kind.clone()),
            ("object", query.object.clone()),
            ("before", Some(last.to_string())),
        ];
        link("tasks", limit, &given(filters))
    });
    Ok(answer(items, next))
}

/// Events that fit, oldest first: those after the number given, or the latest ones.
pub fn events(host: &Host, query: &EventQuery) -> OpResult<Response> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT) as usize;
    let Some(mut after) = query.after else {
        let mut latest = host.latest_events(BATCH)?;
        latest.retain(|event| query.fits(event));
        let first = latest.len().saturating_sub(limit);
        return Ok(answer(latest.split_off(first), None));
    };
    let mut items: Vec<Event> = Vec::new();
    let mut more = true;
    while more && items.len() <= limit {
        let batch = host.events(after, BATCH)?;
        more = batch.len() == BATCH;
        after = batch.last().map_or(after, |event| event.id);
        items.extend(batch.into_iter().filter(|event| query.fits(event)));
    }
    let next = (items.len() > limit).then(|| {
        items.truncate(limit);
        let last = items.last().map_or(0, |event| event.id);
        let filters = [
            ("kind", query.kind.clone()),
            ("object", query.object.clone()),
            ("after", Some(last.to_string())),
        ];
        link("events", limit, &given(filters))
    });
    Ok(answer(items, next))
}

impl VmQuery {
    fn fits(&self, vm: &Vm) -> bool {
        let attribute = |wanted: &String| match wanted.split_once('=') {
            Some((name, value)) => vm.attributes.get(name).is_some_and(|found| found == value),
            None => vm.attributes.contains_key(wanted),
        };
        self.after
            .as_ref()
            .is_none_or(|after| comes_after(vm, after))
            && self
                .name
                .as_ref()
                .is_none_or(|glob| matches(glob, &vm.name))
            && self.state.as_ref().is_none_or(|state| *state == vm.state)
            && self
                .folder
                .as_ref()
                .is_none_or(|folder| *folder == vm.folder)
            && self.attribute.as_ref().is_none_or(attribute)
    }

    fn clone_filters(&self) -> Vec<(&'static str, String)> {
        given([
            ("name", self.name.clone()),
            ("state", self.state.clone()),
            ("folder", self.folder.clone()),
            ("attribute", self.attribute.clone()),
        ])
    }
}

impl TaskQuery {
    fn fits(&self, task: &Task) -> bool {
        self.state.is_none_or(|state| state == task.state)
            && self.kind.as_ref().is_none_or(|kind| *kind == task.kind)
            && self.object.is_none() | (self.object == task.object)
    }
}

impl EventQuery {
    /// Whether the client asked for an event.
    pub fn fits(&self, event: &Event) -> bool {
        self.kind.as_ref().is_none_or(|kind| *kind == event.kind)
            && self.object.is_none() | (self.object == event.object)
    }
}

/// Place of a VM in the list: names have no slash.
fn cursor(vm: &Vm) -> String {
    format!("{}/{}", vm.name, vm.folder)
}

fn comes_after(vm: &Vm, cursor: &str) -> bool {
    let (name, folder) = cursor.split_once('/').unwrap_or((cursor, ""));
    (vm.name.as_str(), vm.folder.as_str()) > (name, folder)
}

/// Whether `glob`, in which `*` is any text, is all of `text`. The rest behind the last star that
/// matched is tried at each later place, so the time is bounded by the product of the lengths.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if g < glob.len() && glob[g] == b'*' {
            star = Some((g, t));
            g += 1;
        } else if g < glob.len() && glob[g] == text[t] {
            (g, t) = (g + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (g, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

fn given<const N: usize>(
    filters: [(&'static str, Option<String>); N],
) -> Vec<(&'static str, String)> {
    let given = |(name, value): (_, Option<String>)| Some((name, value?));
    filters.into_iter().filter_map(given).collect()
}

fn link(list: &str, limit: usize, filters: &[(&'static str, String)]) -> String {
    let mut address = format!("{API_PREFIX}/{list}?limit={limit}");
    for (name, value) in filters {
        address.push_str(&format!("&{name}={}", encode(value)));
    }
    format!("<{address}>; rel=\"next\"")
}

fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let byte = |b: u8| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn answer<T: serde::Serialize>(items: Vec<T>, next: Option<String>) -> Response {
    let mut response = Json(items).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (glob, text, fits) in [
            ("web", "web", true),
            ("web", "web1", false),
            ("web*", "web", true),
            ("*", "anything", true),
            ("*-1", "web-1-1", true),
            ("w*b*1", "web-web-1", true),
            ("w*b*1", "web-web-2", false),
            ("**a", "a", true),
            ("a*", "", false),
        ] {
            assert_eq!(matches(glob, text), fits, "{glob} {text}");
        }
    }

    #[test]
    fn links_are_encoded() {
        let filters = [("after", "web 1/folder-2".to_owned())];
        assert_eq!(
            link("vms", 2, &filters),
            "</api/v1/vms?limit=2&after=web%201%2Ffolder-2>; rel=\"next\""
        );
    }
}
