//! One run of the lab, from boot to the command's exit code.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::build::{Lab, file_error};
use crate::error::RunError;
use crate::qemu::{self, Machine, PORTS};
use crate::run_dir::RunDir;
use crate::spec::{Output, RunSpec};
use crate::transfer;

/// Longest wait for the lab to come up; a slow host needs about 30 s.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How often limits and the machine are looked at while nothing arrives.
const POLL: Duration = Duration::from_millis(50);

/// The result of a command that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command's exit code; 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// What it wrote to standard output, where captured.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, where captured.
    pub stderr: Vec<u8>,
    /// How long each part took.
    pub timings: Timings,
}

/// How long the parts of a run took on the host's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Making the transfer disk.
    pub prepare: Duration,
    /// From QEMU's start to the command's start.
    pub boot: Duration,
    /// The command.
    pub command: Duration,
    /// Collecting and storing the files copied out.
    pub collect: Duration,
}

/// A line on the control port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// Files are in place; the command starts.
    Ready,
    /// The copied files could not be put into place.
    Failed,
    /// The file to copy out with this index does not exist.
    Missing(usize),
    /// The file to copy out with this index cannot be read.
    Unreadable(usize),
    /// The command ended.
    Exit(i32),
    /// Everything is on the transfer disk.
    Done,
}

impl Lab {
    /// Boots the lab, runs a command in it and returns its outcome.
    pub fn run(&self, spec: &RunSpec) -> Result<Outcome, RunError> {
        let begin = Instant::now();
        spec.check().map_err(RunError::Spec)?;
        let run = RunDir::create(&self.runs).map_err(RunError::Prepare)?;
        transfer::prepare(spec, &run)?;
        let prepare = begin.elapsed();
        let sockets = listen_all(&run)?;
        let machine = Machine::start(self, spec, &run).map_err(RunError::Prepare)?;
        let mut session = Session {
            spec,
            run: &run,
            machine,
            deadline: spec.timeout.and_then(|limit| begin.checked_add(limit)),
            timings: Timings {
                prepare,
                ..Timings::default()
            },
        };
        let [stdout, stderr, control] = session.connect(sockets)?;
        let stdout = pump(stdout, spec.output, io::stdout);
        let stderr = pump(stderr, spec.output, io::stderr);
        let exit_code = session.follow(&read_control(control));
        session.machine.end();
        let (stdout, stderr) = (joined(stdout), joined(stderr));
        let exit_code = exit_code?;
        let begin = Instant::now();
        for (index, copy) in spec.copy_out.iter().enumerate() {
            transfer::extract(index, &copy.host, &run).map_err(RunError::Prepare)?;
        }
        session.timings.collect += begin.elapsed();
        Ok(Outcome {
            exit_code,
            stdout,
            stderr,
            timings: session.timings,
        })
    }
}

/// A machine that is running, and what it is to do.
struct Session<'a> {
    spec: &'a RunSpec,
    run: &'a RunDir,
    machine: Machine,
    deadline: Option<Instant>,
    timings: Timings,
}

impl Session<'_> {
    /// Waits until QEMU has connected to every port's socket.
    fn connect(&mut self, sockets: [UnixListener; 3]) -> Result<[UnixStream; 3], RunError> {
        let mut streams = Vec::new();
        for socket in &sockets {
            let stream = loop {
                match socket.accept() {
                    Ok((stream, _)) => break stream,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.check("before it booted")?;
                        thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => {
                        return Err(self.file_error("accept in", error));
                    }
                }
            };
            stream
                .set_nonblocking(false)
                .map_err(|e| self.file_error("use a socket in", e))?;
            streams.push(stream);
        }
        Ok(streams
            .try_into()
            .expect("one stream for each of three sockets"))
    }

    /// Follows the control port to the end of the run and returns the command's exit code.
    fn follow(&mut self, messages: &Receiver<Message>) -> Result<i32, RunError> {
        let mut since = Instant::now();
        let mut exit_code = None;
        let mut problem = None;
        let mut ready = false;
        loop {
            let stage = match (ready, exit_code) {
                (false, _) => "while it booted",
                (true, None) => "while the command ran",
                (true, Some(_)) => "while files were copied out",
            };
            let message = match messages.recv_timeout(POLL) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    self.check(stage)?;
                    if !ready && since.elapsed() > BOOT_LIMIT {
                        let console = qemu::last_words(self.run);
                        return Err(RunError::BootTimeout {
                            limit: BOOT_LIMIT,
                            console,
                        });
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.check(stage)?;
                    return Err(self.died(stage));
                }
            };
            match message {
                Message::Ready => {
                    ready = true;
                    self.timings.boot = restart(&mut since);
                }
                Message::Failed => {
                    return Err(RunError::Place {
                        console: qemu::last_words(self.run),
                    });
                }
                Message::Exit(code) => {
                    exit_code = Some(code);
                    self.timings.command = restart(&mut since);
                }
                Message::Missing(index) => problem = problem.or(Some((index, "does not exist"))),
                Message::Unreadable(index) => {
                    problem = problem.or(Some((index, "cannot be read whole")));
                }
                Message::Done => break,
            }
        }
        self.timings.collect = since.elapsed();
        let exit_code = exit_code.ok_or_else(|| self.died("without an exit code"))?;
        match problem.and_then(|(index, text)| Some((self.spec.copy_out.get(index)?, text))) {
            None => Ok(exit_code),
            Some((copy, problem)) => Err(RunError::CopyOut {
                lab: copy.lab.clone(),
                problem,
                exit_code,
            }),
        }
    }

    /// Fails where the run is to end or has ended.
    fn check(&mut self, stage: &'static str) -> Result<(), RunError> {
        if self.spec.cancel.load(Ordering::Relaxed) {
            return Err(RunError::Cancelled);
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(RunError::Timeout {
                limit: self.spec.timeout.unwrap_or_default(),
            });
        }
        if self.machine.ended().is_some() {
            return Err(self.died(stage));
        }
        Ok(())
    }

    fn died(&mut self, stage: &'static str) -> RunError {
        let status = self.machine.end_after_ports();
        RunError::Died {
            status,
            stage,
            console: qemu::last_words(self.run),
        }
    }

    fn file_error(&self, action: &'static str, error: io::Error) -> RunError {
        RunError::Prepare(file_error(action, self.run.path(), error))
    }
}

fn listen_all(run: &RunDir) -> Result<[UnixListener; 3], RunError> {
    let mut sockets = Vec::new();
    for port in PORTS {
        let socket = qemu::listen(port, run).map_err(RunError::Prepare)?;
        socket
            .set_nonblocking(true)
            .map_err(|e| RunError::Prepare(file_error("listen in", run.path(), e)))?;
        sockets.push(socket);
    }
    Ok(sockets
        .try_into()
        .expect("one socket for each of three ports"))
}

/// Copies a port's stream to `sink` or into memory until its end, in a thread.
fn pump<W: Write>(
    mut stream: UnixStream,
    output: Output,
    sink: impl FnOnce() -> W + Send + 'static,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut captured = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut sink = sink();
        loop {
            let length = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            match output {
                Output::Capture => captured.extend_from_slice(&buffer[..length]),
                // Where nobody reads our output any more, the rest is dropped.
                Output::Stream => {
                    let _ = sink
                        .write_all(&buffer[..length])
                        .and_then(|()| sink.flush());
                }
            }
        }
        captured
    })
}

fn joined(pump: JoinHandle<Vec<u8>>) -> Vec<u8> {
    pump.join().unwrap_or_default()
}

fn read_control(stream: UnixStream) -> Receiver<Message> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            // The command runs as root in the lab and could write here: what is no message is
            // skipped.
            let Some(message) = parse_message(&line) else {
                continue;
            };
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    receiver
}

fn parse_message(line: &str) -> Option<Message> {
    let (word, number) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "ready" => Some(Message::Ready),
        "failed" => Some(Message::Failed),
        "done" => Some(Message::Done),
        "missing" => Some(Message::Missing(number.parse().ok()?)),
        "unreadable" => Some(Message::Unreadable(number.parse().ok()?)),
        "exit" => Some(Message::Exit(number.parse().ok()?)),
        _ => None,
    }
}

fn restart(since: &mut Instant) -> Duration {
    let elapsed = since.elapsed();
    *since = Instant::now();
    elapsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_lines_are_messages() {
        let cases = [
            ("ready", Some(Message::Ready)),
            ("exit 7", Some(Message::Exit(7))),
            ("missing 2", Some(Message::Missing(2))),
            ("unreadable 0", Some(Message::Unreadable(0))),
            ("failed", Some(Message::Failed)),
            ("done", Some(Message::Done)),
            ("exit", None),
            ("exit x", None),
            ("", None),
        ];
        for (line, message) in cases {
            assert_eq!(parse_message(line), message, "{line}");
        }
    }
}
