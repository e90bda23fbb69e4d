//! Making a fork fail at a chosen step, for tests of the failure paths.

use vmm_protocol::ForkStep;

use crate::error::{OpError, OpResult};

/// Steps of the daemon's own at which a test can make a fork fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostStep {
    /// Recording the intent.
    Record,
    /// Making deltas and home folders.
    Deltas,
    /// Preparing processes.
    Processes,
    /// Making the intent durable.
    Sync,
    /// Telling the first clone to run.
    Restore,
}

/// Where a test makes a fork fail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailAt {
    host: Option<HostStep>,
    /// Step in the source's own process.
    pub source: Option<ForkStep>,
}

impl FailAt {
    /// Reads the name of a step.
    pub fn parse(text: Option<&str>) -> OpResult<Self> {
        let host = |step| {
            Ok(Self {
                host: Some(step),
                source: None,
            })
        };
        match text {
            None => Ok(Self::default()),
            Some("host_record") => host(HostStep::Record),
            Some("host_deltas") => host(HostStep::Deltas),
            Some("host_processes") => host(HostStep::Processes),
            Some("host_sync") => host(HostStep::Sync),
            Some("host_restore") => host(HostStep::Restore),
            Some(name) => match serde_json::from_value(name.into()) {
                Ok(step) => Ok(Self {
                    host: None,
                    source: Some(step),
                }),
                Err(_) => Err(OpError::invalid(format!(
                    "fail_at: there is no step {name:?}"
                ))),
            },
        }
    }

    /// Fails where this is the step.
    pub fn check(self, step: HostStep) -> anyhow::Result<()> {
        if self.host == Some(step) {
            anyhow::bail!("made to fail at step {step:?}");
        }
        Ok(())
    }
}
