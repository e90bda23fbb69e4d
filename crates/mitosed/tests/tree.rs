//! The tree of objects, and VMs that are changed: folders, words, networks, pools, hot and cold.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::path::Path;

use api_types::{
    ErrorKind, FolderRequest, NetRequest, NetworkRequest, NicChange, ObjectRequest, PoolRequest,
    ReconfigureRequest, SerialChange, SerialRequest, StopRequest,
};
use bed::{Bed, clones};

fn folder(bed: &Bed, name: &str, parent: &str) -> String {
    let request = FolderRequest {
        name: name.to_owned(),
        parent: Some(parent.to_owned()),
    };
    bed.client.make_folder(&request).unwrap().path
}

fn in_folder(bed: &Bed, name: &str, folder: &str) -> api_types::RunRequest {
    let mut request = bed.with_disk(bed.request(name, ""));
    request.folder = Some(folder.to_owned());
    request.powered_off = true;
    request
}

#[test]
fn vms_lie_in_folders_of_any_depth_and_move_between_them() {
    let mut bed = Bed::new();
    assert_eq!(folder(&bed, "lab", "/"), "lab");
    assert_eq!(folder(&bed, "web", "lab"), "lab/web");
    assert_eq!(folder(&bed, "prod", "/"), "prod");
    bed.client.run(&in_folder(&bed, "x", "lab/web")).unwrap();
    bed.client.run(&in_folder(&bed, "x", "prod")).unwrap();
    let error = bed.client.run(&in_folder(&bed, "x", "prod")).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Conflict), "{error}");
    let error = bed.client.vm("x").unwrap_err().to_string();
    assert!(error.contains("lab/web/x, prod/x"), "{error}");
    let id = bed.client.vm("lab/web/x").unwrap().vm.id;
    bed.client.run(&in_folder(&bed, "x", "/")).unwrap();
    let error = bed.client.vm("x").unwrap_err().to_string();
    assert!(error.contains("vm/x"), "{error}");
    assert_ne!(bed.client.vm("vm/x").unwrap().vm.id, id);
    bed.client.remove("vm/x", true).unwrap();

    let refused = |result: Result<(), client::ClientError>, wanted: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::Conflict), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    };
    let to = |parent: &str| ObjectRequest {
        parent: Some(parent.to_owned()),
        ..ObjectRequest::default()
    };
    let lab = bed.client.folder("lab").unwrap();
    assert_eq!((lab.vms, lab.folders), (0, 1));
    refused(bed.client.remove_folder("lab"), "holds 0 VMs and 1 folders");
    refused(bed.client.remove_folder("lab/web"), "holds 1 VMs");
    refused(bed.client.remove_folder("folder-1"), "stays");
    let moved = bed.client.change_object(&lab.object.id, &to("lab/web"));
    refused(moved.map(drop), "cannot lie in itself");

    let to_prod = ReconfigureRequest {
        folder: Some("prod".to_owned()),
        ..ReconfigureRequest::default()
    };
    let moved = bed.client.reconfigure("lab/web/x", None, &to_prod);
    refused(moved.map(drop), "there is a VM \"x\" in prod already");
    let renamed = ReconfigureRequest {
        name: Some("y".to_owned()),
        ..to_prod
    };
    bed.client.reconfigure("lab/web/x", None, &renamed).unwrap();
    bed.restart();
    assert_eq!(bed.client.vm("prod/y").unwrap().vm.id, id);
    let web = bed.client.folder("lab/web").unwrap();
    bed.client.change_object(&web.object.id, &to("/")).unwrap();
    bed.client.remove_folder("lab").unwrap();
    bed.client.remove_folder("web").unwrap();
    bed.restart();
    let folders = bed.client.folders().unwrap();
    let paths: Vec<_> = folders.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, ["/", "prod"]);
    let kinds: Vec<_> = bed.client.events(None).unwrap();
    let told = kinds.iter().find(|event| event.kind == "vm.moved").unwrap();
    let task = bed.client.task(told.task.unwrap()).unwrap();
    assert_eq!(
        (task.kind.as_str(), task.object),
        ("vm.reconfigure", told.object.clone())
    );
    for wanted in [
        "folder.created",
        "folder.moved",
        "folder.removed",
        "vm.renamed",
        "vm.moved",
    ] {
        assert!(kinds.iter().any(|event| event.kind == wanted), "{wanted}");
    }
}

#[test]
fn every_object_has_words_and_a_version_that_stale_changes_are_refused_by() {
    let mut bed = Bed::new();
    bed.client.run(&in_folder(&bed, "a", "/")).unwrap();
    for object in bed.client.objects().unwrap() {
        let request = ObjectRequest {
            annotation: Some(format!("this is {}", object.id)),
            attributes: [("owner".to_owned(), Some("ana".to_owned()))].into(),
            ..ObjectRequest::default()
        };
        let changed = bed.client.change_object(&object.id, &request).unwrap();
        assert_eq!(changed.version, object.version + 1, "{object:?}");
    }
    bed.restart();
    let objects = bed.client.objects().unwrap();
    assert!(objects.len() >= 10, "{objects:?}");
    for object in &objects {
        assert_eq!(object.labels.annotation, format!("this is {}", object.id));
        assert_eq!(object.labels.attributes["owner"], "ana");
    }
    let version = bed.client.object("a").unwrap().version;
    let change = |text: &str| ReconfigureRequest {
        annotation: Some(text.to_owned()),
        ..ReconfigureRequest::default()
    };
    bed.client
        .reconfigure("a", Some(version), &change("one"))
        .unwrap();
    let stale = bed
        .client
        .reconfigure("a", Some(version), &change("two"))
        .unwrap_err();
    assert_eq!(stale.kind(), Some(ErrorKind::Stale), "{stale}");
    assert_eq!(bed.client.object("a").unwrap().labels.annotation, "one");
}

#[test]
fn a_machine_is_changed_while_it_is_off() {
    let mut bed = Bed::new();
    let mut request = in_folder(&bed, "a", "/");
    request.nets = vec![NetRequest::default()];
    bed.client.run(&request).unwrap();
    assert_eq!(bed.state("a"), "poweredOff");
    let disk = in_folder(&bed, "a", "/").disks.remove(0);
    let change = ReconfigureRequest {
        cpus: Some(3),
        memory_bytes: Some(32 << 20),
        cmdline: Some("other".to_owned()),
        add_disks: vec![disk.clone(), disk],
        add_nics: vec![NetRequest::default()],
        remove_nics: vec![0],
        serial_ports: Some(2),
        uuid: Some("0B8F7A52-3C7E-4B62-9A53-1F2F4A6D7C11".to_owned()),
        ..ReconfigureRequest::default()
    };
    let first_mac = bed.detail("a").nics[0].mac;
    let changed = bed.client.reconfigure("a", None, &change).unwrap();
    assert_eq!((changed.vm.cpus, changed.vm.memory_bytes), (3, 32 << 20));
    assert_eq!((changed.disks.len(), changed.serial_ports.len()), (3, 2));
    assert_eq!(changed.uuid, "0b8f7a52-3c7e-4b62-9a53-1f2f4a6d7c11");
    assert_eq!(changed.nics.len(), 1);
    assert_ne!(changed.nics[0].mac, first_mac);
    bed.restart();
    bed.client.start("a").unwrap();
    let error = bed.client.reconfigure("a", None, &change).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a is running, so it cannot be reconfigured"),
        "{error}"
    );
    bed.client.stop("a", &StopRequest::default()).unwrap();
    let fewer = ReconfigureRequest {
        remove_disks: vec![0, 2],
        ..ReconfigureRequest::default()
    };
    bed.client.reconfigure("a", None, &fewer).unwrap();
    for (wanted, change) in [
        (
            "no disk 1",
            ReconfigureRequest {
                remove_disks: vec![1],
                ..fewer.clone()
            },
        ),
        (
            "cpus: 9",
            ReconfigureRequest {
                cpus: Some(9),
                ..ReconfigureRequest::default()
            },
        ),
        (
            "no NIC 7",
            ReconfigureRequest {
                remove_nics: vec![7],
                ..ReconfigureRequest::default()
            },
        ),
    ] {
        let before = bed.detail("a");
        let error = bed
            .client
            .reconfigure("a", None, &change)
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted) || error.contains("cpus"), "{error}");
        assert_eq!(bed.detail("a").disks, before.disks);
    }
    bed.client.start("a").unwrap();
    bed.assert_only(&["a"]);
}

#[test]
fn cables_and_serial_ports_change_while_a_vm_runs() {
    let bed = Bed::new();
    let mut request = bed.request("a", "");
    request.nets = vec![NetRequest {
        network: Some("VM Network".to_owned()),
        ..NetRequest::default()
    }];
    bed.client.run(&request).unwrap();
    let log = bed.file("other.log");
    let change = ReconfigureRequest {
        serial: vec![SerialChange {
            port: 0,
            backend: SerialRequest::File(log.clone()),
        }],
        ..ReconfigureRequest::default()
    };
    bed.client.reconfigure("a", None, &change).unwrap();
    let cable = |connected| ReconfigureRequest {
        nics: vec![NicChange {
            nic: 0,
            connected: Some(connected),
            ..NicChange::default()
        }],
        ..ReconfigureRequest::default()
    };
    let nic = || bed.detail("a").nics[0].clone();
    assert_eq!(nic().network.as_deref(), Some("network-1"));
    assert!(nic().connected);
    bed.client.reconfigure("a", None, &cable(false)).unwrap();
    assert!(!nic().connected);
    bed.client.reconfigure("a", None, &cable(true)).unwrap();
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "link 0 down\nlink 0 up\n"
    );
    assert_eq!(bed.detail("a").serial.unwrap(), log.display().to_string());
    let missing = ReconfigureRequest {
        serial: vec![SerialChange {
            port: 3,
            backend: SerialRequest::Log,
        }],
        ..ReconfigureRequest::default()
    };
    let error = bed.client.reconfigure("a", None, &missing).unwrap_err();
    assert!(
        error.to_string().contains("there is no serial port 3"),
        "{error}"
    );
}

#[test]
fn pools_refuse_what_exceeds_their_limits_by_name() {
    let bed = Bed::new();
    let made = bed.client.make_resource_pool(&PoolRequest {
        name: "small".to_owned(),
        vms_max: Some(3),
        memory_bytes_max: Some(40 << 20),
    });
    made.unwrap();
    let mut request = bed.request("a", "");
    request.pool = Some("small".to_owned());
    bed.client.run(&request).unwrap();
    let error = bed.client.fork("a", &clones(&["b", "c", "d"])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("pool: small takes 3 VMs and has 1"),
        "{error}"
    );
    let error = bed.client.fork("a", &clones(&["b", "c"])).unwrap_err();
    assert!(
        error.to_string().contains("pool: small takes 40 MiB"),
        "{error}"
    );
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let pool = bed.client.resource_pool("small").unwrap();
    assert_eq!((pool.vms, pool.memory_bytes), (2, 32 << 20));
    let error = bed.client.remove_resource_pool("small").unwrap_err();
    assert!(
        error.to_string().contains("2 VMs belong to small"),
        "{error}"
    );
}

#[test]
fn nics_on_a_network_have_interfaces_that_end_with_their_vms() {
    let mut bed = Bed::new();
    let request = NetworkRequest {
        name: "lab".to_owned(),
        bridge: None,
        isolated: true,
    };
    let network = match bed.client.make_network(&request) {
        Ok(network) => network,
        Err(error) if error.kind() == Some(ErrorKind::Unavailable) => {
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let bridge = network.bridge.unwrap();
    let ports = || {
        let ports = Path::new("/sys/class/net").join(&bridge).join("brif");
        std::fs::read_dir(ports).map_or(0, Iterator::count)
    };
    let mut request = bed.request("a", "");
    request.nets = vec![NetRequest {
        network: Some("lab".to_owned()),
        ..NetRequest::default()
    }];
    bed.client.run(&request).unwrap();
    assert_eq!(ports(), 1);
    bed.client.fork("a", &clones(&["b", "c"])).unwrap();
    assert_eq!(ports(), 3);
    bed.client.remove("b", true).unwrap();
    bed.client.reset("c").unwrap();
    bed.until("one interface is gone", || ports() == 2);
    let error = bed.client.remove_network("lab").unwrap_err();
    assert!(error.to_string().contains("2 NICs are on lab"), "{error}");
    bed.kill();
    assert_eq!(ports(), 2);
    bed.start();
    for name in ["a", "c"] {
        bed.client.remove(name, true).unwrap();
    }
    bed.client.remove_network("lab").unwrap();
    assert!(!Path::new("/sys/class/net").join(&bridge).exists());
}

#[test]
fn a_dry_run_tells_all_that_is_in_the_way_and_makes_nothing() {
    let bed = Bed::new();
    bed.run("a", "");
    let mut request = bed.request("a", "");
    request.kernel = Some(bed.file("none"));
    request.pool = Some("none".to_owned());
    request.memory_bytes = 500 << 30;
    request.nets = vec![NetRequest {
        network: Some("none".to_owned()),
        ..NetRequest::default()
    }];
    request.disks.push(api_types::DiskRequest {
        path: bed.file("no-disk"),
        format: None,
        read_only: false,
    });
    let found = bed.client.check_run(&request).unwrap();
    let text: Vec<_> = found.problems.iter().map(|p| p.detail.as_str()).collect();
    for wanted in [
        "name: there is a VM \"a\" already",
        "kernel: cannot open",
        "pool: there is no",
        "memory: ",
        "network: there is no",
        "disk: cannot open",
    ] {
        assert!(
            text.iter().any(|t| t.starts_with(wanted)),
            "{wanted} in {text:?}"
        );
    }
    assert!(found.would_make.is_empty());
    // What breaks the interface's document is told beside what the host refuses.
    request.name = "../a".to_owned();
    request.cpus = 1000;
    let found = bed.client.check_run(&request).unwrap();
    let fields: Vec<_> = found
        .problems
        .iter()
        .filter_map(|p| p.field.as_deref())
        .collect();
    for wanted in ["name", "cpus", "kernel", "pool"] {
        assert!(fields.contains(&wanted), "{wanted} in {fields:?}");
    }
    let mut good = bed.with_disk(bed.request("b", ""));
    good.folder = Some("/".to_owned());
    let found = bed.client.check_run(&good).unwrap();
    assert_eq!(found.problems, []);
    assert_eq!(found.would_make[0].path, "b");
    let mut fork = clones(&["a", "x", "y"]);
    fork.folder = Some("none".to_owned());
    fork.pool = Some("none".to_owned());
    let found = bed.client.check_fork("a", &fork).unwrap();
    let text: Vec<_> = found.problems.iter().map(|p| p.detail.as_str()).collect();
    for wanted in [
        "pool: there is no",
        "folder: there is no",
        "name: there is a VM \"a\"",
    ] {
        assert!(
            text.iter().any(|t| t.starts_with(wanted)),
            "{wanted} in {text:?}"
        );
    }
    bed.assert_only(&["a"]);
}

#[test]
fn clones_differ_from_their_source_as_the_call_says() {
    let bed = Bed::new();
    folder(&bed, "lab", "/");
    bed.run("a", "");
    let uuid = "11111111-2222-3333-4444-555555555555";
    let request = api_types::ForkRequest {
        folder: Some("lab".to_owned()),
        annotation: Some("all".to_owned()),
        paused: true,
        each: vec![
            api_types::CloneEdit::default(),
            api_types::CloneEdit {
                folder: Some("/".to_owned()),
                annotation: Some("second".to_owned()),
                attributes: [("n".to_owned(), "2".to_owned())].into(),
                uuid: Some(uuid.to_owned()),
                serial: vec![SerialRequest::None],
                ..api_types::CloneEdit::default()
            },
        ],
        ..clones(&["b", "c"])
    };
    bed.client.fork("a", &request).unwrap();
    assert_eq!(bed.client.vm("lab/b").unwrap().vm.state, "paused");
    let second = bed.detail("c");
    assert_eq!(
        (second.vm.state.as_str(), second.uuid.as_str()),
        ("paused", uuid)
    );
    assert_eq!(second.serial, None);
    let words = bed.client.object(&second.vm.id).unwrap().labels;
    assert_eq!(
        (words.annotation.as_str(), words.attributes["n"].as_str()),
        ("second", "2")
    );
    assert_eq!(bed.client.resume("b").unwrap().state, "running");
    let again = bed.client.fork(
        "a",
        &api_types::ForkRequest {
            each: vec![api_types::CloneEdit {
                uuid: Some(uuid.to_owned()),
                ..Default::default()
            }],
            ..clones(&["d"])
        },
    );
    assert!(again.unwrap_err().to_string().contains("uuid: "));
    let lineage = bed.client.lineage("a").unwrap();
    let children: Vec<_> = lineage.children.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(children, ["b", "c"]);
    assert_eq!((lineage.family.vms, lineage.family.running), (3, 3));
    assert_eq!(lineage.vm.disk_depths, [3]);
    assert_eq!(bed.client.lineage("c").unwrap().parents[0].name, "a");
    bed.client.remove("a", true).unwrap();
    let parents = bed.client.lineage("c").unwrap().parents;
    assert_eq!(
        (parents[0].name.as_str(), parents[0].state.clone()),
        ("a", None)
    );
}

#[test]
fn a_network_gets_the_name_back_that_it_had_from_the_start() {
    let bed = Bed::new();
    let rename = |id: &str, name: &str| {
        let request = ObjectRequest {
            name: Some(name.to_owned()),
            ..ObjectRequest::default()
        };
        bed.client.change_object(id, &request)
    };
    rename("network-1", "lan").unwrap();
    rename("network-1", "VM Network").unwrap();
    assert_eq!(
        bed.client.network("VM Network").unwrap().object.id,
        "network-1"
    );
    let refused = rename("network-1", "my lan").unwrap_err().to_string();
    assert!(refused.contains("name"), "{refused}");
}

#[test]
fn a_serial_port_writes_only_to_a_file_of_its_vm() {
    let mut bed = Bed::new();
    let with = |name: &str, path: &std::path::Path| {
        let mut request = bed.request(name, "");
        request.serial = SerialRequest::File(path.to_owned());
        request
    };
    let (mine, foreign, link) = (bed.file("mine"), bed.file("foreign"), bed.file("link"));
    std::fs::write(&foreign, b"content").unwrap();
    std::os::unix::fs::symlink(bed.file("nowhere"), &link).unwrap();
    for path in [&foreign, &link] {
        let refused = bed.client.run(&with("a", path)).unwrap_err();
        assert_eq!(refused.kind(), Some(api_types::ErrorKind::Invalid));
        assert!(
            refused.to_string().contains("is there already"),
            "{refused}"
        );
    }
    bed.client.run(&with("a", &mine)).unwrap();
    let refused = bed.client.run(&with("b", &mine)).unwrap_err().to_string();
    assert!(refused.contains("belongs to the VM a"), "{refused}");
    let change = |backend| ReconfigureRequest {
        serial: vec![SerialChange { port: 0, backend }],
        ..ReconfigureRequest::default()
    };
    let own = change(SerialRequest::File(mine.clone()));
    bed.client.reconfigure("a", None, &own).unwrap();
    let other = change(SerialRequest::File(foreign.clone()));
    let refused = bed.client.reconfigure("a", None, &other).unwrap_err();
    assert!(
        refused.to_string().contains("is there already"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&foreign).unwrap(), b"content");
    // Its own file is taken again at the next start.
    bed.client.stop("a", &StopRequest::default()).unwrap();
    bed.restart();
    bed.client.start("a").unwrap();
    bed.assert_only(&["a"]);
}
