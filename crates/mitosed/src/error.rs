//! What an operation of the daemon ends with when it does not succeed.
//!
//! Free of HTTP: `http::answer` maps it. The message is one line for a person and names the remedy;
//! causes below it are joined behind it once, by [`OpError::message`].

use api_types::ErrorKind;

/// An operation was refused or failed.
#[derive(Debug)]
pub struct OpError {
    /// What kind of failure.
    pub kind: ErrorKind,
    cause: anyhow::Error,
}

/// Result of an operation.
pub type OpResult<T> = Result<T, OpError>;

impl OpError {
    /// Makes an error of `kind` with a message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            cause: anyhow::Error::msg(message.into()),
        }
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
        Self {
            kind,
            cause: cause.into(),
        }
    }

    /// The whole chain of causes in one line.
    pub fn message(&self) -> String {
        chain_line(&self.cause)
    }
}

impl From<anyhow::Error> for OpError {
    fn from(cause: anyhow::Error) -> Self {
        Self {
            kind: ErrorKind::Failed,
            cause,
        }
    }
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
    fn causes_are_joined_in_one_line_without_repeats() {
        let error = Err::<(), _>(std::io::Error::other("disk\nfull"))
            .context("cannot write x: disk full")
            .context("cannot make y")
            .unwrap_err();
        let line = OpError::from(error).message();
        assert_eq!(line, "cannot make y: cannot write x: disk full");
    }
}
