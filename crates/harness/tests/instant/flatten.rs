//! VMs whose RAM is put on another layer while they run.

use super::*;

/// Forks with one newborn, which writes the instant; returns it with files and the fork's number.
fn instant(vm: &mut VmProcess, name: &str) -> (VmProcess, InstantFiles, u64) {
    let (forked, mut newborns) = vm.bear(&[name], &[]).expect("fork");
    let mut newborn = newborns.remove(0);
    let files = InstantFiles::in_memory().expect("files");
    newborn.dump(&files).expect("dump");
    (newborn, files, forked.number)
}

/// Anonymous memory of the process, KiB: that of the guest is most of it.
fn anonymous_kib(vm: &VmProcess) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.pid()));
    let rollup = rollup.expect("smaps_rollup");
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse().ok()).expect("KiB")
}

#[test]
fn a_flattened_vm_goes_on_with_what_it_wrote() {
    on_each_engine(|folder, soft| {
        let mut source = boot(
            folder,
            soft,
            "mode=dirty touch=24 percent=10 scatter=1 idle=1",
        );
        wait_lines(&source, 1);
        source.fork_point(&[]).expect("fork");
        let dirty = |vm: &mut VmProcess, how: &[u8]| {
            let done = vm.serial().matches("D\n").count() + 1;
            type_bytes(vm, how);
            let text = vm.wait_serial(|text| text.matches("D\n").count() >= done);
            text.expect("the guest answers");
        };
        dirty(&mut source, b"A");
        assert!(anonymous_kib(&source) > 24 << 10);
        let mut last = None;
        for round in 0..4 {
            let (mut newborn, files, fork) = instant(&mut source, &format!("n{round}"));
            // Written between the fork and the change: a tenth.
            dirty(&mut source, b"d");
            let (stun_us, private_kib) = source.flatten(&files.ram, fork).expect("flatten");
            println!("stun {stun_us} us, {private_kib} KiB private");
            assert!(
                (2 << 10..6 << 10).contains(&private_kib),
                "{private_kib} KiB"
            );
            newborn.order(Command::PowerOff).expect("power off");
            type_bytes(&mut source, b"v");
            let checked = source.wait_serial(|text| text.matches("V\n").count() > round);
            assert!(!checked.expect("answer").contains("E "));
            last = Some(files);
        }
        // The old view is unmapped by and by.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while anonymous_kib(&source) > 8 << 10 {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                anonymous_kib(&source)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // Neither the file's owner nor who wrote it is needed; forks go on from here.
        drop(last);
        let (_, mut clones) = fork(&mut source, 2);
        drop(source);
        for clone in &mut clones {
            dirty(clone, b"A");
            verify(clone);
        }
    });
}

#[test]
fn a_running_counter_does_not_notice() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        source.fork_point(&[]).expect("fork");
        wait_lines(&source, 1);
        for round in 0..5 {
            let (_newborn, files, fork) = instant(&mut source, &format!("n{round}"));
            source.flatten(&files.ram, fork).expect("flatten");
            wait_lines(&source, 1);
        }
        // Standing still it is done without a stun.
        source.order(Command::Pause).expect("pause");
        let before = source.serial();
        let (sibling, files, fork) = instant(&mut source, "last");
        let (stun_us, private_kib) = source.flatten(&files.ram, fork).expect("flatten");
        assert_eq!((stun_us, private_kib), (0, 0));
        assert_eq!(source.status().expect("status").state, VmState::Paused);
        let mut sibling = sibling;
        sibling
            .restore_inherited(&source, running())
            .expect("restore");
        source.order(Command::Resume).expect("resume");
        let after = wait_lines(&source, 4);
        let (rest, other) = (&after[before.len()..], wait_lines(&sibling, 4));
        let len = rest.len().min(other.len());
        assert!(lines(&rest[..len]) >= 3);
        assert_eq!(rest[..len], other[..len]);
        let values: Vec<_> = after
            .lines()
            .filter(|line| line.starts_with("c="))
            .collect();
        assert!(values.is_sorted(), "{values:?}");
        verify(&mut source);
    });
}

#[test]
fn what_would_lose_pages_is_refused() {
    on_each_engine(|folder, soft| {
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        let files = InstantFiles::in_memory().expect("files");
        let refused = |result: anyhow::Result<(u64, u64)>, words| fails(result.map(drop), words);
        refused(shell.flatten(&files.ram, 1), "runs no VM yet");
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 1);
        refused(source.flatten(&files.ram, 0), "forked again since");
        source.fork_point(&[]).expect("fork");
        let (_newborn, old, fork) = instant(&mut source, "one");
        let (_other, new, last) = instant(&mut source, "two");
        assert_eq!(last, fork + 1);
        refused(source.flatten(&old.ram, fork), "forked again since");
        refused(source.flatten(&files.ram, last), "the layer has 0 bytes");
        wait_lines(&source, 1);
        source.flatten(&new.ram, last).expect("flatten");
        verify(&mut source);
    });
}
