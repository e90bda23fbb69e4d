//! Life of VMs: run, power, pause, removal, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use api_types::{Consistency, ErrorKind, ForkRequest, StopRequest};
use bed::{Bed, clones};

#[test]
fn a_vm_runs_is_shown_and_leaves_nothing_behind() {
    let bed = Bed::new();
    bed.run("a", "");
    let vm = bed.detail("a");
    assert_eq!((vm.vm.state.as_str(), vm.vm.generation), ("running", 0));
    assert_eq!(vm.disks[0].layers.len(), 2);
    assert!(vm.disk.delta_bytes > 0);
    assert!(vm.pid.is_some());
    let error = bed.client.remove("a", false).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Conflict));
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}

#[test]
fn the_agents_word_makes_a_vm_ready() {
    let bed = Bed::new();
    let mut request = bed.request("a", "agent");
    request.wait_ready_s = Some(20);
    let reply = bed.client.run(&request).unwrap();
    assert!(reply.ready_us >= reply.first_run_us);
    let detail = bed.detail("a");
    assert!(detail.vm.ready);
    assert_eq!(detail.guest.unwrap().hostname, "h");
    let cloned = bed.client.fork("a", &clones(&["b"])).unwrap();
    assert!(cloned.clones[0].ready_us.is_some(), "{cloned:?}");
}

#[test]
fn an_agent_that_never_comes_is_a_timeout_and_the_vm_stays() {
    let bed = Bed::new();
    let mut request = bed.request("a", "");
    request.wait_ready_s = Some(1);
    let error = bed.client.run(&request).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Timeout));
    assert_eq!(bed.state("a"), "running");
}

#[test]
fn a_failed_boot_leaves_nothing_behind() {
    let bed = Bed::new();
    let request = bed.with_disk(bed.request("a", "fail=boot"));
    let error = bed.client.run(&request).unwrap_err();
    assert_eq!(error.to_string(), "cannot boot a: made to fail");
    bed.assert_only(&[]);
}

#[test]
fn power_goes_off_and_on() {
    let bed = Bed::new();
    bed.run("a", "");
    let ask = StopRequest::default();
    assert_eq!(bed.client.stop("a", &ask).unwrap().state, "poweredOff");
    assert_eq!(bed.client.stop("a", &ask).unwrap().state, "poweredOff");
    assert_eq!(bed.client.start("a").unwrap().state, "running");
    assert_eq!(
        bed.client.start("a").unwrap_err().kind(),
        Some(ErrorKind::Conflict)
    );
    assert_eq!(bed.client.pause("a").unwrap().state, "paused");
    assert_eq!(bed.client.resume("a").unwrap().state, "running");
    assert_eq!(bed.client.reset("a").unwrap().state, "running");
    let mut log = Vec::new();
    bed.client
        .log("a", client::LogOptions::default(), &mut log)
        .unwrap();
    assert_eq!(String::from_utf8(log).unwrap(), "boot\nboot\nboot\n");
    bed.assert_only(&["a"]);
}

#[test]
fn a_deaf_guest_is_a_timeout_and_force_ends_it() {
    let bed = Bed::new();
    bed.run("a", "deaf");
    let ask = StopRequest {
        timeout_s: Some(1),
        ..StopRequest::default()
    };
    let error = bed.client.stop("a", &ask).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Timeout));
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    assert_eq!(bed.client.stop("a", &force).unwrap().state, "poweredOff");
}

#[test]
fn a_guest_that_is_asked_can_be_ended_at_once_and_worked_with_meanwhile() {
    let bed = Bed::new();
    bed.run("a", "deaf");
    let ask = StopRequest {
        timeout_s: Some(600),
        ..StopRequest::default()
    };
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    std::thread::scope(|scope| {
        let asked = [(); 2].map(|()| scope.spawn(|| bed.client.stop("a", &ask)));
        // Both wait for the guest.
        let serial = bed.detail("a").serial.unwrap();
        bed.until("both wait", || {
            let said = std::fs::read_to_string(&serial).unwrap();
            said.matches("button").count() == 2
        });
        assert_eq!(bed.client.pause("a").unwrap().state, "paused");
        assert_eq!(bed.client.resume("a").unwrap().state, "running");
        assert_eq!(bed.client.stop("a", &force).unwrap().state, "poweredOff");
        for asked in asked {
            assert_eq!(asked.join().unwrap().unwrap().state, "poweredOff");
        }
    });
    assert_eq!(bed.client.start("a").unwrap().state, "running");
}

#[test]
fn a_vm_that_could_not_boot_again_is_not_reset() {
    let bed = Bed::new();
    let kernel = bed.file("other");
    let disk = bed.file("disk.raw");
    std::fs::write(&kernel, b"kernel").unwrap();
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let mut request = bed.request("a", "");
    request.kernel = Some(kernel.clone());
    request.disks = vec![serde_json::from_value(serde_json::json!({"path": disk})).unwrap()];
    bed.client.run(&request).unwrap();
    let pid = bed.detail("a").pid;
    for file in [&kernel, &disk] {
        let away = bed.file("away");
        std::fs::rename(file, &away).unwrap();
        let error = bed.client.reset("a").unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
        assert_eq!(
            (bed.state("a"), bed.detail("a").pid),
            ("running".into(), pid)
        );
        std::fs::rename(&away, file).unwrap();
    }
    assert_eq!(bed.client.reset("a").unwrap().state, "running");
    assert_ne!(bed.detail("a").pid, pid);
}

#[test]
fn guests_end_by_themselves_and_endless_resets_are_stopped() {
    let bed = Bed::new();
    bed.run("off", "end=off");
    bed.until_state("off", "poweredOff");
    bed.run("reset", "end=reset");
    bed.until("the resets are stopped", || {
        let detail = bed.detail("reset");
        detail.vm.state == "poweredOff" && detail.reason.is_some_and(|r| r.contains("reset itself"))
    });
    bed.assert_only(&["off", "reset"]);
}

#[test]
fn no_space_pauses_one_vm_and_resume_goes_on() {
    let bed = Bed::new();
    bed.run("a", "nospace");
    bed.until_state("a", "paused: no space");
    assert_eq!(bed.client.resume("a").unwrap().state, "running");
    bed.until("it is told", || {
        let events = bed.client.events(None).unwrap();
        events.iter().any(|e| e.kind == "vm.no_space")
    });
}

/// Files of the datastore that a process has open, with whether it can write to them.
fn open_layers(bed: &Bed, pid: i32) -> Vec<(String, bool)> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open = fds.flatten().filter_map(|fd| {
        let path = std::fs::read_link(fd.path()).ok()?;
        let layer = path.starts_with(bed.home().canonicalize().unwrap().join("datastore1/layers"));
        let number = fd.file_name().into_string().unwrap();
        let told = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = told.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let writes = u32::from_str_radix(flags.trim(), 8).unwrap() & 3 != 0;
        let name = path.file_name()?.to_str()?.to_owned();
        layer.then_some((name, writes))
    });
    open.collect()
}

#[test]
fn sealed_layers_are_never_opened_for_writing() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.fork("a", &clones(&["b", "c"])).unwrap();
    bed.client.fork("b", &clones(&["d"])).unwrap();
    for name in ["b", "c", "d"] {
        let detail = bed.detail(name);
        let top = std::path::Path::new(&detail.disks[0].layers[0])
            .file_name()
            .unwrap();
        let open = open_layers(&bed, detail.pid.unwrap());
        assert!(
            open.iter()
                .any(|(layer, writes)| *writes && top == layer.as_str()),
            "{open:?}"
        );
        // The source of a fork was the writer of the layer that is sealed now.
        let own = detail.vm.id.clone() + "-";
        let others = open.iter().filter(|(layer, _)| !layer.starts_with(&own));
        for (layer, writes) in others {
            assert!(!writes, "{name} can write to {layer}: {open:?}");
        }
    }
}

#[test]
fn a_vm_process_that_dies_takes_only_its_vm_along() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.run("b", "");
    let pid = rustix::process::Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    bed.until_state("a", "poweredOff");
    let reason = bed.detail("a").reason.unwrap();
    assert!(reason.contains("killed by signal 9"), "{reason}");
    assert_eq!(bed.state("b"), "running");
    bed.client.start("a").unwrap();
    bed.assert_only(&["a", "b"]);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let bed = Bed::new();
    bed.run("a", "");
    let refused = |change: &dyn Fn(&mut api_types::RunRequest)| {
        let mut request = bed.request("x", "");
        change(&mut request);
        bed.client.run(&request).unwrap_err().to_string()
    };
    let disk = |name: &str| api_types::DiskRequest {
        path: bed.file(name),
        format: None,
        read_only: false,
    };
    std::fs::write(bed.file("cut.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    for (message, wanted) in [
        (
            refused(&|r| r.name = "a".into()),
            "name: there is a VM \"a\" already",
        ),
        (
            refused(&|r| r.name = "../a".into()),
            "name: \"../a\" is not",
        ),
        (
            refused(&|r| r.cpus = 1000),
            "cpus: 1000 is not between 1 and 8",
        ),
        (
            refused(&|r| r.memory_bytes = 0),
            "memory_bytes: 0 is not between",
        ),
        (
            refused(&|r| r.memory_bytes = 1 << 40),
            "memory_bytes: 1 TiB is not between",
        ),
        (refused(&|r| r.memory_bytes = 511 << 30), "the host has"),
        (refused(&|r| r.kernel = None), "kernel: give an image"),
        (
            refused(&|r| r.kernel = Some(bed.file("none"))),
            "kernel: cannot open",
        ),
        (
            refused(&|r| r.image = Some("none".into())),
            "image: there is no image \"none\"",
        ),
        (
            refused(&|r| r.disks.push(disk("none"))),
            "disk: cannot open",
        ),
        (refused(&|r| r.disks.push(disk("cut.qcow2"))), "truncated"),
    ] {
        assert!(message.contains(wanted), "{message:?} lacks {wanted:?}");
        assert!(!message.contains('\n'));
    }
    bed.assert_only(&["a"]);
}

#[test]
fn a_kvm_device_that_is_missing_is_told_with_a_remedy() {
    let mut bed = Bed::new();
    bed.kill();
    let mut command = bed.command();
    let mut daemon = command
        .args(["--kvm-device", "/nonexistent/kvm"])
        .spawn()
        .unwrap();
    bed.until("the daemon answers", || bed.client.status().is_ok());
    let error = bed.client.run(&bed.request("a", "")).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable));
    assert!(
        error.to_string().contains("/nonexistent/kvm is missing"),
        "{error}"
    );
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn linked_and_full_clones_are_made_of_powered_off_vms() {
    let bed = Bed::new();
    bed.run("a", "");
    let linked = ForkRequest {
        mode: api_types::CloneMode::Linked,
        ..clones(&["b", "c"])
    };
    bed.client.stop("a", &StopRequest::default()).unwrap();
    bed.client.fork("a", &linked).unwrap();
    assert_eq!(bed.state("b"), "poweredOff");
    assert_eq!(bed.detail("b").disks[0].layers.len(), 3);
    assert_eq!(bed.detail("a").disks[0].layers.len(), 3);
    let full = ForkRequest {
        mode: api_types::CloneMode::Full,
        ..clones(&["d"])
    };
    bed.client.fork("a", &full).unwrap();
    assert_eq!(bed.detail("d").disks[0].layers.len(), 1);
    bed.client.start("b").unwrap();
    bed.client.start("d").unwrap();
    bed.client.remove("a", false).unwrap();
    assert_eq!(bed.state("b"), "running");
    bed.assert_only(&["b", "c", "d"]);
}

#[test]
fn linked_clones_of_a_running_vm_leave_its_vcpus_and_memory_alone() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let linked = |names: &[&str]| ForkRequest {
        mode: api_types::CloneMode::Linked,
        ..clones(names)
    };
    let cloned = bed.client.fork("a", &linked(&["b", "c"])).unwrap();
    assert_eq!((cloned.stun_us, cloned.io_held_us), (0, 7), "{cloned:?}");
    assert_eq!(cloned.consistency, Consistency::Crash);
    assert_eq!(bed.state("b"), "poweredOff");
    let layers = |bed: &Bed, name: &str| bed.detail(name).disks[0].layers.clone();
    assert_eq!(layers(&bed, "a")[1..], layers(&bed, "b")[1..]);
    assert_eq!(layers(&bed, "a").len(), 3);
    bed.client.start("b").unwrap();
    // RAM was not switched: the first fork of it still turns it into a layer.
    let forked = bed.client.fork("a", &clones(&["i"])).unwrap();
    assert_eq!(forked.memory, "layer");
    assert_eq!(
        bed.client.fork("a", &clones(&["j"])).unwrap().memory,
        "fork"
    );
    bed.client.pause("a").unwrap();
    bed.client.fork("a", &linked(&["d"])).unwrap();
    assert_eq!(bed.state("a"), "paused");
    let refused = ForkRequest {
        quiesce: true,
        ..linked(&["e"])
    };
    bed.client.resume("a").unwrap();
    let refused = bed.client.fork("a", &refused).unwrap_err().to_string();
    assert!(refused.contains("no guest agent"), "{refused}");
    bed.restart();
    assert_eq!(layers(&bed, "c")[1..], layers(&bed, "b")[1..]);
    bed.client.remove("a", true).unwrap();
    bed.client.start("d").unwrap();
    bed.assert_only(&["b", "c", "d", "i", "j"]);
}

#[test]
fn a_console_is_that_of_a_process_and_ends_with_it() {
    let bed = Bed::new();
    bed.run("a", "");
    let mut console = bed.client.console("a").unwrap();
    console.set_read_timeout(Some(bed::PATIENCE)).unwrap();
    // It stays over the end of a process that another one follows.
    bed.client.reset("a").unwrap();
    bed.client.pause("a").unwrap();
    bed.client.console("a").unwrap();
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    bed.client.stop("a", &force).unwrap();
    let mut shown = String::new();
    console.read_to_string(&mut shown).unwrap();
    assert_eq!(shown, "boot\nboot\n");
    let refused = bed.client.console("a").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "a is powered off; start it with 'mitose start a'"
    );
}

#[test]
fn a_log_is_followed_before_there_is_one() {
    let bed = Bed::new();
    bed.run("a", "");
    let linked = ForkRequest {
        mode: api_types::CloneMode::Linked,
        ..clones(&["b"])
    };
    bed.client.fork("a", &linked).unwrap();
    let mut stream = UnixStream::connect(bed.home().join("run/mitosed.sock")).unwrap();
    stream.set_read_timeout(Some(bed::PATIENCE)).unwrap();
    let head = "GET /api/v1/vms/b/log/follow HTTP/1.1\r\nHost: m\r\nConnection: Upgrade\r\n\
                Upgrade: mitose-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{answer:?}");
    bed.client.start("b").unwrap();
    let mut first = [0; 5];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"boot\n");
    bed.client.remove("b", true).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}
