//! Flow control, closing, restore.

use proptest::prelude::*;

use super::*;

#[test]
fn the_guests_credit_bounds_what_it_is_sent() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    let bytes: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
    client.write_all(&bytes).expect("write");
    let mut got = Vec::new();
    loop {
        match vm.next() {
            Some((header, payload)) if header.op == OP_RW => got.extend(payload),
            Some((header, _)) => {
                assert_eq!(header.op, OP_CREDIT_REQUEST);
                assert_eq!(got.len() as u32 - vm.fwd_cnt, GUEST_BUF_ALLOC);
                vm.expect_nothing();
                vm.fwd_cnt = got.len() as u32 - 100;
                vm.send(ports, OP_CREDIT_UPDATE, 0, &[]);
            }
            None => break,
        }
    }
    assert_eq!(got, bytes);
}

#[test]
fn a_guest_that_lies_about_credit_gets_nothing() {
    let mut vm = Vm::new();
    vm.fwd_cnt = 5;
    let (mut client, ports) = vm.established(80);
    client.write_all(b"data").expect("write");
    vm.expect(OP_CREDIT_REQUEST);
    vm.expect_nothing();
    vm.fwd_cnt = 0;
    vm.send(ports, OP_CREDIT_UPDATE, 0, &[]);
    assert_eq!(vm.expect(OP_RW).1, b"data");
}

#[test]
fn the_hosts_credit_bounds_what_it_holds() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    let chunk = [7; 16 << 10];
    let mut sent = 0_usize;
    // The kernel's socket buffer takes some, then the device holds BUF_ALLOC and no more.
    let rst = loop {
        vm.send(ports, OP_RW, 0, &chunk);
        sent += chunk.len();
        match vm.next() {
            Some((header, _)) if header.op == OP_CREDIT_UPDATE => {}
            Some((header, _)) => break header,
            None => {}
        }
        assert!(sent < 4 << 20, "the device takes without bound");
    };
    assert_eq!(rst.op, OP_RST);
    assert!(sent > BUF_ALLOC as usize);
    // What was taken in order still arrives, then the end.
    let mut got = 0;
    loop {
        got += read(&mut client).len();
        vm.run();
        if is_closed(&mut client) {
            break;
        }
    }
    assert!(got >= BUF_ALLOC as usize, "{got}");
    assert_eq!(vm.connections(), 0);
}

#[test]
fn credit_comes_back_as_the_program_reads() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    let chunk: Vec<u8> = (0..8192_u32).map(|i| (i % 251) as u8).collect();
    let (mut sent, mut host_fwd_cnt, mut got) = (0_u32, 0_u32, Vec::new());
    while got.len() < 3 << 20 {
        if sent - host_fwd_cnt + 8192 <= BUF_ALLOC {
            vm.send(ports, OP_RW, 0, &chunk);
            sent += 8192;
        } else {
            got.extend(read(&mut client));
            vm.run();
        }
        while let Some((header, _)) = vm.next() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            host_fwd_cnt = header.fwd_cnt;
        }
    }
    assert!(got.chunks(8192).all(|c| *c == chunk[..c.len()]));
}

#[test]
fn a_credit_request_is_answered() {
    let mut vm = Vm::new();
    let (_client, ports) = vm.established(80);
    vm.send(ports, OP_RW, 0, b"12345");
    vm.send(ports, OP_CREDIT_REQUEST, 0, &[]);
    let (update, _) = vm.expect(OP_CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUF_ALLOC, 5));
}

#[test]
fn each_side_may_end_its_half() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    client.write_all(b"all").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(vm.expect(OP_RW).1, b"all");
    assert_eq!(vm.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_SEND);
    vm.send(ports, OP_RW, 0, b"answer");
    assert_eq!(read(&mut client), b"answer");
    vm.send(ports, OP_SHUTDOWN, SHUTDOWN_SEND, &[]);
    assert!(
        is_closed(&mut client),
        "the guest's end is the program's end of file"
    );
    assert_eq!(
        vm.expect(OP_SHUTDOWN).0.flags,
        SHUTDOWN_BOTH,
        "both halves are done"
    );
    vm.send(ports, OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    vm.expect(OP_RST);
    assert_eq!(vm.connections(), 0);
}

#[test]
fn the_guests_end_comes_first() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    vm.send(ports, OP_RW, 0, b"last words");
    vm.send(ports, OP_SHUTDOWN, SHUTDOWN_SEND, &[]);
    assert_eq!(read(&mut client), b"last words");
    assert!(is_closed(&mut client));
    client.write_all(b"reply").expect("write");
    assert_eq!(vm.expect(OP_RW).1, b"reply");
    vm.send(ports, OP_RW, 0, b"more");
    vm.expect(OP_RST);
}

#[test]
fn a_closed_program_shuts_both_ways_after_its_data() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    client.write_all(b"bye").expect("write");
    drop(client);
    assert_eq!(vm.expect(OP_RW).1, b"bye");
    assert_eq!(vm.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    assert_eq!(vm.connections(), 1);
    vm.send(ports, OP_RW, 0, b"into the void");
    vm.expect_nothing();
    vm.send(ports, OP_RST, 0, &[]);
    assert_eq!(vm.connections(), 0);
}

#[test]
fn a_guest_that_closes_is_reset_and_its_data_still_arrives() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    let chunk = [9; 32 << 10];
    let mut sent = 0;
    // More than the kernel's socket buffer takes.
    while sent < 400 << 10 {
        vm.send(ports, OP_RW, 0, &chunk);
        sent += chunk.len();
        while let Some((header, _)) = vm.next() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
        }
    }
    vm.send(ports, OP_SHUTDOWN, SHUTDOWN_BOTH, &[]);
    vm.expect(OP_RST);
    assert_eq!(vm.connections(), 1, "what is buffered is not lost");
    // The guest may use the same ports again meanwhile; they are unknown.
    vm.send(ports, OP_RW, 0, b"x");
    vm.expect(OP_RST);
    let mut got = 0;
    while vm.connections() == 1 {
        got += read(&mut client).len();
    }
    got += read(&mut client).len();
    assert_eq!(got, sent);
    assert!(is_closed(&mut client));
}

#[test]
fn many_connections_share_the_queue_fairly() {
    let mut vm = Vm::new();
    let mut clients: Vec<_> = (0..100).map(|port| vm.established(port)).collect();
    vm.bench.set_gate(true);
    for (client, _) in &mut clients {
        client.write_all(&[1; 9000]).expect("write");
    }
    vm.run();
    vm.bench.set_gate(false);
    let mut first_round = std::collections::HashSet::new();
    let mut bytes = 0;
    for _ in 0..100 {
        let (header, payload) = vm.expect(OP_RW);
        first_round.insert(header.dst_port);
        bytes += payload.len();
    }
    assert_eq!(first_round.len(), 100);
    while let Some((_, payload)) = vm.next() {
        bytes += payload.len();
    }
    assert_eq!(bytes, 900_000);
}

#[test]
fn connections_are_bounded() {
    let mut vm = Vm::new();
    let mut clients = Vec::new();
    while clients.len() < CONNECTIONS_MAX {
        clients.push(UnixStream::connect(vm.socket()).expect("connect"));
        vm.run();
    }
    assert_eq!(vm.connections(), CONNECTIONS_MAX);
    let mut refused = UnixStream::connect(vm.socket()).expect("connect");
    vm.run();
    assert!(is_closed(&mut refused));
    clients.clear();
    assert_eq!(vm.connections(), 0);
    vm.established(5);
}

#[test]
fn a_driver_reset_closes_all() {
    let mut vm = Vm::new();
    let (mut client, _) = vm.established(80);
    vm.driver.start();
    assert!(is_closed(&mut client));
    assert_eq!(vm.connections(), 0);
}

/// Saves the device and restores it in a copy of the VM.
fn clone_of(vm: &Vm) -> Vm {
    let saved = vm.bench.lock().save(0);
    let mut bench = Bench::new(vm.bench.copy_ram());
    let folder = tempfile::tempdir().expect("temporary folder");
    let accepted = Accepted::default();
    let device = device(&folder, &accepted);
    let driver = bench
        .add_restored(device, &saved, &vm.driver)
        .expect("restore");
    bench.set_gate(false);
    let (buffers, got) = (vm.buffers.clone(), VecDeque::new());
    Vm {
        bench,
        driver,
        buffers,
        got,
        accepted,
        folder,
        fwd_cnt: 0,
    }
}

#[test]
fn a_clone_hears_of_the_reset_before_anything_else() {
    let mut vm = Vm::new();
    let (mut client, ports) = vm.established(80);
    let mut clone = clone_of(&vm);
    clone.run();
    let event = clone.driver.used(EVENT).expect("an event");
    assert_eq!(event.len, 4);

    let mut other = UnixStream::connect(clone.socket()).expect("connect");
    other.write_all(b"CONNECT 81\n").expect("greet");
    clone.send(ports, OP_RW, 0, b"stale");
    clone.expect_nothing();

    let buffer = clone.driver.output(4);
    clone.driver.offer(EVENT, &[buffer]);
    clone.driver.kick_if_wanted(EVENT, 1);
    let (rst, _) = clone.expect(OP_RST);
    assert_eq!((rst.src_port, rst.dst_port), ports);
    assert_eq!(clone.expect(OP_REQUEST).0.dst_port, 81);
    assert_eq!(clone.driver.used(EVENT), None, "told once");

    // The source notices nothing.
    vm.send(ports, OP_RW, 0, b"still here");
    assert_eq!(read(&mut client), b"still here");
    assert_eq!(vm.driver.used(EVENT), None);
}

#[test]
fn a_connection_of_the_guest_ends_the_wait_for_the_event() {
    let vm = Vm::new();
    let mut clone = clone_of(&vm);
    clone.service(9000);
    let mut grandchild = clone_of(&clone);
    grandchild.run();
    assert!(grandchild.driver.used(EVENT).is_some());
    grandchild.service(9001);
}

#[test]
fn a_clone_without_event_buffers_waits_for_one() {
    let mut vm = Vm::new();
    let mut clone = clone_of(&vm);
    clone.run();
    let mut second = clone_of(&clone);
    second.run();
    // Both of the source's event buffers are used by now.
    let mut third = clone_of(&second);
    third.run();
    assert_eq!(
        (0..3)
            .filter(|_| third.driver.used(EVENT).is_some())
            .count(),
        2
    );
    let buffer = third.driver.output(4);
    third.driver.offer(EVENT, &[buffer]);
    third.driver.kick_if_wanted(EVENT, 1);
    third.run();
    assert_eq!(third.driver.used(EVENT).map(|used| used.len), Some(4));
    vm.expect_nothing();
}

#[test]
fn impossible_saved_states_are_refused() {
    let vm = Vm::new();
    let mut saved = vm.bench.lock().save(0);
    saved.device = crate::SavedDevice::Vsock(SavedVsock { next_host_port: 5 });
    let folder = tempfile::tempdir().expect("temporary folder");
    let device = device(&folder, &Accepted::default());
    assert!(
        Bench::default()
            .add_restored(device, &saved, &vm.driver)
            .is_err()
    );
}

proptest! {
    #![proptest_config(crate::testing::cases(48))]

    /// Any mixture of packets on few ports: no panic, bounded state, and the device still works.
    #[test]
    fn packet_storms_are_survived(
        steps in prop::collection::vec(
            (0_u16..9, 0_u32..4, 0_u32..3, 0_u32..4, prop::collection::vec(any::<u8>(), 0..50), any::<u32>()),
            1..120,
        ),
    ) {
        let mut vm = Vm::new();
        let mut clients = Vec::new();
        for (op, host, guest, flags, payload, odd) in steps {
            let host_port = if host == 3 { SERVICE } else { HOST_PORT_FIRST + host };
            if odd % 7 == 0 {
                let mut client = UnixStream::connect(vm.socket()).expect("connect");
                client.write_all(format!("CONNECT {guest}\n{odd}").as_bytes()).expect("greet");
                clients.push(client);
            }
            if odd % 11 == 0 {
                clients.pop();
            }
            vm.fwd_cnt = if odd % 5 == 0 { odd } else { 0 };
            vm.send((host_port, guest), op, flags, &payload);
            while vm.next().is_some() {}
        }
        clients.clear();
        vm.driver.start();
        prop_assert_eq!(vm.connections(), 0);
        prop_assert!(!vm.driver.needs_reset());
    }
}
