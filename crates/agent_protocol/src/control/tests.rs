//! Control messages: round trips, the JSON that other implementations see, refused fields.

use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    let mut identity = Identity {
        kind: IdentityKind::Clone,
        vm_name: "web1".into(),
        hostname: "web1".into(),
        instance_uuid: "0b6f1f6e-0000-4000-8000-000000000001".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        nics: vec![NicIdentity {
            index: 0,
            mac: "02:00:00:00:00:01".into(),
            address: Some("192.0.2.7/24".into()),
            gateway: None,
            dns: vec![],
        }],
        ssh_host_keys: vec![],
        entropy: String::new(),
        wall_clock_unix_ns: 1,
        guestinfo: BTreeMap::from([("guestinfo.role".into(), "db".into())]),
    };
    identity.set_entropy(&[7; 64]);
    identity
}

fn check_refused(message: ToHost, field: &str) {
    let bytes = message.encode().unwrap();
    match ToHost::decode(&bytes[4..]) {
        Err(FrameError::BadField { field: got, .. }) => assert_eq!(got, field),
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn messages_round_trip() {
    for message in [
        ToGuest::Identity(Box::new(identity())),
        ToGuest::Ping,
        ToGuest::Shutdown { reboot: true },
        ToGuest::GuestInfoSet {
            key: "guestinfo.a".into(),
            value: "b".into(),
        },
        ToGuest::Thawed {
            token: "t-1".into(),
            name: "web1".into(),
        },
        ToGuest::FreezeRefused {
            token: "t-1".into(),
            reason: "it is being removed".into(),
        },
    ] {
        let bytes = message.encode().unwrap();
        assert_eq!(ToGuest::read(&mut bytes.as_slice()).unwrap(), Some(message));
    }
    let ready = Ready {
        hostname: "web1".into(),
        ..Ready::default()
    };
    let freeze = ToHost::Freeze {
        token: "t-1".into(),
    };
    for message in [ToHost::Pong, ToHost::Ready(ready), freeze] {
        let bytes = message.encode().unwrap();
        assert_eq!(ToHost::read(&mut bytes.as_slice()).unwrap(), Some(message));
    }
    assert_eq!(ToHost::read(&mut [].as_slice()).unwrap(), None);
}

#[test]
fn wire_form_is_pinned() {
    let hello = ToHost::Hello(Hello {
        protocol: 1,
        agent_version: "0.1.0".into(),
        reason: HelloReason::Boot,
        ssh_host_key_kinds: vec!["rsa".into()],
        hostname: "a".into(),
    });
    let expect = r#"{"type":"hello","protocol":1,"agent_version":"0.1.0","reason":"boot","ssh_host_key_kinds":["rsa"],"hostname":"a"}"#;
    assert_eq!(&hello.encode().unwrap()[4..], expect.as_bytes());
    let shutdown = ToGuest::Shutdown { reboot: false }.encode().unwrap();
    assert_eq!(&shutdown[4..], br#"{"type":"shutdown","reboot":false}"#);
    let token = || "t-1".to_owned();
    let freeze = ToHost::Freeze { token: token() }.encode().unwrap();
    assert_eq!(&freeze[4..], br#"{"type":"freeze","token":"t-1"}"#);
    let name = "web1".to_owned();
    let thawed = ToGuest::Thawed {
        token: token(),
        name,
    };
    let expect = br#"{"type":"thawed","token":"t-1","name":"web1"}"#;
    assert_eq!(&thawed.encode().unwrap()[4..], expect);
}

#[test]
fn guest_fields_out_of_bounds_are_named() {
    let hello = |f: fn(&mut Hello)| {
        let mut hello = Hello {
            protocol: 1,
            agent_version: "1".into(),
            reason: HelloReason::Boot,
            ssh_host_key_kinds: vec![],
            hostname: "a".into(),
        };
        f(&mut hello);
        ToHost::Hello(hello)
    };
    check_refused(hello(|h| h.hostname = "x".repeat(300)), "hostname");
    check_refused(hello(|h| h.hostname = "a\u{1b}[2J".into()), "hostname");
    check_refused(
        hello(|h| h.ssh_host_key_kinds = vec!["a/../b".into()]),
        "ssh_host_key_kinds",
    );
    check_refused(
        hello(|h| h.ssh_host_key_kinds = vec!["rsa".into(); 17]),
        "ssh_host_key_kinds",
    );
    let ready = Ready {
        errors: vec![String::new(); 65],
        ..Ready::default()
    };
    check_refused(ToHost::Ready(ready), "errors");
    let set = |key: &str, value: String| ToHost::GuestInfoSet {
        key: key.into(),
        value,
    };
    check_refused(set("other.a", String::new()), "key");
    check_refused(set("guestinfo.", String::new()), "key");
    check_refused(
        set("guestinfo.a", "v".repeat(guestinfo::VALUE_MAX + 1)),
        "value",
    );
    for token in ["", "a b", "../x", &"t".repeat(FREEZE_TOKEN_MAX + 1)] {
        let token = token.to_owned();
        check_refused(ToHost::Freeze { token }, "token");
    }
}

#[test]
fn identity_fields_are_checked() {
    let refused = |f: fn(&mut Identity)| {
        let mut bad = identity();
        f(&mut bad);
        let bytes = ToGuest::Identity(Box::new(bad)).encode().unwrap();
        assert!(matches!(
            ToGuest::decode(&bytes[4..]),
            Err(FrameError::BadField { .. })
        ));
    };
    refused(|i| i.hostname = "bad name".into());
    refused(|i| i.machine_id = "12".into());
    refused(|i| i.nics[0].mac = "02:00:00:00:00".into());
    refused(|i| i.entropy = "00".repeat(63));
    refused(|i| i.entropy = "zz".repeat(64));
    refused(|i| {
        i.guestinfo = (0..=guestinfo::COUNT_MAX)
            .map(|index| (format!("guestinfo.{index}"), "v".into()))
            .collect();
    });
}

#[test]
fn an_identity_with_the_most_guestinfo_fits_a_frame_escaped_twice() {
    let mut full = identity();
    // Each byte of these is two in JSON, and four where the JSON is a string of another document.
    full.guestinfo = ["guestinfo.a", "guestinfo.b"]
        .map(|key| {
            (
                key.to_owned(),
                "\"".repeat(guestinfo::VALUE_MAX - key.len()),
            )
        })
        .into();
    guestinfo::check_all(&full.guestinfo).unwrap();
    let message = serde_json::to_string(&ToGuest::Identity(Box::new(full))).unwrap();
    let outer = serde_json::to_string(&message).unwrap();
    assert!(outer.len() < frame::FRAME_MAX * 3 / 4, "{}", outer.len());
}

#[test]
fn debug_text_has_no_secrets() {
    let mut secret = identity();
    secret.ssh_host_keys.push(SshHostKey {
        kind: "rsa".into(),
        private: "PRIVATE".into(),
        public: "p".into(),
    });
    let text = format!("{secret:?}");
    assert!(
        !text.contains("0707") && !text.contains("PRIVATE"),
        "{text}"
    );
}

#[test]
fn error_lines_are_cut_to_what_a_host_accepts() {
    let mut ready = Ready::default();
    (0..100).for_each(|_| ready.push_error(&"ä\n".repeat(2000)));
    let bytes = ToHost::Ready(ready).encode().unwrap();
    ToHost::decode(&bytes[4..]).unwrap();
}

proptest! {
    #[test]
    fn macs_round_trip(mac in any::<[u8; 6]>()) {
        prop_assert_eq!(parse_mac(&format_mac(mac)), Some(mac));
    }

    #[test]
    fn entropy_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut identity = identity();
        identity.set_entropy(&bytes);
        prop_assert_eq!(identity.entropy_bytes().unwrap(), bytes);
    }

    #[test]
    fn any_text_is_decoded_without_panic(text in ".{0,200}") {
        let _ = ToHost::decode(text.as_bytes());
        let _ = ToGuest::decode(text.as_bytes());
        let _ = parse_mac(&text);
        let _ = is_hostname(&text);
    }
}
