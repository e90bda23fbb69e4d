//! What guests wish and are told: frozen sources, guestinfo, static addresses.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::collections::BTreeMap;
use std::io::Write;

use agent_protocol::{IdentityKind, ToGuest};
use api_types::{
    CloneMode, ErrorKind, ForkRequest, GuestInfo, GuestInfoPatch, NicAddressRequest,
    PointForkRequest, PrepareRequest, StopRequest, WaitFor,
};
use bed::{Bed, clones};

/// Runs a VM with an agent and waits for it.
fn run(bed: &Bed, name: &str) {
    let mut request = bed.with_disk(bed.request(name, "agent"));
    request.wait_ready_s = Some(20);
    bed.client.run(&request).unwrap();
}

/// Lets the agent say something.
fn say(bed: &Bed, name: &str, json: &str) {
    bed.type_line(name, &format!("say {json}\n"));
}

/// Lets the guest ask to be frozen, again and again as an agent does, until it is.
fn freeze(bed: &Bed, name: &str, token: &str) {
    bed.until(&format!("{name} is frozen"), || {
        if bed.state(name) == "running" {
            say(bed, name, &wish(token));
        }
        bed.state(name) == "frozen"
    });
}

fn wish(token: &str) -> String {
    format!(r#"{{"type":"freeze","token":"{token}"}}"#)
}

fn set(key: &str, value: &str) -> String {
    format!(r#"{{"type":"guest_info_set","key":"{key}","value":"{value}"}}"#)
}

fn log(bed: &Bed, name: &str) -> String {
    let mut log = Vec::new();
    bed.client
        .log(name, client::LogOptions::default(), &mut log)
        .unwrap();
    String::from_utf8(log).unwrap()
}

/// How often the agent was told that it is thawed.
fn thawed(bed: &Bed, name: &str, token: &str) -> usize {
    let told = format!(r#"told {{"type":"thawed","token":"{token}","name":"{name}"}}"#);
    log(bed, name).matches(&told).count()
}

fn patch(pairs: &[(&str, Option<&str>)]) -> GuestInfoPatch {
    let pairs = pairs.iter();
    GuestInfoPatch(
        pairs
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)))
            .collect(),
    )
}

fn info(pairs: &[(&str, &str)]) -> GuestInfo {
    let pairs = pairs.iter();
    GuestInfo(
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    )
}

fn told(bed: &Bed, kind: &str) -> usize {
    let events = bed.client.events(Some(0)).unwrap();
    events.iter().filter(|event| event.kind == kind).count()
}

#[test]
fn a_frozen_source_is_cloned_without_stun_and_thaws_when_it_is_resumed() {
    let bed = Bed::new();
    run(&bed, "a");
    freeze(&bed, "a", "t-1");
    let vm = bed.client.wait_for("a", WaitFor::Frozen, 20).unwrap();
    assert_eq!(vm.state, "frozen");
    assert_eq!(bed.client.pause("a").unwrap().state, "frozen");
    let error = bed.client.vsock("a", 1025, 0).unwrap_err().to_string();
    assert!(error.contains("is frozen"), "{error}");

    let first = bed.client.fork("a", &clones(&["b", "c"])).unwrap();
    assert_eq!((first.stun_us, first.memory.as_str()), (0, "layer"));
    let second = bed.client.fork("a", &clones(&["d"])).unwrap();
    assert_eq!((second.stun_us, second.memory.as_str()), (0, "fork"));
    for clone in ["b", "c", "d"] {
        assert_eq!(bed.state(clone), "running");
    }
    assert_eq!(bed.state("a"), "frozen");

    assert_eq!(bed.client.resume("a").unwrap().state, "running");
    bed.until("the guest hears", || thawed(&bed, "a", "t-1") == 1);
    // An answer that was lost is given again; a new wish is a new one.
    say(&bed, "a", &wish("t-1"));
    bed.until("the guest hears again", || thawed(&bed, "a", "t-1") == 2);
    assert_eq!(bed.state("a"), "running");
    freeze(&bed, "a", "t-2");
    // A clone may wish the same with the token that it inherited.
    freeze(&bed, "b", "t-1");
    bed.until("three were frozen", || told(&bed, "vm.frozen") >= 3);
    assert_eq!(told(&bed, "vm.frozen"), 3);
}

#[test]
fn a_frozen_vm_stays_frozen_when_the_daemon_is_killed() {
    let mut bed = Bed::new();
    run(&bed, "a");
    freeze(&bed, "a", "t-1");
    bed.restart();
    assert_eq!(bed.state("a"), "frozen");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    assert_eq!(bed.client.resume("a").unwrap().state, "running");
    bed.until("the guest hears", || thawed(&bed, "a", "t-1") == 1);
    bed.restart();
    assert_eq!(bed.state("a"), "running");
    say(&bed, "a", &wish("t-1"));
    bed.until("the guest hears again", || thawed(&bed, "a", "t-1") == 2);
    // Paused by a person is not frozen.
    bed.client.pause("a").unwrap();
    bed.restart();
    assert_eq!(bed.state("a"), "paused");
}

#[test]
fn power_off_forgets_the_wish() {
    let bed = Bed::new();
    run(&bed, "a");
    freeze(&bed, "a", "t-1");
    let error = bed.client.stop("a", &StopRequest::default()).unwrap_err();
    assert!(error.to_string().contains("is frozen"), "{error}");
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    assert_eq!(bed.client.stop("a", &force).unwrap().state, "poweredOff");
    bed.client.start("a").unwrap();
    bed.client.wait_for("a", WaitFor::Ready, 20).unwrap();
    freeze(&bed, "a", "t-1");
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}

#[test]
fn waits_end_when_it_happens_when_it_cannot_and_in_time() {
    let bed = Bed::new();
    run(&bed, "a");
    bed.client.wait_for("a", WaitFor::Running, 0).unwrap();
    let late = bed.client.wait_for("a", WaitFor::Frozen, 1).unwrap_err();
    assert_eq!(late.kind(), Some(ErrorKind::Timeout), "{late}");
    let waiting = {
        let client = bed.client.clone();
        std::thread::spawn(move || client.wait_for("a", WaitFor::Frozen, 60))
    };
    let off = {
        let client = bed.client.clone();
        std::thread::spawn(move || client.wait_for("a", WaitFor::Off, 60))
    };
    bed.client.stop("a", &StopRequest::default()).unwrap();
    let never = waiting.join().unwrap().unwrap_err();
    assert_eq!(never.kind(), Some(ErrorKind::Conflict), "{never}");
    assert_eq!(off.join().unwrap().unwrap().state, "poweredOff");
    let unknown = bed.client.wait_for("x", WaitFor::Off, 1).unwrap_err();
    assert_eq!(unknown.kind(), Some(ErrorKind::NotFound));
}

#[test]
fn guestinfo_goes_both_ways_and_stays() {
    let mut bed = Bed::new();
    let mut request = bed.request("a", "agent");
    request.wait_ready_s = Some(20);
    request.guestinfo = info(&[("guestinfo.role", "{name}/{index}"), ("guestinfo.b", "2")]);
    bed.client.run(&request).unwrap();
    let expect = info(&[("guestinfo.role", "a/1"), ("guestinfo.b", "2")]);
    assert_eq!(bed.client.guestinfo("a").unwrap(), expect);

    let changes = patch(&[("guestinfo.b", None), ("guestinfo.c", Some("3"))]);
    let all = bed.client.set_guestinfo("a", &changes).unwrap();
    let expect = info(&[("guestinfo.role", "a/1"), ("guestinfo.c", "3")]);
    assert_eq!(all, expect);
    let log = log(&bed, "a");
    for told in [
        r#""key":"guestinfo.b","value":"""#,
        r#""key":"guestinfo.c","value":"3""#,
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }

    say(&bed, "a", &set("guestinfo.d", "from inside"));
    let from_guest = || {
        bed.client
            .guestinfo("a")
            .unwrap()
            .0
            .get("guestinfo.d")
            .cloned()
    };
    bed.until("the guest's value is there", || {
        from_guest().as_deref() == Some("from inside")
    });
    bed.until("it is on record", || {
        let events = bed.client.events(Some(0)).unwrap();
        events.iter().any(|e| e.message.contains("guestinfo.d"))
    });
    bed.restart();
    let expect = info(&[
        ("guestinfo.role", "a/1"),
        ("guestinfo.c", "3"),
        ("guestinfo.d", "from inside"),
    ]);
    assert_eq!(bed.detail("a").guestinfo, expect);
    // Also where nobody listens.
    bed.client.stop("a", &StopRequest::default()).unwrap();
    bed.client
        .set_guestinfo("a", &patch(&[("guestinfo.d", None)]))
        .unwrap();
    assert_eq!(bed.client.guestinfo("a").unwrap().0.len(), 2);
}

#[test]
fn guestinfo_out_of_bounds_is_refused_whole() {
    let bed = Bed::new();
    run(&bed, "a");
    let refused = |pairs: &[(&str, Option<&str>)]| {
        let both: Vec<_> = [("guestinfo.good", Some("x"))]
            .iter()
            .chain(pairs)
            .copied()
            .collect();
        bed.client.set_guestinfo("a", &patch(&both)).unwrap_err()
    };
    for key in ["role", "guestinfo.", "guestinfo.a b", "guestinfo.\u{1f600}"] {
        let error = refused(&[(key, Some("v"))]);
        assert_eq!(error.kind(), Some(ErrorKind::Invalid), "{key}: {error}");
    }
    let long = "v".repeat(65 << 10);
    assert_eq!(
        refused(&[("guestinfo.l", Some(&long))]).kind(),
        Some(ErrorKind::Invalid)
    );
    assert_eq!(
        refused(&[("guestinfo.n", Some("a\0b"))]).kind(),
        Some(ErrorKind::Invalid)
    );
    let many: Vec<_> = (0..300).map(|n| format!("guestinfo.{n}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), Some("v"))).collect();
    let error = refused(&many);
    assert!(error.to_string().contains("256"), "{error}");
    assert!(bed.client.guestinfo("a").unwrap().0.is_empty());
}

#[test]
fn a_flood_of_the_guest_stays_within_bounds_and_costs_few_writes() {
    let bed = Bed::new();
    run(&bed, "a");
    let mut console = bed.client.console("a").unwrap();
    for n in 0..2000 {
        let line = format!("say {}\n", set(&format!("guestinfo.{n}"), "v"));
        console.write_all(line.as_bytes()).unwrap();
    }
    say(&bed, "a", &set("guestinfo.0", "last"));
    bed.until("the last word is heard", || {
        let all = bed.client.guestinfo("a").unwrap();
        all.0
            .get("guestinfo.0")
            .is_some_and(|value| value == "last")
    });
    assert_eq!(bed.client.guestinfo("a").unwrap().0.len(), 256);
    // One a second at most.
    bed.until("it is on record", || told(&bed, "vm.guestinfo") > 0);
    let writes = told(&bed, "vm.guestinfo");
    assert!(writes < 60, "{writes}");
    // Odd words are no harm either.
    for odd in ["{", r#"{"type":"freeze","token":""}"#, r#"{"type":"x"}"#] {
        say(&bed, "a", odd);
    }
    assert_eq!(bed.state("a"), "running");
}

#[test]
fn clones_get_their_own_values_and_addresses() {
    let bed = Bed::new();
    let mut request = bed.request("a", "agent");
    request.wait_ready_s = Some(20);
    request.nets = vec![serde_json::from_str("{}").unwrap()];
    let address = |nic, address: &str| NicAddressRequest {
        nic,
        address: address.to_owned(),
        gateway: Some("10.0.0.1".to_owned()),
        dns: Vec::new(),
    };
    request.addresses = vec![address(0, "10.0.0.9/24")];
    request.guestinfo = info(&[
        ("guestinfo.kept", "yes"),
        ("guestinfo.mitose.net.0.dns", "10.0.0.2"),
    ]);
    bed.client.run(&request).unwrap();
    assert_eq!(
        bed.detail("a").nics[0].address.as_deref(),
        Some("10.0.0.9/24")
    );

    let fork = ForkRequest {
        guestinfo: info(&[("guestinfo.job", "{index} of {name}")]),
        addresses: vec![address(0, "10.0.0.254/23")],
        ..clones(&["b", "c"])
    };
    bed.client.fork("a", &fork).unwrap();
    for (name, job, ip) in [
        ("b", "1 of b", "10.0.0.254/23"),
        ("c", "2 of c", "10.0.0.255/23"),
    ] {
        let detail = bed.detail(name);
        let expect = info(&[("guestinfo.kept", "yes"), ("guestinfo.job", job)]);
        assert_eq!(detail.guestinfo, expect);
        assert_eq!(detail.nics[0].address.as_deref(), Some(ip));
    }
    // Without any a clone does not take its source's.
    bed.client.fork("a", &clones(&["d"])).unwrap();
    assert_eq!(bed.detail("d").nics[0].address, None);

    let refused = |change: &dyn Fn(&mut ForkRequest)| {
        let mut request = clones(&["e", "f"]);
        change(&mut request);
        bed.client.fork("a", &request).unwrap_err().to_string()
    };
    let error = refused(&|r| r.addresses = vec![address(1, "10.0.0.7/24")]);
    assert!(error.contains("no NIC 1"), "{error}");
    let error = refused(&|r| r.addresses = vec![address(0, "10.0.0.254/24")]);
    assert!(error.contains("addresses"), "{error}");
    let error =
        refused(&|r| r.guestinfo = GuestInfo(BTreeMap::from([("x".into(), String::new())])));
    assert!(error.contains("guestinfo"), "{error}");
    bed.assert_only(&["a", "b", "c", "d"]);
}

#[test]
fn two_vms_of_a_network_do_not_have_one_static_address() {
    let bed = Bed::new();
    let request = |name: &str, network: &str, ip: &str| {
        let mut request = bed.request(name, "");
        let net = format!(r#"{{"network":"{network}"}}"#);
        request.nets = vec![serde_json::from_str(&net).unwrap()];
        request.addresses = vec![NicAddressRequest {
            nic: 0,
            address: ip.to_owned(),
            gateway: None,
            dns: Vec::new(),
        }];
        request
    };
    let other = api_types::NetworkRequest {
        name: "two".into(),
        ..api_types::NetworkRequest::default()
    };
    bed.client.make_network(&other).unwrap();
    bed.client
        .run(&request("a", "network-1", "10.1.1.1/24"))
        .unwrap();
    // It keeps its address while it is off.
    bed.client.stop("a", &StopRequest::default()).unwrap();
    let twice = request("b", "network-1", "10.1.1.1/16");
    let refused = bed.client.run(&twice).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    assert!(
        refused.to_string().contains("NIC 0 of a has 10.1.1.1"),
        "{refused}"
    );
    assert_eq!(bed.client.check_run(&twice).unwrap().problems.len(), 1);
    bed.client.run(&request("b", "two", "10.1.1.1/24")).unwrap();
    let fork = ForkRequest {
        addresses: request("x", "two", "10.1.1.1/24").addresses,
        ..clones(&["c"])
    };
    let refused = bed.client.fork("b", &fork).unwrap_err().to_string();
    assert!(refused.contains("NIC 0 of b has"), "{refused}");
    bed.client
        .prepare("b", &PrepareRequest::default(), |_| ())
        .unwrap();
    let children = |ip: &str, count| PointForkRequest {
        count,
        addresses: request("x", "two", ip).addresses,
        ..PointForkRequest::default()
    };
    let refused = bed
        .client
        .fork_children("b", &children("10.1.1.0/8", 3), |_| ())
        .unwrap_err();
    assert!(refused.to_string().contains("NIC 0 of b has"), "{refused}");
    bed.client
        .fork_children("b", &children("10.1.1.2/24", 2), |_| ())
        .unwrap();
    let refused = bed
        .client
        .fork_children("b", &children("10.1.1.3/24", 1), |_| ())
        .unwrap_err();
    assert!(refused.to_string().contains("b-2"), "{refused}");
    bed.client.remove("b", true).unwrap();
    bed.client
        .fork_children("b", &children("10.1.1.1/24", 1), |_| ())
        .unwrap();
    bed.assert_only(&["a", "b-1", "b-2", "b-3"]);
}

/// Identities that a guest was told after it was ready: kind, number, kinds of keys.
fn identities(bed: &Bed, name: &str) -> Vec<(IdentityKind, String, Vec<String>)> {
    let log = log(bed, name);
    let told = log.lines().filter_map(|line| line.strip_prefix("told "));
    told.filter_map(|json| match ToGuest::decode(json.as_bytes()).unwrap() {
        ToGuest::Identity(identity) => Some((
            identity.kind,
            identity.instance_uuid,
            identity
                .ssh_host_keys
                .into_iter()
                .map(|key| key.kind)
                .collect(),
        )),
        _ => None,
    })
    .collect()
}

#[test]
fn clones_that_boot_get_keys_of_their_own() {
    let bed = Bed::new();
    run(&bed, "used");
    bed.until("keys are given", || !identities(&bed, "used").is_empty());
    let (kind, number, keys) = identities(&bed, "used").remove(0);
    assert_eq!(
        (kind, &keys[..]),
        (IdentityKind::Boot, &["ed25519".to_owned()][..])
    );
    assert_ne!(
        number,
        bed.detail("used").uuid,
        "the agent takes each number once"
    );
    let force = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    bed.client.stop("used", &force).unwrap();
    let mut never = bed.with_disk(bed.request("never", "agent"));
    never.powered_off = true;
    bed.client.run(&never).unwrap();
    for (source, mode) in [
        ("used", CloneMode::Full),
        ("used", CloneMode::Linked),
        ("never", CloneMode::Linked),
    ] {
        let name = format!("{source}-{mode:?}").to_lowercase();
        let request = ForkRequest {
            mode,
            ..clones(&[&name])
        };
        bed.client.fork(source, &request).unwrap();
        for boots in 1..=2 {
            let before = told(&bed, "vm.ready");
            bed.client.start(&name).unwrap();
            bed.until("it is ready", || told(&bed, "vm.ready") > before);
            bed.client.stop(&name, &force).unwrap();
            // Told once, as a clone: its source's keys are replaced, and it has them from then on.
            let number = bed.detail(&name).uuid;
            let own = (IdentityKind::Clone, number, vec!["ed25519".to_owned()]);
            let found = identities(&bed, &name);
            assert_eq!(found, [own], "{name}, boot {boots}");
        }
    }
}
