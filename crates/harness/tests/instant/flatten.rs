//! VMs whose RAM is moved onto a new layer while they run.

use super::*;

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

/// Mappings of the process that show memory files.
fn mappings(vm: &VmProcess) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vm.pid()));
    let maps = maps.expect("maps");
    maps.lines().filter(|line| line.contains("/memfd:")).count()
}

fn dirty(vm: &mut VmProcess, how: &[u8]) {
    let done = vm.serial().matches("D\n").count() + 1;
    type_bytes(vm, how);
    let text = vm.wait_serial(|text| text.matches("D\n").count() >= done);
    text.expect("the guest answers");
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
        let before = anonymous_kib(&source);
        for round in 0..4 {
            dirty(&mut source, b"A");
            assert!(anonymous_kib(&source) > before + (20 << 10));
            let stuns = source.flatten().expect("flatten");
            println!("{} pieces, stuns {stuns:?} us", stuns.len());
            assert!(stuns.len() >= 24, "{} pieces", stuns.len());
            // Its private pages are gone at once, and the new layer is one mapping.
            let (now, maps) = (anonymous_kib(&source), mappings(&source));
            assert!(now < before + (4 << 10), "{now} KiB after {before} KiB");
            assert!(maps <= 8, "{maps} mappings");
            type_bytes(&mut source, b"v");
            let checked = source.wait_serial(|text| text.matches("V\n").count() > round);
            assert!(!checked.expect("answer").contains("E "));
        }
        // Forks go on from here, and neither needs the other.
        let (_, mut clones) = fork(&mut source, 2);
        drop(source);
        for clone in &mut clones {
            dirty(clone, b"A");
            verify(clone);
        }
    });
}

#[test]
fn it_is_forked_dumped_and_flattened_again_half_way() {
    on_each_engine(|folder, soft| {
        let mut source = boot(
            folder,
            soft,
            "mode=dirty touch=24 percent=10 scatter=1 idle=1",
        );
        wait_lines(&source, 1);
        source.fork_point(&[]).expect("fork");
        dirty(&mut source, b"A");
        let mut clones = vec![];
        for pieces in [0, 1, 9] {
            source.begin_flatten().expect("begin");
            for _ in 0..pieces {
                assert!(source.flatten_next().expect("next").1 > 0);
            }
            // A clone of both layers, and one that is made of what it writes.
            clones.extend(fork(&mut source, 1).1);
            let (_, mut newborns) = source
                .bear(&[&*format!("dumper{pieces}")], &[])
                .expect("fork");
            let files = InstantFiles::in_memory().expect("files");
            newborns[0].dump(&files).expect("dump");
            let ram = files.ram.metadata().expect("stat");
            assert_eq!(ram.len(), MEMORY);
            assert!(ram.blocks() * 512 > 24 << 20);
            newborns[0]
                .restore_inherited(&source, running())
                .expect("restore");
            clones.extend(newborns);
            dirty(&mut source, b"d");
            assert!(source.flatten_next().expect("next").1 > 0);
        }
        while source.flatten_next().expect("next").1 > 0 {}
        verify(&mut source);
        for clone in &mut clones {
            // The child has none of its parent's work, and can begin its own.
            let error = clone.flatten_next().expect_err("nothing was begun");
            assert!(
                format!("{error:#}").contains("not being moved"),
                "{error:#}"
            );
            dirty(clone, b"d");
            clone.flatten().expect("flatten");
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
        for _ in 0..5 {
            source.flatten().expect("flatten");
            wait_lines(&source, 1);
        }
        // Standing still it is done without a stun.
        source.order(Command::Pause).expect("pause");
        let before = source.serial();
        let (_, mut siblings) = source.bear(&["sibling"], &[]).expect("fork");
        let stuns = source.flatten().expect("flatten");
        assert!(
            !stuns.is_empty() && stuns.iter().all(|us| *us == 0),
            "{stuns:?}"
        );
        assert_eq!(source.status().expect("status").state, VmState::Paused);
        let mut sibling = siblings.remove(0);
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
            // The last one may be in the making.
            .filter(|line| line.starts_with("c=") && line.len() == "c=0123456789abcdef".len())
            .collect();
        assert!(values.is_sorted(), "{values:?}");
        verify(&mut source);
    });
}

#[test]
fn what_would_lose_pages_is_refused() {
    on_each_engine(|folder, soft| {
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        let refused = |result: anyhow::Result<()>, words| fails(result, words);
        refused(shell.begin_flatten().map(drop), "runs no VM yet");
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 1);
        refused(source.begin_flatten().map(drop), "shared view");
        refused(source.flatten_next().map(drop), "not being moved");
        source.fork_point(&[]).expect("fork");
        wait_lines(&source, 1);
        let layer = source.begin_flatten().expect("begin");
        // A layer that cannot grow any more takes no piece; what is mapped stays.
        rustix::fs::fcntl_add_seals(&layer, rustix::fs::SealFlags::WRITE).expect("seal");
        refused(
            source.flatten_next().map(drop),
            "cannot write the new layer",
        );
        refused(source.flatten_next().map(drop), "not being moved");
        wait_lines(&source, 1);
        source.flatten().expect("flatten");
        verify(&mut source);
    });
}
