//! Failing hosts, no space, the gate, restore.

use super::*;

/// A back end that fails with the error in `fails`, if any.
#[derive(Debug)]
struct Failing {
    inner: MemoryBackend,
    fails: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl Failing {
    fn check(&self) -> io::Result<()> {
        self.fails
            .lock()
            .expect("lock")
            .map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl BlockBackend for Failing {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.inner.read_at(offset, buf)
    }
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check()?;
        self.inner.write_at(offset, buf)
    }
    fn discard(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        self.check()
    }
    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check()?;
        self.inner.write_zeroes(offset, len, may_unmap)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.check()
    }
    fn sync(&mut self) -> io::Result<()> {
        self.check()
    }
}

type Fails = Arc<Mutex<Option<io::ErrorKind>>>;
type Events = Arc<Mutex<Vec<String>>>;

fn failing_bench() -> (Bench, Driver, Fails, Events) {
    let fails = Fails::default();
    let inner = MemoryBackend::new(vec![0; DISK_BYTES], false);
    let events = Events::default();
    let sink = events.clone();
    let config = BlockConfig {
        events: BlockEventSink::new(move |event| {
            sink.lock().expect("lock").push(format!("{event:?}"));
        }),
        ..BlockConfig::default()
    };
    let mut bench = Bench::default();
    let mut driver = bench.add(Block::new(
        Failing {
            inner,
            fails: fails.clone(),
        },
        config,
    ));
    driver.start();
    (bench, driver, fails, events)
}

#[test]
fn host_errors_are_told_to_the_guest_and_the_owner() {
    let (bench, mut driver, fails, events) = failing_bench();
    *fails.lock().expect("lock") = Some(io::ErrorKind::Other);
    let out = driver.output(512);
    assert_eq!(request(&bench, &mut driver, T_IN, 6, &[out]), (S_IOERR, 1));
    assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_IOERR, 1));
    let events = events.lock().expect("lock");
    assert_eq!(events.len(), 2);
    assert!(
        events[0].contains("Read") && events[0].contains("sector: 6"),
        "{events:?}"
    );
    assert!(bench.lock().quiesce().is_err());
}

#[test]
fn no_space_stalls_until_resumed() {
    let (bench, mut driver, fails, events) = failing_bench();
    *fails.lock().expect("lock") = Some(io::ErrorKind::StorageFull);
    let data = driver.input(&[5; 512]);
    let first = offer(&mut driver, T_OUT, 2, &[data]);
    let second = offer(&mut driver, T_FLUSH, 0, &[]);
    bench.run();
    assert_eq!(
        (driver.used(0), driver.peek(first.gpa, 1)),
        (None, vec![0xff])
    );
    assert_eq!(*events.lock().expect("lock"), ["NoSpace"]);
    driver.kick(0);
    bench.run();
    assert_eq!(
        events.lock().expect("lock").len(),
        1,
        "a kick does not try again"
    );
    let resume = |bench: &Bench| {
        let mut guard = bench.lock();
        let disk = guard.device_mut::<Block<Failing>>(0).expect("disk");
        assert!(disk.is_stalled());
        disk.resume();
    };
    resume(&bench);
    bench.run();
    assert_eq!(events.lock().expect("lock").len(), 2, "still no space");
    *fails.lock().expect("lock") = None;
    resume(&bench);
    bench.run();
    assert!(driver.used(0).is_some() && driver.used(0).is_some());
    assert_eq!(
        (driver.peek(first.gpa, 1), driver.peek(second.gpa, 1)),
        (vec![0], vec![0])
    );
    let mut guard = bench.lock();
    let disk = guard.device_mut::<Block<Failing>>(0).expect("disk");
    assert_eq!(disk.backend_mut().inner.bytes()[1024], 5);
    assert!(!disk.is_stalled());
}

#[test]
fn a_stalled_request_is_done_by_the_restored_device() {
    let (bench, mut driver, fails, _) = failing_bench();
    *fails.lock().expect("lock") = Some(io::ErrorKind::StorageFull);
    let data = driver.input(&[5; 512]);
    let status = offer(&mut driver, T_OUT, 2, &[data]);
    bench.run();
    let saved = bench.lock().save(0);
    let mut copy = Bench::new(bench.copy_ram());
    let backend = MemoryBackend::new(vec![0; DISK_BYTES], false);
    let device = Block::new(backend, BlockConfig::default());
    let mut twin = copy.add_restored(device, &saved, &driver).expect("restore");
    copy.set_gate(false);
    copy.run();
    assert_eq!(twin.used(0).map(|used| used.len), Some(1));
    assert_eq!(twin.peek(status.gpa, 1), [S_OK]);
    assert_eq!(with_disk(&copy, |disk| disk.backend_mut().bytes()[1024]), 5);
}

#[test]
fn a_saved_state_of_another_disk_is_refused() {
    let (bench, driver) = bench(false);
    let good = bench.lock().save(0);
    for (saved_device, fits) in [
        (good.device.clone(), true),
        (
            SavedDevice::Block(SavedBlock {
                capacity_sectors: 1,
                read_only: false,
            }),
            false,
        ),
        (
            SavedDevice::Block(SavedBlock {
                capacity_sectors: 4096,
                read_only: true,
            }),
            false,
        ),
        (SavedDevice::Rng(crate::SavedRng {}), false),
    ] {
        let saved = crate::SavedTransport {
            device: saved_device,
            ..good.clone()
        };
        let result = Bench::default().add_restored(disk(false), &saved, &driver);
        assert_eq!(result.is_ok(), fits);
        assert!(matches!(result, Ok(_) | Err(RestoreError::Field { .. })));
    }
}

#[test]
fn a_shut_gate_cuts_a_large_request_short() {
    /// Shuts the gate of its own bench while it reads.
    #[derive(Debug)]
    struct Gating(
        MemoryBackend,
        Arc<Mutex<Vec<u64>>>,
        Arc<Mutex<Option<Arc<Bench>>>>,
    );
    impl BlockBackend for Gating {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.1.lock().expect("lock").push(offset);
            if let Some(bench) = self.2.lock().expect("lock").take() {
                bench.set_gate(true);
            }
            self.0.read_at(offset, buf)
        }
        fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (reads, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
    let backend = Gating(
        MemoryBackend::new(pattern(DISK_BYTES), false),
        reads.clone(),
        gate.clone(),
    );
    let mut bench = Bench::default();
    let mut driver = bench.add(Block::new(backend, BlockConfig::default()));
    driver.start();
    bench.run();
    let bench = Arc::new(bench);
    *gate.lock().expect("lock") = Some(bench.clone());
    let out = driver.output(2 * CHUNK_BYTES as u32);
    let status = offer(&mut driver, T_IN, 0, &[out]);
    bench.run();
    assert_eq!(
        (driver.used(0), reads.lock().expect("lock").len()),
        (None, 1)
    );
    bench.set_gate(false);
    bench.run();
    assert!(driver.used(0).is_some());
    assert_eq!(driver.peek(status.gpa, 1), [S_OK]);
    assert_eq!(*reads.lock().expect("lock"), [0, 0, CHUNK_BYTES as u64]);
    assert_eq!(
        driver.peek(out.gpa, 2 * CHUNK_BYTES),
        pattern(DISK_BYTES)[..2 * CHUNK_BYTES]
    );
}
