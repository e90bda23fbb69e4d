//! Serial ports with somebody at the other end: a Unix socket and a pseudo-terminal, of a VM and
//! of its clones.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use harness::{Cli, kvm_present};
use serde_json::Value;

/// Longest wait for what a guest prints.
const PATIENCE: Duration = Duration::from_secs(60);

/// Types `g` and reads until the guest has answered.
fn ask(mut line: impl Read + Write) {
    line.write_all(b"g").expect("type");
    let mut text = String::new();
    while !text.contains("gap=") {
        let mut bytes = [0; 64];
        let count = line.read(&mut bytes).expect("the guest answers");
        assert_ne!(count, 0, "the line ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

fn connect(path: &str) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("time limit");
    stream
}

fn open_terminal(path: &str) -> File {
    assert!(path.starts_with("/dev/pts/"), "{path}");
    let mut options = File::options();
    options.read(true).write(true).open(path).expect("terminal")
}

fn port(cli: &Cli, name: &str, index: usize) -> Value {
    cli.json(&["info", name]).expect("info")["serial_ports"][index].clone()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[test]
fn somebody_types_on_serial_ports() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("se")
        .tempdir_in("/tmp")
        .expect("folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("guest.elf"), bare_guests::guest_elf()).expect("guest");
    let cli = Cli::new(&at("h")).expect("mitose is built");
    let (kernel, socket) = (at("guest.elf"), at("a.sock"));
    let unix = format!("unix={}", socket.display());
    let path = |path: &Path| path.to_str().expect("path").to_owned();
    let run = |name: &str, more: &[&str]| {
        let kernel = path(&kernel);
        let mut args = vec!["run", name, "--kernel", &kernel, "--memory", "64M"];
        args.extend(["--cmdline", "mode=dirty touch=16 idle=1", "--engine", "kvm"]);
        args.extend(more);
        cli.run(&args).map(drop)
    };
    run("s", &["--serial", &unix, "--serial", "none"]).expect("run");
    ask(connect(text(&port(&cli, "s", 0)["path"])));
    // One peer after the other; the log goes on beside.
    ask(connect(&path(&socket)));
    assert!(cli.run(&["logs", "s"]).expect("logs").contains("gap="));
    assert_eq!(port(&cli, "s", 1)["port"], "COM2");

    let refused = run("t", &["--serial", &unix]).expect_err("the socket is in use");
    let why = refused.to_string();
    assert!(why.contains("belongs to the VM s"), "{why}");

    // A clone has a log where its source has a socket, or what it is given.
    cli.run(&["clone", "s", "--name", "log"]).expect("clone");
    assert_eq!(port(&cli, "log", 0)["backend"], "log");
    let given = ["clone", "s", "--name", "pty", "--serial", "pty"];
    cli.run(&given).expect("clone");
    ask(open_terminal(text(&port(&cli, "pty", 0)["path"])));
    // A clone of it has a terminal of its own.
    cli.run(&["clone", "pty", "--name", "own"]).expect("clone");
    let (one, other) = (port(&cli, "pty", 0), port(&cli, "own", 0));
    assert_ne!(one["path"], other["path"]);
    ask(open_terminal(text(&other["path"])));

    for name in ["s", "log", "pty", "own"] {
        cli.run(&["rm", name, "--force"]).expect("rm");
    }
    assert!(!socket.exists(), "the socket of a removed VM is left");
    cli.clean_up();
}
