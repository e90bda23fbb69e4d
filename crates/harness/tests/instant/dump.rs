//! Newborns that write their instant to files.

use super::*;

#[test]
fn a_dump_of_a_forked_source_is_the_same_vm_again() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        let (_, _first) = fork(&mut source, 1);
        wait_lines(&source, 2);

        // One newborn becomes a clone, two write the instant: to a file system and to memory.
        let (_, newborns) = source
            .bear(&["sibling", "disk", "memory"], &[])
            .expect("fork");
        let [mut sibling, mut disk, mut memory] = <[_; 3]>::try_from(newborns).expect("three");
        sibling
            .restore_inherited(&source, running())
            .expect("restore");
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

        let mut again = source.restored("a", &on_disk, running()).expect("restore");
        let mut other = source
            .restored("b", &in_memory, running())
            .expect("restore");
        assert_same_instant(&sibling, &again);
        assert_same_instant(&sibling, &other);
        verify(&mut again);
        verify(&mut other);

        // Who wrote can still become a clone, and ends with its daemon otherwise.
        disk.restore_inherited(&source, running()).expect("restore");
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
        source.fork_point(&[]).expect("fork");
        let mut dumps = vec![];
        for round in 0..3 {
            wait_lines(&source, 1);
            let name = format!("n{round}");
            let (_, mut newborns) = source.bear(&[&name], &[]).expect("fork");
            let mut newborn = newborns.remove(0);
            // The source forks again before this one is written.
            let (_, later) = source.bear(&[&format!("l{round}")], &[]).expect("fork");
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
                    .restored(&format!("r{round}"), files, running())
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
        source.fork_point(&[]).expect("fork");
        let (_, mut newborns) = source.bear(&["newborn"], &[]).expect("fork");
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
        let mut again = source.restored("again", &ram, running()).expect("restore");
        verify(&mut again);
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        fails(shell.dump(&ram), "not born by fork()");
    });
}

#[test]
fn a_newborn_that_writes_answers_and_ends_when_it_is_left() {
    // Enough that writing takes longer than an answer.
    let spec = VmSpec {
        memory_bytes: 768 << 20,
        ..spec("mode=dirty touch=640 idle=1")
    };
    let folder = tempfile::tempdir().expect("folder");
    let mut source = boot_with(folder.path(), true, spec, vec![]);
    wait_lines(&source, 1);
    source.fork_point(&[]).expect("fork");
    let (_, newborns) = source.bear(&["busy", "off", "left"], &[]).expect("fork");
    let [mut busy, mut off, mut left] = <[_; 3]>::try_from(newborns).expect("three");

    let files = InstantFiles::in_memory().expect("files");
    let id = busy.start_dump(&files).expect("dump");
    assert_eq!(busy.status().expect("status").state, VmState::Shell);
    fails(
        busy.restore_inherited(&source, running()),
        "still writing its instant",
    );
    fails(busy.dump(&files), "still writing its instant");
    busy.finish_dump(id).expect("it ends well all the same");
    let mut again = source
        .restored("again", &files, running())
        .expect("restore");
    verify(&mut again);

    off.start_dump(&InstantFiles::in_memory().expect("files"))
        .expect("dump");
    off.order(Command::PowerOff).expect("power off");
    off.leave().expect("it has ended");
    left.start_dump(&InstantFiles::in_memory().expect("files"))
        .expect("dump");
    left.leave().expect("a newborn ends with its daemon");
    verify(&mut source);
}
