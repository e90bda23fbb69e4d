//! Tests against a server that sends prepared bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use super::*;

/// Serves one connection: reads the head of the request, sends `answer`, returns the request.
fn serve(home: &Path, answer: &'static str) -> JoinHandle<String> {
    std::fs::create_dir(home.join("run")).unwrap();
    let listener = UnixListener::bind(api_types::socket_of(home)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    })
}

#[test]
fn bodies_with_a_length_and_in_chunks_are_read() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n[]",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), answer);
        assert!(
            Client::new(dir.path()).vms().unwrap().is_empty(),
            "{answer}"
        );
        assert!(
            server
                .join()
                .unwrap()
                .starts_with("GET /api/v1/vms HTTP/1.1\r\n")
        );
    }
}

#[test]
fn a_refusal_has_its_kind_and_message() {
    let dir = tempfile::tempdir().unwrap();
    let answer = "HTTP/1.1 409 Conflict\r\ncontent-length: 34\r\n\r\n{\"kind\":\"conflict\",\"detail\":\"no!\"}";
    let server = serve(dir.path(), answer);
    let error = Client::new(dir.path()).remove("a/b", false).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Conflict));
    assert_eq!(error.to_string(), "no!");
    assert!(
        server
            .join()
            .unwrap()
            .starts_with("DELETE /api/v1/vms/a%2Fb?force=false ")
    );
}

#[test]
fn bytes_behind_an_upgrade_belong_to_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: mitose-stream\r\n\r\nhello";
    let server = serve(dir.path(), answer);
    let mut stream = Client::new(dir.path()).console("a").unwrap();
    server.join().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn an_answer_cut_off_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(
        dir.path(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n[",
    );
    assert!(matches!(
        Client::new(dir.path()).vms(),
        Err(ClientError::Broken { .. })
    ));
    server.join().unwrap();
}

#[test]
fn no_daemon_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Client::new(dir.path()).vms(),
        Err(ClientError::Connect { .. })
    ));
}
