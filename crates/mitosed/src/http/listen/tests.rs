//! Connections whose clients do not go on, and those that may last.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const LIMIT: Duration = Duration::from_millis(200);
/// Well beyond the limit.
const LONG: Duration = Duration::from_millis(700);
/// What no test takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that takes longer than a head may.
async fn slow() -> &'static str {
    tokio::time::sleep(LONG).await;
    "slow"
}

/// An answer that goes on for longer than a head may.
async fn stream() -> Body {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    tokio::spawn(async move {
        let _ = sender.send(Ok("first".into())).await;
        tokio::time::sleep(LONG).await;
        let _ = sender.send(Ok("last".into())).await;
    });
    Body::from_stream(ReceiverStream::new(receiver))
}

/// A connection that turns into a byte stream.
async fn upgrade(mut request: Request) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.unwrap());
        tokio::time::sleep(LONG).await;
        stream.write_all(b"raw").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let headers = [("connection", "upgrade"), ("upgrade", "x")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

struct Server {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let router = Router::new()
            .route("/", get(async || "quick"))
            .route("/slow", get(slow))
            .route("/stream", get(stream))
            .route("/upgrade", get(upgrade));
        let patience = super::Patience {
            first: LIMIT,
            head: LIMIT,
        };
        let (peer, newcomer) = (super::local_peer, super::nobody);
        tokio::spawn(super::serve(listener, router, peer, newcomer, patience));
        Self { _dir: dir, path }
    }

    /// Sends `text` and reads until the server closes.
    async fn say(&self, text: &str) -> String {
        let mut client = UnixStream::connect(&self.path).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the server ends the connection")
            .unwrap();
        answer
    }
}

#[tokio::test]
async fn a_client_that_does_not_end_its_head_is_cut_off() {
    let server = Server::new();
    for begun in ["", "GET / HTTP/1.1\r\nHost: x"] {
        let answer = server.say(begun).await;
        assert!(!answer.contains("quick"), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_a_while_and_not_for_ever() {
    let server = Server::new();
    let answer = server
        .say("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert_eq!(answer.matches("quick").count(), 2, "{answer}");
}

#[tokio::test]
async fn answers_and_streams_last_longer_than_a_head_may() {
    let server = Server::new();
    for (path, end) in [("/slow", "slow"), ("/stream", "last"), ("/upgrade", "raw")] {
        let begun = Instant::now();
        let answer = server
            .say(&format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
            ))
            .await;
        assert!(answer.contains(end), "{answer}");
        assert!(begun.elapsed() >= LONG);
    }
}

#[tokio::test]
async fn who_comes_from_the_network_asks_soon_and_has_a_token_that_is_known() {
    use crate::http::newcomers::Newcomers;
    static ALL: std::sync::LazyLock<std::sync::Arc<Newcomers>> =
        std::sync::LazyLock::new(Default::default);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let router = Router::new()
        .route("/", get(async || "quick"))
        .route("/slow", get(slow))
        .route("/closed", get(async || StatusCode::UNAUTHORIZED));
    let patience = super::Patience {
        first: LIMIT,
        head: PATIENCE,
    };
    let newcomer: fn(&UnixStream) -> _ = |_| ALL.enter([192, 0, 2, 1].into());
    tokio::spawn(super::serve(
        listener,
        router,
        super::local_peer,
        newcomer,
        patience,
    ));
    let server = Server { _dir: dir, path };
    let begun = Instant::now();
    for said in ["", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        assert_eq!(server.say(said).await, "");
    }
    assert!(begun.elapsed() >= 2 * LIMIT);
    assert_eq!(ALL.ended(), (0, 2));
    // An answer may take its time, and the next request too.
    let mut client = UnixStream::connect(&server.path).await.unwrap();
    for path in ["/slow", "/"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let length = client.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(LONG).await;
    }
    let twice = "GET /closed HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    let answer = server.say(&twice).await;
    assert_eq!(answer.matches("401 Unauthorized").count(), 1, "{answer}");
    assert_eq!(ALL.ended(), (0, 2));
}
