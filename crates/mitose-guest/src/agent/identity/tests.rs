//! Identities applied to a directory that stands for the root file system.

use std::collections::BTreeMap;

use agent_protocol::SshHostKey;

use super::*;

fn identity(kind: IdentityKind) -> Identity {
    Identity {
        kind,
        vm_name: "web1".into(),
        hostname: "web1.example".into(),
        instance_uuid: "u".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        nics: Vec::new(),
        ssh_host_keys: Vec::new(),
        entropy: "00".repeat(64),
        wall_clock_unix_ns: 0,
        guestinfo: BTreeMap::new(),
    }
}

fn root() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["etc/ssh", "etc/mitose/clone.d", "var/lib/dbus"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    let root = Root::files(dir.path());
    (dir, root)
}

fn script(root: &Root, name: &str, text: &str) {
    let path = root.path("/etc/mitose/clone.d").join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn read(root: &Root, path: &str) -> String {
    fs::read_to_string(root.path(path)).unwrap()
}

#[test]
fn names_and_ids_are_written() {
    let (_dir, root) = root();
    fs::write(
        root.path("/etc/hosts"),
        "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 db\n",
    )
    .unwrap();
    fs::write(root.path("/var/lib/dbus/machine-id"), "old\n").unwrap();
    let ready = apply(&root, &identity(IdentityKind::Clone), Heard::now(None));
    assert_eq!(ready.errors, [""; 0]);
    assert_eq!(ready.hostname, "web1.example");
    assert_eq!(ready.machine_id, "0123456789abcdef0123456789abcdef");
    assert_eq!(read(&root, "/etc/hostname"), "web1.example\n");
    let hosts = "127.0.0.1 localhost\n127.0.1.1\tweb1.example web1\n10.0.0.1 db\n";
    assert_eq!(read(&root, "/etc/hosts"), hosts);
    assert_eq!(
        read(&root, "/var/lib/dbus/machine-id"),
        read(&root, "/etc/machine-id")
    );
}

#[test]
fn hosts_are_made_and_a_second_time_changes_nothing() {
    let once = hosts_with("", "a");
    assert!(once.contains("127.0.0.1\tlocalhost") && once.ends_with("127.0.1.1\ta\n"));
    assert_eq!(hosts_with(&once, "a"), once);
    assert_eq!(
        hosts_with("127.0.1.1 x\n127.0.1.1 y\n", "a"),
        "127.0.1.1\ta\n"
    );
}

#[test]
fn ssh_keys_of_a_clone_are_replaced_and_a_boots_kept() {
    let key = |kind: &str, text: &str| SshHostKey {
        kind: kind.into(),
        private: text.into(),
        public: format!("{text}-pub"),
    };
    let (_dir, root) = root();
    assert!(ssh::wanted_kinds(&root).is_empty());
    fs::write(root.path("/etc/ssh/sshd_config"), "").unwrap();
    assert_eq!(ssh::wanted_kinds(&root), ["ecdsa", "ed25519", "rsa"]);
    let mut boot = identity(IdentityKind::Boot);
    boot.ssh_host_keys = vec![key("rsa", "first")];
    apply(&root, &boot, Heard::now(None));
    assert_eq!(read(&root, "/etc/ssh/ssh_host_rsa_key"), "first");
    boot.ssh_host_keys = vec![key("rsa", "second")];
    apply(&root, &boot, Heard::now(None));
    assert_eq!(read(&root, "/etc/ssh/ssh_host_rsa_key"), "first");

    fs::write(root.path("/etc/ssh/ssh_host_ecdsa_key"), "old").unwrap();
    assert_eq!(ssh::wanted_kinds(&root), ["ecdsa", "rsa"]);
    let mut clone = identity(IdentityKind::Clone);
    clone.ssh_host_keys = vec![key("rsa", "third")];
    apply(&root, &clone, Heard::now(None));
    assert_eq!(read(&root, "/etc/ssh/ssh_host_rsa_key"), "third");
    assert_eq!(read(&root, "/etc/ssh/ssh_host_rsa_key.pub"), "third-pub");
    let mode = fs::metadata(root.path("/etc/ssh/ssh_host_rsa_key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(ssh::host_key_kinds(&root), ["rsa"]);
}

#[test]
fn scripts_run_in_order_for_clones_only() {
    let (dir, root) = root();
    let out = dir.path().join("out");
    script(
        &root,
        "20-b",
        &format!("echo b $MITOSE_VM_NAME >> {}", out.display()),
    );
    script(
        &root,
        "10-a",
        &format!("echo a >> {}; exit 4", out.display()),
    );
    fs::write(root.path("/etc/mitose/clone.d/README"), "not executable").unwrap();
    apply(&root, &identity(IdentityKind::Boot), Heard::now(None));
    assert!(!out.exists());
    let ready = apply(&root, &identity(IdentityKind::Clone), Heard::now(None));
    assert_eq!(fs::read_to_string(&out).unwrap(), "a\nb web1\n");
    assert_eq!(ready.errors.len(), 1);
    assert!(ready.errors[0].contains("10-a"), "{:?}", ready.errors);
}

#[test]
fn a_script_that_hangs_is_killed() {
    let (_dir, root) = root();
    script(&root, "1", "sleep 100 & wait");
    let identity = identity(IdentityKind::Clone);
    let problems = hooks::run_all(&root, &identity, Duration::from_millis(50));
    assert!(problems[0].contains("killed"), "{problems:?}");
}

#[test]
fn name_servers_are_written_when_given() {
    let (_dir, root) = root();
    let mut identity = identity(IdentityKind::Boot);
    identity.nics.push(agent_protocol::NicIdentity {
        index: 0,
        mac: "02:00:00:00:00:01".into(),
        address: None,
        gateway: None,
        dns: vec!["192.0.2.1".into()],
    });
    apply(&root, &identity, Heard::now(None));
    assert_eq!(read(&root, "/etc/resolv.conf"), "nameserver 192.0.2.1\n");
    identity.nics[0].dns = vec!["192.0.2.9\noptions attempts:0".into()];
    let ready = apply(&root, &identity, Heard::now(None));
    assert!(ready.errors[0].starts_with("name servers: "));
    assert_eq!(read(&root, "/etc/resolv.conf"), "nameserver 192.0.2.1\n");
}

#[test]
fn failures_are_named_and_the_rest_goes_on() {
    let (_dir, root) = root();
    fs::remove_dir_all(root.path("/etc/mitose")).unwrap();
    fs::create_dir(root.path("/etc/hostname")).unwrap();
    let ready = apply(&root, &identity(IdentityKind::Clone), Heard::now(None));
    assert_eq!(ready.errors.len(), 1, "{:?}", ready.errors);
    assert!(ready.errors[0].starts_with("host name: "));
    assert_eq!(ready.machine_id.len(), 32);
}

#[test]
fn a_clock_is_set_where_the_host_surely_has_another_time() {
    let ms = Duration::from_millis;
    let told = ms(1_000_000);
    // (the guest's time, how long the answer took, what it is set to)
    for (present, within, wanted) in [
        (1_000_250, Some(4), Some(1_000_002)),
        (999_800, Some(4), Some(1_000_002)),
        (1_000_011, Some(4), None),
        (1_000_250, Some(600), None),
        (1_000_250, None, None),
        (1_000_600, None, Some(1_000_000)),
    ] {
        let found = corrected(ms(present), told, within.map(ms));
        assert_eq!(found, wanted.map(ms), "{present} {within:?}");
    }
}
