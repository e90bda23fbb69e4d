//! Events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rising number.
    pub id: i64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Name of what it is about.
    pub subject: String,
    /// What happened, such as `vm.started`.
    pub kind: String,
    /// One line for a person.
    pub message: String,
    /// Id of what it is about.
    #[serde(default)]
    pub object: Option<String>,
    /// Task that it belongs to.
    #[serde(default)]
    pub task: Option<i64>,
    /// Who asked for that task.
    #[serde(default)]
    pub user: Option<String>,
    /// What a program wants to know, by the kind of event.
    #[serde(default)]
    pub data: Option<serde_json::Value>,
}
