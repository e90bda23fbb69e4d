//! Boots the lab for real: exit codes, output, files in and out, and what its system offers.
//!
//! The first run builds the lab, which needs the network and the packages of `scripts/setup.sh`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::{Lab, Outcome, RunError, RunSpec};

/// Generous: hosts that run other tests at the same time are slow.
const LIMIT: Duration = Duration::from_secs(300);

fn run(spec: RunSpec) -> Result<Outcome, RunError> {
    let lab = Lab::ensure().expect("the lab is there or can be built");
    lab.run(&RunSpec {
        timeout: spec.timeout.or(Some(LIMIT)),
        ..spec.capture()
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is text")
}

#[test]
fn command_gets_its_files_and_its_exit_code_comes_back() {
    let host = tempfile::tempdir().unwrap();
    let small = host.path().join("it's small");
    fs::write(&small, "#!/bin/sh\necho from the host\n").unwrap();
    fs::set_permissions(&small, fs::Permissions::from_mode(0o755)).unwrap();
    // Above the size where files are bind mounted, mostly a hole.
    let large = host.path().join("large");
    fs::write(&large, "large").unwrap();
    fs::File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(200 << 20)
        .unwrap();
    let tree = host.path().join("tree");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("deep/leaf"), "leaf").unwrap();
    let script = r#"
        set -e
        "/opt/it's small"
        head -c 5 /srv/large.img
        stat -c ' %s' /srv/large.img
        cat /srv/tree/deep/leaf
        printf '%s' "$WORDS" >&2
        head -c 3000000 /dev/urandom >/root/random
        sha256sum </root/random | cut -d' ' -f1 >/root/sum
        printf '\000\377\r\n' >/dev/stdout
        cat /root/random
        mkdir -p /root/out/a && echo nested >/root/out/a/b
        (exec >/dev/null 2>&1 </dev/null; sleep 1000) &
        sleep 1000 &
        exit 7"#;
    let spec = RunSpec::new(["sh", "-c", script])
        .env("WORDS", "two $words\n'quoted'")
        .copy_in(&small, "/opt/")
        .copy_in(&large, "/srv/large.img")
        .copy_in(&tree, "/srv/tree")
        .copy_out("/root/sum", host.path().join("sum"))
        .copy_out("/root/out", host.path().join("out"));
    let outcome = run(spec).unwrap();
    assert_eq!(outcome.exit_code, 7);
    assert_eq!(text(&outcome.stderr), "two $words\n'quoted'");
    let head = b"from the host\nlarge 209715200\nleaf\0\xff\r\n";
    assert_eq!(&outcome.stdout[..head.len()], head);
    assert_eq!(outcome.stdout.len(), head.len() + 3_000_000);
    fs::write(host.path().join("random"), &outcome.stdout[head.len()..]).unwrap();
    assert_eq!(
        fs::read_to_string(host.path().join("sum")).unwrap(),
        sha256(host.path(), "random")
    );
    assert_eq!(
        fs::read_to_string(host.path().join("out/a/b")).unwrap(),
        "nested\n"
    );
}

fn sha256(directory: &Path, file: &str) -> String {
    let output = Command::new("sha256sum").arg(directory.join(file)).output();
    let line = String::from_utf8(output.expect("sha256sum is there").stdout).expect("it is text");
    format!("{}\n", line.split(' ').next().unwrap_or_default())
}

#[test]
fn lab_has_kvm_and_what_a_daemon_needs() {
    let script = r#"
        mitose-lab probe || exit 1
        set -e
        ip tuntap add dev tap0 mode tap
        ip -brief address show lo | grep -q 127.0.0.1
        mkdir /sys/fs/cgroup/test
        grep -q memory /sys/fs/cgroup/test/cgroup.controllers
        grep -q landlock /sys/kernel/security/lsm
        test -w /dev/shm && test -w /tmp && test "$(hostname)" = lab
        test "$(df --output=avail -BG / | tail -1 | tr -d ' G')" -ge 8
        test "$(nproc)" = 2
        kill -TERM $$"#;
    let spec = RunSpec::new(["sh", "-c", script]).copy_in(
        env!("CARGO_BIN_EXE_mitose-lab"),
        "/usr/local/bin/mitose-lab",
    );
    let outcome = run(spec).unwrap();
    let shown = format!("{}{}", text(&outcome.stdout), text(&outcome.stderr));
    assert_eq!(outcome.exit_code, 128 + 15, "{shown}");
    assert!(shown.contains("million instructions/s"), "{shown}");
}

#[test]
fn limits_end_the_machine_and_missing_files_are_named() {
    let spec = RunSpec::new(["sleep", "1000"]).timeout(Duration::from_secs(1));
    assert!(matches!(run(spec), Err(RunError::Timeout { .. })));

    let cancel = Arc::new(AtomicBool::new(false));
    let spec = RunSpec {
        cancel: Arc::clone(&cancel),
        ..RunSpec::new(["sleep", "1000"])
    };
    let runner = thread::spawn(move || run(spec));
    cancel.store(true, Ordering::Relaxed);
    assert!(matches!(runner.join().unwrap(), Err(RunError::Cancelled)));

    let spec = RunSpec::new(["sh", "-c", "exit 3"]).copy_out("/no/such", "/dev/null");
    let message = run(spec).unwrap_err().to_string();
    assert!(
        message.contains("/no/such") && message.contains("exit code 3"),
        "{message}"
    );

    let spec = RunSpec::new(["no-such-program"]);
    assert_eq!(run(spec).unwrap().exit_code, 127);
}
