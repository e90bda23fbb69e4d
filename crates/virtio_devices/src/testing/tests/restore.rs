//! Save and restore of registers and queues, good states and bad ones.

use super::*;

/// Saves the device of `bench` and restores it over a copy of its memory.
fn carry_over(bench: &Bench, driver: &Driver, saved: &SavedTransport) -> (Bench, Driver) {
    let mut copy = Bench::new(bench.copy_ram());
    let driver = copy
        .add_restored(Adder::new(), saved, driver)
        .expect("restore");
    // A bench is made with its gate open; opening it again is what starts a restored device.
    copy.set_gate(false);
    (copy, driver)
}

#[test]
fn a_restored_device_goes_on_in_the_middle() {
    let (bench, mut driver) = bench();
    driver.start();
    add(&bench, &mut driver, b"before");
    bench.set_gate(true);
    let pieces = [driver.input(b"waiting"), driver.output(7)];
    driver.offer(0, &pieces);
    driver.kick(0);
    bench.run();
    let saved = bench.lock().save(0);
    let mut bytes = Vec::new();
    ciborium::into_writer(&saved, &mut bytes).expect("encode");
    let decoded: SavedTransport = ciborium::from_reader(&bytes[..]).expect("decode");
    assert_eq!(decoded, saved);
    let (copy, mut twin) = carry_over(&bench, &driver, &decoded);
    assert_eq!(copy.lock().save(0), saved, "restoring changes nothing");
    copy.run();
    assert_eq!(
        twin.line().edges(),
        2,
        "the unacknowledged interrupt and the new one"
    );
    bench.set_gate(false);
    bench.run();
    for driver in [&mut driver, &mut twin] {
        assert_eq!(driver.used(0).expect("used").len, 7);
        assert_eq!(driver.peek(pieces[1].gpa, 7), b"xbjujoh");
    }
    assert_eq!(add(&copy, &mut twin, b"after"), b"bgufs");
    assert_eq!(add(&bench, &mut driver, b"other"), b"puifs");
}

#[test]
fn a_device_is_saved_in_every_state_of_its_setup() {
    let (bench, mut driver) = bench();
    let check = |what: &str| {
        let saved = bench.lock().save(0);
        let (copy, _) = carry_over(
            &bench,
            &Driver::new(test_ram(), bench.transport(0), Arc::default()),
            &saved,
        );
        assert_eq!(copy.lock().save(0), saved, "{what}");
    };
    check("fresh");
    driver.write(regs::STATUS, 1);
    check("acknowledged");
    assert!(driver.negotiate(u64::MAX));
    driver.write(regs::QUEUE_SEL, 1);
    driver.write(regs::QUEUE_NUM, 4);
    check("features agreed");
    driver.start();
    check("running");
    driver.offer_head(0, 99);
    driver.kick(0);
    bench.run();
    check("broken");
}

#[test]
fn saved_states_that_no_device_has_are_refused() {
    let (bench, mut driver) = bench();
    driver.start();
    let good = bench.lock().save(0);
    type Change = fn(&mut SavedTransport);
    let cases: [(&str, Change); 10] = [
        ("another kind", |s| s.device_id = 1),
        ("status out of order", |s| s.status = 4),
        ("unknown status bits", |s| s.status |= 0x100),
        ("interrupt bits", |s| s.interrupt_status = 4),
        ("features not on offer", |s| s.driver_features |= 1),
        ("a queue missing", |s| s.queues.truncate(1)),
        ("a queue too many", |s| s.queues.push(s.queues[0].clone())),
        ("a queue outside RAM", |s| s.queues[0].used_gpa = 1 << 40),
        ("a queue at the end of the address space", |s| {
            s.queues[0].desc_gpa = !15
        }),
        ("an odd size", |s| s.queues[0].size = 5),
    ];
    for (what, change) in cases {
        let mut saved = good.clone();
        change(&mut saved);
        let mut copy = Bench::default();
        assert!(
            copy.add_restored(Adder::new(), &saved, &driver).is_err(),
            "{what}"
        );
    }
}

proptest! {
    #![proptest_config(crate::testing::cases(64))]

    #[test]
    fn register_garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_register_writes(&bytes);
    }

    #[test]
    fn ring_garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 1..3000)) {
        fuzz_rings(&bytes);
    }

    #[test]
    fn restored_garbage_is_refused_or_survived(
        device_id in prop::sample::select(vec![1_u32, 2, 4, 5, 19]),
        status in prop::sample::select(vec![0_u32, 3, 11, 15, 0x8f, 99]),
        driver_features in prop::sample::select(vec![1_u64 << 32, 1 << 29 | 1 << 32, u64::MAX]),
        ring in prop::collection::vec((0_u64..0x50_0000, 0_u32..300, any::<u16>()), 5),
        device in prop::sample::select(vec![
            SavedDevice::Rng(SavedRng {}),
            SavedDevice::Net(crate::SavedNet { mac: [1; 6], link_up: true, own_mac_only: true }),
            SavedDevice::Vsock(crate::SavedVsock { next_host_port: u32::MAX }),
            SavedDevice::Block(crate::SavedBlock { capacity_sectors: 2048, read_only: false }),
            SavedDevice::Balloon(crate::SavedBalloon { target_pages: 1, actual_pages: u32::MAX }),
        ]),
    ) {
        let count = match device_id { 1 => 2, 5 => 5, 19 => 3, _ => 1 };
        let queue = |&(gpa, size, at): &(u64, u32, u16)| crate::SavedQueue {
            size: size.next_power_of_two(),
            ready: at & 1 == 0,
            desc_gpa: gpa & !15,
            avail_gpa: 0x1_0000 + (gpa & 0xfff0),
            used_gpa: (gpa >> 1) & !3,
            next_avail: at,
            next_used: at,
        };
        fuzz_restore(&SavedTransport {
            device_id,
            status,
            needs_reset: false,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            queues: ring.iter().take(count).map(queue).collect(),
            device,
        });
    }
}

/// The encoded form is what checkpoints hold: a change here is a change of their schema.
#[test]
fn saved_states_keep_their_encoding() {
    let queue = crate::SavedQueue {
        size: 128,
        ready: true,
        desc_gpa: 0x1000,
        avail_gpa: 0x2000,
        used_gpa: 0x3000,
        next_avail: 7,
        next_used: 6,
    };
    let devices = [
        SavedDevice::Block(crate::SavedBlock {
            capacity_sectors: 8,
            read_only: true,
        }),
        SavedDevice::Net(crate::SavedNet {
            mac: [2, 1, 2, 3, 4, 5],
            link_up: true,
            own_mac_only: false,
        }),
        SavedDevice::Vsock(crate::SavedVsock {
            next_host_port: 1 << 30,
        }),
        SavedDevice::Rng(SavedRng {}),
        SavedDevice::Balloon(crate::SavedBalloon {
            target_pages: 1,
            actual_pages: 2,
        }),
    ];
    let states = devices.map(|device| SavedTransport {
        device_id: 2,
        status: 15,
        needs_reset: false,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 1 << 32,
        queue_sel: 3,
        interrupt_status: 1,
        config_generation: 9,
        queues: vec![queue.clone()],
        device,
    });
    let mut bytes = Vec::new();
    ciborium::into_writer(&states, &mut bytes).expect("encode");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/testing/tests/saved_states.cbor"
        );
        std::fs::write(path, &bytes).expect("write");
    }
    let golden = include_bytes!("saved_states.cbor");
    assert!(
        bytes == golden,
        "the encoding of saved virtio devices changed"
    );
    let decoded: Vec<SavedTransport> = ciborium::from_reader(&golden[..]).expect("decode");
    assert_eq!(decoded, states);
}
