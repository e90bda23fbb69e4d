//! The blocking client against scripted guests.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use super::*;
use crate::request::EntryKind;

/// Starts a guest that runs `script` on its end; returns the host's two halves.
fn guest(
    script: impl FnOnce(UnixStream) + Send + 'static,
) -> (UnixStream, UnixStream, JoinHandle<()>) {
    let (host, guest) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || script(guest));
    (host.try_clone().unwrap(), host, thread)
}

fn start() -> Start {
    Start {
        argv: vec!["cat".into()],
        ..Start::default()
    }
}

#[test]
fn command_output_and_exit_are_collected() {
    let (reader, writer, thread) = guest(|mut stream| {
        assert!(matches!(
            Request::read(&mut stream),
            Ok(Some(Request::Start(_)))
        ));
        Reply::Started.write(&mut stream).unwrap();
        let Ok(Some(Request::Stdin(bytes))) = Request::read(&mut stream) else {
            panic!()
        };
        assert_eq!(Request::read(&mut stream).unwrap(), Some(Request::StdinEof));
        Reply::Stdout(bytes).write(&mut stream).unwrap();
        Reply::Stderr(b"warn".to_vec()).write(&mut stream).unwrap();
        Reply::Exit(Exit::Code(3)).write(&mut stream).unwrap();
    });
    let output = run_collect(reader, writer, &start(), b"hello", 3).unwrap();
    assert_eq!(output.stdout, b"hel");
    assert_eq!(output.stderr, b"war");
    assert_eq!(output.exit, Exit::Code(3));
    thread.join().unwrap();
}

#[test]
fn early_close_is_reported() {
    let (reader, writer, thread) = guest(|mut stream| {
        Request::read(&mut stream).unwrap();
    });
    let result = run_collect(reader, writer, &start(), b"", 10);
    assert!(
        matches!(result, Err(HostError::Closed | HostError::Frame(_))),
        "{result:?}"
    );
    thread.join().unwrap();
}

/// Uploads to a guest that refuses and then does `after`.
fn refused_upload(content: &[u8], after: impl FnOnce(UnixStream) + Send + 'static) {
    let (reader, writer, thread) = guest(|mut stream| {
        Reply::Error("no space left".into())
            .write(&mut stream)
            .unwrap();
        after(stream);
    });
    let target = Put {
        path: "/x".into(),
        name: None,
        mode: 0o644,
        kind: EntryKind::File,
    };
    let result = put(reader, writer, &target, content);
    assert!(matches!(result, Err(HostError::Guest { ref reason }) if reason == "no space left"));
    thread.join().unwrap();
}

#[test]
fn failed_upload_gives_the_guests_reason() {
    let content = vec![1u8; 3 * DATA_MAX];
    refused_upload(&content, |mut stream| {
        while !matches!(Request::read(&mut stream), Ok(Some(Request::Eof))) {}
    });
}

#[test]
fn a_guest_that_refuses_and_closes_at_once_is_still_heard() {
    // More than a socket takes, so that sending must fail.
    let content = vec![1u8; 64 * DATA_MAX];
    refused_upload(&content, drop);
}

#[test]
fn download_brings_entry_and_bytes() {
    let (reader, writer, thread) = guest(|mut stream| {
        assert!(matches!(
            Request::read(&mut stream),
            Ok(Some(Request::Get(_)))
        ));
        let entry = Entry {
            kind: EntryKind::File,
            size: 2,
            mode: 0o600,
        };
        Reply::Stat(entry).write(&mut stream).unwrap();
        Reply::Data(b"hi".to_vec()).write(&mut stream).unwrap();
        Reply::Eof.write(&mut stream).unwrap();
    });
    let (entry, bytes) = get(reader, writer, "/x", |_| Ok(Vec::new())).unwrap();
    assert_eq!((entry.size, bytes.as_slice()), (2, b"hi".as_slice()));
    thread.join().unwrap();
}

#[test]
fn hybrid_connect_takes_ok_and_refuses_the_rest() {
    for (answer, ok) in [("OK 1025\n", true), ("NO\n", false), ("", false)] {
        let (_, mut writer, thread) = guest(move |mut stream| {
            let mut line = [0u8; 13];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 1025\n");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        assert_eq!(connect(&mut writer, 1025).is_ok(), ok, "{answer:?}");
        thread.join().unwrap();
    }
}
