//! Who may do what: tokens, roles, TLS, limits.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use api_types::{ErrorKind, Role, Task, TaskState, TokenRequest};
use client::{Client, ClientError};
use serde_json::{Value, json};

use bed::{Bed, clones};
use http::{Answer, ask};

fn token(bed: &Bed, name: &str, role: Role) -> String {
    let name = name.to_owned();
    bed.client
        .make_token(&TokenRequest { name, role })
        .unwrap()
        .secret
}

fn as_bearer(bed: &Bed, secret: &str, method: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {secret}");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    ask(bed, method, path, &[("Authorization", &bearer)], &body)
}

#[test]
fn a_role_bounds_what_its_bearer_does() {
    let bed = Bed::new();
    bed.run("a", "");
    let viewer = token(&bed, "v", Role::Viewer);
    let operator = token(&bed, "o", Role::Operator);
    let admin = token(&bed, "ad", Role::Admin);
    let fork = json!({ "names": ["b"] });
    let file = json!({ "name": "x", "kernel": "/etc/shadow" });
    let target = json!({ "path": "/tmp/x.tar" });
    for (secret, method, path, body, status) in [
        (&viewer, "GET", "/api/v1/vms", &Value::Null, 200),
        (&viewer, "GET", "/metrics", &Value::Null, 200),
        (&viewer, "POST", "/api/v1/vms/a/fork", &fork, 403),
        (&viewer, "DELETE", "/api/v1/vms/a", &Value::Null, 403),
        (&viewer, "GET", "/api/v1/vms/a/console", &Value::Null, 403),
        (&viewer, "GET", "/api/v1/tokens", &Value::Null, 403),
        (
            &operator,
            "POST",
            "/api/v1/vms/a/fork?wait=true",
            &fork,
            200,
        ),
        (&operator, "POST", "/api/v1/vms", &file, 403),
        (&operator, "GET", "/api/v1/tokens", &Value::Null, 403),
        (&operator, "POST", "/api/v1/daemon/stop", &Value::Null, 403),
        (
            &operator,
            "DELETE",
            "/api/v1/diskpools/p",
            &Value::Null,
            404,
        ),
        (
            &operator,
            "DELETE",
            "/api/v1/datastores/datastore1",
            &Value::Null,
            403,
        ),
        (&operator, "POST", "/api/v1/vms/a/export", &target, 403),
        (
            &operator,
            "POST",
            "/api/v1/import",
            &json!({ "path": "/x" }),
            403,
        ),
        (&viewer, "DELETE", "/api/v1/diskpools/p", &Value::Null, 403),
        (&operator, "DELETE", "/api/v1/images/i", &Value::Null, 403),
        (&admin, "GET", "/api/v1/tokens", &Value::Null, 200),
        (&admin, "DELETE", "/api/v1/tokens/ad", &Value::Null, 409),
        (&admin, "DELETE", "/api/v1/tokens/v", &Value::Null, 204),
        (&viewer, "GET", "/api/v1/vms", &Value::Null, 401),
    ] {
        let answer = as_bearer(&bed, secret, method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        if status == 401 {
            assert!(
                answer
                    .header("www-authenticate")
                    .unwrap()
                    .starts_with("Bearer")
            );
        }
    }
    // Failures on purpose are for who answers for the host: an admin, or the socket's owner.
    let fail = json!({ "names": ["c"], "fail_at": "host_record" });
    for (path, secret, status) in [
        ("/api/v1/vms/a/fork", &operator, 403),
        ("/api/v1/vms/a/fork?dry_run=true", &operator, 403),
        ("/api/v1/vms/a/fork?wait=true", &admin, 200),
    ] {
        let answer = as_bearer(&bed, secret, "POST", path, &fail);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        let answer = answer.json();
        if status == 403 {
            let told = (&answer["kind"], &answer["field"]);
            assert_eq!(told, (&json!("forbidden"), &json!("fail_at")));
        } else {
            assert_eq!(answer["state"], "failed");
        }
    }
    let own = bed.client.fork("a", &serde_json::from_value(fail).unwrap());
    assert!(own.unwrap_err().to_string().contains("made to fail"));
    let named = as_bearer(&bed, &operator, "POST", "/api/v1/vms", &file).json();
    assert_eq!(
        (&named["kind"], &named["field"]),
        (&json!("forbidden"), &json!("kernel"))
    );
    let tasks = bed.client.tasks().unwrap();
    let forked = |task: &Task| task.kind == "vm.fork" && task.state == TaskState::Success;
    let users: Vec<_> = tasks
        .into_iter()
        .filter(forked)
        .map(|task| task.user)
        .collect();
    assert_eq!(users, ["o"]);
    bed.assert_only(&["a", "b"]);
}

#[test]
fn tokens_outlive_the_daemon_and_their_secrets_are_not_kept() {
    let mut bed = Bed::new();
    let secret = token(&bed, "ci", Role::Viewer);
    let again = bed.client.make_token(&TokenRequest {
        name: "ci".into(),
        role: Role::Admin,
    });
    assert_eq!(again.unwrap_err().kind(), Some(ErrorKind::Conflict));
    bed.restart();
    assert_eq!(
        as_bearer(&bed, &secret, "GET", "/api/v1/vms", &Value::Null).status,
        200
    );
    for wrong in ["", "mitose_", &secret[..secret.len() - 1], "x"] {
        let answer = as_bearer(&bed, wrong, "GET", "/api/v1/vms", &Value::Null);
        assert_eq!(answer.status, 401, "{wrong:?}");
    }
    let random = secret.strip_prefix("mitose_").unwrap().as_bytes();
    for file in ["inventory.db", "inventory.db-wal"] {
        let bytes = std::fs::read(bed.home().join(file)).unwrap_or_default();
        assert!(!bytes.windows(random.len()).any(|w| w == random), "{file}");
    }
}

#[test]
fn streams_end_with_the_token_that_opened_them() {
    use std::io::{Read, Write};
    let bed = Bed::new();
    bed.run("a", "");
    let secret = token(&bed, "op", Role::Operator);
    let open = |path: &str, header: &str| {
        let socket = bed.home().join("run/mitosed.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(bed::PATIENCE)).unwrap();
        let head = format!(
            "GET /api/v1/{path} HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer {secret}\r\n{header}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8(status.to_vec()).unwrap())
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: mitose-stream";
    let streams = [
        open("events", "Accept: text/event-stream\r\nConnection: close"),
        open("vms/a/log/follow", upgrade),
        open("vms/a/console", upgrade),
    ];
    bed.client.remove_token("op").unwrap();
    for ((mut stream, status), wanted) in streams.into_iter().zip(["200", "101", "101"]) {
        assert!(status.ends_with(wanted), "{status}");
        let mut rest = Vec::new();
        // It ends; a stream that goes on breaks the time limit.
        stream.read_to_end(&mut rest).unwrap();
    }
    bed.client.pause("a").unwrap();
}

#[test]
fn a_name_is_that_of_one_token_also_where_many_ask_for_it_at_once() {
    let bed = Bed::new();
    for round in 0..4 {
        let start = std::sync::Barrier::new(8);
        let ask = || {
            start.wait();
            let name = format!("t{round}");
            let role = Role::Viewer;
            let made = bed.client.make_token(&TokenRequest { name, role });
            made.is_ok()
        };
        let made = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            let made = asked.into_iter().map(|asked| asked.join().unwrap());
            made.filter(|made| *made).count()
        });
        assert_eq!(made, 1);
    }
    assert_eq!(bed.client.tokens().unwrap().len(), 4);
}

/// Address of a daemon that was started with `--listen`.
fn url(bed: &Bed) -> String {
    // It answers at its socket a moment before.
    bed.until("the daemon tells its address", || {
        bed.log().contains("url=")
    });
    let log = bed.log();
    let (_, rest) = log
        .rsplit_once("url=")
        .expect("the daemon tells its address");
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Passes on what is written.
struct Passed(std::sync::mpsc::Sender<Vec<u8>>);

impl std::io::Write for Passed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn tls_clients_with_a_token_do_what_local_ones_do() {
    let bed = Bed::with(&["--listen", "127.0.0.1:0"]);
    bed.run("a", "");
    let secret = token(&bed, "ci", Role::Operator);
    let cert = bed.home().join("tls/cert.pem");
    let remote = Client::remote(&url(&bed), &secret, Some(&cert)).unwrap();
    assert_eq!(remote.vms().unwrap().len(), 1);
    let admin = token(&bed, "far", Role::Admin);
    let admin = Client::remote(&url(&bed), &admin, Some(&cert)).unwrap();
    let refused = admin.stop_daemon().unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Forbidden), "{refused}");
    remote.fork("a", &clones(&["b"])).unwrap();
    let mut log = Vec::new();
    remote
        .log("b", client::LogOptions::default(), &mut log)
        .unwrap();
    // A stream: what is written is seen until the VM is gone.
    let (sender, receiver) = std::sync::mpsc::channel();
    let follower = std::thread::spawn(move || {
        let follow = client::LogOptions {
            follow: true,
            ..client::LogOptions::default()
        };
        remote.log("a", follow, &mut Passed(sender))
    });
    let first = receiver.recv_timeout(bed::PATIENCE).unwrap();
    assert!(first.starts_with(b"boot\n"), "{first:?}");
    bed.client.reset("a").unwrap();
    let second = receiver.recv_timeout(bed::PATIENCE).unwrap();
    assert!(second.starts_with(b"boot\n"), "{second:?}");
    bed.client.remove("a", true).unwrap();
    follower.join().unwrap().unwrap();
    let stranger = Client::remote(&url(&bed), "mitose_00", Some(&cert)).unwrap();
    assert_eq!(
        stranger.vms().unwrap_err().kind(),
        Some(ErrorKind::Unauthorized)
    );
    // Nobody but this daemon is taken for it.
    let other = Bed::with(&["--listen", "127.0.0.1:0"]);
    let fooled = Client::remote(&url(&other), &secret, Some(&cert)).unwrap();
    assert!(matches!(fooled.vms(), Err(ClientError::Connect { .. })));
    for wrong in ["http://127.0.0.1:1", "https://127.0.0.1:x", "nonsense"] {
        let refused = Client::remote(wrong, &secret, Some(&cert))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("give https://HOST:PORT"), "{refused}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(bed.home().join("tls/key.pem"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn silent_connections_of_one_address_leave_the_port_to_others() {
    use std::io::Read;
    use std::net::{IpAddr, SocketAddr};
    let bed = Bed::with(&["--listen", "127.0.0.1:0"]);
    let secret = token(&bed, "v", Role::Viewer);
    let cert = bed.home().join("tls/cert.pem");
    let remote = Client::remote(&url(&bed), &secret, Some(&cert)).unwrap();
    let address: SocketAddr = url(&bed).trim_start_matches("https://").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let connect = |from: [u8; 4]| {
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((IpAddr::from(from), 0).into()).unwrap();
            socket.connect(address).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream
    };
    let is_open = |mut stream: std::net::TcpStream, time: std::time::Duration| {
        stream.set_read_timeout(Some(time)).unwrap();
        let read = stream.read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let silent: Vec<_> = (0..64).map(|_| connect([127, 0, 0, 1])).collect();
    assert!(!is_open(connect([127, 0, 0, 1]), bed::PATIENCE));
    assert!(remote.status().is_err(), "its address has too many");
    let a_while = std::time::Duration::from_millis(500);
    assert!(is_open(connect([127, 0, 0, 2]), a_while));
    let answer = as_bearer(&bed, &secret, "GET", "/metrics", &Value::Null);
    let metrics = String::from_utf8(answer.body).unwrap();
    let ended = "mitose_connections_ended_total{reason=\"too_many\"} 2\n";
    assert!(metrics.contains(ended), "{metrics}");
    assert!(bed.log().contains("more are turned away"));
    drop(silent);
    bed.until("there is room again", || remote.status().is_ok());
}

#[test]
fn a_client_that_asks_too_often_is_told_to_wait() {
    let bed = Bed::with(&["--rate-limit", "5"]);
    let secret = token(&bed, "ci", Role::Viewer);
    let asked: Vec<Answer> = (0..40)
        .map(|_| as_bearer(&bed, &secret, "GET", "/api/v1/daemon", &Value::Null))
        .collect();
    let held = asked
        .iter()
        .find(|answer| answer.status == 429)
        .expect("a limit");
    assert_eq!(held.header("retry-after"), Some("1"));
    assert_eq!(held.json()["kind"], "limited");
    assert_eq!(asked[0].status, 200);
    // The daemon's own user and others are not held back by it.
    assert!((0..40).all(|_| bed.client.status().is_ok()));
}

#[test]
fn a_group_or_port_that_cannot_be_is_told_before_any_process_is_started() {
    use std::os::unix::fs::PermissionsExt;
    let mut bed = Bed::new();
    bed.kill();
    // What tells of each process that is started. A look at `/proc` would also find one that the
    // killed daemon was just starting.
    let (vmm, started) = (bed.file("vmm"), bed.file("started"));
    let script = format!(
        "#!/bin/sh\n: > {}\nexec {} \"$@\"\n",
        started.display(),
        bed::fake_vmm().display()
    );
    std::fs::write(&vmm, script).unwrap();
    std::fs::set_permissions(&vmm, PermissionsExt::from_mode(0o755)).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    for (args, wanted) in [
        (["--group", "no-such-group"], "there is no group"),
        (["--listen", &port], "cannot listen on"),
    ] {
        let mut command = bed.command();
        let ended = command.args(args).env("MITOSE_VMM", &vmm).output().unwrap();
        assert!(!ended.status.success());
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(wanted), "{said}");
        assert!(!started.exists());
    }
    bed.start_with(&[("MITOSE_VMM", vmm.to_str().unwrap())]);
    bed.until("one that may listen starts them", || started.exists());
}
