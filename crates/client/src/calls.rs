//! The calls.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{
    API_PREFIX, Check, Cloned, DaemonStatus, ErrorKind, Event, ExecReply, ExecRequest, ForkRequest,
    GuestInfo, GuestInfoPatch, Image, ImageRequest, NewToken, Problem, RunReply, RunRequest,
    StopRequest, Task, TaskState, Token, TokenRequest, Vm, VmDetail, WaitFor, schema, socket_of,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ClientError;
use crate::connect::{Remote, Target};
use crate::http::{ACCEPTED, Ask, Body, ask, ask_status, ask_stream, broken, read_all};

/// A daemon's client.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
}

/// What part of a log to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Bytes from the end; all of it where not given.
    pub tail_bytes: Option<u64>,
    /// Go on with what is written later.
    pub follow: bool,
    /// The log of the VM process instead of the guest's serial port.
    pub process: bool,
}

impl Client {
    /// Client of the daemon of a data directory.
    pub fn new(home: &Path) -> Self {
        Self {
            target: Target::Socket(socket_of(home)),
        }
    }

    /// Client of a daemon on the network: its address (`https://HOST:PORT`), a token, and a PEM
    /// file with the authority that signed its certificate, or the certificate itself; the host's
    /// authorities where not given.
    pub fn remote(url: &str, token: &str, ca: Option<&Path>) -> Result<Self, ClientError> {
        let remote = Remote::new(url, token, ca)?;
        Ok(Self {
            target: Target::Tls(Arc::new(remote)),
        })
    }

    /// Path of the daemon's socket, where it is asked there.
    pub fn socket(&self) -> Option<&Path> {
        match &self.target {
            Target::Socket(path) => Some(path),
            Target::Tls(_) => None,
        }
    }

    /// State of the daemon.
    pub fn status(&self) -> Result<DaemonStatus, ClientError> {
        self.get("/daemon")
    }

    /// Ends the daemon; VMs run on.
    pub fn stop_daemon(&self) -> Result<(), ClientError> {
        self.done("POST", "/daemon/stop")
    }

    /// Checks of the host.
    pub fn doctor(&self) -> Result<Vec<Check>, ClientError> {
        self.get("/doctor")
    }

    /// Makes a VM and boots it.
    pub fn run(&self, request: &RunRequest) -> Result<RunReply, ClientError> {
        self.settle(self.post("/vms?wait=true", request)?)
    }

    /// All VMs.
    pub fn vms(&self) -> Result<Vec<Vm>, ClientError> {
        self.get("/vms")
    }

    /// One VM.
    pub fn vm(&self, name: &str) -> Result<VmDetail, ClientError> {
        self.get(&format!("/vms/{}", encode(name)))
    }

    /// Removes a VM.
    pub fn remove(&self, name: &str, force: bool) -> Result<(), ClientError> {
        let path = format!("/vms/{}?force={force}", encode(name));
        self.done("DELETE", &path)
    }

    /// Clones a VM.
    pub fn fork(&self, source: &str, request: &ForkRequest) -> Result<Cloned, ClientError> {
        let path = format!("/vms/{}/fork?wait=true", encode(source));
        self.settle(self.post(&path, request)?)
    }

    /// As [`Client::fork`], for clones that take long; `seen` gets the task's states.
    pub fn copy(
        &self,
        source: &str,
        request: &ForkRequest,
        seen: impl FnMut(&Task),
    ) -> Result<Cloned, ClientError> {
        self.run_task(&format!("/vms/{}/fork", encode(source)), request, seen)
    }

    /// Powers a VM off.
    pub fn stop(&self, name: &str, request: &StopRequest) -> Result<Vm, ClientError> {
        let path = format!("/vms/{}/stop?wait=true", encode(name));
        self.settle(self.post(&path, request)?)
    }

    /// Boots a powered-off VM.
    pub fn start(&self, name: &str) -> Result<Vm, ClientError> {
        self.act(name, "start")
    }

    /// Stops a VM's vCPUs.
    pub fn pause(&self, name: &str) -> Result<Vm, ClientError> {
        self.act(name, "pause")
    }

    /// Lets a VM's vCPUs run on.
    pub fn resume(&self, name: &str) -> Result<Vm, ClientError> {
        self.act(name, "resume")
    }

    /// Resets a VM.
    pub fn reset(&self, name: &str) -> Result<Vm, ClientError> {
        self.act(name, "reset")
    }

    /// guestinfo of a VM.
    pub fn guestinfo(&self, name: &str) -> Result<GuestInfo, ClientError> {
        self.get(&format!("/vms/{}/guestinfo", encode(name)))
    }

    /// Sets and removes guestinfo of a VM; returns all of it.
    pub fn set_guestinfo(
        &self,
        name: &str,
        patch: &GuestInfoPatch,
    ) -> Result<GuestInfo, ClientError> {
        let path = format!("/vms/{}/guestinfo", encode(name));
        self.patch(&path, None, patch)
    }

    /// Waits until a VM is what `what` names.
    pub fn wait_for(&self, name: &str, what: WaitFor, timeout_s: u64) -> Result<Vm, ClientError> {
        let word = match what {
            WaitFor::Frozen => "frozen",
            WaitFor::Ready => "ready",
            WaitFor::Running => "running",
            WaitFor::Off => "off",
        };
        let deadline = deadline_in(Duration::from_secs(timeout_s));
        loop {
            let left_s = deadline
                .saturating_duration_since(Instant::now())
                .as_secs_f64()
                .ceil() as u64;
            let wait_s = left_s.min(schema::MAX_WAIT_SECONDS);
            let path = format!("/vms/{}/wait?for={word}&timeout_s={wait_s}", encode(name));
            match self.get(&path) {
                Err(ClientError::Refused(problem))
                    if problem.kind == ErrorKind::Timeout && Instant::now() < deadline => {}
                Err(ClientError::Refused(mut problem)) if problem.kind == ErrorKind::Timeout => {
                    say_whole_wait(&mut problem, wait_s, timeout_s);
                    return Err(ClientError::Refused(problem));
                }
                answer => return answer,
            }
        }
    }

    /// Copies a VM's log to `output`.
    pub fn log(
        &self,
        name: &str,
        options: LogOptions,
        output: &mut impl Write,
    ) -> Result<(), ClientError> {
        let follow = if options.follow { "/follow" } else { "" };
        let mut path = format!(
            "/vms/{}/log{follow}?process={}",
            encode(name),
            options.process
        );
        if let Some(bytes) = options.tail_bytes {
            path.push_str(&format!("&tail_bytes={bytes}"));
        }
        let mut body: Box<dyn Read> = if options.follow {
            let path = format!("{API_PREFIX}{path}");
            Box::new(ask_stream(&self.target, &path)?)
        } else {
            Box::new(self.ask("GET", &path, None, "*/*")?)
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = body.read(&mut buffer).map_err(broken("read a log"))?;
            if count == 0 {
                return Ok(());
            }
            output
                .write_all(&buffer[..count])
                .map_err(ClientError::Output)?;
            output.flush().map_err(ClientError::Output)?;
        }
    }

    /// Attaches to a VM's serial console.
    pub fn console(&self, name: &str) -> Result<UnixStream, ClientError> {
        let path = format!("{API_PREFIX}/vms/{}/console", encode(name));
        ask_stream(&self.target, &path)
    }

    /// Connects to a vsock port of a guest; waits `wait_s` seconds for an agent that is not ready.
    pub fn vsock(&self, name: &str, port: u32, wait_s: u64) -> Result<UnixStream, ClientError> {
        let deadline = deadline_in(Duration::from_secs(wait_s));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let part_s = (left.as_secs_f64().ceil() as u64).min(schema::MAX_WAIT_SECONDS);
            let name = encode(name);
            let path = format!("{API_PREFIX}/vms/{name}/vsock/{port}?wait_s={part_s}");
            match ask_stream(&self.target, &path) {
                Err(ClientError::Refused(mut problem)) if problem.kind == ErrorKind::Timeout => {
                    if Instant::now() < deadline {
                        continue;
                    }
                    say_whole_wait(&mut problem, part_s, wait_s);
                    return Err(ClientError::Refused(problem));
                }
                answer => return answer,
            }
        }
    }

    /// Events after the number `after`, or the latest ones.
    pub fn events(&self, after: Option<i64>) -> Result<Vec<Event>, ClientError> {
        match after {
            Some(after) => self.get(&format!("/events?after={after}")),
            None => self.get("/events"),
        }
    }

    /// Hands events to `seen` as they happen, until it returns false.
    pub fn follow_events(
        &self,
        after: Option<i64>,
        mut seen: impl FnMut(Event) -> bool,
    ) -> Result<(), ClientError> {
        let path = after.map_or("/events".to_owned(), |after| {
            format!("/events?after={after}")
        });
        self.follow(&path, |data| Ok(seen(parse(data)?)))
    }

    /// Images.
    pub fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.get("/images")
    }

    /// Starts making an image.
    pub fn make_image(&self, request: &ImageRequest) -> Result<Task, ClientError> {
        self.post("/images", request)
    }

    /// Removes an image.
    pub fn remove_image(&self, name: &str) -> Result<(), ClientError> {
        self.done("DELETE", &format!("/images/{}", encode(name)))
    }

    /// Runs a command in a guest to its end.
    pub fn exec(&self, name: &str, request: &ExecRequest) -> Result<ExecReply, ClientError> {
        self.post(&format!("/vms/{}/exec", encode(name)), request)
    }

    /// Tokens.
    pub fn tokens(&self) -> Result<Vec<Token>, ClientError> {
        self.get("/tokens")
    }

    /// Makes a token; the answer is the only place where its secret is.
    pub fn make_token(&self, request: &TokenRequest) -> Result<NewToken, ClientError> {
        self.post("/tokens", request)
    }

    /// Removes a token.
    pub fn remove_token(&self, name: &str) -> Result<(), ClientError> {
        self.done("DELETE", &format!("/tokens/{}", encode(name)))
    }

    /// Tasks, latest first.
    pub fn tasks(&self) -> Result<Vec<Task>, ClientError> {
        self.get("/tasks")
    }

    /// State of a task.
    pub fn task(&self, id: i64) -> Result<Task, ClientError> {
        self.get(&format!("/tasks/{id}"))
    }

    /// Stops a task.
    pub fn cancel_task(&self, id: i64) -> Result<Task, ClientError> {
        self.json("POST", &format!("/tasks/{id}/cancel"), None)
    }

    /// Hands a task's states to `seen` until it has ended; returns the last one.
    pub fn follow_task(&self, id: i64, mut seen: impl FnMut(&Task)) -> Result<Task, ClientError> {
        let mut last = None;
        self.follow(&format!("/tasks/{id}/events"), |data| {
            let task: Task = parse(data)?;
            seen(&task);
            let running = task.state == TaskState::Running;
            last = Some(task);
            Ok(running)
        })?;
        match last {
            Some(task) if task.state != TaskState::Running => Ok(task),
            _ => self.task(id),
        }
    }

    fn follow(
        &self,
        path: &str,
        mut seen: impl FnMut(&str) -> Result<bool, ClientError>,
    ) -> Result<(), ClientError> {
        let body = self.ask("GET", path, None, "text/event-stream")?;
        let mut reader = BufReader::new(body);
        let mut line = String::new();
        loop {
            line.clear();
            let count = reader
                .read_line(&mut line)
                .map_err(broken("follow events"))?;
            if count == 0 {
                return Ok(());
            }
            if let Some(data) = line.strip_prefix("data:")
                && !seen(data.trim())?
            {
                return Ok(());
            }
        }
    }

    fn act(&self, name: &str, verb: &str) -> Result<Vm, ClientError> {
        let path = format!("/vms/{}/{verb}?wait=true", encode(name));
        self.settle(self.json("POST", &path, None)?)
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json("GET", path, None)
    }

    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.to_string()))?;
        self.json("POST", path, Some(body))
    }

    /// A call with a body.
    pub(crate) fn send<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.to_string()))?;
        self.json(method, path, Some(body))
    }

    /// Starts a task, hands its states to `seen`, and returns what it gave.
    pub(crate) fn run_task<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        seen: impl FnMut(&Task),
    ) -> Result<T, ClientError> {
        let task: Task = self.post(path, body)?;
        self.end_of(task, seen)
    }

    /// As [`Client::run_task`], for a call without a body.
    pub(crate) fn start_task<T: DeserializeOwned>(
        &self,
        path: &str,
        seen: impl FnMut(&Task),
    ) -> Result<T, ClientError> {
        let task: Task = self.json("POST", path, None)?;
        self.end_of(task, seen)
    }

    /// What a task gave, after the wait that its answer was not worth.
    pub(crate) fn settle<T: DeserializeOwned>(&self, task: Task) -> Result<T, ClientError> {
        self.end_of(task, |_| {})
    }

    fn end_of<T: DeserializeOwned>(
        &self,
        task: Task,
        seen: impl FnMut(&Task),
    ) -> Result<T, ClientError> {
        settle(match task.state {
            TaskState::Running => self.follow_task(task.id, seen)?,
            _ => task,
        })
    }

    /// Changes an object; with a version only where it still has that.
    pub(crate) fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        version: Option<u64>,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.change("PATCH", path, version, body)
    }

    /// A call that changes something and answers with what became of it, or with the task that is
    /// still at it.
    pub(crate) fn change<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        version: Option<u64>,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Answer(e.to_string()))?;
        let path = format!("{API_PREFIX}{path}");
        let ask_for = Ask {
            method,
            path: &path,
            body: Some(body),
            accept: "application/json",
            if_match: version,
        };
        let (status, answer) = ask_status(&self.target, &ask_for)?;
        let bytes = read_all(answer)?;
        match status {
            ACCEPTED => self.settle(parse_bytes(&bytes)?),
            _ => parse_bytes(&bytes),
        }
    }

    /// A call whose answer has no body.
    pub(crate) fn done(&self, method: &'static str, path: &str) -> Result<(), ClientError> {
        let path = format!("{API_PREFIX}{path}");
        let ask_for = Ask {
            method,
            path: &path,
            body: None,
            accept: "application/json",
            if_match: None,
        };
        let (status, answer) = ask_status(&self.target, &ask_for)?;
        let bytes = read_all(answer)?;
        match status {
            ACCEPTED => self.settle(parse_bytes(&bytes)?),
            _ => Ok(()),
        }
    }

    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let bytes = read_all(self.ask(method, path, body, "application/json")?)?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
    }

    fn ask(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Vec<u8>>,
        accept: &'static str,
    ) -> Result<Body, ClientError> {
        let path = format!("{API_PREFIX}{path}");
        ask(
            &self.target,
            &Ask {
                method,
                path: &path,
                body,
                accept,
                if_match: None,
            },
        )
    }
}

/// The end of a wait; one that is longer than clocks count ends in a century.
pub(crate) fn deadline_in(longest: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let now = Instant::now();
    now.checked_add(longest).unwrap_or_else(|| now + CENTURY)
}

/// All of a wait counts, not the part of its last call.
fn say_whole_wait(problem: &mut Problem, part_s: u64, whole_s: u64) {
    let part = format!("within {part_s} s");
    let whole = format!("within {whole_s} s");
    problem.detail = problem.detail.replace(&part, &whole);
}

/// Result of a task that has ended, or why it has none. The result of one that made some of several
/// things tells of each.
fn settle<T: DeserializeOwned>(task: Task) -> Result<T, ClientError> {
    let partly = !task.items.is_empty() && task.result.is_some();
    if task.state != TaskState::Success && !partly {
        let kind = task.error_kind.unwrap_or(ErrorKind::Failed);
        let told = task.error.unwrap_or_else(|| "it was cancelled".to_owned());
        let mut problem = Problem::new(kind, told);
        problem.field = task.field;
        problem.remedy = task.remedy;
        return Err(ClientError::Refused(Box::new(problem)));
    }
    serde_json::from_value(task.result.unwrap_or_default())
        .map_err(|error| ClientError::Answer(error.to_string()))
}

fn parse_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer(error.to_string()))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ClientError> {
    serde_json::from_str(text).map_err(|error| ClientError::Answer(error.to_string()))
}

/// Makes a name a path segment (RFC 3986): a wrong name is to reach the daemon and be refused.
pub(crate) fn encode(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    name.bytes()
        .map(|b| match b {
            b if plain(b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
