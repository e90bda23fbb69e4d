//! What an operation of the daemon ends with when it does not succeed.
//!
//! Free of HTTP: `http::answer` maps it. The message is one line for a person and names the remedy;
//! causes below it are joined behind it once, by [`OpError::message`].

use api_types::{ErrorKind, Task};

use crate::inventory::InventoryError;

/// An operation was refused or failed.
#[derive(Debug)]
pub struct OpError {
    /// What kind of failure.
    pub kind: ErrorKind,
    cause: anyhow::Error,
    field: Option<String>,
    remedy: Option<String>,
}

/// Result of an operation.
pub type OpResult<T> = Result<T, OpError>;

impl OpError {
    /// Makes an error of `kind` with a message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        let (field, remedy) = parts(kind, &message);
        Self {
            kind,
            field,
            remedy,
            cause: anyhow::Error::msg(message),
        }
    }

    /// Makes an error of `kind` about a field: what is wrong with it and what to do.
    pub fn told(kind: ErrorKind, field: &str, what: &str, remedy: &str) -> Self {
        Self {
            kind,
            cause: anyhow::Error::msg(format!("{field}: {what}; {remedy}")),
            field: Some(field.to_owned()),
            remedy: Some(remedy.to_owned()),
        }
    }

    /// The error that a task ended with.
    pub fn of_task(task: &Task) -> Self {
        let message = task.error.as_deref().unwrap_or("it did not end well");
        Self {
            kind: task.error_kind.unwrap_or(ErrorKind::Failed),
            cause: anyhow::Error::msg(message.to_owned()),
            field: task.field.clone(),
            remedy: task.remedy.clone(),
        }
    }

    /// Names the field of the request that is wrong.
    pub fn about(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Says which item of the request it is about: the field, where there is one, is a member of it.
    pub fn within(mut self, place: &str) -> Self {
        self.field = Some(match self.field {
            Some(field) => format!("{place}.{field}"),
            None => place.to_owned(),
        });
        self
    }

    /// Says what to do about it.
    pub fn with_remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.to_owned());
        self
    }

    /// Field of the request that is wrong, where one is.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// A field of the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The object is in the wrong state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The host lacks something.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// It was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// An error of a library as the cause of an error of `kind`.
    pub fn caused(kind: ErrorKind, cause: impl Into<anyhow::Error>) -> Self {
        let cause = cause.into();
        let (field, remedy) = parts(kind, &chain_line(&cause));
        Self {
            kind,
            cause,
            field,
            remedy,
        }
    }

    /// Whether one of its causes is as asked.
    pub fn has_cause(&self, is: impl Fn(&(dyn std::error::Error + 'static)) -> bool) -> bool {
        self.cause.chain().any(is)
    }

    /// The whole chain of causes in one line.
    pub fn message(&self) -> String {
        chain_line(&self.cause)
    }
}

impl From<InventoryError> for OpError {
    fn from(error: InventoryError) -> Self {
        let kind = if error.is_passing() {
            ErrorKind::Unavailable
        } else {
            ErrorKind::Failed
        };
        Self::caused(kind, error)
    }
}

impl From<anyhow::Error> for OpError {
    fn from(cause: anyhow::Error) -> Self {
        Self::caused(ErrorKind::Failed, cause)
    }
}

/// Members of requests that errors of any kind begin with.
const FIELDS: &[&str] = &[
    "bridge",
    "count",
    "datastore",
    "folder",
    "mac",
    "memory",
    "memory-limit",
    "name",
    "network",
    "new_identity",
    "nics",
    "parent",
    "path",
    "persistent",
    "pool",
    "serial",
    "since",
    "snapshot",
    "source",
];

/// Members of requests that messages call as the options of the command line are called.
const CALLED: &[(&str, &str)] = &[
    ("disk", "disks"),
    ("memory", "memory_bytes"),
    ("memory-limit", "memory_limit_bytes"),
    ("net", "nets"),
];

/// Field and remedy of a message of the form `field: what is wrong; what to do`, which every
/// message about a request has. Messages of other kinds than `invalid` may begin with the name of
/// an object instead, so only the usual fields are taken for such.
fn parts(kind: ErrorKind, message: &str) -> (Option<String>, Option<String>) {
    let word = |text: &&str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-[].".contains(c);
        text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(inner)
    };
    let field = message
        .split_once(": ")
        .map(|(field, _)| field)
        .filter(|field| match kind {
            ErrorKind::Invalid => word(field),
            _ => FIELDS.contains(field),
        })
        .map(|field| {
            let called = CALLED.iter().find(|(word, _)| *word == field);
            called.map_or(field, |(_, member)| member)
        });
    let remedy = message.rsplit_once("; ").map(|(_, remedy)| remedy);
    (field.map(str::to_owned), remedy.map(str::to_owned))
}

/// Joins an error and its causes in one line, without what a cause repeats.
pub fn chain_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace(['\n', '\r'], " ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn field_and_remedy_are_read_from_the_message() {
        let error = OpError::invalid("disks[0].path: cannot open /x; give a file that exists");
        assert_eq!(error.field(), Some("disks[0].path"));
        assert_eq!(error.remedy(), Some("give a file that exists"));
        let error = OpError::conflict("name: there is a VM \"a\" already; choose another");
        assert_eq!(error.field(), Some("name"));
        let error = OpError::invalid("memory-limit: too little; give more");
        assert_eq!(error.field(), Some("memory_limit_bytes"));
        let error = OpError::invalid("tap: there is none; make it");
        let error = error.within("nets[1]");
        assert_eq!(error.field(), Some("nets[1].tap"));
        let error = OpError::conflict("web1: it is paused");
        assert_eq!((error.field(), error.remedy()), (None, None));
        let error = OpError::told(ErrorKind::Conflict, "name", "is taken", "choose another");
        assert_eq!(error.message(), "name: is taken; choose another");
        assert_eq!(error.field(), Some("name"));
    }

    #[test]
    fn causes_are_joined_in_one_line_without_repeats() {
        let error = Err::<(), _>(std::io::Error::other("disk\nfull"))
            .context("cannot write x: disk full")
            .context("cannot make y")
            .unwrap_err();
        let line = OpError::from(error).message();
        assert_eq!(line, "cannot make y: cannot write x: disk full");
    }
}
