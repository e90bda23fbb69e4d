//! Every request is checked against the interface's document before a handler sees it.
//!
//! The document is the only place with bounds: parameters, headers, content type and body of an
//! operation are checked with the schemas that clients read, by the route that matched.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::ErrorKind;
use axum::RequestExt;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Query, RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio_stream::StreamExt;

use super::access::User;
use super::answer::{HttpError, as_problem};
use super::check::{Schemas, Violation};
use super::dry_run::{self, Sifted};
use crate::error::OpError;

/// Most bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// Most bytes of a body that is too long and read all the same.
const MAX_FORGOTTEN_BYTES: usize = 64 << 20;

/// What the document says of one operation.
#[derive(Debug, Default)]
struct Operation {
    parameters: Vec<Parameter>,
    body: Option<BodyRule>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    /// The name as the document writes it.
    shown: String,
    place: String,
    required: bool,
    schema: Value,
}

#[derive(Debug)]
struct BodyRule {
    required: bool,
    schema: Value,
}

/// The document, ready for requests to be checked.
#[derive(Debug)]
pub struct Rules {
    schemas: Schemas,
    operations: HashMap<(String, String), Operation>,
}

impl Rules {
    /// Rules of a document.
    pub fn new(document: &Value) -> Arc<Self> {
        let mut operations = HashMap::new();
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                let key = (path.clone(), method.to_uppercase());
                operations.insert(key, read_operation(operation));
            }
        }
        Arc::new(Self {
            schemas: Schemas::new(document),
            operations,
        })
    }

    fn check_parameters(
        &self,
        operation: &Operation,
        place: &str,
        given: &[(String, String)],
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        for rule in operation.parameters.iter().filter(|p| p.place == place) {
            let mut values = given.iter().filter(|(name, _)| *name == rule.name);
            let Some((_, text)) = values.next() else {
                if rule.required {
                    found.push(violation(&rule.shown, "is missing", "give it"));
                }
                continue;
            };
            if values.next().is_some() {
                found.push(violation(&rule.shown, "is given twice", "give it once"));
                continue;
            }
            let value = read_parameter(text, &rule.schema);
            found.extend(self.schemas.check(&value, &rule.schema, &rule.shown));
        }
        found
    }

    fn check_query(&self, operation: &Operation, given: &[(String, String)]) -> Vec<Violation> {
        let known: Vec<&str> = operation
            .parameters
            .iter()
            .filter(|rule| rule.place == "query")
            .map(|rule| rule.name.as_str())
            .collect();
        let mut found = self.check_parameters(operation, "query", given);
        if let Some((name, _)) = given
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            let remedy = match known.is_empty() {
                true => "leave it out; there are none here".to_owned(),
                false => format!("leave it out; known are {}", known.join(", ")),
            };
            let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
            found.push(violation(&shown, "is no parameter of this path", &remedy));
        }
        found
    }

    /// Checks a body, which is read as JSON, and says what is wrong with it.
    fn check_body(&self, rule: &BodyRule, bytes: &Bytes) -> (Value, Vec<Violation>) {
        let refused = |what: &str, remedy: &str| {
            let found = violation("body", what, remedy);
            (Value::Null, vec![found])
        };
        if bytes.is_empty() {
            return match rule.required {
                true => refused("is missing", "give a JSON object"),
                false => (Value::Null, Vec::new()),
            };
        }
        let mut value: Value = match serde_json::from_slice(bytes) {
            Ok(value) => value,
            Err(error) => return refused(&format!("is no JSON: {error}"), "mend it"),
        };
        make_whole(&mut value);
        let mut found = self.schemas.check(&value, &rule.schema, "");
        for one in found.iter_mut().filter(|one| one.field.is_empty()) {
            one.field = "body".to_owned();
        }
        (value, found)
    }
}

/// Checks a request by the rules, then lets a handler see it.
pub async fn conform(State(rules): State<Arc<Rules>>, request: Request, next: Next) -> Response {
    match checked(&rules, request).await {
        Ok(mut request) => {
            let sifted = request.extensions_mut().remove::<Sifted>();
            let answer = as_problem(next.run(request).await);
            match sifted {
                Some(sifted) => dry_run::merge(answer, sifted).await,
                None => answer,
            }
        }
        Err(error) => error.into_response(),
    }
}

async fn checked(rules: &Rules, mut request: Request) -> Result<Request, HttpError> {
    let route = request.extensions().get::<MatchedPath>();
    let method = request.method().as_str().replace("HEAD", "GET");
    let operation =
        route.and_then(|route| rules.operations.get(&(route.as_str().to_owned(), method)));
    let Some(operation) = operation else {
        return Ok(request);
    };
    let path = request
        .extract_parts::<RawPathParams>()
        .await
        .map_err(|_| {
            broken(&violation(
                "path",
                "is no UTF-8",
                "encode it as UTF-8, then by percent",
            ))
        })?;
    let path: Vec<_> = path
        .iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).map_err(|_| {
        broken(&violation(
            "query",
            "cannot be read",
            "write it as name=value&…",
        ))
    })?;
    let mut headers = header_values(request.headers());
    let tagless = operation.takes_version() && take_empty_match(&mut headers);
    let mut found = rules.check_parameters(operation, "path", &path);
    found.extend(rules.check_query(operation, &query));
    found.extend(rules.check_parameters(operation, "header", &headers));
    let (mut parts, body) = request.into_parts();
    // A body that nobody reads would break the connection before its answer is seen.
    let bytes = read_body(body).await?;
    let Some(rule) = &operation.body else {
        refuse(&found)?;
        refuse_tagless(tagless)?;
        return Ok(Request::from_parts(parts, Body::empty()));
    };
    if found.is_empty() && !bytes.is_empty() {
        check_content_type(&parts.headers)?;
    }
    let tries = found.is_empty() && dry_run::is_dry(&query);
    let (value, in_body) = rules.check_body(rule, &bytes);
    let user: User = parts.extensions.get().cloned().unwrap_or_default();
    if tries
        && !in_body.is_empty()
        && let Some(rest) = dry_run::sift(&rules.schemas, &rule.schema, &value, &in_body)
    {
        user.may_name_files(|| rules.schemas.host_member(&rest, &rule.schema, ""))?;
        parts.extensions.insert(Sifted::new(&in_body));
        return Ok(Request::from_parts(parts, Body::from(rest.to_string())));
    }
    found.extend(in_body);
    refuse(&found)?;
    refuse_tagless(tagless)?;
    user.may_name_files(|| rules.schemas.host_member(&value, &rule.schema, ""))?;
    let body = match bytes.is_empty() {
        true => Body::empty(),
        false => Body::from(value.to_string()),
    };
    Ok(Request::from_parts(parts, body))
}

/// Takes an `If-Match` without any tag out of `headers`; says whether there was one.
fn take_empty_match(headers: &mut Vec<(String, String)>) -> bool {
    let count = headers.len();
    headers.retain(|(name, value)| name != "if-match" || !value.trim().is_empty());
    headers.len() < count
}

/// Refuses an `If-Match` without any tag. It breaks no rule (RFC 9110 13.1.1 and 5.6.1: a list may be
/// empty), but no object has a version of it: carried out it would be on any.
fn refuse_tagless(tagless: bool) -> Result<(), HttpError> {
    if !tagless {
        return Ok(());
    }
    let error = OpError::new(
        ErrorKind::Stale,
        "If-Match: it names no version; give the object's version in quotes, or leave it out",
    );
    Err(HttpError::from(error.about("If-Match")))
}

/// Refuses a request that breaks the document, by all that was found.
fn refuse(found: &[Violation]) -> Result<(), HttpError> {
    HttpError::broken(found.iter().map(Violation::to_problem).collect()).map_or(Ok(()), Err)
}

/// Reads a body. One that is too long is read on for a while and forgotten: a client that still
/// sends would not see the answer.
async fn read_body(body: Body) -> Result<Bytes, HttpError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut count = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            broken(&violation(
                "body",
                &format!("broke off: {error}"),
                "send all of it",
            ))
        })?;
        count += chunk.len();
        if count <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&chunk);
        } else {
            bytes = Vec::new();
        }
        if count > MAX_FORGOTTEN_BYTES {
            break;
        }
    }
    if count <= MAX_BODY_BYTES {
        return Ok(Bytes::from(bytes));
    }
    let error = OpError::invalid(format!(
        "the body has more than {MAX_BODY_BYTES} bytes; send less"
    ));
    Err(HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        &error.about("body"),
    ))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), HttpError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let error = OpError::invalid(
        "the header Content-Type does not name JSON; send 'Content-Type: application/json'",
    );
    let error = error.about("Content-Type");
    Err(HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, &error))
}

impl Operation {
    /// Whether it is carried out on an object of a version that the client names.
    fn takes_version(&self) -> bool {
        let mut known = self.parameters.iter();
        known.any(|parameter| parameter.place == "header" && parameter.name == "if-match")
    }
}

fn read_operation(operation: &Value) -> Operation {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rule = &operation["requestBody"];
    Operation {
        parameters: parameters
            .map(|parameter| {
                let place = text(&parameter["in"]);
                let name = text(&parameter["name"]);
                Parameter {
                    shown: name.clone(),
                    // Header names have no case; the server's are in lower case.
                    name: if place == "header" {
                        name.to_lowercase()
                    } else {
                        name
                    },
                    place,
                    required: parameter["required"] == true,
                    schema: parameter["schema"].clone(),
                }
            })
            .collect(),
        body: rule.is_object().then(|| BodyRule {
            required: rule["required"] == true,
            schema: rule["content"]["application/json"]["schema"].clone(),
        }),
    }
}

/// Reads a parameter's text as what its schema wants; text that is none of it stays text.
fn read_parameter(text: &str, schema: &Value) -> Value {
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => Vec::from_iter(kind.as_str()),
    };
    let plain = |value: Option<Value>| value.unwrap_or_else(|| Value::String(text.to_owned()));
    if kinds.contains(&"integer") {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // A number beyond 64 bits is a number all the same, and out of every range.
        let value = || text.parse::<i64>().map(Value::from).ok();
        return plain(number.then(|| value().unwrap_or_else(|| Value::from(u64::MAX))));
    }
    if kinds.contains(&"boolean") {
        return plain(text.parse::<bool>().map(Value::from).ok());
    }
    Value::String(text.to_owned())
}

fn header_values(headers: &HeaderMap) -> Vec<(String, String)> {
    let text =
        |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

/// Makes numbers such as `2.0`, which are integers in JSON Schema, integers.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number
                .as_f64()
                .filter(|f| number.is_f64() && f.fract() == 0.0);
            if let Some(whole) = whole.filter(|f| f.abs() < 9e15) {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(members) => members.values_mut().for_each(make_whole),
        _ => {}
    }
}

fn violation(field: &str, what: &str, remedy: &str) -> Violation {
    Violation {
        field: field.to_owned(),
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn broken(found: &Violation) -> HttpError {
    let error = OpError::told(ErrorKind::Invalid, &found.field, &found.what, &found.remedy);
    HttpError::new(StatusCode::BAD_REQUEST, &error)
}
