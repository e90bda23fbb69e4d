//! Running a command in a guest and waiting for its end.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use agent_protocol::host::{self, Output};
use agent_protocol::{REQUEST_PORT, Start};
use anyhow::Context;
use api_types::ErrorKind;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};

/// Most of each output that is kept, bytes.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// How a command in a guest ended.
#[derive(Clone, Debug)]
pub struct Executed {
    /// Its exit code; 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Host {
    /// Runs `argv` in the guest; a command that does not end in `timeout` is left running.
    pub(super) fn exec_in(
        &self,
        vm: &Arc<Vm>,
        argv: &[String],
        timeout: Duration,
    ) -> OpResult<Executed> {
        self.check_running(vm)?;
        if vm.live().ready_at_ns.is_none() {
            return Err(OpError::conflict(format!(
                "{0} has no guest agent that is ready, so nothing can be run in it; see \
                 'mitose logs {0}'",
                vm.name()
            )));
        }
        let path = self.config.home.vm_vsock(&vm.id);
        let start = Start {
            argv: argv.to_vec(),
            ..Start::default()
        };
        let (tell, done) = mpsc::channel();
        let work = move || {
            let result = run(&path, &start);
            // Nobody listens after the time is over.
            let _ = tell.send(result);
        };
        std::thread::Builder::new()
            .name("guest-exec".into())
            .spawn(work)
            .context("cannot start a thread")?;
        match done.recv_timeout(timeout) {
            Ok(output) => {
                let output = output.with_context(|| format!("cannot run in {}", vm.name()))?;
                Ok(Executed {
                    exit_code: output.exit.shell_code(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                })
            }
            Err(_) => Err(OpError::new(
                ErrorKind::Timeout,
                format!(
                    "exec: {:?} did not end in {} s in {}",
                    argv.join(" "),
                    timeout.as_secs(),
                    vm.name()
                ),
            )),
        }
    }
}

fn run(path: &std::path::Path, start: &Start) -> anyhow::Result<Output> {
    let mut stream = UnixStream::connect(path).context("cannot reach the guest")?;
    host::connect(&mut stream, REQUEST_PORT)?;
    let writer = stream.try_clone().context("cannot share a connection")?;
    Ok(host::run_collect(
        stream,
        writer,
        start,
        &[],
        MAX_OUTPUT_BYTES,
    )?)
}
