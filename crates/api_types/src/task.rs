//! Tasks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorKind;

/// State of a task or of one of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// In work.
    Running,
    /// Done.
    Success,
    /// Failed; see its error.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
}

/// One of several things that a task makes, such as one clone of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskItem {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub state: TaskState,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// An operation that changes something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Rising number.
    pub id: i64,
    /// What it does, such as `image.build`.
    pub kind: String,
    /// Name of what it works on.
    pub subject: String,
    /// Id of what it works on.
    #[serde(default)]
    pub object: Option<String>,
    /// Who asked for it.
    #[serde(default)]
    pub user: String,
    /// Where it is.
    pub state: TaskState,
    /// 0 to 100, where known.
    pub percent: Option<u8>,
    /// What it does at the moment.
    pub message: String,
    /// Why it failed: one line.
    pub error: Option<String>,
    /// What kind of failure.
    #[serde(default)]
    pub error_kind: Option<ErrorKind>,
    /// Member of the request that it failed by, where it is one.
    #[serde(default)]
    pub field: Option<String>,
    /// What to do about its failure, where that is known.
    #[serde(default)]
    pub remedy: Option<String>,
    /// What it gave, by its kind.
    #[serde(default)]
    pub result: Option<serde_json::Value>,
    /// What it makes, one by one, where there are several.
    #[serde(default)]
    pub items: Vec<TaskItem>,
    /// It can be cancelled.
    #[serde(default)]
    pub cancellable: bool,
    /// Key that the client gave: the same call with the same key is carried out once.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// When it began, milliseconds since 1970.
    #[serde(default)]
    pub started_at_ms: i64,
    /// When it ended, milliseconds since 1970.
    #[serde(default)]
    pub ended_at_ms: Option<i64>,
}

impl Task {
    /// A task that begins.
    pub fn new(kind: &str, subject: &str) -> Self {
        Self {
            id: 0,
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            object: None,
            user: String::new(),
            state: TaskState::Running,
            percent: None,
            message: String::new(),
            error: None,
            error_kind: None,
            field: None,
            remedy: None,
            result: None,
            items: Vec::new(),
            cancellable: false,
            idempotency_key: None,
            started_at_ms: 0,
            ended_at_ms: None,
        }
    }
}
