//! Keepers of fork points.

use super::*;

#[test]
fn a_keeper_outlives_its_daemon_and_gives_the_same_point_again() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, &counter(soft));
        wait_lines(&source, 2);
        let (_, point) = source.fork_point(&[]).expect("fork");
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
            clones.push(source.restored(&name, &point, running()).expect("restore"));
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
