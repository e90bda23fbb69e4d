//! Tests of groups: on plain files in the place of the kernel's, and on the host's own.

use super::*;

/// Plain files in the place of the kernel's.
fn pretend(version: Version, files: &[(&str, &str)]) -> (tempfile::TempDir, Groups) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let groups = Groups { version, root };
    groups.make("g").unwrap();
    for (name, content) in files {
        fs::write(groups.root.join("g").join(name), content).unwrap();
    }
    (dir, groups)
}

#[test]
fn v2_files_are_read_and_written() {
    let files = [
        ("memory.max", ""),
        ("memory.swap.max", ""),
        ("memory.current", "4096\n"),
        ("cgroup.procs", ""),
        (
            "memory.events",
            "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
        ),
    ];
    let (_dir, groups) = pretend(Version::V2, &files);
    groups.set_limit("g", 64 << 20).unwrap();
    groups.enter("g", 77).unwrap();
    assert_eq!(groups.read("g", "memory.max").unwrap(), "67108864");
    assert_eq!(groups.limit("g"), 64 << 20);
    assert_eq!(groups.read("g", "memory.swap.max").unwrap(), "0");
    assert_eq!(groups.read("g", "cgroup.procs").unwrap(), "77");
    assert_eq!(groups.used_bytes("g").unwrap(), 4096);
    let kills = Kills {
        processes: 1,
        at_limit: true,
    };
    assert_eq!(groups.kills("g"), kills);
    assert_eq!(groups.kills("unknown"), Kills::default());
    assert_eq!(groups.names(), ["g"]);
}

#[test]
fn v1_files_are_read_and_written() {
    let files = [
        ("memory.limit_in_bytes", ""),
        ("memory.usage_in_bytes", "8192\n"),
        ("memory.max_usage_in_bytes", "16384\n"),
        (
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ];
    let (_dir, groups) = pretend(Version::V1, &files);
    groups.set_limit("g", 16 << 20).unwrap();
    let limit = groups.read("g", "memory.limit_in_bytes").unwrap();
    assert_eq!(limit, "16777216");
    assert_eq!(groups.limit("g"), 16 << 20);
    assert_eq!(groups.used_bytes("g").unwrap(), 8192);
    let kills = groups.kills("g");
    assert_eq!((kills.processes, kills.at_limit), (2, false));
}

#[test]
fn a_controller_that_is_not_handed_down_is_named() {
    let mount = tempfile::tempdir().unwrap();
    let root = mount.path().join("a/b");
    fs::create_dir_all(&root).unwrap();
    let error = delegate(mount.path(), &root).unwrap_err().to_string();
    assert!(error.contains("cgroup.subtree_control"), "{error}");
    for dir in [mount.path(), &mount.path().join("a"), &root] {
        fs::write(dir.join("cgroup.subtree_control"), "cpu").unwrap();
    }
    delegate(mount.path(), &root).unwrap();
    let told = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
    assert_eq!(told, "+memory");
}

#[test]
fn a_process_at_its_limit_is_ended_and_the_kernel_says_why() {
    let home = tempfile::tempdir().unwrap();
    let groups = match Groups::open(&Choice::Default, home.path()) {
        Ok(groups) => groups,
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return;
        }
    };
    groups.make("eater").unwrap();
    groups.set_limit("eater", 16 << 20).unwrap();
    groups.set_limit("eater", 32 << 20).unwrap();
    groups.lift_limit("eater").unwrap();
    groups.set_limit("eater", 8 << 20).unwrap();
    // It waits for a line, then takes ever more memory.
    let script = "read line; x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    groups.enter("eater", child.id() as i32).unwrap();
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
    let kills = groups.kills("eater");
    assert_eq!((kills.processes, kills.at_limit), (1, true));
    groups.remove("eater").unwrap();
    groups.remove("eater").unwrap();
    assert!(groups.names().is_empty());
    groups.remove_root();
    assert!(!groups.root().exists());
}
