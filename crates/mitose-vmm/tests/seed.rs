//! Shells born of a seed: jailed, with user ids of their own, alive when the seed is gone.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use vmm_protocol::{Command as Order, FromVmm, Outcome, Request, Sow, Sown, VERSION, VmState};

const FIRST: u32 = 0x6a00_0000;
const LAST: u32 = 0x6a00_ffff;

fn start_seed() -> (Child, UnixStream) {
    let (near, far) = UnixStream::pair().expect("socket pair");
    near.set_read_timeout(Some(Duration::from_secs(20)))
        .expect("timeout");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mitose-vmm"));
    command
        .args(["seed", "--uid", &FIRST.to_string()])
        .args(["--uid-range", &format!("{FIRST}-{LAST}")])
        .stdin(OwnedFd::from(far));
    (command.spawn().expect("seed"), near)
}

fn sow(seed: &UnixStream, listener: &UnixListener, log: &File, uid: u32) -> Sown {
    fd_channel::send(seed, &Sow { uid }, &[listener.as_fd(), log.as_fd()]).expect("send");
    fd_channel::receive(seed).expect("answer").message
}

fn state(shell: &UnixStream) -> VmState {
    let request = Request {
        id: 1,
        version: VERSION,
        command: Order::Status,
    };
    fd_channel::send(shell, &request, &[]).expect("send");
    match fd_channel::receive(shell).expect("reply").message {
        FromVmm::Reply(reply) => match reply.outcome {
            Outcome::Status(status) => status.state,
            other => panic!("{other:?}"),
        },
        FromVmm::Event(event) => panic!("{event:?}"),
    }
}

fn status_line(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

fn wait_gone(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while status_line(pid, "State:").is_some_and(|state| !state.starts_with('Z')) {
        assert!(Instant::now() < deadline, "process {pid} stays");
        std::thread::yield_now();
    }
}

#[test]
fn shells_are_jailed_and_outlive_their_seed() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, seed) = start_seed();
    let mut shells = vec![];
    for number in 0..3 {
        let path = folder.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&path).expect("listen");
        let log = File::create(folder.path().join(format!("{number}.log"))).expect("log");
        let uid = FIRST + 1 + number;
        let Sown::Born { pid } = sow(&seed, &listener, &log, uid) else {
            panic!("no shell {number}");
        };
        drop(listener);
        let shell = UnixStream::connect(&path).expect("connect");
        assert_eq!(state(&shell), VmState::Shell);
        let uids = status_line(pid, "Uid:").expect("status");
        assert!(
            uids.split_whitespace().all(|id| id == uid.to_string()),
            "{uids}"
        );
        assert_eq!(status_line(pid, "Seccomp:").as_deref(), Some("2"));
        assert_eq!(status_line(pid, "NoNewPrivs:").as_deref(), Some("1"));
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("fds");
        // Its log, its socket and connection, what wakes it.
        assert_eq!(descriptors.count(), 4);
        shells.push((pid, shell));
    }
    drop(seed);
    assert!(child.wait().expect("wait").success());
    for (pid, shell) in shells {
        assert_eq!(state(&shell), VmState::Shell);
        drop(shell);
        wait_gone(pid);
    }
}

#[test]
fn ids_outside_the_range_and_missing_descriptors_give_no_shell() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut child, seed) = start_seed();
    let path = folder.path().join("s.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let log_path = folder.path().join("log");
    let log = File::create(&log_path).expect("log");
    fd_channel::send(&seed, &Sow { uid: FIRST }, &[listener.as_fd()]).expect("send");
    let answer = fd_channel::receive::<Sown>(&seed).expect("answer").message;
    assert!(matches!(answer, Sown::Failed(reason) if reason.contains("2 are needed")));
    // Born, but it cannot take the id and ends.
    let Sown::Born { pid } = sow(&seed, &listener, &log, 0) else {
        panic!("the seed did not split");
    };
    wait_gone(pid);
    let words = fs::read_to_string(log_path).expect("log");
    assert!(words.contains("user id"), "{words}");
    drop(seed);
    assert!(child.wait().expect("wait").success());
}
