//! Endpoints of logs, and connections that turn into byte streams.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::REQUEST_PORT;
use api_types::schema::MAX_WAIT_SECONDS;
use api_types::{STREAM_PROTOCOL, schema};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::Shared;
use super::access::revoked;
use super::answer::{HttpError, run_blocking};
use super::relay;
use super::vms::VmPath;
use crate::error::{OpError, OpResult};
use crate::host::{Host, LOOK_INTERVAL, Vm};

/// Pause between two looks at a log that is followed.
const LOG_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for the guest to take a vsock connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// Time that a VM is off before its console ends: a guest that resets itself is off for a moment.
const OFF_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of the log that a console shows first.
const CONSOLE_TAIL_BYTES: u64 = 4096;

/// Routes that turn connections into byte streams.
pub fn routes() -> Router<Arc<Host>> {
    Router::new()
        .route("/vms/{vm}/console", get(console))
        .route("/vms/{vm}/log/follow", get(follow_log))
        .route("/vms/{vm}/vsock/{port}", get(vsock))
}

/// What part of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Bytes from the end; the whole log where not given.
    #[param(schema_with = schema::number, required = false)]
    tail_bytes: Option<u64>,
    /// The log of the VM process instead of COM1's.
    #[serde(default)]
    process: bool,
}

/// Path of the log of a VM; the datastore that it is on may take its time.
async fn log_path(host: &Arc<Host>, vm: &Arc<Vm>, process: bool) -> Result<PathBuf, HttpError> {
    let (host, vm) = (Arc::clone(host), Arc::clone(vm));
    let find = move || {
        let path = match process {
            true => host.process_log(&vm),
            false => host.serial_log(&vm)?,
        };
        if !path.exists() {
            // A VM that never ran has none.
            host.check_home_of(&vm)?;
        }
        Ok(path)
    };
    run_blocking(find).await
}

/// Log of a VM
///
/// What its serial port or its process has written so far.
#[utoipa::path(get, path = "/vms/{vm}/log", tag = "vms", params(VmPath, LogQuery), responses(
    (status = 200, description = "Bytes as they were written", body = Vec<u8>, content_type = "application/octet-stream"),
))]
pub async fn log(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<LogQuery>,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    let path = log_path(&host, &vm, query.process).await?;
    let (sender, receiver) = mpsc::channel(16);
    let tail = query.tail_bytes.unwrap_or(u64::MAX);
    tokio::spawn(async move {
        if let Err(error) = send_file(path, tail, None, sender).await {
            tracing::debug!(%error, "a log reader ended");
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// As the log, and goes on with what is written later.
async fn follow_log(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<LogQuery>,
    request: Request,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    let path = log_path(&host, &vm, query.process).await?;
    let tail = query.tail_bytes.unwrap_or(u64::MAX);
    upgrade(host, request, move |mut stream| async move {
        let (sender, mut receiver) = mpsc::channel(16);
        tokio::spawn(send_file(path, tail, Some(Follow::vm(vm)), sender));
        while let Some(Ok(chunk)) = receiver.recv().await {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    })
}

type Chunks = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// How long a log is followed.
struct Follow {
    vm: Arc<Vm>,
    /// Only while the VM has a process; otherwise for as long as it exists.
    to_its_end: bool,
    off_since: Option<Instant>,
}

impl Follow {
    /// For as long as the VM exists.
    fn vm(vm: Arc<Vm>) -> Self {
        Self {
            vm,
            to_its_end: false,
            off_since: None,
        }
    }

    /// Until the VM is powered off or suspended.
    fn process(vm: Arc<Vm>) -> Self {
        Self {
            to_its_end: true,
            ..Self::vm(vm)
        }
    }

    /// Whether more may come.
    fn goes_on(&mut self) -> bool {
        let live = self.vm.live();
        // What has begun, such as a reset, may end in another process.
        let has_process = live.row.state.has_process() || live.starting || live.row.begun.is_some();
        let removed = live.removed;
        drop(live);
        if has_process || !self.to_its_end {
            self.off_since = None;
            return !removed;
        }
        let since = *self.off_since.get_or_insert_with(Instant::now);
        !removed && since.elapsed() < OFF_PATIENCE
    }
}

/// Sends the end of a file, then what is appended while it is followed. One that is followed may be
/// made later.
async fn send_file(
    path: PathBuf,
    tail_bytes: u64,
    mut follow: Option<Follow>,
    chunks: Chunks,
) -> std::io::Result<()> {
    let mut file = loop {
        match tokio::fs::File::open(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !more(&mut follow, &chunks).await {
                    return Ok(());
                }
            }
            opened => break opened?,
        }
    };
    let length = file.metadata().await?.len();
    let start = length.saturating_sub(tail_bytes);
    file.seek(std::io::SeekFrom::Start(start)).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer).await?;
        if count > 0 {
            let chunk = Bytes::copy_from_slice(&buffer[..count]);
            if chunks.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        } else if !more(&mut follow, &chunks).await {
            return Ok(());
        }
    }
}

/// Whether there may be more for who still listens; lets some time go by for it.
async fn more(follow: &mut Option<Follow>, chunks: &Chunks) -> bool {
    let more = follow.as_mut().is_some_and(Follow::goes_on) && !chunks.is_closed();
    if more {
        tokio::time::sleep(LOG_INTERVAL).await;
    }
    more
}

/// Attaches to COM1: the end of its log and what follows one way, typed bytes the other way.
async fn console(
    State(host): Shared,
    Path(path): Path<VmPath>,
    request: Request,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    let path = host.serial_log(&vm)?;
    host.check_process(&vm)?;
    let typed_at = Arc::clone(&host);
    upgrade(host, request, move |stream| async move {
        let host = typed_at;
        let (mut from_client, mut to_client) = tokio::io::split(stream);
        let (sender, mut receiver) = mpsc::channel(16);
        let followed = Follow::process(Arc::clone(&vm));
        tokio::spawn(send_file(path, CONSOLE_TAIL_BYTES, Some(followed), sender));
        // Ends with whether the client is gone.
        let output = async {
            while let Some(Ok(chunk)) = receiver.recv().await {
                if to_client.write_all(&chunk).await.is_err() {
                    return true;
                }
            }
            let _ = to_client.shutdown().await;
            false
        };
        let at = Arc::clone(&vm);
        let input = async {
            let mut buffer = vec![0; 1024];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let (host, vm, bytes) =
                    (Arc::clone(&host), Arc::clone(&vm), buffer[..count].to_vec());
                let typed = tokio::task::spawn_blocking(move || host.type_serial(&vm, bytes)).await;
                // While there is no process, the output tells whether another one comes.
                if !matches!(typed, Ok(Ok(()))) && at.state().has_process() {
                    break;
                }
            }
        };
        tokio::pin!(input);
        tokio::select! {
            () = &mut input => {}
            // What a client typed before it went is still on its way.
            gone = output => if gone { input.await },
        }
    })
}

/// How to connect to a guest.
#[derive(Debug, Deserialize)]
struct VsockQuery {
    /// Longest wait for an agent that is not ready, seconds; at most that of an answer. Who wants to
    /// wait longer asks again.
    #[serde(default)]
    wait_s: u64,
}

/// Connects to a vsock port of the guest.
async fn vsock(
    State(host): Shared,
    Path((name, port)): Path<(String, u32)>,
    Query(query): Query<VsockQuery>,
    request: Request,
) -> Result<Response, HttpError> {
    let vm = host.find(&name)?;
    host.check_running(&vm)?;
    // Other ports are of programs that may need no agent.
    if port == REQUEST_PORT {
        let (begun, wait_s) = (Instant::now(), query.wait_s.min(MAX_WAIT_SECONDS));
        while !host.agent_answers(&vm, begun, wait_s)? {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
    let path = host.config.home.vm_vsock(&vm.id);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(path, port)).await;
    let guest = match connected {
        Ok(Ok(guest)) => guest,
        Ok(Err(reason)) => {
            return Err(OpError::unavailable(format!(
                "the agent of {name} cannot be reached: {reason}; is it running in the guest?"
            ))
            .into());
        }
        Err(_) => {
            return Err(OpError::unavailable(format!(
                "the agent of {name} did not answer within {} s; see 'mitose logs {name}'",
                CONNECT_TIMEOUT.as_secs()
            ))
            .into());
        }
    };
    upgrade(host, request, move |stream| async move {
        if let Err(error) = relay::join(stream, guest).await {
            tracing::debug!(vm = name, port, %error, "a stream with a guest broke off");
        }
    })
}

/// Speaks `CONNECT <port>` and takes the `OK` line, no byte more.
async fn connect(path: PathBuf, port: u32) -> Result<UnixStream, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = UnixStream::connect(path).await.map_err(failed)?;
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        if answer.len() >= 64 {
            return Err("its answer has no end".to_owned());
        }
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => return Err(format!("nothing listens on vsock port {port}")),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err("its answer is no OK".to_owned())
    }
}

/// Turns a request into a byte stream that `serve` handles, for as long as who asked may come in.
fn upgrade<F>(
    host: Arc<Host>,
    mut request: Request,
    serve: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Result<Response, HttpError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let asked = request.headers().get(header::UPGRADE);
    if asked.is_none_or(|value| value != STREAM_PROTOCOL) {
        let message = format!("this path needs the header 'Upgrade: {STREAM_PROTOCOL}'");
        let error = OpError::invalid(message).about("Upgrade");
        return Err(HttpError::new(StatusCode::UPGRADE_REQUIRED, &error));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let revoked = revoked(host, request.extensions().get().cloned());
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => tokio::select! {
                () = revoked => {}
                () = serve(TokioIo::new(stream)) => {}
            },
            Err(error) => tracing::debug!(%error, "a client did not go on with its stream"),
        }
    });
    let answer = (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, STREAM_PROTOCOL),
        ],
    );
    Ok(answer.into_response())
}

impl Host {
    /// The file that COM1's output goes to.
    fn serial_log(&self, vm: &Vm) -> OpResult<PathBuf> {
        self.serial_path(&vm.row(), 0).ok_or_else(|| {
            OpError::conflict(format!(
                "{} was made with --serial none: it has no log",
                vm.name()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Begun, PowerState, tests as sample};

    #[test]
    fn a_console_outlives_a_reset_and_no_power_off() {
        let vm = Vm::new(sample::vm("vm-1", "a"));
        let mut console = Follow::process(Arc::clone(&vm));
        let mut log = Follow::vm(Arc::clone(&vm));
        let long_ago = Instant::now().checked_sub(OFF_PATIENCE);
        let mut goes_on = |state: PowerState, begun: Option<Begun>, off_since| {
            vm.update(|live| (live.row.state, live.row.begun) = (state, begun));
            console.off_since = off_since;
            assert!(log.goes_on());
            console.goes_on()
        };
        assert!(goes_on(PowerState::Paused, None, long_ago));
        assert!(goes_on(PowerState::PoweredOff, None, None));
        assert!(goes_on(
            PowerState::PoweredOff,
            Some(Begun::Reset),
            long_ago
        ));
        assert!(!goes_on(PowerState::PoweredOff, None, long_ago));
        assert!(!goes_on(PowerState::Suspended, None, long_ago));
        vm.update(|live| live.removed = true);
        assert!(!log.goes_on());
    }
}
