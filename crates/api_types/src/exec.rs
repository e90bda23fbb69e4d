//! Commands in guests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// How bytes are written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// UTF-8; what is none is replaced by U+FFFD.
    #[default]
    Text,
    /// Base64 with padding (RFC 4648).
    Base64,
}

fn default_wait_s() -> u64 {
    60
}

fn default_timeout_s() -> u64 {
    60
}

/// Run a command in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and its arguments.
    #[schema(schema_with = schema::command)]
    pub argv: Vec<String>,
    /// What it reads from standard input.
    #[serde(default)]
    #[schema(max_length = 1_000_000)]
    pub stdin: String,
    /// How `stdin`, and `stdout` and `stderr` of the answer, are written.
    #[serde(default)]
    pub encoding: Encoding,
    /// Variables set for it.
    #[serde(default)]
    #[schema(schema_with = schema::environment)]
    pub env: BTreeMap<String, String>,
    /// Working directory in the guest.
    #[serde(default)]
    #[schema(schema_with = schema::optional_guest_path)]
    pub cwd: Option<String>,
    /// User in the guest; root where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_guest_user)]
    pub user: Option<String>,
    /// Longest wait for an agent that has not said yet that it is ready, seconds.
    #[serde(default = "default_wait_s")]
    #[schema(maximum = 3600)]
    pub wait_s: u64,
    /// Longest time that it may take, seconds.
    #[serde(default = "default_timeout_s")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_s: u64,
}

/// How a command in a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecReply {
    /// Its exit code; 128 and the signal's number where a signal ended it; none where it was still
    /// running when its time was over.
    pub exit_code: Option<i32>,
    /// What it wrote to standard output, as the request's `encoding` says.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// More was written than the answer holds: 4 MiB of each.
    pub truncated: bool,
    /// Its time was over; it was left to the guest's agent, which ends it.
    pub timed_out: bool,
}
