//! How a caller follows a build and stops it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ImageError;

/// Tells a build to stop; copies are the same token.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
}

impl CancelToken {
    /// Stops the builds that watch this token: they clean up and return
    /// [`ImageError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns a guard that cancels when it is dropped, for callers whose own cancellation is a
    /// drop.
    pub fn cancel_on_drop(&self) -> CancelGuard {
        CancelGuard {
            token: self.clone(),
        }
    }
}

/// Cancels its token when dropped.
#[derive(Debug)]
pub struct CancelGuard {
    token: CancelToken,
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

type Report = dyn Fn(&str, f32) + Send + Sync;

/// Receives a build's progress and carries its cancellation.
#[derive(Clone, Default)]
pub struct Watch {
    report: Option<Arc<Report>>,
    cancel: CancelToken,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Calls `report` with each stage's text and the fraction done, 0 to 1.
    pub fn new(report: impl Fn(&str, f32) + Send + Sync + 'static, cancel: CancelToken) -> Self {
        Self {
            report: Some(Arc::new(report)),
            cancel,
        }
    }

    /// Reports a stage, and fails when the build was cancelled.
    pub(crate) fn stage(&self, text: &str, fraction: f32) -> Result<(), ImageError> {
        self.check()?;
        if let Some(report) = &self.report {
            report(text, fraction);
        }
        Ok(())
    }

    /// Fails when the build was cancelled.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() {
            Err(ImageError::Cancelled)
        } else {
            Ok(())
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
