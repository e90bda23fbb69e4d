//! Schemas of forms that several resources share.
//!
//! Each is the one place where its bounds are written; a test compares them with the constants
//! that the rest of the project uses.

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};

/// Most bytes of a path on the host, as Linux bounds it.
pub const MAX_PATH_BYTES: usize = 4095;
/// Most seconds that a request can name.
pub const MAX_SECONDS: u64 = 86_400;
/// Longest beginning of names that end in a number: it leaves room for five digits.
pub const MAX_PREFIX_BYTES: usize = crate::MAX_NAME_BYTES - 5;
/// Most earlier archives that an import is given.
pub const MAX_EARLIER: usize = 256;
/// Form of a name: a host name's label, also with dots and underscores inside.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";

/// States of VMs.
pub const STATES: &[&str] = &[
    "creating",
    "running",
    "paused",
    "frozen",
    "paused: no space",
    "poweredOff",
    "out of memory",
    "suspended",
];

/// Makes a schema of its JSON form; the caller's literal is one.
fn of(value: Value) -> Schema {
    serde_json::from_value(value).unwrap_or_default()
}

/// Name of an object.
pub fn name() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": crate::MAX_NAME_BYTES,
        "pattern": NAME_PATTERN, "examples": ["web1"],
    }))
}

/// Id or name of an object, alone or behind the names of its folders.
pub fn reference() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 1024,
        "pattern": "^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$", "examples": ["vm-1"],
    }))
}

/// Id or name of a fork point, or of its parent.
pub fn fork_point() -> Schema {
    with_example(reference(), "forkpoint-1")
}

/// Id or name of a datastore.
pub fn datastore() -> Schema {
    with_example(reference(), "datastore-1")
}

/// Id or name of a disk pool.
pub fn disk_pool() -> Schema {
    with_example(reference(), "diskpool-1")
}

/// Id of any object.
pub fn object() -> Schema {
    with_example(reference(), "folder-1")
}

/// Id or name of a resource pool.
pub fn resource_pool() -> Schema {
    with_example(label(), "resgroup-1")
}

/// Id or name of a snapshot.
pub fn snapshot() -> Schema {
    with_example(name(), "snapshot-1")
}

/// Names of Debian packages.
pub fn packages() -> Schema {
    of(json!({
        "type": "array", "maxItems": 1000,
        "items": {
            "type": "string", "minLength": 2, "maxLength": 128,
            "pattern": "^[a-z0-9][a-z0-9+.-]+$",
        },
    }))
}

/// Name of an object, or null.
pub fn optional_name() -> Schema {
    nullable(name())
}

/// Beginning of names that end in a number.
pub fn optional_prefix() -> Schema {
    nullable(of(json!({
        "type": "string", "minLength": 1, "maxLength": MAX_PREFIX_BYTES,
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$", "examples": ["w-"],
    })))
}

/// Id or name of an object that may have spaces in it.
pub fn label() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 128,
        "pattern": "^[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9])?$", "examples": ["network-1"],
    }))
}

/// Folder of VMs: an id, or names joined by `/`.
pub fn folder() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 2048,
        "pattern": "^[A-Za-z0-9._/-]*$", "examples": ["folder-1"],
    }))
}

/// Id or name of an object that may have spaces in it, or null.
pub fn optional_label() -> Schema {
    nullable(label())
}

/// Folder of VMs: an id, or names joined by `/`, or null.
pub fn optional_folder() -> Schema {
    nullable(folder())
}

/// Free text about an object, or null.
pub fn optional_annotation() -> Schema {
    of(json!({ "type": ["string", "null"], "maxLength": crate::MAX_ANNOTATION_BYTES }))
}

/// Custom attributes of an object.
pub fn attributes() -> Schema {
    of(json!({
        "type": "object",
        "additionalProperties": { "type": "string", "maxLength": crate::MAX_ATTRIBUTE_BYTES },
    }))
}

/// Custom attributes to set; null removes one.
pub fn attribute_changes() -> Schema {
    of(json!({
        "type": "object",
        "additionalProperties": {
            "type": ["string", "null"], "maxLength": crate::MAX_ATTRIBUTE_BYTES,
        },
    }))
}

/// UUID, or null.
pub fn optional_uuid() -> Schema {
    of(json!({
        "type": ["string", "null"], "minLength": 36, "maxLength": 36,
        "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        "examples": ["0b8f7a52-3c7e-4b62-9a53-1f2f4a6d7c11"],
    }))
}

/// Places of disks or NICs in their VM.
pub fn places() -> Schema {
    of(json!({
        "type": "array", "maxItems": 11, "uniqueItems": true,
        "items": { "type": "integer", "minimum": 0, "maximum": 13 },
    }))
}

/// Number of vCPUs, or null.
pub fn optional_cpus() -> Schema {
    nullable(cpus())
}

/// Guest memory, bytes, or null.
pub fn optional_memory_bytes() -> Schema {
    nullable(memory_bytes())
}

/// Bytes where zero means no limit, or null.
pub fn optional_limit() -> Schema {
    of(json!({
        "type": ["integer", "null"], "format": "int64", "minimum": 0, "maximum": 1_u64 << 60,
    }))
}

/// Engine, or null where it stays.
pub fn optional_engine() -> Schema {
    of(json!({ "type": ["string", "null"], "enum": ["auto", "kvm", "soft", null] }))
}

/// Names of new objects: no two alike.
pub fn names() -> Schema {
    of(json!({
        "type": "array", "minItems": 1, "maxItems": crate::MAX_CLONES, "uniqueItems": true,
        "items": name(),
    }))
}

/// Names of children, none of them alike, or none at all.
pub fn child_names() -> Schema {
    of(json!({
        "type": "array", "maxItems": crate::MAX_CHILDREN, "uniqueItems": true, "items": name(),
    }))
}

/// A command and its arguments, or none.
pub fn argv() -> Schema {
    words(0)
}

/// A command, at least, and its arguments.
pub fn command() -> Schema {
    words(1)
}

fn words(least: usize) -> Schema {
    of(json!({
        "type": "array", "minItems": least, "maxItems": 256,
        "items": { "type": "string", "maxLength": 8192, "pattern": "^[^\\u0000]*$" },
        "examples": [["sh", "-c", "hostname"]],
    }))
}

/// Format of members that name a file of the host, or a device: only an admin may.
pub const HOST_FORMAT: &str = "host-resource";

/// Absolute path on the host.
pub fn path() -> Schema {
    of(json!({
        "type": "string", "format": HOST_FORMAT, "minLength": 1, "maxLength": MAX_PATH_BYTES,
        "pattern": "^/[^\\u0000]*$",
    }))
}

/// Archives on the host.
pub fn archives() -> Schema {
    of(json!({
        "type": "array", "maxItems": MAX_EARLIER, "items": path(),
        "description": "Earlier archives, in any order, that have what this one leaves out.",
    }))
}

/// Absolute path in a guest, or null.
pub fn optional_guest_path() -> Schema {
    of(json!({
        "type": ["string", "null"], "minLength": 1, "maxLength": MAX_PATH_BYTES,
        "pattern": "^/[^\\u0000]*$",
    }))
}

/// Absolute path on the host, or null.
pub fn optional_path() -> Schema {
    nullable(path())
}

/// Ethernet address.
pub fn mac() -> Schema {
    of(json!({
        "type": "string", "pattern": "^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$",
        "minLength": 17, "maxLength": 17, "examples": ["52:54:00:12:34:56"],
    }))
}

/// Ethernet address that frames may come from, or null.
pub fn optional_unicast_mac() -> Schema {
    of(json!({
        "type": ["string", "null"],
        "pattern": "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$",
        "minLength": 17, "maxLength": 17, "examples": ["52:54:00:12:34:56"],
    }))
}

/// Name of a network interface of the host, or null.
pub fn optional_interface() -> Schema {
    of(json!({
        "type": ["string", "null"], "format": HOST_FORMAT, "minLength": 1, "maxLength": 15,
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
    }))
}

/// Form of a guestinfo key.
pub const GUESTINFO_KEY_PATTERN: &str = "^guestinfo\\.[A-Za-z0-9._-]+$";
/// Most characters of a guestinfo key.
pub const GUESTINFO_KEY_MAX: usize = 256;
/// Most characters of a guestinfo value.
pub const GUESTINFO_VALUE_MAX: usize = 64 << 10;

/// Values of `kind` by guestinfo key.
pub(crate) fn guestinfo(text: &str, kind: Value) -> RefOr<Schema> {
    of(json!({
        "type": "object", "description": text,
        "propertyNames": {
            "type": "string", "pattern": GUESTINFO_KEY_PATTERN, "maxLength": GUESTINFO_KEY_MAX,
        },
        "additionalProperties": {
            "type": kind, "maxLength": GUESTINFO_VALUE_MAX,
            "pattern": "^[^\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f]*$",
        },
        "examples": [{ "guestinfo.role": "web" }],
    }))
    .into()
}

/// Form of an IPv4 or IPv6 address; the daemon reads it exactly.
const ADDRESS_PATTERN: &str = "^[0-9a-fA-F:.]+$";

/// IP address, or null.
pub fn optional_address() -> Schema {
    of(json!({
        "type": ["string", "null"], "minLength": 2, "maxLength": 45, "pattern": ADDRESS_PATTERN,
        "examples": ["192.0.2.1"],
    }))
}

/// IP addresses of name servers.
pub fn name_servers() -> Schema {
    of(json!({
        "type": "array", "maxItems": 8,
        "items": {
            "type": "string", "minLength": 2, "maxLength": 45, "pattern": ADDRESS_PATTERN,
            "examples": ["192.0.2.1"],
        },
    }))
}

/// IP address with prefix length.
pub fn network_address() -> Schema {
    of(json!({
        "type": "string", "minLength": 4, "maxLength": 49,
        "pattern": "^[0-9a-fA-F:.]+/[0-9]{1,3}$", "examples": ["192.0.2.7/24"],
    }))
}

/// Engine that executes a guest.
pub fn engine() -> Schema {
    of(json!({ "type": "string", "enum": ["auto", "kvm", "soft"], "default": "auto" }))
}

/// Kernel command line, or null.
pub fn optional_cmdline() -> Schema {
    of(json!({
        "type": ["string", "null"], "maxLength": vm_spec::MAX_CMDLINE_BYTES,
        "pattern": "^[^\\u0000]*$",
    }))
}

/// Guest memory, bytes.
pub fn memory_bytes() -> Schema {
    of(json!({
        "type": "integer", "format": "int64", "minimum": vm_spec::MIN_MEMORY_BYTES,
        "maximum": vm_spec::MAX_MEMORY_BYTES, "multipleOf": vm_spec::MEMORY_GRANULE_BYTES,
    }))
}

/// Number of vCPUs.
pub fn cpus() -> Schema {
    of(json!({
        "type": "integer", "format": "int32", "minimum": 1, "maximum": vm_spec::MAX_CPUS,
    }))
}

/// Size of a disk, or null.
pub fn optional_disk_bytes() -> Schema {
    of(json!({
        "type": ["integer", "null"], "format": "int64", "minimum": 512,
        "maximum": crate::MAX_EXTRA_DISK_BYTES, "multipleOf": 512,
    }))
}

/// Bytes of the host, or null.
pub fn optional_bytes() -> Schema {
    of(json!({
        "type": ["integer", "null"], "format": "int64", "minimum": 1, "maximum": 1_u64 << 60,
    }))
}

/// Seconds, or null.
pub fn optional_seconds() -> Schema {
    of(json!({
        "type": ["integer", "null"], "format": "int64", "minimum": 0, "maximum": MAX_SECONDS,
    }))
}

/// Most seconds that one request waits; who waits longer asks again.
pub const MAX_WAIT_SECONDS: u64 = 8;

/// Seconds that a request waits.
pub fn wait_seconds() -> Schema {
    of(json!({
        "type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_WAIT_SECONDS,
    }))
}

/// Names with figures, in order.
pub fn figures() -> Schema {
    of(json!({
        "type": "array",
        "items": {
            "type": "array", "minItems": 2, "maxItems": 2,
            "items": { "oneOf": [{ "type": "string" }, { "type": "integer" }] },
        },
    }))
}

/// Back end of a serial port.
pub(crate) fn serial() -> RefOr<Schema> {
    let with_path = |kind: &str, text: &str| {
        json!({
            "type": "object", "description": text, "required": [kind],
            "properties": { kind: path() }, "additionalProperties": false,
        })
    };
    of(json!({
        "description": "Back end of a serial port: a log in the VM's home folder, nothing, a \
                        pseudo-terminal beside the log, or a file or socket of the host.",
        "oneOf": [
            { "type": "string", "enum": ["log", "none", "pty"] },
            with_path("file", "Output is appended to this file."),
            with_path("unix", "A Unix socket that takes one connection at a time, beside the log."),
        ],
    }))
    .into()
}

/// Number of a task or event.
pub fn number() -> Schema {
    of(json!({
        "type": "integer", "format": "int64", "minimum": 0, "maximum": i64::MAX,
    }))
}

/// Key of a call that is to be carried out once.
pub fn key() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$",
    }))
}

/// Version of an object in `If-Match`, or any.
pub fn version_tag() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "pattern": "^([*]|\"[0-9]{1,19}\")$",
        "examples": ["\"7\""],
    }))
}

/// Most items of one answer.
pub fn limit() -> Schema {
    of(json!({
        "type": "integer", "format": "int32", "minimum": 1, "maximum": 10_000,
    }))
}

/// Where a list goes on: what `rel="next"` of the answer before told.
pub fn cursor() -> Schema {
    of(json!({ "type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!-~]+$" }))
}

/// Part of a name: `*` stands for any text.
pub fn glob() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._*-]+$",
    }))
}

/// A word such as the kind of an event.
pub fn word() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9_.-]+$",
    }))
}

/// An attribute, or an attribute and its value.
pub fn attribute() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": 512, "pattern": "^[!-<>-~]+(=[ -~]*)?$",
        "examples": ["tier=web"],
    }))
}

/// State of a VM.
pub fn state() -> Schema {
    of(json!({ "type": "string", "enum": STATES }))
}

/// Variables of a program.
pub fn environment() -> Schema {
    let name = json!({
        "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "maxLength": 255,
    });
    let value = json!({
        "type": "string", "maxLength": 8192, "pattern": "^[^\\u0000]*$",
    });
    ObjectBuilder::new()
        .property_names(Some(of(name)))
        .additional_properties(Some(of(value)))
        .max_properties(Some(256))
        .into()
}

/// Name of a user in a guest, or null.
pub fn optional_guest_user() -> Schema {
    of(json!({
        "type": ["string", "null"], "minLength": 1, "maxLength": 32,
        "pattern": "^[a-z_][a-z0-9_-]*$",
    }))
}

/// Number from zero up, or null.
pub fn optional_number() -> Schema {
    nullable(number())
}

fn with_example(schema: Schema, example: &str) -> Schema {
    let mut value = serde_json::to_value(schema).unwrap_or_default();
    value["examples"] = json!([example]);
    of(value)
}

fn nullable(schema: Schema) -> Schema {
    let mut value = serde_json::to_value(schema).unwrap_or_default();
    if let Some(kind) = value.get_mut("type") {
        *kind = json!([kind.clone(), "null"]);
    }
    of(value)
}
