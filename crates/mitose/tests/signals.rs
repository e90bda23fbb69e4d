//! Signals to `mitose exec`, with a stand-in for the daemon and the guest's agent.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::{Exit, Reply, Request, Signal as Sent};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Starts the program and takes its connection as the agent, up to the command's start.
fn start(home: &Path, options: &[&str], stdin: Stdio) -> (Child, UnixStream) {
    let socket = api_types::socket_of(home);
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_mitose"))
        .env("MITOSE_HOME", home)
        .args(["exec", "a"])
        .args(options)
        .args(["--", "true"])
        .stdin(stdin)
        .spawn()
        .unwrap();
    // The program looks first whether anybody is there.
    let mut agent = loop {
        let (stream, _) = listener.accept().unwrap();
        if takes_a_request(&stream) {
            break stream;
        }
    };
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: mitose-stream\r\n\r\n";
    agent.write_all(upgraded).unwrap();
    assert!(matches!(read(&mut agent), Some(Request::Start(_))));
    Reply::Started.write(&mut agent).unwrap();
    (program, agent)
}

fn takes_a_request(mut stream: &UnixStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            return false;
        }
        head.extend(byte);
    }
    true
}

fn read(agent: &mut UnixStream) -> Option<Request> {
    Request::read(agent).unwrap()
}

/// Whether the connection has ended, also with something that the program did not read.
fn is_gone(agent: &mut UnixStream) -> bool {
    !matches!(Request::read(agent), Ok(Some(_)))
}

fn send(program: &Child, signal: Signal) {
    let pid = Pid::from_raw(program.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_signal_goes_to_the_command_whose_end_is_told() {
    let home = tempfile::tempdir().unwrap();
    let (mut program, mut agent) = start(home.path(), &[], Stdio::null());
    assert_eq!(read(&mut agent), Some(Request::StdinEof));
    send(&program, Signal::INT);
    let signal = Signal::INT.as_raw();
    assert_eq!(read(&mut agent), Some(Request::Signal(Sent { signal })));
    let exit = Reply::Exit(Exit::Signal(signal));
    exit.write(&mut agent).unwrap();
    assert_eq!(program.wait().unwrap().code(), Some(130));
}

#[test]
fn a_second_signal_ends_the_program() {
    let home = tempfile::tempdir().unwrap();
    let (mut program, mut agent) = start(home.path(), &[], Stdio::null());
    assert_eq!(read(&mut agent), Some(Request::StdinEof));
    send(&program, Signal::TERM);
    let signal = Signal::TERM.as_raw();
    assert_eq!(read(&mut agent), Some(Request::Signal(Sent { signal })));
    send(&program, Signal::TERM);
    assert_eq!(program.wait().unwrap().code(), Some(143));
    assert!(is_gone(&mut agent));
}

#[test]
fn a_terminal_is_put_back_before_a_signal_ends_the_program() {
    let home = tempfile::tempdir().unwrap();
    let pty = linux_sys::open_pty().unwrap();
    let terminal = File::from(pty.terminal);
    rustix::io::ioctl_fionbio(&terminal, false).unwrap();
    let mut usual = tcgetattr(&terminal).unwrap();
    usual.local_modes |= LocalModes::ICANON | LocalModes::ECHO;
    tcsetattr(&terminal, OptionalActions::Now, &usual).unwrap();
    let usual = tcgetattr(&terminal).unwrap().local_modes;
    let stdin = terminal.try_clone().unwrap();
    let (mut program, mut agent) = start(home.path(), &["-it"], stdin.into());
    let deadline = Instant::now() + Duration::from_secs(20);
    while tcgetattr(&terminal).unwrap().local_modes == usual {
        assert!(Instant::now() < deadline, "no raw mode");
        std::thread::sleep(Duration::from_millis(5));
    }
    send(&program, Signal::HUP);
    assert_eq!(program.wait().unwrap().code(), Some(129));
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, usual);
    assert!(is_gone(&mut agent));
}
