//! Commands in guests, run to their end and answered as a whole.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_protocol::host::HostError;
use agent_protocol::{Exit, FrameError, REQUEST_PORT, Start};
use api_types::{Encoding, ErrorKind, ExecReply, ExecRequest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};

/// Most bytes that are kept of each of a command's outputs.
const MAX_OUTPUT_BYTES: usize = 4 << 20;
/// Longest wait for the guest to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Longest wait for a first word of a guest of which nobody knows that it has an agent.
const UNKNOWN_AGENT_WAIT: Duration = Duration::from_secs(2);
/// Pause between two looks at a guest that is waited for.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a command wrote, as far as it is kept.
#[derive(Debug, Default)]
struct Outputs {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Outputs {
    fn take(&mut self, is_stderr: bool, bytes: &[u8]) {
        let sink = if is_stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        let room = MAX_OUTPUT_BYTES.saturating_sub(sink.len()).min(bytes.len());
        sink.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
    }
}

/// How a command ended that nobody but the daemon asked for.
#[derive(Clone, Debug)]
pub struct Executed {
    /// Its exit code; 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Host {
    /// Runs `argv` in a guest whose agent is ready; one that does not end in `timeout` is ended.
    pub(super) fn exec_in(
        &self,
        vm: &Vm,
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
        let reply = self.exec(
            vm,
            ExecRequest {
                argv: argv.to_vec(),
                stdin: String::new(),
                encoding: Encoding::default(),
                env: Default::default(),
                cwd: None,
                user: None,
                wait_s: 0,
                timeout_s: timeout.as_secs(),
            },
        )?;
        let exit_code = reply.exit_code.ok_or_else(|| {
            OpError::new(
                ErrorKind::Timeout,
                format!(
                    "exec: {:?} did not end in {} s in {}",
                    argv.join(" "),
                    timeout.as_secs(),
                    vm.name()
                ),
            )
        })?;
        Ok(Executed {
            exit_code,
            stderr: reply.stderr,
        })
    }

    /// Runs a command in a guest and waits for its end.
    pub fn exec(&self, vm: &Vm, request: ExecRequest) -> OpResult<ExecReply> {
        self.check_running(vm)?;
        let stdin = decode(&request.stdin, request.encoding)?;
        let begun = Instant::now();
        self.await_agent(vm, begun, request.wait_s)?;
        let stream = self.reach_agent(vm)?;
        let deadline = Instant::now() + Duration::from_secs(request.timeout_s);
        let start = Start {
            argv: request.argv,
            env: request.env.into_iter().collect(),
            cwd: request.cwd,
            tty: None,
            user: request.user,
        };
        let share = || {
            let shared = stream.try_clone();
            shared.map_err(|error| OpError::failed(format!("cannot share a connection: {error}")))
        };
        let reader = Timed {
            stream: share()?,
            deadline,
        };
        let mut outputs = Outputs::default();
        let ended = agent_protocol::host::run(
            reader,
            share()?,
            &start,
            io::Cursor::new(stdin),
            |is_stderr, bytes| {
                outputs.take(is_stderr, bytes);
                Ok(())
            },
        );
        // The agent ends a command whose connection is gone.
        let _ = stream.shutdown(Shutdown::Both);
        let exit = match ended {
            Ok(exit) => Some(exit),
            Err(error) if Instant::now() >= deadline && is_timeout(&error) => None,
            Err(HostError::Guest { reason }) => {
                return Err(OpError::conflict(format!(
                    "argv: the guest cannot run it: {}; is the program there?",
                    reason.replace(['\n', '\r'], " ")
                ))
                .about("argv"));
            }
            Err(error) => {
                return Err(OpError::unavailable(format!(
                    "the agent of {} broke off: {:#}; is it still running in the guest?",
                    vm.name(),
                    anyhow::Error::from(error)
                )));
            }
        };
        Ok(ExecReply {
            exit_code: exit.map(Exit::shell_code),
            stdout: encode(&outputs.stdout, request.encoding),
            stderr: encode(&outputs.stderr, request.encoding),
            truncated: outputs.truncated,
            timed_out: exit.is_none(),
        })
    }

    /// Waits until the agent of a running guest is ready, at most for `wait_s` from `begun` on.
    pub(super) fn await_agent(&self, vm: &Vm, begun: Instant, wait_s: u64) -> OpResult<()> {
        while !self.agent_answers(vm, begun, wait_s)? {
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// Whether the agent of a running guest has said that it is ready; an error where it is not to be
    /// expected any more by somebody who waits for `wait_s` from `begun` on. Never blocks.
    pub fn agent_answers(&self, vm: &Vm, begun: Instant, wait_s: u64) -> OpResult<bool> {
        self.check_running(vm)?;
        let (name, live) = (vm.name(), vm.live());
        if live.ready_at_ns.is_some() {
            return Ok(true);
        }
        let waited = begun.elapsed();
        let longest = Duration::from_secs(wait_s);
        if !live.row.has_agent && waited >= UNKNOWN_AGENT_WAIT.min(longest) {
            return Err(OpError::unavailable(format!(
                "{name} has no guest agent, so nothing can be run in it; boot it from an image that \
                 has one (see 'mitose image'), or start mitose-guest in it"
            )));
        }
        if waited >= longest {
            return Err(OpError::new(
                ErrorKind::Timeout,
                format!(
                    "the agent of {name} was not ready within {wait_s} s; wait longer (--wait), or see \
                     'mitose logs {name}'"
                ),
            ));
        }
        Ok(false)
    }

    fn reach_agent(&self, vm: &Vm) -> OpResult<UnixStream> {
        let unreachable = |reason: String| {
            OpError::unavailable(format!(
                "the agent of {} cannot be reached: {reason}; is it running in the guest?",
                vm.name()
            ))
        };
        let stream = UnixStream::connect(self.config.home.vm_vsock(&vm.id))
            .and_then(|stream| {
                stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
                Ok(stream)
            })
            .map_err(|error| unreachable(error.to_string()))?;
        let shared = stream.try_clone();
        let mut timed = Timed {
            stream: shared.map_err(|error| unreachable(error.to_string()))?,
            deadline: Instant::now() + CONNECT_TIMEOUT,
        };
        agent_protocol::host::connect(&mut timed, REQUEST_PORT)
            .map_err(|error| unreachable(format!("{:#}", anyhow::Error::from(error))))?;
        Ok(stream)
    }
}

/// A connection whose reads end at a deadline.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn is_timeout(error: &HostError) -> bool {
    let HostError::Frame(FrameError::Io { source, .. }) = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

fn decode(text: &str, encoding: Encoding) -> OpResult<Vec<u8>> {
    match encoding {
        Encoding::Text => Ok(text.as_bytes().to_vec()),
        Encoding::Base64 => BASE64_STANDARD.decode(text).map_err(|error| {
            OpError::invalid(format!("stdin: it is no base64 ({error}); encode it so"))
        }),
    }
}

fn encode(bytes: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Text => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Base64 => BASE64_STANDARD.encode(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_bounded() {
        let mut outputs = Outputs::default();
        outputs.take(false, &vec![1; MAX_OUTPUT_BYTES - 1]);
        assert!(!outputs.truncated);
        outputs.take(false, &[2, 3]);
        outputs.take(true, &[4]);
        assert!(outputs.truncated);
        assert_eq!(outputs.stdout.len(), MAX_OUTPUT_BYTES);
        assert_eq!(outputs.stderr, [4]);
    }

    #[test]
    fn encodings_bring_bytes_back() {
        let bytes = [0, 255, 10];
        assert_eq!(
            decode(&encode(&bytes, Encoding::Base64), Encoding::Base64).unwrap(),
            bytes
        );
        assert_eq!(encode(&bytes, Encoding::Text), "\0\u{fffd}\n");
        let error = decode("?", Encoding::Base64).unwrap_err();
        assert_eq!(error.field(), Some("stdin"));
    }
}
