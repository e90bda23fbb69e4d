//! Snapshots: a tree of states, returning to them, what they hold and what they leave.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use api_types::{
    CloneMode, ErrorKind, ForkRequest, Snapshot, SnapshotMemory, SnapshotRequest, StopRequest,
};
use bed::{Bed, clones};
use client::ClientError;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

fn request(name: &str, memory: bool) -> SnapshotRequest {
    SnapshotRequest {
        name: name.into(),
        description: format!("about {name}"),
        memory,
    }
}

fn snapshot(bed: &Bed, vm: &str, name: &str, memory: bool) -> Snapshot {
    let made = bed
        .client
        .create_snapshot(vm, &request(name, memory), |_| ());
    made.unwrap_or_else(|error| panic!("{error}\n{}", bed.log()))
}

fn refused(result: Result<Snapshot, client::ClientError>, kind: ErrorKind, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Some(kind), "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// Files of the folder of memory.
fn memory_files(bed: &Bed) -> Vec<String> {
    let dir = bed.home().join("datastore1/memory");
    if dir.exists() {
        bed.list("datastore1/memory")
    } else {
        Vec::new()
    }
}

/// Writes to a powered-off VM's disk as its guest would.
fn write(bed: &Bed, vm: &str, pattern: u8) {
    let top = bed.detail(vm).disks[0].layers[0].clone();
    let wrote = Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            &format!("write -P {pattern} 0 64k"),
            &top,
        ])
        .output()
        .unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
}

/// Asserts what a powered-off VM's disk begins with, and that its chain is whole.
fn reads(bed: &Bed, vm: &str, pattern: u8) {
    let layers = bed.detail(vm).disks[0].layers.clone();
    let read = Command::new("qemu-io")
        .args([
            "-r",
            "-f",
            "qcow2",
            "-c",
            &format!("read -P {pattern} 0 64k"),
            &layers[0],
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(read.status.success() && !text.contains("failed"), "{text}");
    for layer in layers.iter().filter(|layer| layer.ends_with("qcow2")) {
        let check = Command::new("qemu-img").args(["check", layer]).output();
        let check = check.unwrap();
        assert!(check.status.success(), "{layer}: {check:?}");
    }
}

/// Files of the stack under a layer of the datastore.
fn chain_of(bed: &Bed, id: &str) -> Vec<String> {
    let path = bed.home().join(format!("datastore1/layers/{id}.qcow2"));
    let told = Command::new("qemu-img")
        .args(["info", "-U", "--backing-chain", "--output=json"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    let chain: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let names = chain.as_array().unwrap().iter().map(|layer| {
        let path = PathBuf::from(layer["filename"].as_str().unwrap());
        path.file_name().unwrap().to_str().unwrap().to_owned()
    });
    names.collect()
}

/// Asserts that only layers of VMs and snapshots are in the datastore.
fn assert_layers(bed: &Bed) {
    let mut used: Vec<String> = Vec::new();
    for name in bed.names() {
        let detail = bed.detail(&name);
        let files = detail.disks.iter().flat_map(|disk| &disk.layers);
        used.extend(files.map(|f| {
            PathBuf::from(f)
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .into()
        }));
        for snapshot in bed.client.snapshots(&name).unwrap() {
            for id in &snapshot.layers {
                used.extend(chain_of(bed, id));
            }
        }
    }
    let unused: Vec<_> = bed
        .list("datastore1/layers")
        .into_iter()
        .filter(|file| !used.contains(file))
        .collect();
    assert!(unused.is_empty(), "{unused:?}\n{}", bed.log());
}

#[test]
fn a_powered_off_vm_returns_to_the_disks_of_its_snapshots() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.stop("a", &OFF).unwrap();
    write(&bed, "a", 1);
    let first = snapshot(&bed, "a", "first", false);
    assert_eq!((first.memory, first.stun_us), (SnapshotMemory::None, 0));
    assert_eq!(first.description, "about first");
    assert!(first.current && first.parent.is_none());
    write(&bed, "a", 2);
    let second = snapshot(&bed, "a", "second", false);
    assert_eq!(second.parent.as_deref(), Some(&*first.id));
    write(&bed, "a", 3);
    let vm = bed.client.revert("a", "first", |_| ()).unwrap();
    assert_eq!(vm.state, "poweredOff");
    reads(&bed, "a", 1);
    let third = snapshot(&bed, "a", "third", false);
    assert_eq!(third.parent.as_deref(), Some(&*first.id));
    bed.client.revert("a", "second", |_| ()).unwrap();
    reads(&bed, "a", 2);
    assert_layers(&bed);
    // What continues a removed snapshot continues the one above it.
    bed.client.remove_snapshot("a", "first", false).unwrap();
    let left = bed.client.snapshots("a").unwrap();
    assert!(left.iter().all(|s| s.parent.is_none()), "{left:?}");
    reads(&bed, "a", 2);
    bed.client.revert("a", "third", |_| ()).unwrap();
    reads(&bed, "a", 1);
    bed.client.start("a").unwrap();
    assert_layers(&bed);
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}

#[test]
fn a_subtree_goes_as_a_whole() {
    let bed = Bed::new();
    bed.run("a", "");
    for name in ["root", "left", "leaf"] {
        snapshot(&bed, "a", name, false);
    }
    bed.client.revert("a", "root", |_| ()).unwrap();
    snapshot(&bed, "a", "right", false);
    let gone = bed.client.remove_snapshot("a", "left", true).unwrap();
    assert_eq!(gone.removed, ["left", "leaf"]);
    let names: Vec<_> = bed.client.snapshots("a").unwrap();
    let names: Vec<_> = names.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["root", "right"]);
    bed.client.remove_snapshot("a", "root", true).unwrap();
    assert!(bed.client.snapshots("a").unwrap().is_empty());
    assert_eq!(bed.detail("a").vm.state, "poweredOff");
}

#[test]
fn a_running_vm_runs_on_while_its_disks_are_held() {
    let bed = Bed::new();
    bed.run("a", "");
    let made = snapshot(&bed, "a", "disks", false);
    assert_eq!((made.stun_us, made.io_held_us), (0, 7));
    assert_eq!(bed.state("a"), "running");
    assert!(memory_files(&bed).is_empty());
    let vm = bed.client.revert("a", "disks", |_| ()).unwrap();
    assert_eq!(vm.state, "poweredOff");
    bed.client.start("a").unwrap();
    assert_eq!(bed.state("a"), "running");
}

#[test]
fn memory_is_in_files_that_never_change_and_is_gone_back_to() {
    let bed = Bed::new();
    bed.run("a", "");
    // The first is a layer in memory, the second one has to be written by a process.
    for (name, log) in [
        ("one", "boot\nrestore\n"),
        ("two", "boot\nrestore\nrestore\n"),
    ] {
        let made = snapshot(&bed, "a", name, true);
        assert_eq!(made.memory, SnapshotMemory::Files);
        assert!(made.memory_bytes.unwrap() > 0);
        let dir = bed.home().join("datastore1/memory");
        let ram = dir.join(format!("{}.ram", made.id));
        let file = std::fs::metadata(&ram).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o400);
        assert_eq!(file.len(), 16 << 20);
        let state = std::fs::read(dir.join(format!("{}.state", made.id))).unwrap();
        saved_state::check(&state).unwrap();
        let vm = bed.client.revert("a", name, |_| ()).unwrap();
        assert_eq!(vm.state, "running");
        let serial = std::fs::read_to_string(bed.detail("a").serial.unwrap()).unwrap();
        assert_eq!(serial, log);
    }
    assert_eq!(memory_files(&bed).len(), 4);
    bed.client.remove_snapshot("a", "one", true).unwrap();
    assert!(memory_files(&bed).is_empty());
    let one = snapshot(&bed, "a", "one", true);
    assert_eq!(memory_files(&bed).len(), 2);
    assert_eq!(one.parent, None);
    bed.client.remove("a", true).unwrap();
    assert!(memory_files(&bed).is_empty());
    bed.assert_only(&[]);
}

#[test]
fn a_vm_runs_on_where_its_snapshot_cannot_be_gone_back_to() {
    let bed = Bed::new();
    bed.run("a", "");
    let made = snapshot(&bed, "a", "one", true);
    let pid = bed.detail("a").pid;
    let dir = bed.home().join("datastore1/memory");
    let [ram, state] = ["ram", "state"].map(|kind| dir.join(format!("{}.{kind}", made.id)));
    let whole = std::fs::read(&state).unwrap();
    let away = bed.file("away");
    let still_runs = |words: &str| {
        let error = bed
            .client
            .revert("a", "one", |_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("its memory cannot be loaded") && error.contains(words),
            "{error}"
        );
        assert_eq!(
            (bed.state("a"), bed.detail("a").pid),
            ("running".into(), pid)
        );
    };
    std::fs::rename(&ram, &away).unwrap();
    still_runs(".ram: No such file");
    std::fs::write(&ram, b"short").unwrap();
    still_runs("has 5 bytes, not the 16777216");
    std::fs::remove_file(&ram).unwrap();
    std::fs::rename(&away, &ram).unwrap();
    std::fs::remove_file(&state).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&state, &flipped).unwrap();
        if at % 7 == 0 {
            still_runs(".state: ");
        }
    }
    std::fs::write(&state, &whole[..whole.len() - 1]).unwrap();
    still_runs("is cut");
    std::fs::write(&state, &whole).unwrap();
    assert_eq!(
        bed.client.revert("a", "one", |_| ()).unwrap().state,
        "running"
    );
}

#[test]
fn a_snapshot_is_cloned_in_each_way() {
    let bed = Bed::new();
    bed.run("a", "");
    snapshot(&bed, "a", "now", true);
    let of = |name: &str, mode| ForkRequest {
        mode,
        snapshot: Some("now".into()),
        ..clones(&[name])
    };
    let cloned = bed.client.fork("a", &of("live", CloneMode::Instant));
    let cloned = cloned.unwrap();
    assert_eq!((cloned.memory.as_str(), cloned.stun_us), ("files", 0));
    assert_eq!(cloned.clones[0].error, None);
    assert_eq!(bed.state("live"), "running");
    bed.client
        .fork("a", &of("link", CloneMode::Linked))
        .unwrap();
    bed.client.fork("a", &of("full", CloneMode::Full)).unwrap();
    assert_eq!(bed.detail("full").disks[0].layers.len(), 1);
    // They need neither the snapshot nor the VM.
    bed.client.remove("a", true).unwrap();
    for name in ["link", "full"] {
        assert_eq!(bed.state(name), "poweredOff");
        reads(&bed, name, 7);
        bed.client.start(name).unwrap();
    }
    bed.assert_only(&["full", "link", "live"]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let bed = Bed::new();
    bed.run("a", "");
    snapshot(&bed, "a", "here", false);
    let make = |name: &str, memory| {
        bed.client
            .create_snapshot("a", &request(name, memory), |_| ())
    };
    refused(make("here", false), ErrorKind::Conflict, "already");
    refused(make("../x", false), ErrorKind::Invalid, "name");
    let of = ForkRequest {
        snapshot: Some("here".into()),
        ..clones(&["b"])
    };
    let error = bed.client.fork("a", &of).unwrap_err();
    assert!(error.to_string().contains("has no memory"), "{error}");
    let error = bed.client.revert("a", "nowhere", |_| ()).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::NotFound), "{error}");
    bed.client.stop("a", &OFF).unwrap();
    refused(make("off", true), ErrorKind::Conflict, "leave --memory out");
    assert_eq!(bed.client.snapshots("a").unwrap().len(), 1);
    bed.assert_only_processes();
}

/// Puts `a` on a private view of its memory: from here on a process writes it to files.
fn fork_once(bed: &Bed) {
    bed.client.fork("a", &clones(&["z"])).unwrap();
    bed.client.remove("z", true).unwrap();
}

#[test]
fn a_dump_that_fails_leaves_no_snapshot_and_a_running_vm() {
    let bed = Bed::new();
    bed.run("a", "fail=dump");
    fork_once(&bed);
    let made = bed
        .client
        .create_snapshot("a", &request("memory", true), |_| ());
    assert!(made.unwrap_err().to_string().contains("made to fail"));
    assert!(bed.client.snapshots("a").unwrap().is_empty());
    assert_eq!(bed.state("a"), "running");
    assert!(memory_files(&bed).is_empty());
    assert_layers(&bed);
    bed.assert_only_processes();
}

#[test]
fn a_daemon_that_ends_while_memory_is_written_leaves_no_half_snapshot() {
    let mut bed = Bed::new();
    bed.run("a", "dump_ms=60000");
    fork_once(&bed);
    snapshot(&bed, "a", "disks", false);
    let client = bed.client.clone();
    let maker =
        std::thread::spawn(move || client.create_snapshot("a", &request("memory", true), |_| ()));
    bed.until("memory is being written", || {
        let all = bed.client.snapshots("a").unwrap();
        all.iter().any(|s| s.memory == SnapshotMemory::Writing)
    });
    let busy = bed.client.revert("a", "memory", |_| ()).unwrap_err();
    assert!(busy.to_string().contains("still being written"), "{busy}");
    bed.restart();
    maker.join().unwrap().unwrap_err();
    let names: Vec<_> = bed.client.snapshots("a").unwrap();
    let names: Vec<_> = names.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["disks"]);
    assert_eq!(bed.state("a"), "running");
    assert!(memory_files(&bed).is_empty());
    assert_layers(&bed);
    let events = bed.client.events(None).unwrap();
    assert!(events.iter().any(|e| e.kind == "snapshot.failed"));
    bed.assert_only_processes();
}

/// What every VM and snapshot names is there and whole, and nothing else is.
fn assert_whole(bed: &Bed) {
    for name in bed.names() {
        let detail = bed.detail(&name);
        for layer in detail.disks.iter().flat_map(|disk| &disk.layers) {
            assert!(PathBuf::from(layer).exists(), "{name} lacks {layer}");
        }
        for snapshot in bed.client.snapshots(&name).unwrap() {
            assert_ne!(snapshot.memory, SnapshotMemory::Writing);
            for id in &snapshot.layers {
                let path = bed.home().join(format!("datastore1/layers/{id}.qcow2"));
                let check = Command::new("qemu-img").arg("check").arg(&path).output();
                assert!(check.unwrap().status.success(), "{}", path.display());
            }
        }
    }
    let snapshots: Vec<_> = bed
        .names()
        .iter()
        .flat_map(|name| bed.client.snapshots(name).unwrap())
        .collect();
    for file in memory_files(bed) {
        let id = file.split('.').next().unwrap();
        let suspended = id.starts_with("vm-");
        assert!(suspended || snapshots.iter().any(|s| s.id == id), "{file}");
    }
    assert_layers(bed);
}

#[test]
fn a_daemon_that_ends_at_any_moment_leaves_a_whole_tree() {
    let mut bed = Bed::new();
    bed.run("a", "");
    snapshot(&bed, "a", "root", true);
    let mut delay_ms = 1;
    for round in 0..12 {
        let client = bed.client.clone();
        let worker = std::thread::spawn(move || {
            // Until the daemon ends.
            for step in 0.. {
                let name = format!("s{round}-{step}");
                let made = client.create_snapshot("a", &request(&name, step % 2 == 0), |_| ());
                let went = match step % 3 {
                    0 => client.revert("a", "root", |_| ()).map(drop),
                    1 => client.suspend("a", |_| ()).map(drop),
                    _ => client.start("a").map(drop),
                };
                let gone = client.remove_snapshot("a", &name, step % 5 == 0);
                let ended = |error: &client::ClientError| error.kind().is_none();
                if made.is_err_and(|e| ended(&e))
                    || went.is_err_and(|e| ended(&e))
                    || gone.is_err_and(|e| ended(&e))
                {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(delay_ms));
        delay_ms = (delay_ms * 5 / 3).min(700);
        bed.restart();
        worker.join().unwrap();
        assert_whole(&bed);
        match &*bed.state("a") {
            "running" | "paused" => {}
            "poweredOff" | "suspended" => drop(bed.client.start("a").unwrap()),
            other => panic!("{other}"),
        }
    }
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
    assert!(memory_files(&bed).is_empty());
}

#[test]
fn a_return_takes_no_address_that_another_vm_was_given_since() {
    let bed = Bed::new();
    let two = api_types::NetworkRequest {
        name: "two".into(),
        ..api_types::NetworkRequest::default()
    };
    bed.client.make_network(&two).unwrap();
    let machine = |name: &str, mac: &str, ip: &str| {
        let mut request = bed.with_disk(bed.request(name, ""));
        let net = format!(r#"{{"network":"VM Network","mac":"{mac}"}}"#);
        request.nets = vec![serde_json::from_str(&net).unwrap()];
        let address = format!(r#"{{"nic":0,"address":"{ip}"}}"#);
        request.addresses = vec![serde_json::from_str(&address).unwrap()];
        request.powered_off = true;
        request
    };
    let (first, second) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
    bed.client.run(&machine("a", first, "10.1.1.1/24")).unwrap();
    let set = |vm: &str, change: serde_json::Value| {
        let change = serde_json::from_value(change).unwrap();
        bed.client.reconfigure(vm, None, &change).unwrap();
    };
    let file = serde_json::json!({"file": bed.file("serial")});
    let serial = |backend: &serde_json::Value| serde_json::json!({"serial": [{"port": 0, "backend": backend}]});
    set("a", serial(&file));
    snapshot(&bed, "a", "s", false);
    let uuid = bed.detail("a").uuid;
    // Clones that keep its address are to have it.
    let same = ForkRequest {
        mode: CloneMode::Linked,
        keep_mac: true,
        ..clones(&["k"])
    };
    bed.client.fork("a", &same).unwrap();
    bed.client.revert("a", "s", |_| ()).unwrap();
    let no = |words: &str| {
        let before = bed.detail("a");
        let error = bed.client.revert("a", "s", |_| ()).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Conflict), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(bed.detail("a"), before);
    };
    // Its NIC was moved, and another has its address where it was.
    set(
        "a",
        serde_json::json!({"nics": [{"nic": 0, "network": "two"}]}),
    );
    bed.client
        .run(&machine("b", second, "10.1.1.1/24"))
        .unwrap();
    no("NIC 0 of b has 10.1.1.1 on the network \"VM Network\" already; change or remove that VM");
    bed.client.remove("b", false).unwrap();
    // Its NIC was removed, and another has its hardware address.
    bed.client.remove("k", false).unwrap();
    set("a", serde_json::json!({"remove_nics": [0]}));
    bed.client.run(&machine("c", first, "10.1.1.3/24")).unwrap();
    no("c has its hardware address 52:54:00:00:00:01");
    bed.client.remove("c", false).unwrap();
    // It got another UUID, and another has that of before.
    let other = "00000000-0000-4000-8000-000000000001";
    set("a", serde_json::json!({"uuid": other}));
    bed.client
        .run(&machine("d", second, "10.1.1.4/24"))
        .unwrap();
    set("d", serde_json::json!({"uuid": uuid}));
    no("d has its UUID");
    bed.client.remove("d", false).unwrap();
    // Its serial port went elsewhere, and another has the file.
    set("a", serial(&"log".into()));
    bed.client
        .run(&machine("e", second, "10.1.1.5/24"))
        .unwrap();
    set("e", serial(&file));
    no("for a serial port");
    bed.client.remove("e", false).unwrap();
    bed.client.revert("a", "s", |_| ()).unwrap();
    let detail = bed.detail("a");
    assert_eq!((detail.uuid, detail.nics.len()), (uuid, 1));
    bed.assert_only(&["a"]);
}

#[test]
fn a_return_that_the_host_cannot_provide_for_leaves_the_vm_running() {
    let bed = Bed::new();
    let two = api_types::NetworkRequest {
        name: "two".into(),
        ..api_types::NetworkRequest::default()
    };
    bed.client.make_network(&two).unwrap();
    let set = |change: serde_json::Value| {
        bed.client.stop("a", &OFF).unwrap();
        let change = serde_json::from_value(change).unwrap();
        bed.client.reconfigure("a", None, &change).unwrap();
        bed.client.start("a").unwrap();
    };
    let no = |snapshot: &str, words: [&str; 2]| {
        let before = bed.detail("a");
        let error = bed.client.revert("a", snapshot, |_| ()).unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Conflict), "{error}");
        let ClientError::Refused(problem) = error else {
            panic!("{error}");
        };
        assert_eq!(problem.field.as_deref(), Some("snapshot"), "{problem:?}");
        let [what, remedy] = words;
        assert!(problem.detail.contains(what), "{problem:?}");
        assert!(problem.remedy.is_some_and(|told| told.contains(remedy)));
        let after = bed.detail("a");
        assert_eq!((after.vm, after.pid), (before.vm, before.pid));
        assert_eq!((after.disks, after.nics), (before.disks, before.nics));
        assert_eq!(bed.state("a"), "running");
    };
    let dir = bed.file("ports");
    std::fs::create_dir(&dir).unwrap();
    let mut machine = bed.with_disk(bed.request("a", ""));
    machine.nets = vec![serde_json::from_str(r#"{"network":"two"}"#).unwrap()];
    bed.client.run(&machine).unwrap();
    snapshot(&bed, "a", "nic", true);
    set(serde_json::json!({"nics": [{"nic": 0, "network": "VM Network"}]}));
    bed.client.revert("a", "nic", |_| ()).unwrap();
    set(serde_json::json!({
        "nics": [{"nic": 0, "network": "VM Network"}],
        "serial": [{"port": 0, "backend": {"file": dir.join("com1")}}],
    }));
    bed.client.remove_network("two").unwrap();
    no(
        "nic",
        [
            "network: NIC 0 was on network-",
            "clone that snapshot with '--net NETWORK'",
        ],
    );

    snapshot(&bed, "a", "port", true);
    set(serde_json::json!({"serial": [{"port": 0, "backend": "log"}]}));
    std::fs::remove_dir_all(&dir).unwrap();
    no("port", ["com1 is in no directory", "make that"]);
    std::fs::create_dir(&dir).unwrap();
    bed.client.revert("a", "port", |_| ()).unwrap();
    assert_eq!(bed.state("a"), "running");
    bed.assert_only(&["a"]);
}
