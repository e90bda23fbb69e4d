//! The network device, with a datagram socket in the TAP's place: it keeps frames apart as well.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vm_spec::MacAddr;

use super::regs::*;
use super::*;
use crate::testing::{Bench, Driver, TestLine, test_ram};
use crate::transport::regs;
use crate::worker::Worker;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const CLONE_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 9, 9, 9]);
const RX_BUFFER_BYTES: u32 = 1600;

fn config() -> NetConfig {
    NetConfig {
        mac: MAC,
        link_up: true,
        own_mac_only: false,
        tx_offload: false,
    }
}

fn device(config: NetConfig) -> (Net, UnixDatagram) {
    let (wire, tap) = UnixDatagram::pair().expect("pair");
    wire.set_nonblocking(true).expect("nonblocking");
    (Net::new(tap.into(), config).expect("device"), wire)
}

struct Vm {
    bench: Bench,
    driver: Driver,
    wire: UnixDatagram,
    buffers: Vec<(u16, u64)>,
}

impl Vm {
    fn new(config: NetConfig) -> Self {
        Self::with_features(config, u64::MAX)
    }

    fn with_features(config: NetConfig, features: u64) -> Self {
        let (device, wire) = device(config);
        let mut bench = Bench::default();
        let mut driver = bench.add(device);
        driver.start_with(features);
        Self {
            bench,
            driver,
            wire,
            buffers: Vec::new(),
        }
    }

    fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let piece = self.driver.output(len);
            let head = self.driver.offer(RX, &[piece]);
            self.buffers.push((head, piece.gpa));
        }
        self.driver
            .kick_if_wanted(RX, u16::try_from(count).expect("few"));
        self.bench.run();
    }

    /// Frames that the guest got, without their headers.
    fn received(&mut self) -> Vec<Vec<u8>> {
        self.bench.run();
        let mut frames = Vec::new();
        while let Some(used) = self.driver.used(RX) {
            let at = self.buffers.iter().position(|(head, _)| *head == used.head);
            let (_, gpa) = self.buffers.remove(at.expect("a buffer that was posted"));
            let bytes = self.driver.peek(gpa, used.len as usize);
            assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            frames.push(bytes[12..].to_vec());
        }
        frames
    }

    /// Sends a frame of the guest behind `header`; returns what arrives on the wire.
    fn send(&mut self, header: [u8; 12], frame: &[u8]) -> Option<Vec<u8>> {
        let pieces = [self.driver.input(&header), self.driver.input(frame)];
        let head = self.driver.offer(TX, &pieces);
        self.driver.kick(TX);
        self.bench.run();
        assert_eq!(
            self.driver.used(TX).map(|used| (used.head, used.len)),
            Some((head, 0))
        );
        on_wire(&self.wire)
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Net) -> R) -> R {
        let result = f(self.bench.lock().device_mut::<Net>(0).expect("net"));
        self.bench.run();
        result
    }
}

fn on_wire(wire: &UnixDatagram) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    match wire.recv(&mut bytes) {
        Ok(len) => Some(bytes[..len].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("cannot receive: {error}"),
    }
}

fn frame(source: MacAddr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend(source.0);
    bytes.extend([0x08, 0x00]);
    bytes.resize(len, 0x5a);
    bytes
}

/// A frame as the TAP gives it.
fn from_tap(len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; 12];
    bytes.extend(frame(CLONE_MAC, len));
    bytes
}

#[test]
fn configuration_tells_address_and_link() {
    let vm = Vm::new(config());
    assert_eq!(vm.driver.config::<6>(0), MAC.0);
    assert_eq!(vm.driver.config::<2>(6), [1, 0]);
    assert_eq!(vm.driver.offered() & 0xff_ffff, 1 << 5 | 1 << 16);
    let vm = Vm::new(NetConfig {
        tx_offload: true,
        ..config()
    });
    assert_eq!(
        vm.driver.offered() & 0xff_ffff,
        1 << 5 | 1 << 16 | 1 | 1 << 11 | 1 << 12
    );
}

#[test]
fn frames_go_both_ways() {
    let mut vm = Vm::new(config());
    let sent = frame(MAC, 60);
    let wire = vm.send([0; 12], &sent).expect("a frame");
    assert_eq!((&wire[..12], &wire[12..]), (&[0; 12][..], &sent[..]));
    vm.post(4, RX_BUFFER_BYTES);
    vm.wire.send(&from_tap(60)).expect("send");
    vm.wire.send(&from_tap(1514)).expect("send");
    assert_eq!(
        vm.received(),
        [frame(CLONE_MAC, 60), frame(CLONE_MAC, 1514)]
    );
    let counters = vm.with(|net| net.counters());
    assert_eq!(counters.rx_bytes.load(Ordering::Relaxed), 60 + 1514);
    assert_eq!(counters.tx_frames.load(Ordering::Relaxed), 1);
}

#[test]
fn frames_wait_for_buffers_and_are_not_lost() {
    let mut vm = Vm::new(config());
    for len in 100..110 {
        vm.wire.send(&from_tap(len)).expect("send");
    }
    assert!(vm.received().is_empty());
    vm.post(3, RX_BUFFER_BYTES);
    assert_eq!(
        vm.received().iter().map(Vec::len).collect::<Vec<_>>(),
        [100, 101, 102]
    );
    vm.post(20, RX_BUFFER_BYTES);
    assert_eq!(
        vm.received().iter().map(Vec::len).collect::<Vec<_>>(),
        (103..110).collect::<Vec<_>>()
    );
}

#[test]
fn frames_that_do_not_fit_are_dropped_and_the_buffer_stays() {
    let mut vm = Vm::new(config());
    vm.post(1, 200);
    vm.wire.send(&from_tap(189)).expect("send");
    vm.wire.send(&[1; 20]).expect("a runt");
    vm.wire.send(&from_tap(188)).expect("send");
    assert_eq!(vm.received(), [frame(CLONE_MAC, 188)]);
    let counters = vm.with(|net| net.counters());
    assert_eq!(counters.rx_dropped.load(Ordering::Relaxed), 2);
}

#[test]
fn malformed_frames_of_the_guest_are_dropped() {
    let mut vm = Vm::new(config());
    assert_eq!(vm.send([0; 12], &[1; 13]), None);
    assert_eq!(vm.send([0; 12], &[]), None);
    assert_eq!(vm.send([0; 12], &vec![1; FRAME_BYTES_MAX + 1]), None);
    let big = frame(MAC, FRAME_BYTES_MAX);
    assert_eq!(
        vm.send([0; 12], &big).map(|bytes| bytes.len()),
        Some(12 + FRAME_BYTES_MAX)
    );
    let counters = vm.with(|net| net.counters());
    assert_eq!(counters.tx_dropped.load(Ordering::Relaxed), 3);
}

#[test]
fn offload_headers_pass_only_when_agreed() {
    let csum = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let tso = [1, 1, 54, 0, 0xb4, 5, 34, 0, 6, 0, 0, 0];
    let sent = frame(MAC, 100);
    let mut plain = Vm::new(config());
    assert_eq!(plain.send(csum, &sent).expect("a frame")[..12], [0; 12]);
    let offload = NetConfig {
        tx_offload: true,
        ..config()
    };
    let mut full = Vm::new(offload);
    assert_eq!(full.send(csum, &sent).expect("a frame")[..12], csum);
    assert_eq!(full.send(tso, &sent).expect("a frame")[..12], tso);
    let mut csum_only = Vm::with_features(offload, 1);
    assert_eq!(csum_only.send(csum, &sent).expect("a frame")[..12], csum);
    assert_eq!(csum_only.send(tso, &sent), None);
}

#[test]
fn a_frame_may_lie_in_as_many_buffers_as_the_queue_has() {
    let mut vm = Vm::new(config());
    let sent = frame(MAC, 255);
    let header = vm.driver.input(&[0; 12]);
    let pieces: Vec<_> = std::iter::once(header)
        .chain(sent.iter().map(|byte| vm.driver.input(&[*byte])))
        .collect();
    assert_eq!(pieces.len(), 256);
    vm.driver.offer(TX, &pieces);
    vm.driver.kick(TX);
    vm.bench.run();
    assert_eq!(on_wire(&vm.wire).expect("a frame")[12..], sent);
}

#[test]
fn a_full_wire_holds_frames_back() {
    let mut vm = Vm::new(config());
    let mut offered = 0;
    let sent = frame(MAC, 1000);
    // A datagram socket takes a few frames, then it is full.
    for _ in 0..100 {
        let pieces = [vm.driver.input(&[0; 12]), vm.driver.input(&sent)];
        vm.driver.offer(TX, &pieces);
        offered += 1;
    }
    vm.driver.kick(TX);
    vm.bench.run();
    let mut done = 0;
    while vm.driver.used(TX).is_some() {
        done += 1;
    }
    assert!(done > 0 && done < offered, "{done}");
    let mut arrived = 0;
    while on_wire(&vm.wire).is_some() {
        arrived += 1;
        vm.bench.run();
    }
    assert_eq!(arrived, offered);
}

#[test]
fn a_link_that_is_down_drops_both_ways() {
    let mut vm = Vm::new(config());
    vm.post(4, RX_BUFFER_BYTES);
    let generation = vm.driver.read(regs::CONFIG_GENERATION);
    vm.with(|net| net.set_link(false));
    assert_eq!(vm.driver.config::<2>(6), [0, 0]);
    assert_eq!(vm.driver.read(regs::INTERRUPT_STATUS), 2);
    assert_ne!(vm.driver.read(regs::CONFIG_GENERATION), generation);
    vm.driver.write(regs::INTERRUPT_ACK, 2);
    vm.with(|net| net.set_link(false));
    assert_eq!(
        vm.driver.read(regs::INTERRUPT_STATUS),
        0,
        "no change, no interrupt"
    );
    vm.wire.send(&from_tap(60)).expect("send");
    assert_eq!(vm.send([0; 12], &frame(MAC, 60)), None);
    vm.with(|net| net.set_link(true));
    assert!(
        vm.received().is_empty(),
        "what came while the link was down is gone"
    );
    vm.wire.send(&from_tap(61)).expect("send");
    assert_eq!(vm.received(), [frame(CLONE_MAC, 61)]);
}

fn clone_of(vm: &Vm) -> Vm {
    let saved = vm.bench.lock().save(0);
    let (device, wire) = device(config());
    let mut bench = Bench::new(vm.bench.copy_ram());
    let driver = bench
        .add_restored(device, &saved, &vm.driver)
        .expect("restore");
    Vm {
        bench,
        driver,
        wire,
        buffers: vm.buffers.clone(),
    }
}

#[test]
fn a_clone_is_silent_until_it_has_its_own_address() {
    let mut vm = Vm::new(config());
    vm.post(8, RX_BUFFER_BYTES);
    let mut clone = clone_of(&vm);
    clone
        .bench
        .lock()
        .device_mut::<Net>(0)
        .expect("net")
        .adopt(CLONE_MAC);
    clone.bench.set_gate(false);
    clone.bench.run();
    assert_eq!(clone.driver.config::<6>(0), CLONE_MAC.0);
    assert_eq!(clone.driver.config::<2>(6), [0, 0]);
    assert_eq!(clone.driver.read(regs::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(
        clone.send([0; 12], &frame(CLONE_MAC, 60)),
        None,
        "link down"
    );
    clone.with(|net| net.set_link(true));
    assert_eq!(
        clone.send([0; 12], &frame(MAC, 60)),
        None,
        "the source's address"
    );
    assert!(clone.send([0; 12], &frame(CLONE_MAC, 60)).is_some());
    clone.wire.send(&from_tap(70)).expect("send");
    assert_eq!(clone.received(), [frame(CLONE_MAC, 70)]);
    let counters = clone.with(|net| net.counters());
    assert_eq!(counters.tx_foreign_mac.load(Ordering::Relaxed), 1);
    let mut second = clone_of(&clone);
    second.bench.set_gate(false);
    assert_eq!(
        second.send([0; 12], &frame(MAC, 60)),
        None,
        "the rule is part of the state"
    );
    second.with(|net| net.set_own_mac_only(false));
    assert!(second.send([0; 12], &frame(MAC, 60)).is_some());
    // The source goes on as before.
    assert!(vm.send([0; 12], &frame(MAC, 60)).is_some());
}

#[test]
fn a_clone_that_keeps_its_address_goes_on() {
    let mut vm = Vm::new(config());
    vm.post(2, RX_BUFFER_BYTES);
    vm.wire.send(&from_tap(60)).expect("send");
    assert_eq!(vm.received().len(), 1);
    let mut clone = clone_of(&vm);
    clone.bench.set_gate(false);
    clone.wire.send(&from_tap(62)).expect("send");
    assert_eq!(clone.received(), [frame(CLONE_MAC, 62)]);
    assert!(clone.send([0; 12], &frame(MAC, 60)).is_some());
}

#[test]
fn a_tap_that_is_gone_stops_nothing_else() {
    let mut vm = Vm::new(config());
    let (other, _) = UnixDatagram::pair().expect("pair");
    vm.wire = other;
    vm.post(1, RX_BUFFER_BYTES);
    let pieces = [vm.driver.input(&[0; 12]), vm.driver.input(&frame(MAC, 60))];
    vm.driver.offer(TX, &pieces);
    vm.driver.kick(TX);
    vm.bench.run();
    assert!(vm.driver.used(TX).is_some());
    assert!(!vm.driver.needs_reset());
}

#[test]
fn a_worker_thread_moves_frames() {
    let (device, wire) = device(config());
    wire.set_nonblocking(false).expect("blocking");
    let mem = test_ram();
    let mut builder = Worker::builder("io", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let transport = builder.add(Box::new(device), line.clone()).expect("add");
    let worker = builder.spawn().expect("spawn");
    worker.ungate();
    let mut driver = Driver::new(mem, transport, line);
    driver.start();
    let mut bytes = [0; 2000];
    for round in 0..300_usize {
        let buffer = driver.output(RX_BUFFER_BYTES);
        driver.offer(RX, &[buffer]);
        driver.kick_if_wanted(RX, 1);
        let pieces = [
            driver.input(&[0; 12]),
            driver.input(&frame(MAC, 60 + round)),
        ];
        driver.offer(TX, &pieces);
        driver.kick_if_wanted(TX, 1);
        let len = wire.recv(&mut bytes).expect("receive");
        assert_eq!(len, 72 + round);
        wire.send(&bytes[..len]).expect("send");
        assert_eq!(driver.wait_used(RX).len as usize, len);
        driver.wait_used(TX);
    }
}

proptest! {
    #![proptest_config(crate::testing::cases(32))]

    /// Frames in any mixture of sizes and buffer sizes: each arrives whole and in order, or is
    /// dropped because it does not fit.
    #[test]
    fn frames_arrive_whole_and_in_order(
        steps in prop::collection::vec((any::<bool>(), 26_u32..2000), 1..80),
    ) {
        let mut vm = Vm::new(config());
        let mut waiting = std::collections::VecDeque::new();
        let mut expected = Vec::new();
        let mut got = Vec::new();
        let mut on_way = std::collections::VecDeque::new();
        for (post, len) in steps {
            if post && waiting.len() < 100 {
                vm.post(1, len);
                waiting.push_back(len as usize);
            } else if on_way.len() < 5 {
                let len = (len as usize).max(14);
                vm.wire.send(&from_tap(len)).expect("send");
                on_way.push_back(len);
            }
            while let (Some(&len), Some(&room)) = (on_way.front(), waiting.front()) {
                on_way.pop_front();
                if len + 12 <= room {
                    waiting.pop_front();
                    expected.push(len);
                }
            }
            got.extend(vm.received().iter().map(Vec::len));
            prop_assert_eq!(&got, &expected);
        }
    }
}
