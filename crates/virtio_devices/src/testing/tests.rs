//! Transport and worker: registers, status machine, features, queues, save and restore, the gate.

mod restore;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};

use chipset::BusDevice;
use proptest::prelude::*;

use super::{
    Bench, Driver, Piece, TestLine, fuzz_register_writes, fuzz_restore, fuzz_rings, test_ram,
};
use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Progress, VirtioDevice};
use crate::queue::{Broken, Chain};
use crate::saved::{RestoreError, SavedDevice, SavedRng, SavedTransport};
use crate::transport::regs;
use crate::worker::{WaitingThread, Worker};

/// Adds one to every byte that the driver sends and writes the sum back; queue 1 does nothing.
#[derive(Debug)]
struct Adder {
    config: Arc<ConfigSpace>,
    chain: Chain,
    served: Arc<AtomicU32>,
    /// Told of the first request; then the device dawdles until somebody wants it.
    dawdle: Option<mpsc::Sender<()>>,
}

impl Adder {
    fn new() -> Self {
        let config = Arc::new(ConfigSpace::new(vec![1, 2, 3, 4, 5, 6, 7, 8], 4..8));
        Self {
            config,
            chain: Chain::default(),
            served: Arc::default(),
            dawdle: None,
        }
    }
}

impl VirtioDevice for Adder {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 8]
    }

    fn features(&self) -> u64 {
        1 << 3
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        for _ in 0..3 {
            if !io.pop(0, &mut self.chain, 8)? {
                return Ok(Progress::Idle);
            }
            let len = self.chain.readable_len().min(self.chain.writable_len());
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            self.chain.read(io.mem(), 0, &mut bytes)?;
            bytes.iter_mut().for_each(|b| *b = b.wrapping_add(1));
            self.chain.write(io.mem(), 0, &bytes)?;
            io.complete(0, self.chain.head(), u32::try_from(len).expect("small"))?;
            self.served.fetch_add(1, Ordering::SeqCst);
            if let Some(told) = self.dawdle.take() {
                told.send(()).expect("the test waits");
                while !io.gated() {
                    std::thread::yield_now();
                }
            }
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {}

    fn save(&self) -> SavedDevice {
        SavedDevice::Rng(SavedRng {})
    }

    fn restore(&mut self, _saved: &SavedDevice, _active: bool) -> Result<(), RestoreError> {
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

fn bench() -> (Bench, Driver) {
    let mut bench = Bench::default();
    let driver = bench.add(Adder::new());
    (bench, driver)
}

fn add(bench: &Bench, driver: &mut Driver, bytes: &[u8]) -> Vec<u8> {
    let pieces = [
        driver.input(bytes),
        driver.output(u32::try_from(bytes.len()).expect("small")),
    ];
    let head = driver.offer(0, &pieces);
    driver.kick(0);
    bench.run();
    let used = driver.used(0).expect("the chain is used");
    assert_eq!((used.head, used.len), (head, pieces[1].len));
    driver.peek(pieces[1].gpa, bytes.len())
}

#[test]
fn identification_registers() {
    let (_bench, driver) = bench();
    assert_eq!(driver.read(regs::MAGIC), 0x7472_6976);
    assert_eq!(driver.read(regs::VERSION), 2);
    assert_eq!(driver.read(regs::DEVICE_ID), 4);
    assert_eq!(driver.read(regs::SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.read(0x0ff & !3), 0, "generation starts at 0");
    let mut data = [0xee; 2];
    driver.transport().read(regs::MAGIC, &mut data);
    assert_eq!(data, [0, 0], "only 32-bit accesses are answered");
}

#[test]
fn offers_exactly_its_features() {
    let (_bench, driver) = bench();
    assert_eq!(driver.offered(), 1 << 3 | 1 << 28 | 1 << 29 | 1 << 32);
    driver.write(regs::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(regs::DEVICE_FEATURES), 0);
}

#[test]
fn status_goes_up_step_by_step() {
    let (_bench, driver) = bench();
    let status = |value| {
        driver.write(regs::STATUS, value);
        driver.read(regs::STATUS)
    };
    assert_eq!(status(2), 0, "DRIVER before ACKNOWLEDGE");
    assert_eq!(status(1), 1);
    assert_eq!(status(1 | 8), 1, "FEATURES_OK before DRIVER");
    assert_eq!(status(3), 3);
    assert_eq!(status(1 | 2 | 4), 3, "DRIVER_OK before FEATURES_OK");
    assert_eq!(status(11), 3, "FEATURES_OK without VERSION_1");
    assert_eq!(status(1), 3, "bits are not cleared");
    assert_eq!(status(0x13), 3, "unknown bits are ignored");
    driver.write(regs::DRIVER_FEATURES_SEL, 1);
    driver.write(regs::DRIVER_FEATURES, 1 | 1 << 5);
    assert_eq!(
        status(11),
        3,
        "FEATURES_OK with a feature that is not on offer"
    );
    driver.write(regs::DRIVER_FEATURES, 1);
    assert_eq!(status(11), 11);
    driver.write(regs::DRIVER_FEATURES, 3);
    assert_eq!(status(0x8b), 0x8b, "FAILED may come at any time");
    assert_eq!(status(0), 0);
}

#[test]
fn queues_are_set_up_only_in_their_phase() {
    let (_bench, mut driver) = bench();
    driver.write(regs::QUEUE_READY, 1);
    assert_eq!(driver.read(regs::QUEUE_READY), 0, "before FEATURES_OK");
    assert!(driver.negotiate(u64::MAX));
    driver.write(regs::QUEUE_SEL, 1);
    assert_eq!(driver.read(regs::QUEUE_NUM_MAX), 8);
    driver.write(regs::QUEUE_READY, 1);
    assert_eq!(driver.read(regs::QUEUE_READY), 1);
    driver.write(regs::QUEUE_SEL, 2);
    assert_eq!(driver.read(regs::QUEUE_NUM_MAX), 0);
    driver.write(regs::QUEUE_READY, 1);
    assert_eq!(driver.read(regs::QUEUE_READY), 0, "no such queue");
    driver.write(regs::STATUS, 0);
    driver.write(regs::QUEUE_SEL, 1);
    assert_eq!(driver.read(regs::QUEUE_READY), 0, "after a reset");
}

#[test]
fn unusable_queues_need_a_reset() {
    let desc = regs::QUEUE_DESC_LOW;
    let cases = [
        ("size not a power of two", regs::QUEUE_NUM, 3),
        ("size 0", regs::QUEUE_NUM, 0),
        ("size above the maximum", regs::QUEUE_NUM, 128),
        ("size above 16 bits", regs::QUEUE_NUM, 0x1_0040),
        ("unaligned table", desc, 8),
        ("table outside RAM", desc, 0xf000_0000),
        ("table across the end of RAM", desc, 0x3f_fff0),
        (
            "used ring outside RAM",
            regs::QUEUE_DEVICE_HIGH,
            0xffff_ffff,
        ),
        ("unaligned available ring", regs::QUEUE_DRIVER_LOW, 1),
    ];
    for (what, register, value) in cases {
        let (bench, mut driver) = bench();
        assert!(driver.negotiate(u64::MAX));
        for (register, value) in [
            (regs::QUEUE_NUM, 64),
            (desc, 0x1_0000),
            (regs::QUEUE_DRIVER_LOW, 0x1_4000),
            (regs::QUEUE_DEVICE_LOW, 0x1_8000),
            (register, value),
            (regs::QUEUE_READY, 1),
        ] {
            driver.write(register, value);
        }
        driver.write(regs::STATUS, 15);
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.read(regs::INTERRUPT_STATUS), 2, "{what}");
        bench.run();
        driver.start();
        assert!(!driver.needs_reset(), "{what}");
        assert_eq!(add(&bench, &mut driver, b"abc"), b"bcd", "{what}");
    }
}

#[test]
fn requests_are_served_and_interrupt_the_driver() {
    let (bench, mut driver) = bench();
    driver.start();
    bench.run();
    assert_eq!(add(&bench, &mut driver, b"hello"), b"ifmmp");
    assert_eq!(driver.line().edges(), 1);
    assert_eq!(driver.read(regs::INTERRUPT_STATUS), 1);
    driver.write(regs::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(regs::INTERRUPT_STATUS), 0);
    for round in 0..500_u32 {
        let bytes = round.to_le_bytes();
        assert_eq!(
            add(&bench, &mut driver, &bytes)[0],
            bytes[0].wrapping_add(1)
        );
    }
}

#[test]
fn event_index_spares_interrupts_and_notifications() {
    for (features, edges) in [(1 << 29, 1), (0, 3)] {
        let (bench, mut driver) = bench();
        driver.start_with(features);
        bench.run();
        for _ in 0..3 {
            let pieces = [driver.input(b"x"), driver.output(1)];
            driver.offer(0, &pieces);
            driver.kick(0);
            bench.run();
        }
        assert_eq!(driver.line().edges(), edges, "features {features:#x}");
    }
}

#[test]
fn chains_may_be_scattered_and_indirect() {
    let (bench, mut driver) = bench();
    driver.start();
    let (a, b) = (driver.input(b"ab"), driver.input(b"c"));
    let empty = Piece { len: 0, ..a };
    let high = Piece {
        gpa: 1 << 32,
        len: 2,
        writable: true,
    };
    let c = driver.output(8);
    driver.offer(0, &[a, empty, b, high, c]);
    driver.kick(0);
    bench.run();
    assert_eq!(driver.used(0).expect("used").len, 3);
    assert_eq!(
        (driver.peek(high.gpa, 2), driver.peek(c.gpa, 2)),
        (b"bc".to_vec(), b"d\0".to_vec())
    );

    let mut table = Vec::new();
    for (piece, flags, next) in [(a, 1_u16, 1_u16), (c, 2, 0)] {
        table.extend(piece.gpa.to_le_bytes());
        table.extend(piece.len.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    let table = driver.input(&table);
    driver.put_descriptor(0, 20, table, 4, 0);
    driver.offer_head(0, 20);
    driver.kick(0);
    bench.run();
    assert_eq!(
        driver.used(0).map(|used| (used.head, used.len)),
        Some((20, 2))
    );
    assert_eq!(driver.peek(c.gpa, 2), b"bc");
}

#[test]
fn malformed_chains_need_a_reset() {
    let ok = Piece {
        gpa: 0x20_0000,
        len: 16,
        writable: false,
    };
    type Setup = fn(&mut Driver, Piece);
    let cases: [(&str, Setup); 11] = [
        ("a loop", |d, ok| d.put_descriptor(0, 0, ok, 1, 0)),
        ("a loop of two", |d, ok| {
            d.put_descriptor(0, 0, ok, 1, 1);
            d.put_descriptor(0, 1, ok, 1, 0);
        }),
        ("a link past the table", |d, ok| {
            d.put_descriptor(0, 0, ok, 1, 64)
        }),
        ("an address outside RAM", |d, ok| {
            d.put_descriptor(
                0,
                0,
                Piece {
                    gpa: 0x8000_0000,
                    ..ok
                },
                0,
                0,
            );
        }),
        ("an address that wraps", |d, ok| {
            d.put_descriptor(
                0,
                0,
                Piece {
                    gpa: u64::MAX - 3,
                    ..ok
                },
                0,
                0,
            );
        }),
        ("a length past RAM", |d, ok| {
            d.put_descriptor(
                0,
                0,
                Piece {
                    len: u32::MAX,
                    ..ok
                },
                0,
                0,
            );
        }),
        ("readable after writable", |d, ok| {
            d.put_descriptor(0, 0, ok, 3, 1);
            d.put_descriptor(0, 1, ok, 0, 0);
        }),
        ("an indirect table of half a descriptor", |d, ok| {
            d.put_descriptor(0, 0, Piece { len: 8, ..ok }, 4, 0);
        }),
        ("an empty indirect table", |d, ok| {
            d.put_descriptor(0, 0, Piece { len: 0, ..ok }, 4, 0);
        }),
        ("an indirect table in itself", |d, ok| {
            d.put_descriptor(0, 0, ok, 4, 0);
            let mut inner = [0; 16];
            inner[..8].copy_from_slice(&ok.gpa.to_le_bytes());
            inner[8] = 16;
            inner[12] = 4;
            d.poke(ok.gpa, &inner);
        }),
        ("more segments than the device takes", |d, ok| {
            for i in 0..9 {
                d.put_descriptor(0, i, ok, u16::from(i < 8), i + 1);
            }
        }),
    ];
    for (what, setup) in cases {
        let (bench, mut driver) = bench();
        driver.start();
        setup(&mut driver, ok);
        driver.offer_head(0, 0);
        driver.kick(0);
        bench.run();
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.used(0), None, "{what}");
        driver.start();
        assert_eq!(add(&bench, &mut driver, b"1"), b"2", "{what}");
    }
}

#[test]
fn bad_heads_and_indices_need_a_reset() {
    let (bench, mut driver) = bench();
    driver.start();
    driver.offer_head(0, 64);
    driver.kick(0);
    bench.run();
    assert!(driver.needs_reset(), "a head past the table");

    driver.start();
    let (_, avail, _) = driver.ring_addresses(0);
    driver.poke(avail + 2, &65_u16.to_le_bytes());
    driver.kick(0);
    bench.run();
    assert!(driver.needs_reset(), "more entries than the ring has");
    driver.kick(7);
    driver.kick(usize::from(u16::MAX));
    bench.run();
}

#[test]
fn configuration_is_shared_with_the_driver() {
    let (_bench, driver) = bench();
    assert_eq!(driver.config::<4>(0), [1, 2, 3, 4]);
    assert_eq!(driver.config::<2>(7), [8, 0]);
    driver.transport().write(regs::CONFIG + 4, &[9, 9]);
    driver.transport().write(regs::CONFIG, &[9]);
    assert_eq!(driver.config::<8>(0), [1, 2, 3, 4, 9, 9, 7, 8]);
}

#[test]
fn a_reset_forgets_the_session() {
    let (bench, mut driver) = bench();
    driver.start();
    let pieces = [driver.input(b"x"), driver.output(1)];
    driver.offer(0, &pieces);
    driver.kick(0);
    driver.write(regs::STATUS, 0);
    bench.run();
    assert_eq!(driver.used(0), None);
    assert_eq!(driver.read(regs::INTERRUPT_STATUS), 0);
    assert!(!bench.lock().is_active(0));
}

#[test]
fn a_shut_gate_holds_descriptors_and_loses_none() {
    let (bench, mut driver) = bench();
    driver.start();
    bench.run();
    bench.set_gate(true);
    for _ in 0..5 {
        let pieces = [driver.input(b"x"), driver.output(1)];
        driver.offer(0, &pieces);
        driver.kick_if_wanted(0, 1);
    }
    bench.run();
    assert_eq!(driver.used(0), None);
    bench.set_gate(false);
    bench.run();
    for _ in 0..5 {
        assert!(driver.used(0).is_some());
    }
}

#[test]
fn a_worker_serves_while_its_gate_opens_and_shuts() {
    let mem = test_ram();
    let mut builder = Worker::builder("test", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let adder = Adder::new();
    let served = adder.served.clone();
    let transport = builder.add(Box::new(adder), line.clone()).expect("add");
    let worker = builder.spawn().expect("spawn");
    let mut driver = Driver::new(mem, transport, line);
    driver.start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                worker.gate();
                worker.drain();
                let before = served.load(Ordering::SeqCst);
                let guard = worker.lock();
                std::thread::yield_now();
                drop(guard.save(0));
                assert_eq!(
                    served.load(Ordering::SeqCst),
                    before,
                    "taken behind the gate"
                );
                drop(guard);
                worker.ungate();
                std::thread::yield_now();
            }
        });
        for round in 0..3000_u32 {
            let bytes = round.to_le_bytes();
            let pieces = [driver.input(&bytes), driver.output(4)];
            driver.offer(0, &pieces);
            driver.kick_if_wanted(0, 1);
            assert_eq!(driver.wait_used(0).len, 4);
            assert_eq!(driver.peek(pieces[1].gpa, 1)[0], bytes[0].wrapping_add(1));
        }
        done.store(true, Ordering::SeqCst);
    });
    worker.stop();
    assert_eq!(served.load(Ordering::SeqCst), 3000);
}

#[test]
fn whoever_wants_the_devices_waits_for_one_request_only() {
    let mem = test_ram();
    let mut builder = Worker::builder("test", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let (told, first) = mpsc::channel();
    let adder = Adder {
        dawdle: Some(told),
        ..Adder::new()
    };
    let served = adder.served.clone();
    let transport = builder.add(Box::new(adder), line.clone()).expect("add");
    let worker = builder.spawn().expect("spawn");
    let mut driver = Driver::new(mem, transport, line);
    driver.start();
    for _ in 0..20 {
        let pieces = [driver.input(b"x"), driver.output(1)];
        driver.offer(0, &pieces);
    }
    worker.ungate();
    first.recv().expect("a first request");
    let guard = worker.lock();
    assert_eq!(served.load(Ordering::SeqCst), 1);
    drop(guard);
    for _ in 0..20 {
        driver.wait_used(0);
    }
}

#[test]
fn a_thread_that_waits_becomes_a_worker() {
    let mem = test_ram();
    let mut builder = Worker::builder("late", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let adder = Adder::new();
    let served = adder.served.clone();
    let transport = builder.add(Box::new(adder), line.clone()).expect("add");
    let waiting = WaitingThread::start().expect("thread");
    let worker = builder.spawn_on(waiting).expect("spawn");
    let mut driver = Driver::new(mem, transport, line);
    driver.start();
    let pieces = [driver.input(b"x"), driver.output(1)];
    driver.offer(0, &pieces);
    worker.ungate();
    driver.wait_used(0);
    worker.stop();
    assert_eq!(served.load(Ordering::SeqCst), 1);
}

#[test]
fn a_guard_gives_the_device_back_by_type() {
    let (bench, _driver) = bench();
    let mut guard = bench.lock();
    assert!(guard.device_mut::<Adder>(0).is_some());
    assert!(guard.device_mut::<crate::Rng>(0).is_none());
    assert!(guard.device_mut::<Adder>(1).is_none());
    assert_eq!(
        (guard.len(), guard.kind(0), guard.kind(1)),
        (1, Some(DeviceKind::Rng), None)
    );
}
