//! The request server over socket pairs: commands with every kind of stream, copies both ways.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::host::{self, HostError, Output};
use agent_protocol::{EntryKind, Exit, Put, Reply, Request, Signal, Start, WindowSize};

use super::Server;
use crate::Root;
use crate::agent::links::HostLink;

fn connect(server: &Arc<Server>) -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    server.clone().start(guest.into());
    host
}

fn server() -> Arc<Server> {
    Server::new(Root::files(Path::new("/")), Arc::new(HostLink::default()))
}

fn start(argv: &[&str]) -> Start {
    Start {
        argv: argv.iter().map(|s| (*s).to_owned()).collect(),
        ..Start::default()
    }
}

fn run_with(start: &Start, stdin: &[u8]) -> Result<Output, HostError> {
    let stream = connect(&server());
    host::run_collect(stream.try_clone().unwrap(), stream, start, stdin, 16 << 20)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn streams_and_exit_code_come_back() {
    let output = run_with(
        &start(&["sh", "-c", "cat; echo oops >&2; exit 3"]),
        b"hello",
    )
    .unwrap();
    assert_eq!(output.stdout, b"hello");
    assert_eq!(output.stderr, b"oops\n");
    assert_eq!(output.exit, Exit::Code(3));
}

#[test]
fn large_input_and_output_pass_through() {
    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let output = run_with(&start(&["cat"]), &input).unwrap();
    assert!(output.stdout == input);
}

#[test]
fn unread_input_does_not_block_the_end() {
    let output = run_with(&start(&["true"]), &vec![0; 2 << 20]).unwrap();
    assert_eq!(output.exit, Exit::Code(0));
}

#[test]
fn environment_directory_and_bad_requests() {
    let mut request = start(&["sh", "-c", "echo $FOO $PWD"]);
    request.env = vec![("FOO".into(), "bar".into())];
    request.cwd = Some("/tmp".into());
    assert_eq!(run_with(&request, b"").unwrap().stdout, b"bar /tmp\n");
    request.cwd = Some("/nonexistent-dir".into());
    assert!(
        matches!(run_with(&request, b""), Err(HostError::Guest { reason }) if reason.contains("/nonexistent-dir"))
    );
    let mut request = start(&["true"]);
    request.user = Some("no-such-user".into());
    assert!(matches!(
        run_with(&request, b""),
        Err(HostError::Guest { .. })
    ));
    assert!(matches!(
        run_with(&start(&[]), b""),
        Err(HostError::Guest { .. })
    ));
    assert!(matches!(
        run_with(&start(&["a\0b"]), b""),
        Err(HostError::Guest { .. })
    ));
}

#[test]
fn missing_program_is_127_and_unrunnable_126() {
    let output = run_with(&start(&["no-such-program-here"]), b"").unwrap();
    assert_eq!(output.exit, Exit::Code(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program-here"));
    assert_eq!(
        run_with(&start(&["/etc/passwd"]), b"").unwrap().exit,
        Exit::Code(126)
    );
}

#[test]
fn background_processes_do_not_hold_the_session() {
    let begin = Instant::now();
    let output = run_with(&start(&["sh", "-c", "sleep 30 & echo $!"]), b"").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20));
    let pid: i32 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    crate::linux::kill_process(pid, libc::SIGKILL).unwrap();
}

#[test]
fn signals_reach_the_command() {
    let mut stream = connect(&server());
    Request::Start(start(&["sleep", "100"]))
        .write(&mut stream)
        .unwrap();
    assert_eq!(Reply::read(&mut stream).unwrap(), Some(Reply::Started));
    Request::Signal(Signal {
        signal: libc::SIGTERM,
    })
    .write(&mut stream)
    .unwrap();
    let end = Reply::read(&mut stream).unwrap();
    assert_eq!(end, Some(Reply::Exit(Exit::Signal(libc::SIGTERM))));
}

#[test]
fn closing_the_connection_kills_the_command() {
    let script = "echo $$; while :; do sleep 100; done";
    let proc = format!("/proc/{}", start_and_hang_up(script));
    wait_until("the end of the command", || !Path::new(&proc).exists());
}

/// Runs a script, waits for its first word, and closes the connection.
fn start_and_hang_up(script: &str) -> String {
    let mut stream = connect(&server());
    Request::Start(start(&["sh", "-c", script]))
        .write(&mut stream)
        .unwrap();
    assert_eq!(Reply::read(&mut stream).unwrap(), Some(Reply::Started));
    let Some(Reply::Stdout(word)) = Reply::read(&mut stream).unwrap() else {
        panic!()
    };
    String::from_utf8(word).unwrap().trim().to_owned()
}

#[test]
fn all_of_a_command_without_a_host_may_clean_up() {
    let dir = tempfile::tempdir().unwrap();
    let cleaned = dir.path().join("cleaned");
    // The inner shell goes on after the outer one, and writes more than a pipe holds. It sleeps for short
    // times: what comes right before a sleep begins is heard at its end.
    let script = format!(
        "(trap 'sleep 0.3; head -c 200000 /dev/zero; echo > {}; exit' HUP TERM
          echo ready; while :; do sleep 0.1; done); true",
        cleaned.display()
    );
    start_and_hang_up(&script);
    wait_until("the end in good order", || cleaned.exists());
}

#[test]
fn a_command_that_does_not_heed_its_hosts_end_is_killed() {
    let script = "trap '' HUP TERM; echo $$; while :; do sleep 100; done";
    let proc = format!("/proc/{}", start_and_hang_up(script));
    assert!(Path::new(&proc).exists());
    wait_until("the end of the command", || !Path::new(&proc).exists());
}

#[test]
fn the_end_of_input_is_the_terminals_whatever_was_typed_before() {
    let script = "cat; IFS= read -r more && echo then $more";
    for (typed, told) in [("", ""), ("line\n", "line"), ("no end", "no end")] {
        let mut request = start(&["sh", "-c", script]);
        request.tty = Some(WindowSize { rows: 24, cols: 80 });
        let mut stream = connect(&server());
        // An end that is lost must not hold the test.
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        Request::Start(request).write(&mut stream).unwrap();
        Request::Stdin(typed.into()).write(&mut stream).unwrap();
        Request::StdinEof.write(&mut stream).unwrap();
        let mut text = String::new();
        // No end of input is left over for the next program.
        Request::Stdin(b"more\n".to_vec())
            .write(&mut stream)
            .unwrap();
        let exit = loop {
            match Reply::read(&mut stream).unwrap().unwrap() {
                Reply::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Reply::Exit(exit) => break exit,
                _ => {}
            }
        };
        assert_eq!(exit, Exit::Code(0), "{typed:?}: {text:?}");
        assert!(text.contains(told), "{text:?}");
        assert!(text.contains("then more"), "{text:?}");
    }
}

#[test]
fn a_forked_guests_command_runs_on() {
    let server = server();
    let mut stream = connect(&server);
    Request::Start(start(&["sh", "-c", "echo $$; sleep 100"]))
        .write(&mut stream)
        .unwrap();
    assert_eq!(Reply::read(&mut stream).unwrap(), Some(Reply::Started));
    let Some(Reply::Stdout(pid)) = Reply::read(&mut stream).unwrap() else {
        panic!()
    };
    let pid: i32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    server.link.note_broken();
    drop(stream);
    // The server decides on its own thread; a second command shows that it has had time to.
    let probe = connect(&server);
    host::run_collect(
        probe.try_clone().unwrap(),
        probe,
        &start(&["true"]),
        b"",
        10,
    )
    .unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    crate::linux::kill_group(rustix::process::Pid::from_raw(pid).unwrap(), libc::SIGKILL).unwrap();
}

#[test]
fn terminal_has_a_size_and_echoes() {
    let mut request = start(&[
        "sh",
        "-c",
        "test -t 0 && stty size; read line; echo got $line",
    ]);
    request.tty = Some(WindowSize { rows: 33, cols: 99 });
    let mut stream = connect(&server());
    Request::Start(request).write(&mut stream).unwrap();
    let mut text = String::new();
    let mut sent = false;
    let exit = loop {
        match Reply::read(&mut stream).unwrap().unwrap() {
            Reply::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Reply::Exit(exit) => break exit,
            _ => {}
        }
        if text.contains("33 99") && !sent {
            sent = true;
            Request::Resize(WindowSize { rows: 1, cols: 2 })
                .write(&mut stream)
                .unwrap();
            Request::Stdin(b"word\n".to_vec())
                .write(&mut stream)
                .unwrap();
        }
    };
    assert!(text.contains("got word"), "{text:?}");
    assert_eq!(exit, Exit::Code(0));
}

#[test]
fn malformed_and_misplaced_frames_are_refused() {
    let mut stream = connect(&server());
    Request::StdinEof.write(&mut stream).unwrap();
    assert!(matches!(
        Reply::read(&mut stream).unwrap(),
        Some(Reply::Error(_))
    ));
    let mut stream = connect(&server());
    stream
        .write_all(&[1, 3, 0, 0, 0, b'{', b'x', b'}'])
        .unwrap();
    assert!(matches!(
        Reply::read(&mut stream).unwrap(),
        Some(Reply::Error(_))
    ));
    let mut stream = connect(&server());
    stream.write_all(&[1, 255, 255, 255, 255]).unwrap();
    assert!(matches!(
        Reply::read(&mut stream).unwrap(),
        Some(Reply::Error(_))
    ));
}

fn put(root: &Path, put: &Put, content: &[u8]) -> Result<(), HostError> {
    let server = Server::new(Root::files(root), Arc::new(HostLink::default()));
    let stream = connect(&server);
    host::put(stream.try_clone().unwrap(), stream, put, content)
}

fn get(root: &Path, path: &str) -> Result<(agent_protocol::Entry, Vec<u8>), HostError> {
    let server = Server::new(Root::files(root), Arc::new(HostLink::default()));
    let stream = connect(&server);
    host::get(
        stream.try_clone().unwrap(),
        stream,
        path,
        |_| Ok(Vec::new()),
    )
}

#[test]
fn files_are_copied_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..500_000u32).map(|i| (i % 253) as u8).collect();
    let mut target = Put {
        path: "/a.bin".into(),
        name: None,
        mode: 0o750,
        kind: EntryKind::File,
    };
    put(dir.path(), &target, &content).unwrap();
    let meta = fs::metadata(dir.path().join("a.bin")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o750);
    let (entry, bytes) = get(dir.path(), "/a.bin").unwrap();
    assert_eq!(
        (entry.kind, entry.size, entry.mode),
        (EntryKind::File, 500_000, 0o750)
    );
    assert!(bytes == content);

    fs::create_dir(dir.path().join("sub")).unwrap();
    target.path = "/sub".into();
    assert!(matches!(
        put(dir.path(), &target, b"x"),
        Err(HostError::Guest { .. })
    ));
    target.name = Some("inside".into());
    put(dir.path(), &target, b"x").unwrap();
    assert_eq!(fs::read(dir.path().join("sub/inside")).unwrap(), b"x");
    target.name = Some("../escape".into());
    assert!(matches!(
        put(dir.path(), &target, b"x"),
        Err(HostError::Guest { .. })
    ));
    target.path = "/no/such/dir/file".into();
    assert!(matches!(
        put(dir.path(), &target, &content),
        Err(HostError::Guest { .. })
    ));
    assert!(matches!(
        get(dir.path(), "/missing"),
        Err(HostError::Guest { .. })
    ));
    assert!(matches!(
        get(dir.path(), "relative"),
        Err(HostError::Guest { .. })
    ));
}

#[test]
fn an_interrupted_upload_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("old"), b"old").unwrap();
    let server = Server::new(Root::files(dir.path()), Arc::new(HostLink::default()));
    let mut stream = connect(&server);
    let target = Put {
        path: "/old".into(),
        name: None,
        mode: 0o644,
        kind: EntryKind::File,
    };
    Request::Put(target).write(&mut stream).unwrap();
    Request::Data(b"new".to_vec()).write(&mut stream).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(fs::read(dir.path().join("old")).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn directories_travel_as_tar() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir_all(from.path().join("d/e")).unwrap();
    fs::write(from.path().join("d/e/f"), b"deep").unwrap();
    std::os::unix::fs::symlink("e/f", from.path().join("d/link")).unwrap();
    let (entry, archive) = get(from.path(), "/d").unwrap();
    assert_eq!(entry.kind, EntryKind::Tar);
    let to = tempfile::tempdir().unwrap();
    let target = Put {
        path: "/new".into(),
        name: None,
        mode: 0,
        kind: EntryKind::Tar,
    };
    put(to.path(), &target, &archive).unwrap();
    assert_eq!(fs::read(to.path().join("new/e/f")).unwrap(), b"deep");
    assert_eq!(
        fs::read_link(to.path().join("new/link")).unwrap(),
        Path::new("e/f")
    );
    assert!(matches!(
        put(to.path(), &target, b"not a tar at all"),
        Err(HostError::Guest { .. })
    ));

    // With a name it goes below a directory that exists, and becomes one that does not.
    for (path, place) in [("/new", "new/name/e/f"), ("/other", "other/e/f")] {
        let target = Put {
            path: path.into(),
            name: Some("name".into()),
            ..target.clone()
        };
        put(to.path(), &target, &archive).unwrap();
        assert_eq!(fs::read(to.path().join(place)).unwrap(), b"deep");
    }
    let outside = Put {
        path: "/new".into(),
        name: Some("../name".into()),
        ..target
    };
    assert!(put(to.path(), &outside, &archive).is_err());
}

#[test]
fn pipes_in_a_directory_are_named_and_the_rest_travels() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/file"), b"text").unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let path = from.path().join("d/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
    let (_, archive) = get(from.path(), "/d").unwrap();
    let to = tempfile::tempdir().unwrap();
    let target = Put {
        path: "/new".into(),
        name: None,
        mode: 0,
        kind: EntryKind::Tar,
    };
    let problem = put(to.path(), &target, &archive).unwrap_err().to_string();
    assert!(problem.contains("such as pipe"), "{problem}");
    assert_eq!(fs::read(to.path().join("new/file")).unwrap(), b"text");
    assert!(!to.path().join("new/pipe").exists());
}
