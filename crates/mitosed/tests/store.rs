//! An inventory that cannot be written, or is damaged.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use api_types::{ErrorKind, ReconfigureRequest};
use bed::{Bed, PATIENCE, clones};

/// What the daemon says when it does not start.
fn refusal(bed: &Bed) -> String {
    let said = bed.file("said");
    let mut command = bed.command();
    command.stdout(Stdio::null());
    command.stderr(std::fs::File::create(&said).unwrap());
    let mut daemon = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match daemon.try_wait().unwrap() {
            Some(ended) => break ended,
            None if Instant::now() > deadline => {
                daemon.kill().unwrap();
                daemon.wait().unwrap();
                panic!("it started: {}", std::fs::read_to_string(&said).unwrap());
            }
            None => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    assert!(!ended.success());
    let text = std::fs::read_to_string(&said).unwrap();
    let line = text.lines().find(|line| line.starts_with("error: "));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn a_damaged_inventory_is_told_with_its_backup_and_the_backup_works() {
    let mut bed = Bed::new();
    bed.run("a", "");
    // A daemon makes a backup when it starts.
    let backup = bed.home().join("inventory.db.bak");
    bed.until("there is a first backup", || backup.exists());
    std::fs::remove_file(&backup).unwrap();
    bed.restart();
    bed.until("there is a backup", || backup.exists());
    bed.kill();
    let file = bed.home().join("inventory.db");
    let restore = || {
        std::fs::copy(&backup, &file).unwrap();
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(bed.home().join(format!("inventory.db{ending}")));
        }
    };
    // What is in the log covers damage in the file.
    restore();
    for garbage in [0_u64, 5000] {
        let mut open = std::fs::File::options().write(true).open(&file).unwrap();
        open.seek(SeekFrom::Start(garbage)).unwrap();
        open.write_all(&[0xa5; 8192]).unwrap();
        let line = refusal(&bed);
        assert!(line.contains("inventory.db.bak"), "{line}");
        restore();
    }
    bed.start();
    assert_eq!(bed.state("a"), "running");
}

#[test]
fn an_inventory_that_somebody_holds_is_told() {
    let mut bed = Bed::new();
    bed.kill();
    let holder = rusqlite::Connection::open(bed.home().join("inventory.db")).unwrap();
    holder
        .execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE;")
        .unwrap();
    let line = refusal(&bed);
    assert!(
        line.contains("end the program that holds inventory.db"),
        "{line}"
    );
    drop(holder);
    bed.start();
}

/// A small file system in memory, as the data directory.
struct Small<'a>(&'a Path);

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Starts the daemon anew in a home on a file system of `size`; none where nothing can be mounted.
fn small_home<'a>(bed: &mut Bed, home: &'a Path, size: &str) -> Option<Small<'a>> {
    bed.kill();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"])
        .arg(home)
        .status();
    let mounted = mount.is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("skipped: this place mounts nothing");
    }
    let small = mounted.then(|| Small(home));
    bed.start();
    small
}

/// A change that takes some space in the store.
fn change(n: u32) -> ReconfigureRequest {
    ReconfigureRequest {
        annotation: Some("x".repeat(4000)),
        attributes: [(format!("k{n}"), Some("y".repeat(1000)))].into(),
        ..ReconfigureRequest::default()
    }
}

#[test]
fn without_space_nothing_is_lost_and_the_daemon_goes_on() {
    let mut bed = Bed::new();
    let home = bed.home();
    let Some(_small) = small_home(&mut bed, &home, "6m") else {
        return;
    };
    bed.run("a", "");
    bed.run("b", "");
    let fill = home.join("fill");
    let mut file = std::fs::File::create(&fill).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    // The log of the store has some room left in the page that it grew to.
    let before = bed.client.object("a").unwrap();
    let (mut n, mut done) = (0, before.clone());
    let error = loop {
        assert!(n < 60, "the store never runs out of space");
        match bed.client.reconfigure("a", None, &change(n)) {
            Ok(_) => done = bed.client.object("a").unwrap(),
            Err(error) => break error,
        }
        n += 1;
    };
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
    assert!(
        error.to_string().contains("make space on the file system"),
        "{error}"
    );
    assert_eq!(
        bed.client.object("a").unwrap(),
        done,
        "memory is where the store is"
    );
    // What happens by itself is true whether it can be written or not.
    let pid = rustix::process::Pid::from_raw(bed.detail("b").pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    bed.until_state("b", "poweredOff");
    assert_eq!(bed.state("a"), "running");
    drop(file);
    std::fs::remove_file(&fill).unwrap();
    bed.client.reconfigure("a", None, &change(1000)).unwrap();
    let failed = |event: &api_types::Event| event.kind == "vm.failed" && event.subject == "b";
    bed.until("b's end is on record", || {
        bed.client.events(None).unwrap().iter().any(failed)
    });
    bed.restart();
    assert_eq!(bed.state("b"), "poweredOff");
    let reason = bed.detail("b").reason.unwrap();
    assert!(reason.contains("killed by signal 9"), "{reason}");
    assert!(
        bed.client
            .object("a")
            .unwrap()
            .labels
            .attributes
            .contains_key("k1000")
    );
    assert!(bed.client.events(None).unwrap().iter().any(failed));
    for name in ["a", "b"] {
        bed.client.remove(name, true).unwrap();
    }
    bed.kill();
    drop(bed);
}

#[test]
fn on_a_full_file_system_vms_can_be_removed() {
    let mut bed = Bed::new();
    let home = bed.home();
    let Some(_small) = small_home(&mut bed, &home, "96m") else {
        return;
    };
    for name in ["a", "b", "c"] {
        bed.run(name, "");
    }
    let mut file = std::fs::File::create(home.join("fill")).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    for n in 0..60 {
        bed.client.reconfigure("a", None, &change(n)).unwrap();
    }
    let force = api_types::StopRequest {
        force: true,
        timeout_s: None,
    };
    bed.client.stop("c", &force).unwrap();
    assert_eq!(bed.state("c"), "poweredOff");
    for name in ["b", "c", "a"] {
        bed.client.remove(name, true).unwrap();
    }
    bed.assert_only(&[]);
    drop(file);
    bed.kill();
    drop(bed);
}

/// Files below `dir`, sorted.
fn files_in(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_in(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn a_lost_inventory_is_no_first_start() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let pid = bed.client.vm("a").unwrap().pid.unwrap();
    let backup = bed.home().join("inventory.db.bak");
    bed.until("there is a backup", || backup.exists());
    // What the log holds is moved into the file when a daemon starts.
    bed.restart();
    bed.kill();
    let file = bed.home().join("inventory.db");
    let kept = std::fs::read(&file).unwrap();
    let kept_log = std::fs::read(bed.home().join("inventory.db-wal")).ok();
    let store = bed.home().join("datastore1");
    let before = files_in(&store);
    assert!(before.iter().any(|path| path.ends_with("serial.log")));
    for (has_backup, is_there) in [(true, true), (true, false), (false, true), (false, false)] {
        if !has_backup {
            let _ = std::fs::remove_file(&backup);
        }
        let _ = std::fs::remove_file(bed.home().join("inventory.db-wal"));
        match is_there {
            true => std::fs::write(&file, b"").unwrap(),
            false => std::fs::remove_file(&file).unwrap(),
        }
        let line = refusal(&bed);
        assert!(
            line.contains("inventory.db is ") && line.contains("to begin anew"),
            "{line}"
        );
        assert_eq!(line.contains("inventory.db.bak"), has_backup, "{line}");
        assert_eq!(files_in(&store), before);
    }
    std::fs::write(&file, kept).unwrap();
    if let Some(log) = kept_log {
        std::fs::write(bed.home().join("inventory.db-wal"), log).unwrap();
    }
    bed.start();
    assert_eq!(bed.client.vm("a").unwrap().pid, Some(pid));
}

/// Restarts the daemon and waits until its backup has ended an epoch.
fn back_up(bed: &mut Bed) -> std::path::PathBuf {
    let backup = bed.home().join("inventory.db.bak");
    std::fs::remove_file(&backup).unwrap_or_default();
    bed.restart();
    bed.until("there is a backup", || backup.exists());
    // The epoch that the backup ended is over when the next has its number.
    let epoch = || std::fs::read_to_string(bed.home().join("inventory.epoch")).unwrap_or_default();
    let of_backup: i64 = rusqlite::Connection::open(&backup)
        .unwrap()
        .query_row(
            "SELECT last FROM counters WHERE prefix = 'epoch'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    bed.until("a backup ends an epoch", || {
        epoch().trim().parse().is_ok_and(|now: i64| now > of_backup)
    });
    backup
}

#[test]
fn what_is_younger_than_a_backup_is_kept_when_it_is_put_back() {
    let mut bed = Bed::new();
    bed.run("old", "");
    let backup = back_up(&mut bed);
    bed.run("young", "");
    let young = bed.client.vm("young").unwrap();
    let pid = young.pid.unwrap();
    bed.kill();
    let store = bed.home().join("datastore1");
    let before = files_in(&store);
    std::fs::rename(&backup, bed.home().join("inventory.db")).unwrap();
    let _ = std::fs::remove_file(bed.home().join("inventory.db-wal"));
    bed.start();
    assert_eq!(bed.state("old"), "running");
    assert!(bed.client.vm("young").is_err());
    let process = std::path::PathBuf::from(format!("/proc/{pid}/stat"));
    assert!(process.exists(), "{}", bed.log());
    assert_eq!(files_in(&store), before);
    assert!(
        bed.log().contains("put back from a backup"),
        "{}",
        bed.log()
    );
    // A new VM takes no name of a file that is there.
    bed.run("new", "");
    assert_ne!(bed.client.vm("new").unwrap().vm.id, young.vm.id);
    bed.restart();
    assert!(process.exists());
    std::fs::remove_file(bed.home().join("inventory.restored")).unwrap();
    bed.restart();
    bed.until("the process goes", || !process.exists());
    let left = files_in(&store);
    assert!(
        left.iter()
            .all(|path| !path.to_string_lossy().contains(&young.vm.id)),
        "{left:?}"
    );
    assert_eq!(
        (bed.state("old"), bed.state("new")),
        ("running".into(), "running".into())
    );
}

#[test]
fn layers_that_only_unnamed_vms_stand_on_stay_with_them() {
    let mut bed = Bed::new();
    bed.run("old", "");
    bed.run("other", "");
    bed.client.fork("old", &clones(&["twin"])).unwrap();
    let backup = back_up(&mut bed);
    bed.client.fork("old", &clones(&["young"])).unwrap();
    let young = bed.detail("young");
    let stack = young.disks[0].layers.clone();
    // Its own, two of its source, and the file of the user.
    assert_eq!(stack.len(), 4, "{stack:?}");
    let shared = stack[1..].iter();
    assert!(
        shared
            .clone()
            .all(|file| bed.detail("old").disks[0].layers.contains(file))
    );
    bed.make_image("i", 1 << 20);
    let of_image = api_types::RunRequest {
        kernel: None,
        image: Some("i".into()),
        ..bed.request("booted", "")
    };
    bed.client.run(&of_image).unwrap();
    bed.kill();
    std::fs::rename(&backup, bed.home().join("inventory.db")).unwrap();
    let _ = std::fs::remove_file(bed.home().join("inventory.db-wal"));
    bed.start();
    assert_eq!(bed.names(), ["old", "other", "twin"]);
    let refused = bed.client.remove_image("i").unwrap_err().to_string();
    assert!(
        refused.contains("VMs that the inventory does not name"),
        "{refused}"
    );
    let of_other = bed.detail("other").disks[0].layers[0].clone();
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    let there = |file: &String| std::path::Path::new(file).exists();
    let layers = |bed: &Bed| bed.list("datastore1/layers").len();
    assert!(stack.iter().all(there), "{}", bed.log());
    assert!(!there(&of_other), "nobody stands on it");
    // That of the other unnamed VM is beside them.
    assert_eq!(layers(&bed), 4, "{:?}", bed.list("datastore1/layers"));
    bed::qemu_check(&stack[0]);
    bed.restart();
    assert!(stack.iter().all(there));
    // They go with the last.
    std::fs::remove_file(bed.home().join("inventory.restored")).unwrap();
    bed.restart();
    assert_eq!(layers(&bed), 0, "{:?}", bed.list("datastore1/layers"));
    assert!(there(stack.last().unwrap()), "the user's file stays");
    bed.client.remove_image("i").unwrap();
}

#[test]
fn others_cannot_read_the_home_and_the_inventory() {
    use std::os::unix::fs::PermissionsExt;
    let mut bed = Bed::new();
    bed.run("a", "");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bed.home()), 0o700);
    let files = ["inventory.db", "inventory.db-wal", "inventory.db.bak"];
    let there = |bed: &Bed| {
        let paths = files.iter().map(|name| bed.home().join(name));
        paths.filter(|path| path.exists()).collect::<Vec<_>>()
    };
    assert!(there(&bed).len() >= 2);
    for path in there(&bed) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    bed.kill();
    for path in there(&bed) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    bed.start();
    for path in there(&bed) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    assert_eq!(bed.state("a"), "running");
}
