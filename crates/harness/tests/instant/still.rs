//! Forks of VMs that stand still.

use disk_layers::{DiskFormat, create_overlay};
use vm_spec::DiskSpec;
use vmm_protocol::LayerFormat;

use super::*;

const DISK: u64 = 1 << 20;

/// Makes `name` on top of `below`, nearest first, of which the last is raw; returns the stack.
fn overlay(folder: &Path, name: &str, below: &[&str]) -> Disk {
    let create = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.join(name));
    let format = |below: &[&str]| match below {
        [_] => DiskFormat::Raw,
        _ => DiskFormat::Qcow2,
    };
    create_overlay(&create.expect("file"), DISK, below[0], format(below)).expect("overlay");
    let mut layers = vec![(folder.join(name), LayerFormat::Qcow2)];
    for (index, name) in below.iter().enumerate() {
        let is_base = index + 1 == below.len();
        let format = if is_base {
            LayerFormat::Raw
        } else {
            LayerFormat::Qcow2
        };
        layers.push((folder.join(name), format));
    }
    Disk { layers }
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
        let (_, point) = source.fork_point(&[]).expect("fork");
        let straight = source
            .restored("straight", &point, running())
            .expect("restore");
        let mut parent = source
            .restored("parent", &point, paused())
            .expect("restore");
        let status = parent.status().expect("status");
        assert_eq!(status.state, VmState::Paused);
        assert_eq!(status.first_run_at_ns, None);

        let (forked, mut newborns) = parent.bear(&["child", "still"], &[]).expect("fork");
        assert_eq!(forked.stun_us, 0);
        let (mut still, mut child) = (newborns.remove(1), newborns.remove(0));
        child
            .restore_inherited(&parent, running())
            .expect("restore");
        still.restore_inherited(&parent, paused()).expect("restore");
        assert_same_instant(&straight, &child);
        // A newborn that stands still is forked as well, and so is its child.
        let (_, mut newborns) = still.bear(&["grandchild"], &[]).expect("fork");
        let mut grandchild = newborns.remove(0);
        grandchild
            .restore_inherited(&still, paused())
            .expect("restore");
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
fn disks_of_a_vm_that_stands_still_wait_with_it() {
    on_each_engine(|folder, soft| {
        let base = File::create(folder.join("base.raw")).expect("base");
        base.set_len(DISK).expect("size");
        let spec = VmSpec {
            disks: vec![DiskSpec {
                serial: "disk".into(),
                read_only: false,
            }],
            ..spec("mode=disk blocks=16")
        };
        let disk = overlay(folder, "s0", &["base.raw"]);
        let mut source = boot_with(folder, soft, spec, vec![disk]);
        wait_lines(&source, 3);
        source.order(Command::Pause).expect("pause");
        overlay(folder, "s1", &["s0", "base.raw"]);
        let (_, point) = source.fork_point(&[folder.join("s1")]).expect("fork");

        let start = |name: &str, below: &[&str], paused| StartOptions {
            disks: vec![overlay(folder, name, below)],
            paused,
        };
        let options = start("p0", &["s0", "base.raw"], true);
        let mut parent = source.restored("parent", &point, options).expect("restore");
        let mut children = vec![];
        for (round, top) in ["p1", "p2"].into_iter().enumerate() {
            let below: &[&str] = match round {
                0 => &["p0", "s0", "base.raw"],
                _ => &["p1", "p0", "s0", "base.raw"],
            };
            overlay(folder, top, below);
            let name = format!("child{round}");
            let (_, mut newborns) = parent.bear(&[&name], &[folder.join(top)]).expect("fork");
            let mut child = newborns.remove(0);
            let options = start(&format!("c{round}"), below, false);
            child.restore_inherited(&parent, options).expect("restore");
            children.push(child);
        }
        // Nothing was written to the disk of one that never ran.
        assert_eq!(parent.serial(), "");
        for vm in [&mut source, &mut parent] {
            vm.order(Command::Resume).expect("resume");
        }
        for vm in [&source, &parent, &children[0], &children[1]] {
            let text = wait_lines(vm, 3);
            assert!(text.contains("d=") && !text.contains("E "), "{text:?}");
        }
        assert_same_instant(&parent, &children[0]);
        assert_same_instant(&parent, &children[1]);
    });
}
