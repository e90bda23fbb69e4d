//! Full clones and disk pools: copies taken by rename, made ahead, and made anew.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api_types::{
    CloneMode, Cloned, Consistency, DiskPoolChangeRequest, DiskPoolRequest, DiskPoolState,
    ErrorKind, ForkRequest, PrepareRequest, StopRequest, TaskState,
};
use bed::stores::Mount;
use bed::{Bed, clones};
use http::ask;

/// Number of a batch's names, with a prefix.
fn full(prefix: &str, count: usize) -> ForkRequest {
    let names: Vec<String> = (1..=count).map(|n| format!("{prefix}{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ForkRequest {
        mode: CloneMode::Full,
        ..clones(&names)
    }
}

fn how(cloned: &Cloned) -> Vec<(String, String)> {
    let of = |clone: &api_types::ClonedVm| {
        let disks = clone.disks.clone().unwrap();
        (disks.datastore, disks.how)
    };
    cloned.clones.iter().map(of).collect()
}

/// A powered-off VM with one disk of 1 MiB.
fn source(bed: &Bed, name: &str) {
    bed.run(name, "");
    bed.client.stop(name, &StopRequest::default()).unwrap();
}

fn pool(bed: &Bed, source: &str, store: &str, count: u64) -> String {
    let request = DiskPoolRequest {
        source: source.into(),
        datastore: store.into(),
        count,
        ..DiskPoolRequest::default()
    };
    bed.client.make_disk_pool(&request).unwrap().id
}

fn until_full(bed: &Bed, pool: &str) {
    bed.until(&format!("{pool} is full"), || {
        bed.client.disk_pool(pool).unwrap().state == DiskPoolState::Full
    });
}

fn top(bed: &Bed, name: &str) -> PathBuf {
    bed.detail(name).disks[0].layers[0].clone().into()
}

/// A full clone's disk stands alone, is clean, and shows what its source's shows.
fn assert_copy(bed: &Bed, name: &str, source: &str) {
    let detail = bed.detail(name);
    assert_eq!(detail.disks[0].layers.len(), 1, "{name}");
    assert_eq!(detail.vm.state, "poweredOff");
    bed.check_chain(&top(bed, name));
    let compared = Command::new("qemu-img")
        .arg("compare")
        .args([top(bed, name), top(bed, source)])
        .output();
    let Ok(compared) = compared else { return };
    assert!(compared.status.success(), "{name} differs from {source}");
}

/// Changes the first bytes of a powered-off VM's disk.
fn write_to(path: &Path, pattern: u8) {
    let command = format!("write -P {pattern} 0 4096");
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &command])
        .arg(path)
        .output();
    let written = written.expect("qemu-io is installed with qemu-img");
    assert!(written.status.success(), "{written:?}");
}

#[test]
fn full_clones_take_ready_copies_and_spread_over_datastores() {
    let bed = Bed::new();
    bed.add_store("two");
    source(&bed, "a");
    let pools = [pool(&bed, "a", "datastore1", 2), pool(&bed, "a", "two", 2)];
    pools.iter().for_each(|id| until_full(&bed, id));
    for id in &pools {
        // Nothing is refilled while the batch runs.
        let change = DiskPoolChangeRequest {
            count: Some(2),
            rate_bytes_per_s: Some(1),
            version: None,
        };
        bed.client.change_disk_pool(id, &change).unwrap();
    }
    let cloned = bed.client.fork("a", &full("f", 5)).unwrap();
    let how = how(&cloned);
    assert!(how[..4].iter().all(|(_, how)| how == "pool"), "{how:?}");
    let on = |store: &str| how[..4].iter().filter(|(on, _)| on == store).count();
    assert_eq!((on("datastore1"), on("two")), (2, 2), "{how:?}");
    assert_eq!(how[4].1, "copy");
    let why = cloned.clones[4].disks.clone().unwrap().reason.unwrap();
    assert!(why.contains("pool a on two is empty"), "{why}");
    for n in 1..=5 {
        assert_copy(&bed, &format!("f{n}"), "a");
    }
    let shown = bed.client.disk_pools().unwrap();
    let sums = shown
        .iter()
        .fold((0, 0), |(h, m), p| (h + p.hits, m + p.misses));
    assert_eq!(sums, (4, 2));
    for id in &pools {
        let change = DiskPoolChangeRequest {
            rate_bytes_per_s: Some(1 << 30),
            ..DiskPoolChangeRequest::default()
        };
        bed.client.change_disk_pool(id, &change).unwrap();
    }
    pools.iter().for_each(|id| until_full(&bed, id));
    bed.until_event("pool.filled");
    let refused = bed.client.remove_datastore("two").unwrap_err().to_string();
    assert!(refused.contains("is used by"), "{refused}");
    for id in &pools {
        bed.client.remove_disk_pool(id).unwrap();
    }
    assert!(bed.list("datastore1/pool").is_empty());
    bed.client.start("f1").unwrap();
}

#[test]
fn a_pool_is_told_to_be_filled_when_copies_were_made() {
    let mut bed = Bed::new();
    bed.add_store("two");
    source(&bed, "a");
    let told = |bed: &Bed, id: &str| {
        let events = bed.client.events(None).unwrap();
        let of_it = |event: &&api_types::Event| {
            event.kind == "pool.filled" && event.object.as_deref() == Some(id)
        };
        events.iter().filter(of_it).count()
    };
    let first = pool(&bed, "a", "datastore1", 2);
    bed.until("it is told", || told(&bed, &first) == 1);
    bed.restart();
    // Whoever looks at one pool has looked at all of them.
    let second = pool(&bed, "a", "two", 1);
    bed.until("the other is told", || told(&bed, &second) == 1);
    assert_eq!(told(&bed, &first), 1);
    bed.client.fork("a", &full("f", 1)).unwrap();
    bed.until("they are filled anew", || {
        told(&bed, &first) + told(&bed, &second) == 3
    });
    for id in [first, second] {
        bed.client.remove_disk_pool(&id).unwrap();
    }
}

#[test]
fn a_pool_follows_its_source() {
    let bed = Bed::new();
    source(&bed, "a");
    let id = pool(&bed, "a", "datastore1", 2);
    until_full(&bed, &id);
    // A linked clone gives the source an empty delta, which changes no content.
    let linked = ForkRequest {
        mode: CloneMode::Linked,
        ..clones(&["l"])
    };
    bed.client.fork("a", &linked).unwrap();
    let cloned = bed.client.fork("a", &full("f", 1)).unwrap();
    assert_eq!(how(&cloned)[0].1, "pool");
    until_full(&bed, &id);
    write_to(&top(&bed, "a"), 9);
    bed.until_event("pool.drained");
    until_full(&bed, &id);
    let cloned = bed.client.fork("a", &full("g", 1)).unwrap();
    assert_eq!(how(&cloned)[0].1, "pool");
    assert_copy(&bed, "g1", "a");
    bed.client.start("a").unwrap();
    bed.until("the pool waits for its source", || {
        let pool = bed.client.disk_pool(&id).unwrap();
        pool.reason.is_some_and(|why| why.contains("a is running"))
    });
    let path = "/api/v1/vms/a?force=true&dry_run=true";
    let tried = ask(&bed, "DELETE", path, &[], "").json();
    let refused = bed.client.remove("a", true).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    let remedy = format!("remove that first with 'mitose pool rm {id}'");
    assert!(refused.to_string().contains(&remedy), "{refused}");
    assert_eq!(tried["problems"][0]["remedy"], remedy);
    bed.client.remove_disk_pool(&id).unwrap();
    bed.client.remove("a", true).unwrap();
    assert_eq!(bed.names(), ["f1", "g1", "l"]);
}

#[test]
fn a_pool_whose_source_is_gone_is_drained() {
    let bed = Bed::new();
    bed.run("a", "");
    let one_child = PrepareRequest {
        children: 1,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &one_child, |_| ()).unwrap();
    let id = pool(&bed, "a-1", "datastore1", 2);
    until_full(&bed, &id);
    assert_eq!(bed.list(&format!("datastore1/pool/{id}")).len(), 2);
    // A child that was never started goes with its fork point.
    bed.client.unprepare("a", false).unwrap();
    bed.until_event("pool.drained");
    bed.until("the pool misses its source", || {
        let pool = bed.client.disk_pool(&id).unwrap();
        pool.ready == 0 && pool.reason.is_some_and(|why| why.contains("is gone"))
    });
    bed.until("its copies are gone", || {
        bed.list(&format!("datastore1/pool/{id}")).is_empty()
    });
    bed.client.remove_disk_pool(&id).unwrap();
}

#[test]
fn copies_that_are_too_many_go_also_where_the_source_runs() {
    let bed = Bed::new();
    source(&bed, "a");
    let id = pool(&bed, "a", "datastore1", 2);
    until_full(&bed, &id);
    bed.client.start("a").unwrap();
    let change = DiskPoolChangeRequest {
        count: Some(0),
        ..DiskPoolChangeRequest::default()
    };
    bed.client.change_disk_pool(&id, &change).unwrap();
    bed.until("it is drained", || {
        bed.list(&format!("datastore1/pool/{id}")).is_empty()
    });
}

#[test]
fn a_full_clone_of_a_running_vm_shows_one_instant() {
    let bed = Bed::new();
    bed.run("a", "");
    write_to(&top(&bed, "a"), 5);
    let cloned = bed.client.fork("a", &full("f", 2)).unwrap();
    let cost = (cloned.stun_us, cloned.io_held_us);
    assert_eq!((cost, &*cloned.memory), ((0, 7), "none"), "{cloned:?}");
    assert_eq!(cloned.consistency, Consistency::Crash);
    let reason = cloned.clones[0].disks.clone().unwrap().reason.unwrap();
    assert!(reason.contains("no disk pool for a"), "{reason}");
    assert_eq!(bed.state_of("a"), "running");
    // The source has written nothing since: it shows what its clones do.
    ["f1", "f2"]
        .iter()
        .for_each(|name| assert_copy(&bed, name, "a"));
    write_to(&top(&bed, "a"), 6);
    assert_eq!(bed.detail("a").vm.name, "a");
    bed.client.suspend("a", |_| ()).unwrap();
    let cloned = bed.client.fork("a", &full("g", 1)).unwrap();
    assert_eq!((cloned.stun_us, bed.state_of("a")), (0, "suspended".into()));
    assert_copy(&bed, "g1", "a");
    bed.client.start("a").unwrap();
    bed.client.remove("a", true).unwrap();
    bed.client.start("f1").unwrap();
    bed.assert_only(&["f1", "f2", "g1"]);
    let layers = bed.list("datastore1/layers");
    assert_eq!(layers.len(), 3, "{layers:?}");
}

#[test]
fn a_full_clone_of_a_running_vm_syncs_its_guest_where_asked() {
    let bed = Bed::new();
    bed.run("a", "");
    let quiesced = |mode| ForkRequest {
        quiesce: true,
        mode,
        ..clones(&["q"])
    };
    let refused = bed
        .client
        .fork("a", &quiesced(CloneMode::Full))
        .unwrap_err();
    assert!(refused.to_string().contains("no guest agent"), "{refused}");
    let refused = bed.client.fork("a", &quiesced(CloneMode::Instant));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("quiesce: only before full and linked clones"),
        "{refused}"
    );
    bed.assert_only(&["a"]);
}

/// A powered-off VM with a long stack, of which `content` says whether its top has content; upkeep
/// was kept from merging it.
fn long_source(bed: &Bed, name: &str, content: bool) {
    bed.run(name, "");
    for round in 0..9 {
        write_to(&top(bed, name), round);
        let clone = format!("{name}-{round}");
        bed.client.fork(name, &clones(&[&clone])).unwrap();
        bed.client.remove(&clone, true).unwrap();
    }
    if content {
        write_to(&top(bed, name), 99);
    }
    bed.client.stop(name, &StopRequest::default()).unwrap();
}

#[test]
fn a_merge_of_its_layers_drains_no_pool() {
    let mut bed = Bed::new();
    bed.kill();
    bed.start_with(&[("MITOSE_DISK_LAYERS", "60")]);
    let sources = ["a", "b"];
    long_source(&bed, "a", true);
    long_source(&bed, "b", false);
    let pools = sources.map(|name| pool(&bed, name, "datastore1", 2));
    pools.iter().for_each(|id| until_full(&bed, id));
    let depth = |name: &str| bed_depth(&bed, name);
    assert!(sources.iter().all(|name| depth(name) > 8));
    bed.kill();
    bed.start_with(&[("MITOSE_DISK_LAYERS", "4")]);
    for name in sources {
        bed.until("the layers are merged", || bed_depth(&bed, name) <= 4);
    }
    // The filler looks every two seconds.
    std::thread::sleep(Duration::from_millis(2_500));
    let events = bed.client.events(None).unwrap();
    let drained: Vec<_> = events.iter().filter(|e| e.kind == "pool.drained").collect();
    assert!(drained.is_empty(), "{drained:?}");
    for name in sources {
        let cloned = bed
            .client
            .fork(name, &full(&format!("{name}f"), 2))
            .unwrap();
        assert_eq!(how_many(&cloned, "pool"), 2, "{cloned:?}");
        assert_copy(&bed, &format!("{name}f1"), name);
    }
    // A copy that is being made when its source changes goes without an event.
    until_full(&bed, &pools[1]);
    write_to(&top(&bed, "b"), 77);
    bed.until_event("pool.drained");
}

fn bed_depth(bed: &Bed, name: &str) -> usize {
    bed.detail(name).disks[0].layers.len()
}

#[test]
fn a_slow_pool_holds_no_other_up() {
    let bed = Bed::new();
    source(&bed, "a");
    source(&bed, "b");
    let slow = bed.client.make_disk_pool(&DiskPoolRequest {
        source: "a".into(),
        datastore: "datastore1".into(),
        count: 1,
        name: Some("slow".into()),
        rate_bytes_per_s: Some(1),
    });
    let slow = slow.unwrap().id;
    let dir = bed.home().join(format!("datastore1/pool/{slow}"));
    let begun = || std::fs::read_dir(&dir).is_ok_and(|mut found| found.next().is_some());
    bed.until("the slow one is begun", begun);
    let fast = pool(&bed, "b", "datastore1", 3);
    until_full(&bed, &fast);
    assert_eq!(bed.client.disk_pool(&slow).unwrap().ready, 0);
    bed.client.remove_disk_pool(&slow).unwrap();
    assert_eq!(bed.list("datastore1/pool"), [fast]);
}

#[test]
fn a_pool_of_an_image_serves_vms_that_were_never_written_to() {
    let bed = Bed::new();
    bed.make_image("img", 1 << 20);
    let id = pool(&bed, "img", "datastore1", 2);
    assert_eq!(bed.client.disk_pool("img").unwrap().source, "image:img");
    until_full(&bed, &id);
    let mut request = bed.request("a", "");
    request.image = Some("img".into());
    bed.client.run(&request).unwrap();
    bed.client.stop("a", &StopRequest::default()).unwrap();
    let cloned = bed.client.fork("a", &full("f", 1)).unwrap();
    assert_eq!(how(&cloned)[0].1, "pool");
    assert_copy(&bed, "f1", "a");
    write_to(&top(&bed, "a"), 3);
    let cloned = bed.client.fork("a", &full("g", 1)).unwrap();
    let disks = cloned.clones[0].disks.clone().unwrap();
    assert_eq!(disks.how, "copy");
    assert!(disks.reason.unwrap().contains("copies of other content"));
    assert_copy(&bed, "g1", "a");
}

#[test]
fn pools_that_cannot_be_are_refused_by_name() {
    let bed = Bed::new();
    source(&bed, "a");
    bed.run("on", "");
    bed.client.run(&bed.request("bare", "")).unwrap();
    bed.client.stop("bare", &StopRequest::default()).unwrap();
    let refused = |source: &str, datastore: &str| {
        let request = DiskPoolRequest {
            source: source.into(),
            datastore: datastore.into(),
            count: 1,
            ..DiskPoolRequest::default()
        };
        bed.client.make_disk_pool(&request).unwrap_err()
    };
    let check = |error: client::ClientError, kind: ErrorKind, wanted: &str| {
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(error.kind(), Some(kind), "{error}");
    };
    check(
        refused("none", "datastore1"),
        ErrorKind::NotFound,
        "there is no VM and no image",
    );
    check(
        refused("image:none", "datastore1"),
        ErrorKind::NotFound,
        "there is no image",
    );
    check(
        refused("a", "none"),
        ErrorKind::NotFound,
        "there is no datastore",
    );
    check(
        refused("on", "datastore1"),
        ErrorKind::Conflict,
        "on is running",
    );
    check(
        refused("bare", "datastore1"),
        ErrorKind::Conflict,
        "no disk that it can write to",
    );
    pool(&bed, "a", "datastore1", 0);
    check(refused("a", "datastore1"), ErrorKind::Conflict, "already");
    let clones = bed.client.fork("bare", &full("b", 1)).unwrap();
    assert_eq!(clones.clones[0].disks.clone().unwrap().how, "none");
}

#[test]
fn a_refill_may_be_cut_at_any_moment() {
    let mut bed = Bed::new();
    source(&bed, "a");
    let request = DiskPoolRequest {
        source: "a".into(),
        datastore: "datastore1".into(),
        count: 4,
        // A copy takes a fifth of a second.
        rate_bytes_per_s: Some(5 << 20),
        ..DiskPoolRequest::default()
    };
    let id = bed.client.make_disk_pool(&request).unwrap().id;
    for ms in [0, 5, 50, 100, 150, 190, 210, 300] {
        std::thread::sleep(Duration::from_millis(ms));
        bed.kill();
        let dir = bed.home().join("datastore1/pool").join(&id);
        let ready = |dir: &Path| {
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let names = names.map(|entry| entry.file_name().into_string().unwrap());
            names
                .filter(|name| !name.ends_with(".part"))
                .collect::<Vec<_>>()
        };
        let before = ready(&dir);
        for name in &before {
            bed.check_chain(&dir.join(name).join("disk0.qcow2"));
        }
        bed.start();
        assert!(bed.client.disk_pool(&id).unwrap().ready >= before.len() as u64);
        let after = ready(&dir);
        assert!(before.iter().all(|name| after.contains(name)));
    }
    until_full(&bed, &id);
    let cloned = bed.client.fork("a", &full("f", 4)).unwrap();
    assert!(how(&cloned).iter().all(|(_, how)| how == "pool"));
    for n in 1..=4 {
        assert_copy(&bed, &format!("f{n}"), "a");
    }
}

#[test]
fn a_full_clone_may_be_cut_at_any_moment() {
    for (ms, runs) in [
        (1, false),
        (20, true),
        (60, false),
        (110, true),
        (180, true),
        (260, false),
    ] {
        let mut bed = Bed::new();
        match runs {
            true => bed.run("a", ""),
            false => source(&bed, "a"),
        }
        let client = bed.client.clone();
        let request = ForkRequest {
            rate_bytes_per_s: Some(10 << 20),
            ..full("f", 3)
        };
        let cloning = std::thread::spawn(move || client.fork("a", &request));
        std::thread::sleep(Duration::from_millis(ms));
        bed.kill();
        let _ = cloning.join().unwrap();
        bed.start();
        let names = bed.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        bed.assert_only(&names);
        for name in names.iter().filter(|name| **name != "a") {
            assert_copy(&bed, name, "a");
        }
        match runs {
            true => assert_eq!(bed.state_of("a"), "running"),
            false => drop(bed.client.start("a").unwrap()),
        }
    }
}

#[test]
fn a_cancelled_batch_leaves_whole_clones() {
    let bed = Bed::new();
    source(&bed, "a");
    let client = bed.client.clone();
    let request = ForkRequest {
        // Slow enough that the cancellation comes in time.
        rate_bytes_per_s: Some(512 << 10),
        ..full("f", 8)
    };
    let cloning = std::thread::spawn(move || client.fork("a", &request));
    bed.until("a clone is made", || bed.state_of("f1") == "poweredOff");
    let running = |id: &i64| {
        let task = bed.client.task(*id);
        task.is_ok_and(|task| task.kind == "vm.fork" && task.state == TaskState::Running)
    };
    let id = (1..100).find(running).expect("the batch is a task in work");
    bed.client.cancel_task(id).unwrap();
    let refused = cloning.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("cancelled: "), "{refused}");
    let task = bed.client.task(id).unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    let made = task
        .items
        .iter()
        .filter(|item| item.state == TaskState::Success);
    let mut wanted: Vec<String> = made.map(|item| item.name.clone()).collect();
    assert!((1..8).contains(&wanted.len()), "{task:?}");
    let rest = task.items.iter().skip(wanted.len());
    rest.for_each(|item| assert_eq!(item.state, TaskState::Cancelled, "{task:?}"));
    for name in &wanted {
        assert_copy(&bed, name, "a");
    }
    wanted.insert(0, "a".to_owned());
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    bed.assert_only(&wanted);
}

#[test]
fn a_datastore_that_fills_up_in_a_batch_keeps_whole_clones_and_no_halves() {
    let bed = Bed::new();
    let Some(mount) = Mount::tmpfs(bed.file("small"), 8 << 20) else {
        eprintln!("skipped: mounting is not permitted");
        return;
    };
    bed.add_store("small");
    source(&bed, "a");
    let request = ForkRequest {
        datastore: Some("small".into()),
        ..full("f", 8)
    };
    let cloned = bed.client.fork("a", &request).unwrap();
    let failed: Vec<_> = cloned
        .clones
        .iter()
        .filter_map(|c| c.error.clone())
        .collect();
    assert!((2..7).contains(&failed.len()), "{cloned:?}");
    for error in &failed {
        let wanted = "no space on datastore small: 2 MiB needed, ";
        assert!(
            error.starts_with(wanted) && error.contains(" free"),
            "{error}"
        );
    }
    let mut names = bed.names();
    names.retain(|name| name != "a");
    assert_eq!(names.len(), 8 - failed.len());
    let tasks = bed.client.tasks().unwrap();
    let task = tasks.iter().find(|task| task.kind == "vm.fork").unwrap();
    assert_eq!(task.state, TaskState::Failed);
    let told = task.error.clone().unwrap();
    let count = failed.len();
    let wanted = format!("{count} of 8 failed; the first, f{}: no space", 9 - count);
    assert!(told.starts_with(&wanted), "{told}");
    for name in &names {
        assert_copy(&bed, name, "a");
    }
    let files = std::fs::read_dir(mount.path().join("layers"))
        .unwrap()
        .count();
    assert_eq!(files, names.len());
    assert_eq!(
        std::fs::read_dir(mount.path().join("vms")).unwrap().count(),
        names.len()
    );
    // A pool on it waits for space, and goes on when there is some.
    let id = pool(&bed, "a", "small", 2);
    bed.until("the pool waits for space", || {
        let pool = bed.client.disk_pool(&id).unwrap();
        pool.reason
            .is_some_and(|why| why.contains("no space on datastore small"))
    });
    for name in &names {
        bed.client.remove(name, true).unwrap();
    }
    until_full(&bed, &id);
    let none = ForkRequest {
        datastore: Some("small".into()),
        ..full("g", 8)
    };
    std::fs::write(mount.path().join("filler"), vec![1; 3 << 20]).unwrap();
    let cloned = bed.client.fork("a", &none).unwrap();
    assert_eq!(how_many(&cloned, "pool"), 2);
}

fn how_many(cloned: &Cloned, word: &str) -> usize {
    let disks = cloned
        .clones
        .iter()
        .filter_map(|clone| clone.disks.as_ref());
    disks.filter(|disks| disks.how == word).count()
}
