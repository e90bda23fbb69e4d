//! Checks a JSON value against a schema of the interface's own document (JSON Schema 2020-12).
//!
//! It knows the keywords that the document uses; a test refuses documents with others. All
//! violations are told, each with the member that is wrong, what is wrong and what would be right.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use api_types::{ErrorKind, Problem};
use regex::Regex;
use serde_json::Value;
use vm_spec::format_exact;

/// Keywords that bind a value.
#[cfg(test)]
pub const KEYWORDS: &[&str] = &[
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "propertyNames",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "properties",
    "required",
    "type",
    "uniqueItems",
];
/// Keywords that only tell.
#[cfg(test)]
pub const TELLING: &[&str] = &[
    "default",
    "description",
    "discriminator",
    "example",
    "examples",
    "format",
    "title",
];

/// Most violations that are told of one value.
const VIOLATIONS_MAX: usize = 50;

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where: members joined by dots, indices in brackets; empty for the whole value.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub remedy: String,
}

impl Violation {
    /// The violation as a problem.
    pub fn to_problem(&self) -> Problem {
        let detail = format!("{}: {}; {}", self.field, self.what, self.remedy);
        let mut problem = Problem::new(ErrorKind::Invalid, detail);
        problem.status = 400;
        problem.field = Some(self.field.clone());
        problem.remedy = Some(self.remedy.clone());
        problem
    }
}

/// Schemas of a document, to check values against.
#[derive(Debug)]
pub struct Schemas {
    components: Value,
    patterns: Mutex<HashMap<String, Option<Regex>>>,
}

/// What a rule found; most rules find one thing at most.
type Checked = Result<(), Violation>;

impl Schemas {
    /// Schemas of `components.schemas` of a document.
    pub fn new(document: &Value) -> Self {
        Self {
            components: document["components"]["schemas"].clone(),
            patterns: Mutex::default(),
        }
    }

    /// The schema that a reference leads to.
    pub fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => &self.components[name.rsplit('/').next().unwrap_or_default()],
            None => schema,
        }
    }

    /// All that is wrong with `value`, which the violations call `field`.
    pub fn check(&self, value: &Value, schema: &Value, field: &str) -> Vec<Violation> {
        let schema = self.resolve(schema);
        if let Err(found) = self.check_type(value, schema, field) {
            return vec![found];
        }
        let mut found = Vec::new();
        found.extend(check_choice(value, schema, field).err());
        match value {
            Value::String(text) => found.extend(self.check_text(text, schema, field).err()),
            Value::Number(_) => found.extend(check_number(value, schema, field).err()),
            Value::Array(items) => self.check_items(items, schema, field, &mut found),
            Value::Object(_) => self.check_members(value, schema, field, &mut found),
            Value::Null | Value::Bool(_) => {}
        }
        for part in list(schema, "allOf") {
            found.extend(self.check(value, part, field));
        }
        self.check_alternatives(value, schema, field, &mut found);
        found.truncate(VIOLATIONS_MAX);
        found
    }

    /// Where a value that was checked names a file or device of the host.
    pub fn host_member(&self, value: &Value, schema: &Value, field: &str) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap_or_default();
            return self.host_member(value, &self.components[name], field);
        }
        if schema["format"] == api_types::schema::HOST_FORMAT && !value.is_null() {
            return Some(field.to_owned());
        }
        let mut parts = ["oneOf", "anyOf", "allOf"]
            .into_iter()
            .flat_map(|keyword| list(schema, keyword));
        if let Some(found) = parts.find_map(|part| self.host_member(value, part, field)) {
            return Some(found);
        }
        match value {
            Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                self.host_member(item, &schema["items"], &format!("{field}[{index}]"))
            }),
            Value::Object(members) => members.iter().find_map(|(name, member)| {
                self.host_member(member, &schema["properties"][name], &join(field, name))
            }),
            _ => None,
        }
    }

    fn check_type(&self, value: &Value, schema: &Value, field: &str) -> Checked {
        let wanted: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
            _ => return Ok(()),
        };
        if wanted.iter().any(|kind| is_a(value, kind)) {
            return Ok(());
        }
        let remedy = format!("give {}", wanted.join(" or "));
        wrong(field, format!("is {}", kind_of(value)), remedy)
    }

    fn check_text(&self, text: &str, schema: &Value, field: &str) -> Checked {
        let length = text.chars().count() as u64;
        let (least, most) = (schema["minLength"].as_u64(), schema["maxLength"].as_u64());
        if least.is_some_and(|least| length < least) || most.is_some_and(|most| length > most) {
            let remedy = format!("give {} characters", range(least, most));
            return wrong(field, format!("has {length} characters"), remedy);
        }
        let Some(pattern) = schema["pattern"].as_str() else {
            return Ok(());
        };
        let mut patterns = self.patterns.lock().unwrap_or_else(PoisonError::into_inner);
        let known = patterns
            .entry(pattern.to_owned())
            .or_insert_with(|| Regex::new(&rust_form(pattern)).ok());
        match known {
            Some(regex) if !regex.is_match(text) => {
                let shown: String = text.chars().take(80).collect();
                let remedy = match schema["examples"][0].as_str() {
                    Some(example) => format!("give text such as {example}"),
                    None => "give text of that form".to_owned(),
                };
                let what = format!("{shown:?} is not of the form {pattern}");
                wrong(field, what, remedy)
            }
            _ => Ok(()),
        }
    }

    fn check_items(
        &self,
        items: &[Value],
        schema: &Value,
        field: &str,
        found: &mut Vec<Violation>,
    ) {
        let count = items.len() as u64;
        let (least, most) = (schema["minItems"].as_u64(), schema["maxItems"].as_u64());
        if least.is_some_and(|least| count < least) || most.is_some_and(|most| count > most) {
            let remedy = format!("give {} of them", range(least, most));
            found.extend(wrong(field, format!("has {count} items"), remedy).err());
        }
        if schema["uniqueItems"] == true {
            let mut seen = std::collections::HashSet::new();
            if let Some(twice) = items.iter().find(|item| !seen.insert(item.to_string())) {
                let shown: String = twice.to_string().chars().take(80).collect();
                let remedy = "give each once".to_owned();
                found.extend(wrong(field, format!("has {shown} twice"), remedy).err());
            }
        }
        if let items_schema @ Value::Object(_) = &schema["items"] {
            for (index, item) in items.iter().enumerate() {
                if found.len() >= VIOLATIONS_MAX {
                    return;
                }
                found.extend(self.check(item, items_schema, &format!("{field}[{index}]")));
            }
        }
    }

    fn check_members(
        &self,
        value: &Value,
        schema: &Value,
        field: &str,
        found: &mut Vec<Violation>,
    ) {
        let Some(members) = value.as_object() else {
            return;
        };
        for name in list(schema, "required").filter_map(Value::as_str) {
            if !members.contains_key(name) {
                let at = join(field, name);
                found.extend(wrong(&at, "is missing".to_owned(), "give it".to_owned()).err());
            }
        }
        let count = members.len() as u64;
        if let Some(most) = schema["maxProperties"]
            .as_u64()
            .filter(|most| count > *most)
        {
            let remedy = format!("give at most {most}");
            found.extend(wrong(field, format!("has {count} members"), remedy).err());
        }
        let known = schema["properties"].as_object();
        for (name, member) in members {
            if found.len() >= VIOLATIONS_MAX {
                return;
            }
            let at = join(field, name);
            if let names @ Value::Object(_) = &schema["propertyNames"] {
                found.extend(self.check(&Value::String(name.clone()), names, &at));
            }
            match (
                known.and_then(|known| known.get(name)),
                &schema["additionalProperties"],
            ) {
                (Some(member_schema), _) => found.extend(self.check(member, member_schema, &at)),
                (None, Value::Bool(false)) => found.push(unknown_member(&at, known)),
                (None, other @ Value::Object(_)) => found.extend(self.check(member, other, &at)),
                (None, _) => {}
            }
        }
    }

    fn check_alternatives(
        &self,
        value: &Value,
        schema: &Value,
        field: &str,
        found: &mut Vec<Violation>,
    ) {
        for keyword in ["oneOf", "anyOf"] {
            let results: Vec<Vec<Violation>> = list(schema, keyword)
                .map(|part| self.check(value, part, field))
                .collect();
            let right = results.iter().filter(|found| found.is_empty()).count();
            let enough = if keyword == "oneOf" {
                right == 1
            } else {
                right > 0
            };
            if results.is_empty() || enough {
                continue;
            }
            if right > 1 {
                let remedy = "give one".to_owned();
                found.extend(wrong(field, "fits several forms at once".to_owned(), remedy).err());
            } else {
                let mut nearest = nearest(results, field);
                if let [one] = &mut nearest[..]
                    && one.field == field
                    && let Some(forms) = self.forms(schema, keyword)
                {
                    one.remedy = format!("give {forms}");
                }
                found.extend(nearest);
            }
        }
    }

    /// What values are right where they are words or objects with one member, in all alternatives.
    fn forms(&self, schema: &Value, keyword: &str) -> Option<String> {
        let mut forms = Vec::new();
        for part in list(schema, keyword) {
            let part = self.resolve(part);
            let required: Vec<&Value> = list(part, "required").collect();
            match (&part["enum"], &required[..]) {
                (Value::Array(words), []) => forms.extend(words.iter().map(Value::to_string)),
                (Value::Null, [name]) => forms.push(format!("{{{name}: \"...\"}}")),
                _ => return None,
            }
        }
        Some(forms.join(" or "))
    }
}

/// A member that a schema does not have.
fn unknown_member(at: &str, known: Option<&serde_json::Map<String, Value>>) -> Violation {
    let mut names: Vec<&str> = known
        .into_iter()
        .flat_map(|known| known.keys())
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    Violation {
        field: at.to_owned(),
        what: "is not known".to_owned(),
        remedy: format!("leave it out; known are {}", names.join(", ")),
    }
}

/// What is wrong by the alternative that was most likely meant: one of the value's kind, with the
/// fewest violations, of which the deepest tells most.
fn nearest(alternatives: Vec<Vec<Violation>>, field: &str) -> Vec<Violation> {
    let is_of_kind = |one: &Violation| one.what.starts_with("is ");
    let key = |found: &Vec<Violation>| {
        let other_kind = found.len() == 1 && found[0].field == field && is_of_kind(&found[0]);
        let depth = found
            .iter()
            .map(|one| one.field.len() + usize::from(!is_of_kind(one)));
        (other_kind, found.len(), Reverse(depth.max()))
    };
    alternatives.into_iter().min_by_key(key).unwrap_or_default()
}

fn check_choice(value: &Value, schema: &Value, field: &str) -> Checked {
    let choices: Vec<&Value> = list(schema, "enum").chain(schema.get("const")).collect();
    if choices.is_empty() || choices.contains(&value) {
        return Ok(());
    }
    let names: Vec<String> = choices.iter().map(|choice| choice.to_string()).collect();
    let shown: String = value.to_string().chars().take(80).collect();
    wrong(
        field,
        format!("{shown} is not known"),
        format!("give {}", names.join(" or ")),
    )
}

fn check_number(value: &Value, schema: &Value, field: &str) -> Checked {
    let (least, most) = (schema.get("minimum"), schema.get("maximum"));
    let below = least.is_some_and(|least| less(value, least));
    let above = most.is_some_and(|most| less(most, value));
    let shown = |number: &Value| show_number(number, field);
    if below || above {
        let given = shown(value);
        let (what, remedy) = match (least, most) {
            (Some(least), Some(most)) => (
                format!(
                    "{given} is not between {} and {}",
                    shown(least),
                    shown(most)
                ),
                "give one of these",
            ),
            (Some(least), None) => (
                format!("{given} is below {}", shown(least)),
                "give a greater one",
            ),
            (_, most) => {
                let most = most.map(shown).unwrap_or_default();
                (format!("{given} is above {most}"), "give a smaller one")
            }
        };
        return wrong(field, what, remedy.to_owned());
    }
    if let (Some(step), Some(number)) = (schema["multipleOf"].as_u64(), value.as_u64())
        && step > 0
        && number % step != 0
    {
        let near = shown(&(number - number % step).into());
        let what = format!(
            "{} is not a multiple of {}",
            shown(value),
            shown(&step.into())
        );
        return wrong(field, what, format!("give one, such as {near}"));
    }
    Ok(())
}

/// A number as people write it: of bytes with a unit, where that tells the same.
fn show_number(number: &Value, field: &str) -> String {
    match number.as_u64() {
        Some(bytes) if field.ends_with("_bytes") => format_exact(bytes),
        _ => number.to_string(),
    }
}

/// Compares numbers without losing whole ones to rounding.
fn less(a: &Value, b: &Value) -> bool {
    let whole = |v: &Value| v.as_i64().map(i128::from).or(v.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_f64().unwrap_or(f64::NAN) < b.as_f64().unwrap_or(f64::NAN),
    }
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn list<'a>(schema: &'a Value, keyword: &str) -> impl Iterator<Item = &'a Value> {
    schema[keyword].as_array().into_iter().flatten()
}

fn range(least: Option<u64>, most: Option<u64>) -> String {
    match (least, most) {
        (Some(least), Some(most)) if least == most => format!("{least}"),
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, most) => format!("at most {}", most.unwrap_or(0)),
    }
}

fn join(field: &str, name: &str) -> String {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    if field.is_empty() {
        shown
    } else {
        format!("{field}.{shown}")
    }
}

/// ECMA 262's `\uXXXX` in the form that the `regex` package reads; `$` is the end in both.
fn rust_form(pattern: &str) -> String {
    let mut parts = pattern.split("\\u");
    let mut form = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(4).unwrap_or((part, ""));
        form.push_str(&format!("\\x{{{digits}}}{rest}"));
    }
    form
}

fn wrong(field: &str, what: String, remedy: String) -> Checked {
    Err(Violation {
        field: field.to_owned(),
        what,
        remedy,
    })
}
