//! The OpenAPI 3.1 document of the interface, made of the handlers' own annotations.
//!
//! What holds for every operation (problems, who may ask) is added here once.

use axum::Json;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::PROBLEM_TYPE;

/// Paths that are served on the Unix socket alone: nobody could start the daemon again from afar.
pub const LOCAL_ONLY: &[&str] = &["/api/v1/daemon/stop"];

/// Methods that change something.
const CHANGING: &[&str] = &["post", "put", "patch", "delete"];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Mitose",
        description = "Forks running virtual machines.\n\nOn the Unix socket the kernel tells who \
                       asks; on TCP every request has a token. Beside the paths below, \
                       `/api/v1/vms/{vm}/console`, `/api/v1/vms/{vm}/log/follow` and \
                       `/api/v1/vms/{vm}/vsock/{port}` turn a connection that sends \
                       `Upgrade: mitose-stream` into a stream of bytes, which OpenAPI cannot \
                       describe.\n\nVersions: an answer's `ETag` is the object's version, that of \
                       `/api/v1/objects/{object}` for objects of all kinds. Operations that take it \
                       in `If-Match` are answered with 412 where the object has changed since.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(api_types::Problem, api_types::DryRun)),
    tags(
        (name = "vms", description = "Virtual machines and their clones"),
        (name = "objects", description = "What all kinds of objects have"),
        (name = "folders", description = "Folders of virtual machines"),
        (name = "networks", description = "What network cards connect to"),
        (name = "respools", description = "Virtual machines that share limits"),
        (name = "datastores", description = "Places for disks, and copies made ahead"),
        (name = "snapshots", description = "States to which virtual machines can return"),
        (name = "archives", description = "Export and import"),
        (name = "images", description = "What virtual machines boot"),
        (name = "tasks", description = "Operations in work and their results"),
        (name = "events", description = "What happened"),
        (name = "tokens", description = "Who may ask, and for what"),
        (name = "daemon", description = "The daemon and its host"),
    ),
)]
struct Api;

/// A router that collects the document of its handlers.
pub fn router<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::with_openapi(Api::openapi())
}

/// Routes of the document itself.
pub fn routes<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(openapi))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "daemon", responses(
    (status = 200, description = "The OpenAPI document", body = Object),
))]
async fn openapi(document: axum::Extension<std::sync::Arc<Value>>) -> Json<Value> {
    Json(Value::clone(&document.0))
}

/// Completes what the handlers told.
pub fn complete(collected: &utoipa::openapi::OpenApi) -> Value {
    let mut document = serde_json::to_value(collected).unwrap_or_default();
    document["components"]["responses"] = problems();
    document["components"]["securitySchemes"] =
        json!({ "token": { "type": "http", "scheme": "bearer" } });
    // On the Unix socket no token is needed.
    document["security"] = json!([{}, { "token": [] }]);
    close_requests(&mut document);
    let paths = document["paths"].as_object_mut();
    for methods in paths.into_iter().flat_map(|paths| paths.values_mut()) {
        for (method, operation) in methods.as_object_mut().into_iter().flatten() {
            require_path_parameters(operation);
            open_event_streams(operation);
            add_task(operation);
            add_dry_run(operation);
            add_problems(method, operation);
        }
    }
    document
}

/// The document as it is on the network: every request needs a token, and what only the daemon's
/// own host may ask for is not there.
pub fn for_network(document: &Value) -> Value {
    let mut document = document.clone();
    document["security"] = json!([{ "token": [] }]);
    if let Some(paths) = document["paths"].as_object_mut() {
        paths.retain(|path, _| !LOCAL_ONLY.contains(&path.as_str()));
    }
    document
}

/// What is a task may take longer than an answer waits.
fn add_task(operation: &mut Value) {
    let parameters = operation["parameters"].as_array();
    let key = |parameter: &Value| parameter["name"] == "Idempotency-Key";
    if parameters.is_some_and(|all| all.iter().any(key)) && operation["responses"]["202"].is_null()
    {
        let schema = json!({ "$ref": "#/components/schemas/Task" });
        operation["responses"]["202"] = json!({
            "description": "It takes longer than an answer waits: the task is in work",
            "content": { "application/json": { "schema": schema } },
        });
    }
}

/// A dry run is answered with what it found, whatever the operation itself answers with.
fn add_dry_run(operation: &mut Value) {
    let parameters = operation["parameters"].as_array();
    let dry = |parameter: &Value| parameter["name"] == "dry_run";
    if !parameters.is_some_and(|all| all.iter().any(dry)) {
        return;
    }
    let told = "with `dry_run=true` all that stands in the way";
    let found = json!({ "$ref": "#/components/schemas/DryRun" });
    let answer = &mut operation["responses"]["200"];
    let (text, schema) = match answer.pointer("/content/application~1json/schema") {
        Some(own) => {
            let text = answer["description"].as_str().unwrap_or_default();
            (format!("{text}; {told}"), json!({ "anyOf": [own, found] }))
        }
        None => (told.to_owned(), found),
    };
    answer["description"] = json!(text);
    answer["content"]["application/json"]["schema"] = schema;
}

/// Requests refuse members that they do not know: the variants of enums, too.
fn close_requests(document: &mut Value) {
    let schemas = document["components"]["schemas"].as_object_mut();
    for (name, schema) in schemas.into_iter().flatten() {
        if !name.ends_with("Request") {
            continue;
        }
        for variant in schema
            .get_mut("oneOf")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if variant["type"] == "object" {
                variant["additionalProperties"] = json!(false);
            }
        }
    }
}

/// A path has all of its parameters, whichever schema they have.
fn require_path_parameters(operation: &mut Value) {
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        if parameter["in"] == "path" {
            parameter["required"] = json!(true);
        }
    }
}

/// An event stream has no schema: OpenAPI 3.1 has no words for its events.
fn open_event_streams(operation: &mut Value) {
    let answers = operation
        .get_mut("responses")
        .and_then(Value::as_object_mut);
    for answer in answers.into_iter().flat_map(|answers| answers.values_mut()) {
        if let Some(stream) = answer.pointer_mut("/content/text~1event-stream") {
            *stream = json!({});
        }
    }
}

/// Statuses that an operation may answer with beside its own.
fn add_problems(method: &str, operation: &mut Value) {
    let mut statuses = vec![400, 401, 403, 429, 500];
    let in_path = operation["parameters"]
        .as_array()
        .is_some_and(|all| all.iter().any(|parameter| parameter["in"] == "path"));
    if in_path || operation["requestBody"].is_object() {
        statuses.push(404);
    }
    if in_path || CHANGING.contains(&method) {
        statuses.push(409);
    }
    let parameters = operation["parameters"].as_array();
    let tag = |parameter: &Value| parameter["name"] == "If-Match";
    if parameters.is_some_and(|all| all.iter().any(tag)) {
        statuses.push(412);
    }
    if operation["requestBody"].is_object() {
        statuses.extend([413, 415]);
    }
    for status in statuses {
        let reference = json!({ "$ref": format!("#/components/responses/{status}") });
        operation["responses"][status.to_string()] = reference;
    }
}

fn problems() -> Value {
    let told = [
        (400, "The request breaks this document"),
        (401, "There is no token, or it is not known"),
        (403, "The token's role does not allow it"),
        (404, "There is no such object"),
        (
            409,
            "The request fits this document, but not the present state of the host or an object",
        ),
        (
            412,
            "The object is not in the version that `If-Match` names",
        ),
        (413, "The body is too long"),
        (415, "The body is not JSON"),
        (429, "The client sends more requests than it may"),
        (500, "It was tried and failed"),
    ];
    let mut all = serde_json::Map::new();
    for (status, text) in told {
        let content = json!({ PROBLEM_TYPE: {
            "schema": { "$ref": "#/components/schemas/Problem" },
        } });
        let mut answer = json!({ "description": text, "content": content });
        if status == 429 {
            answer["headers"] = json!({ "Retry-After": {
                "description": "Seconds to wait.", "schema": { "type": "integer", "minimum": 1 },
            } });
        }
        all.insert(status.to_string(), answer);
    }
    Value::Object(all)
}
