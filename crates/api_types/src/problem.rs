//! What is answered instead of a success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A field of the request is wrong.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// The object exists or is in a state that does not allow it.
    Conflict,
    /// The object was changed since the version that the request names.
    Stale,
    /// The host lacks something: memory, space, a device.
    Unavailable,
    /// It did not happen in the given time.
    Timeout,
    /// It was tried and failed.
    Failed,
    /// The request has no valid token.
    Unauthorized,
    /// The token's role does not allow it.
    Forbidden,
    /// The client sends more requests than it may.
    Limited,
}

/// Problem details (RFC 9457): body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Kind of problem as a URI reference.
    #[serde(rename = "type", default)]
    #[schema(max_length = 200)]
    pub type_uri: String,
    /// What kind of problem it is, in a few words; the same for each of its kind.
    #[serde(default)]
    pub title: String,
    /// Status of the answer.
    #[serde(default)]
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// One line for a person: what failed, why, what to do.
    pub detail: String,
    /// What kind of failure.
    pub kind: ErrorKind,
    /// Member of the body, parameter or header that is wrong, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// All that is wrong, where that is more than one thing; this is the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub problems: Vec<Problem>,
}

impl Problem {
    /// A problem told by one line.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("/problems/{}", kind.word()),
            title: kind.title().to_owned(),
            status: 500,
            detail: detail.into(),
            kind,
            field: None,
            remedy: None,
            problems: Vec::new(),
        }
    }
}

impl ErrorKind {
    /// The word for it in answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Stale => "stale",
            Self::Limited => "limited",
        }
    }

    /// A few words for a person.
    pub fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request is not valid",
            Self::NotFound => "There is no such object",
            Self::Conflict => "The present state does not allow it",
            Self::Unavailable => "The host lacks something",
            Self::Timeout => "It did not happen in time",
            Self::Failed => "It failed",
            Self::Unauthorized => "Who asks is not known",
            Self::Forbidden => "Who asks may not do that",
            Self::Stale => "The object has changed meanwhile",
            Self::Limited => "Too many requests",
        }
    }
}
