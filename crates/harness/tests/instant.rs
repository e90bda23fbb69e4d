//! Instants that outlive their source: written to files by a newborn, held by a keeper, forked from
//! a VM that stands still. On the software engine, and on the machine's own KVM where it has one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command as Process;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::{ForkOptions, InstantFiles, SpawnOptions, VmProcess, kvm_present};
use vm_spec::VmSpec;
use vmm_protocol::{Command, Event, Outcome, VmState};

const MEMORY: u64 = 64 << 20;

/// Counts at equal steps whatever the clock does: what it prints depends on its memory alone. Some
/// machines have a KVM that runs guest code a hundred times slower than the software engine.
fn counter(soft: bool) -> String {
    let every = if soft { 40_000 } else { 400 };
    format!("mode=counter touch=16 write=1 scatter=2 every={every}")
}

/// Calls `test` with a folder for each engine of this machine, and whether it is the software one.
/// One at a time: each has VMs that never rest.
fn on_each_engine(test: impl Fn(&Path, bool)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for soft in [true, false] {
        if !soft && !kvm_present() {
            eprintln!("skipped: no /dev/kvm here");
            continue;
        }
        println!("engine: {}", if soft { "soft" } else { "kvm" });
        let folder = tempfile::tempdir().expect("folder");
        test(folder.path(), soft);
    }
}

fn boot(folder: &Path, soft: bool, cmdline: &str) -> VmProcess {
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest file");
    let spec = VmSpec {
        cpus: 1,
        memory_bytes: MEMORY,
        cmdline: cmdline.into(),
        entry: None,
        disks: vec![],
        nics: vec![],
        serial_ports: 1,
    };
    let options = SpawnOptions {
        soft,
        ..SpawnOptions::default()
    };
    VmProcess::boot(folder, "src", spec, &kernel, None, options).expect("boot")
}

fn lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Waits until the VM has printed `more` lines more.
fn wait_lines(vm: &VmProcess, more: usize) -> String {
    let least = lines(&vm.serial()) + more;
    vm.wait_serial(|text| lines(text) >= least)
        .unwrap_or_else(|error| panic!("{error:#}; {}", vm.process_log()))
}

/// Both VMs print the same, from their instant on.
fn assert_same_instant(one: &VmProcess, other: &VmProcess) {
    let (one, other) = (wait_lines(one, 4), wait_lines(other, 4));
    let len = one.len().min(other.len());
    assert!(len >= 4 * "c=0123456789abcdef\n".len(), "{one:?} {other:?}");
    assert_eq!(one[..len], other[..len]);
}

fn type_bytes(vm: &mut VmProcess, bytes: &[u8]) {
    vm.order(Command::SerialInput(bytes.into())).expect("type");
}

/// The guest's own check of every page that it has touched.
fn verify(vm: &mut VmProcess) {
    type_bytes(vm, b"v");
    let text = vm.wait_serial(|text| text.contains("V\n") || text.contains("E "));
    assert!(!text.as_ref().expect("answer").contains("E "), "{text:?}");
}

fn fork(vm: &mut VmProcess, clones: usize) -> (vmm_protocol::Forked, Vec<VmProcess>) {
    let options = ForkOptions {
        clones,
        ..ForkOptions::default()
    };
    let (forked, clones) = vm.fork(options).expect("fork");
    (forked, clones.into_iter().map(|clone| clone.vm).collect())
}

fn fails(result: anyhow::Result<()>, words: &str) {
    let error = result.expect_err("must be refused");
    assert!(format!("{error:#}").contains(words), "{error:#}");
}

#[test]
fn a_dump_of_a_forked_source_is_the_same_vm_again() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        let (_, _first) = fork(&mut source, 1);
        wait_lines(&source, 2);

        // One newborn becomes a clone, two write the instant: to a file system and to memory.
        let (_, newborns) = source.bear(&["sibling", "disk", "memory"]).expect("fork");
        let [mut sibling, mut disk, mut memory] = <[_; 3]>::try_from(newborns).expect("three");
        sibling.restore_inherited(&source, false).expect("restore");
        let on_disk = InstantFiles::in_folder(folder, "point").expect("files");
        disk.dump(&on_disk).expect("dump");
        let in_memory = InstantFiles::in_memory().expect("files");
        memory.dump(&in_memory).expect("dump");
        for files in [&on_disk, &in_memory] {
            let stat = files.ram.metadata().expect("size");
            assert_eq!(stat.len(), MEMORY);
            // The guest touched 16 MiB, and hardly anything besides.
            let kib = stat.blocks() / 2;
            assert!((16 << 10..20 << 10).contains(&kib), "{kib} KiB");
        }
        assert_eq!(disk.status().expect("status").state, VmState::Shell);

        let mut again = source.restored("a", &on_disk, false).expect("restore");
        let mut other = source.restored("b", &in_memory, false).expect("restore");
        assert_same_instant(&sibling, &again);
        assert_same_instant(&sibling, &other);
        verify(&mut again);
        verify(&mut other);

        // Who wrote can still become a clone, and ends with its daemon otherwise.
        disk.restore_inherited(&source, false).expect("restore");
        assert_same_instant(&sibling, &disk);
        memory.leave().expect("a newborn ends with its daemon");

        // What was restored from a file system is forked as anything else, also when the file's
        // name and the process that wrote it are gone.
        std::fs::remove_file(folder.join("point.ram")).expect("remove");
        drop(disk);
        let (forked, mut clones) = fork(&mut again, 2);
        assert!(forked.layer.is_none());
        clones.iter_mut().for_each(verify);
        wait_lines(&source, 2);
    });
}

#[test]
fn all_newborns_may_write_and_the_source_forks_on() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 1);
        source.fork_point().expect("fork");
        let mut dumps = vec![];
        for round in 0..3 {
            wait_lines(&source, 1);
            let name = format!("n{round}");
            let (_, mut newborns) = source.bear(&[&name]).expect("fork");
            let mut newborn = newborns.remove(0);
            // The source forks again before this one is written.
            let (_, later) = source.bear(&[&format!("l{round}")]).expect("fork");
            let files = InstantFiles::in_memory().expect("files");
            newborn.dump(&files).expect("dump");
            newborn.order(Command::PowerOff).expect("power off");
            drop(later);
            dumps.push(files);
        }
        let starts: Vec<_> = dumps
            .iter()
            .enumerate()
            .map(|(round, files)| {
                let mut vm = source
                    .restored(&format!("r{round}"), files, false)
                    .expect("restore");
                let text = wait_lines(&vm, 3);
                verify(&mut vm);
                let line = text.lines().nth(1).expect("a whole line").to_owned();
                assert!(line.starts_with("c="), "{text:?}");
                line
            })
            .collect();
        assert!(starts.is_sorted(), "{starts:?}");
        assert_ne!(starts.first(), starts.last());
        wait_lines(&source, 2);
    });
}

#[test]
fn a_dump_that_fails_says_why_and_can_be_tried_again() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        let ram = InstantFiles::in_memory().expect("files");
        fails(source.dump(&ram), "runs a VM already");
        wait_lines(&source, 1);
        source.fork_point().expect("fork");
        let (_, mut newborns) = source.bear(&["newborn"]).expect("fork");
        let mut newborn = newborns.remove(0);

        let small = folder.join("small");
        std::fs::create_dir(&small).expect("folder");
        let mount = ["-t", "tmpfs", "-o", "size=4m", "small"];
        let mounted = Process::new("mount").args(mount).arg(&small).status();
        assert!(mounted.expect("mount").success());
        let full = InstantFiles::in_folder(&small, "point").expect("files");
        let refused = newborn.dump(&full);
        drop(full);
        let unmounted = Process::new("umount").arg(&small).status();
        assert!(unmounted.expect("umount").success());
        fails(refused, "No space left on device");

        let used = InstantFiles::in_memory().expect("files");
        (&used.ram).write_all(b"x").expect("write");
        fails(newborn.dump(&used), "the file for guest RAM is not empty");
        let used = InstantFiles::in_memory().expect("files");
        (&used.checkpoint).write_all(b"x").expect("write");
        fails(
            newborn.dump(&used),
            "the file for the checkpoint is not empty",
        );

        newborn.dump(&ram).expect("dump");
        let mut again = source.restored("again", &ram, false).expect("restore");
        verify(&mut again);
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        fails(shell.dump(&ram), "not born by fork()");
    });
}

#[test]
fn a_keeper_outlives_its_daemon_and_gives_the_same_point_again() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        let (_, point) = source.fork_point().expect("fork");
        let mut keeper = VmProcess::shell(folder, "keeper").expect("shell");
        fails(
            keeper.recall().map(drop),
            "this process keeps no fork point",
        );
        keeper.keep(&point).expect("keep");
        drop(point);
        assert_eq!(keeper.status().expect("status").state, VmState::Keeper);
        fails(
            keeper.recall().and_then(|point| keeper.keep(&point)),
            "keeps a fork point",
        );
        wait_lines(&source, 2);
        drop(source.order(Command::PowerOff));

        let mut clones = vec![];
        for round in 0..3 {
            keeper.reconnect().expect("the keeper lives on");
            assert_eq!(keeper.status().expect("status").state, VmState::Keeper);
            let point = keeper.recall().expect("recall");
            let name = format!("clone{round}");
            clones.push(source.restored(&name, &point, false).expect("restore"));
        }
        for clone in &clones[1..] {
            assert_same_instant(&clones[0], clone);
        }
        clones.iter_mut().for_each(verify);
        let resident = std::fs::read_to_string(format!("/proc/{}/status", keeper.pid()));
        let resident = resident.expect("status");
        assert!(resident.contains("Threads:\t1\n"), "{resident}");

        keeper.order(Command::PowerOff).expect("power off");
        keeper
            .wait_event(|event| matches!(event, Event::Ended(_)))
            .expect("it ends");
        keeper.leave().expect("it is gone");
    });
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let mut shell = VmProcess::shell(folder.path(), "shell").expect("shell");
    let files = InstantFiles::in_memory().expect("files");
    fails(
        shell.keep(&files),
        "the memory layer is no file with content",
    );
    (&files.ram).write_all(b"x").expect("write");
    fails(shell.keep(&files), "the checkpoint is no file with content");
    let nothing = vmm_protocol::Keep {
        ram: vmm_protocol::Fd(0),
        checkpoint: vmm_protocol::Fd(1),
    };
    fails(shell.order(Command::Keep(nothing)), "no memory layer");
    // It is a shell still, which ends with its daemon.
    assert_eq!(shell.status().expect("status").state, VmState::Shell);
    shell.leave().expect("a shell ends with its daemon");
}

#[test]
fn a_paused_vm_is_forked_without_running() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        source.order(Command::Pause).expect("pause");
        let before = source.serial();
        let mut siblings = vec![];
        for round in 0..3 {
            let (forked, clones) = fork(&mut source, 2);
            assert_eq!(forked.stun_us, 0, "round {round}");
            assert_eq!(forked.layer.is_some(), round == 0);
            siblings.extend(clones);
            let state = source.status().expect("status").state;
            assert_eq!(state, VmState::Paused, "round {round}");
        }
        for sibling in &siblings[1..] {
            assert_same_instant(&siblings[0], sibling);
        }
        siblings.iter_mut().for_each(verify);
        assert_eq!(source.serial(), before, "it has not run");
        source.order(Command::Resume).expect("resume");
        let after = wait_lines(&source, 5);
        let (first, rest) = (siblings[0].serial(), &after[before.len()..]);
        let len = first.len().min(rest.len());
        assert_eq!(first[..len], rest[..len]);
        verify(&mut source);
    });
}

#[test]
fn clones_that_stand_still_are_forked_before_they_ran() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        let (_, point) = source.fork_point().expect("fork");
        let straight = source.restored("straight", &point, false).expect("restore");
        let mut parent = source.restored("parent", &point, true).expect("restore");
        let status = parent.status().expect("status");
        assert_eq!(status.state, VmState::Paused);
        assert_eq!(status.first_run_at_ns, None);

        let (forked, mut newborns) = parent.bear(&["child", "still"]).expect("fork");
        assert_eq!(forked.stun_us, 0);
        let (mut still, mut child) = (newborns.remove(1), newborns.remove(0));
        child.restore_inherited(&parent, false).expect("restore");
        still.restore_inherited(&parent, true).expect("restore");
        assert_same_instant(&straight, &child);
        // A newborn that stands still is forked as well, and so is its child.
        let (_, mut newborns) = still.bear(&["grandchild"]).expect("fork");
        let mut grandchild = newborns.remove(0);
        grandchild.restore_inherited(&still, true).expect("restore");
        let (_, mut last) = fork(&mut grandchild, 1);
        assert_same_instant(&straight, &last[0]);
        for vm in [&parent, &still, &grandchild] {
            assert_eq!(vm.serial(), "", "it has not run");
        }

        let mut resumed = [parent, still, grandchild];
        for vm in &mut resumed {
            vm.order(Command::Resume).expect("resume");
            assert_same_instant(&straight, vm);
            let status = vm.status().expect("status");
            assert_eq!(status.state, VmState::Running);
            assert!(status.first_run_at_ns.is_some());
            verify(vm);
        }
        verify(&mut last[0]);
    });
}

#[test]
fn a_serial_port_gets_another_end_and_loses_nothing() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, "mode=counter every=1000");
        wait_lines(&source, 20);
        let path = |name: &str| folder.join(name);
        let log = |name: &str| {
            let mut options = File::options();
            let file = options.create(true).append(true).open(path(name));
            file.expect("log")
        };
        for round in 0..20 {
            let file = log(&format!("log{round}"));
            source.set_serial(0, &file, None).expect("another log");
        }
        let socket = UnixListener::bind(path("line.sock")).expect("bind");
        source
            .set_serial(0, &log("beside"), Some(socket))
            .expect("a socket");
        let mut line = UnixStream::connect(path("line.sock")).expect("connect");
        line.set_read_timeout(Some(Duration::from_secs(60)))
            .expect("limit");
        line.write_all(b"g").expect("type");
        let mut seen = String::new();
        while !seen.contains("gap=") {
            let mut bytes = [0; 4096];
            let count = line.read(&mut bytes).expect("read");
            assert_ne!(count, 0, "the line ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }

        // More than the guest's port and this process take at once, while nobody reads.
        source.order(Command::Pause).expect("pause");
        line.write_all(&[b'g'; 500]).expect("type");
        fails(
            source.set_serial(1, &log("other"), None),
            "there is no serial port 1",
        );
        source.set_serial(0, &log("last"), None).expect("a log");
        line.read_to_end(&mut vec![])
            .expect("the old end is closed");
        source.order(Command::Resume).expect("resume");

        let logs = || {
            let mut text = source.serial();
            let names = (0..20).map(|round| format!("log{round}"));
            for name in names.chain(["beside".into(), "last".into()]) {
                text += &std::fs::read_to_string(path(&name)).unwrap_or_default();
            }
            text
        };
        let gaps = |text: &str| text.matches("gap=").count();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while gaps(&logs()) < 501 {
            assert!(std::time::Instant::now() < deadline, "{}", gaps(&logs()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = logs();
        let values = text.lines().filter_map(|line| line.strip_prefix("c="));
        let values = values.filter(|hex| hex.len() == 16);
        let values: Vec<_> = values
            .map(|hex| u64::from_str_radix(hex, 16).expect("hexadecimal"))
            .collect();
        assert!(
            values.windows(2).all(|pair| pair[0] + 1000 == pair[1]),
            "a line is missing"
        );
    });
}

#[test]
fn a_word_to_an_agent_that_is_not_there_is_refused() {
    on_each_engine(|folder, soft| {
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        let ping = Command::TellAgent(r#"{"type":"ping"}"#.into());
        fails(shell.order(ping.clone()), "runs no VM yet");
        let mut vm = boot(folder, soft, "idle=1");
        fails(vm.order(ping), "no agent that is connected");
        fails(
            vm.order(Command::TellAgent("{".into())),
            "no message to an agent",
        );
        match vm.call(Command::Status).expect("status") {
            Outcome::Status(status) => assert_eq!(status.state, VmState::Running),
            other => panic!("{other:?}"),
        }
    });
}
