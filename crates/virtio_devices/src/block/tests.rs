//! The block device: every request, malformed ones, no space, save and restore.

mod slots;
mod trouble;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use disk_layers::{DiskFormat, DiskStack, LayerFile, StackOptions};
use proptest::prelude::*;

use super::regs::*;
use super::*;
use crate::saved::{RestoreError, SavedDevice};
use crate::testing::{Bench, Driver, Piece, TestLine, test_ram};
use crate::worker::Worker;

const DISK_BYTES: usize = 2 << 20;
type Memory = Block<MemoryBackend>;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 7 + i) as u8).collect()
}

fn disk(read_only: bool) -> Memory {
    let config = BlockConfig {
        serial: "vol-0001".into(),
        ..BlockConfig::default()
    };
    Block::new(MemoryBackend::new(pattern(DISK_BYTES), read_only), config)
}

fn bench(read_only: bool) -> (Bench, Driver) {
    let mut bench = Bench::default();
    let mut driver = bench.add(disk(read_only));
    driver.start();
    (bench, driver)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn ranges(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

/// Offers a request; returns the piece that holds its status byte.
fn offer(driver: &mut Driver, kind: u32, sector: u64, data: &[Piece]) -> Piece {
    let header = driver.input(&header(kind, sector));
    let status = driver.output(1);
    driver.poke(status.gpa, &[0xff]);
    let mut pieces = vec![header];
    pieces.extend(data);
    pieces.push(status);
    driver.offer(0, &pieces);
    driver.kick(0);
    status
}

/// Does a request; returns its status and the used length.
fn request(
    bench: &Bench,
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    data: &[Piece],
) -> (u8, u32) {
    let status = offer(driver, kind, sector, data);
    bench.run();
    let used = driver.used(0).expect("the request is done");
    (driver.peek(status.gpa, 1)[0], used.len)
}

fn with_disk<R>(bench: &Bench, f: impl FnOnce(&mut Memory) -> R) -> R {
    f(bench
        .lock()
        .device_mut::<Memory>(0)
        .expect("a disk in memory"))
}

#[test]
fn configuration_tells_size_and_limits() {
    let (_bench, driver) = bench(false);
    assert_eq!(
        u64::from_le_bytes(driver.config(0)),
        DISK_BYTES as u64 / 512
    );
    assert_eq!(u32::from_le_bytes(driver.config(12)), SEG_MAX);
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512);
    assert_eq!(u32::from_le_bytes(driver.config(40)), MAX_RANGES);
    let device = driver.offered() & 0xff_ffff;
    assert_eq!(device, 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14);
    let (_bench, driver) = self::bench(true);
    assert_eq!(
        driver.offered() & 0xff_ffff,
        1 << 2 | 1 << 5 | 1 << 6 | 1 << 9
    );
}

#[test]
fn reads_and_writes_move_data() {
    let (bench, mut driver) = bench(false);
    let out = [driver.output(512), driver.output(1024)];
    assert_eq!(request(&bench, &mut driver, T_IN, 3, &out), (S_OK, 1537));
    let expect = &pattern(DISK_BYTES)[1536..3072];
    assert_eq!(driver.peek(out[0].gpa, 512), expect[..512]);
    assert_eq!(driver.peek(out[1].gpa, 1024), expect[512..]);

    let data = [driver.input(&[7; 300]), driver.input(&[8; 212])];
    assert_eq!(request(&bench, &mut driver, T_OUT, 5, &data), (S_OK, 1));
    let last = DISK_BYTES as u64 / 512 - 1;
    let tail = driver.input(&[9; 512]);
    assert_eq!(
        request(&bench, &mut driver, T_OUT, last, &[tail]),
        (S_OK, 1)
    );
    with_disk(&bench, |disk| {
        let bytes = disk.backend_mut().bytes();
        assert_eq!(
            (bytes[2560], bytes[2859], bytes[2860], bytes[3071]),
            (7, 7, 8, 8)
        );
        assert_eq!(bytes[DISK_BYTES - 1], 9);
        let counters = disk.counters();
        assert_eq!(counters.writes.load(Ordering::Relaxed), 2);
        assert_eq!(counters.written_bytes.load(Ordering::Relaxed), 1024);
        assert_eq!(counters.read_bytes.load(Ordering::Relaxed), 1536);
    });
}

#[test]
fn large_requests_go_in_pieces() {
    let (bench, mut driver) = bench(false);
    let len = 3 * CHUNK_BYTES as u32 + 512;
    let out = driver.output(len);
    assert_eq!(
        request(&bench, &mut driver, T_IN, 1, &[out]),
        (S_OK, len + 1)
    );
    assert_eq!(
        driver.peek(out.gpa, len as usize),
        pattern(DISK_BYTES)[512..][..len as usize]
    );
    assert_eq!(
        request(
            &bench,
            &mut driver,
            T_OUT,
            0,
            &[Piece {
                writable: false,
                ..out
            }]
        )
        .0,
        S_OK
    );
    with_disk(&bench, |disk| {
        assert_eq!(
            disk.backend_mut().bytes()[..len as usize],
            pattern(DISK_BYTES)[512..][..len as usize]
        );
    });
}

#[test]
fn requests_off_the_disk_fail() {
    let (bench, mut driver) = bench(false);
    let end = DISK_BYTES as u64 / 512;
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        for kind in [T_IN, T_OUT] {
            let data = driver.output(1024);
            let data = Piece {
                writable: kind == T_IN,
                ..data
            };
            assert_eq!(
                request(&bench, &mut driver, kind, sector, &[data]),
                (S_IOERR, 1),
                "{sector}"
            );
        }
    }
    let odd = driver.output(100);
    assert_eq!(request(&bench, &mut driver, T_IN, 0, &[odd]), (S_IOERR, 1));
    let odd = driver.input(&[1; 513]);
    assert_eq!(request(&bench, &mut driver, T_OUT, 0, &[odd]), (S_IOERR, 1));
    assert_eq!(request(&bench, &mut driver, 77, 0, &[]), (S_UNSUPP, 1));
    with_disk(&bench, |disk| {
        assert_eq!(disk.backend_mut().bytes(), pattern(DISK_BYTES))
    });
}

#[test]
fn chains_without_header_or_status_need_a_reset() {
    for case in 0..3 {
        let (bench, mut driver) = bench(false);
        let short = driver.input(&[0; 15]);
        let whole = driver.input(&header(T_FLUSH, 0));
        let status = driver.output(1);
        let pieces: &[Piece] = match case {
            0 => &[short, status],
            1 => &[whole],
            _ => &[status],
        };
        driver.offer(0, pieces);
        driver.kick(0);
        bench.run();
        assert!(driver.needs_reset(), "case {case}");
        driver.start();
        assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_OK, 1));
    }
}

#[test]
fn flush_syncs_and_drivers_without_it_get_synced_writes() {
    let (bench, mut driver) = bench(false);
    let data = driver.input(&[1; 512]);
    request(&bench, &mut driver, T_OUT, 0, &[data]);
    assert_eq!(with_disk(&bench, |disk| disk.backend_mut().syncs()), 0);
    assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_OK, 1));
    assert_eq!(with_disk(&bench, |disk| disk.backend_mut().syncs()), 1);
    driver.start_with(!(1 << F_FLUSH));
    request(&bench, &mut driver, T_OUT, 0, &[data]);
    assert_eq!(with_disk(&bench, |disk| disk.backend_mut().syncs()), 2);
}

#[test]
fn the_serial_number_is_told() {
    let (bench, mut driver) = bench(false);
    let room = driver.output(20);
    assert_eq!(
        request(&bench, &mut driver, T_GET_ID, 0, &[room]),
        (S_OK, 21)
    );
    assert_eq!(
        driver.peek(room.gpa, 20),
        b"vol-0001\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    let small = driver.output(4);
    assert_eq!(
        request(&bench, &mut driver, T_GET_ID, 0, &[small]),
        (S_OK, 5)
    );
}

#[test]
fn discard_and_write_zeroes_check_every_range_first() {
    let (bench, mut driver) = bench(false);
    let end = DISK_BYTES as u64 / 512;
    let good = driver.input(&ranges(&[(1, 2, 1), (9, 1, 0), (end, 0, 0)]));
    assert_eq!(
        request(&bench, &mut driver, T_WRITE_ZEROES, 0, &[good]),
        (S_OK, 1)
    );
    let mut expect = pattern(DISK_BYTES);
    expect[512..1536].fill(0);
    expect[4608..5120].fill(0);
    with_disk(&bench, |disk| {
        assert_eq!(disk.backend_mut().bytes(), expect)
    });
    let many: Vec<_> = (0..u64::from(MAX_RANGES) + 1).map(|i| (i, 1, 0)).collect();
    for (kind, bytes, status) in [
        (T_WRITE_ZEROES, ranges(&[(20, 1, 0), (end, 1, 0)]), S_IOERR),
        (
            T_WRITE_ZEROES,
            ranges(&[(20, 1, 0), (u64::MAX, 1, 0)]),
            S_IOERR,
        ),
        (T_WRITE_ZEROES, ranges(&[(20, 1, 2)]), S_UNSUPP),
        (T_WRITE_ZEROES, ranges(&[(0, u32::MAX, 0)]), S_IOERR),
        (T_WRITE_ZEROES, ranges(&many), S_IOERR),
        (T_WRITE_ZEROES, vec![0; 15], S_IOERR),
        (T_WRITE_ZEROES, vec![], S_IOERR),
        (T_DISCARD, ranges(&[(20, 1, 1)]), S_UNSUPP),
        (T_DISCARD, ranges(&[(end - 1, 2, 0)]), S_IOERR),
        (T_DISCARD, ranges(&[(20, 8, 0)]), S_OK),
    ] {
        let data = driver.input(&bytes);
        assert_eq!(
            request(&bench, &mut driver, kind, 0, &[data]),
            (status, 1),
            "{kind} {bytes:?}"
        );
    }
    with_disk(&bench, |disk| {
        assert_eq!(disk.backend_mut().bytes(), expect)
    });
    driver.start_with(1 << F_FLUSH);
    let data = driver.input(&ranges(&[(20, 1, 0)]));
    assert_eq!(
        request(&bench, &mut driver, T_DISCARD, 0, &[data]),
        (S_UNSUPP, 1)
    );
}

#[test]
fn a_read_only_disk_refuses_changes() {
    let (bench, mut driver) = bench(true);
    let data = driver.input(&[1; 512]);
    assert_eq!(
        request(&bench, &mut driver, T_OUT, 0, &[data]),
        (S_IOERR, 1)
    );
    assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_OK, 1));
    let out = driver.output(512);
    assert_eq!(request(&bench, &mut driver, T_IN, 0, &[out]), (S_OK, 513));
    assert_eq!(with_disk(&bench, |disk| disk.backend_mut().syncs()), 0);
}

#[test]
fn a_disk_stack_is_a_back_end() {
    let file = tempfile::tempfile().expect("temporary file");
    file.set_len(DISK_BYTES as u64).expect("size");
    let top = LayerFile {
        file,
        format: DiskFormat::Raw,
    };
    let stack = DiskStack::open(top, Vec::new(), StackOptions::default()).expect("open");
    let mut bench = Bench::default();
    let mut driver = bench.add(Block::new(stack, BlockConfig::default()));
    driver.start();
    let data = driver.input(&pattern(4096));
    assert_eq!(request(&bench, &mut driver, T_OUT, 8, &[data]), (S_OK, 1));
    assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_OK, 1));
    let zero = driver.input(&ranges(&[(9, 1, 1)]));
    assert_eq!(
        request(&bench, &mut driver, T_WRITE_ZEROES, 0, &[zero]),
        (S_OK, 1)
    );
    let out = driver.output(4096);
    assert_eq!(request(&bench, &mut driver, T_IN, 8, &[out]), (S_OK, 4097));
    let mut expect = pattern(4096);
    expect[512..1024].fill(0);
    assert_eq!(driver.peek(out.gpa, 4096), expect);
    assert!(bench.lock().quiesce().is_ok());
}

#[test]
fn a_worker_thread_serves_a_disk() {
    let mem = test_ram();
    let mut builder = Worker::builder("disk", mem.clone()).expect("builder");
    let line = Arc::new(TestLine::default());
    let transport = builder
        .add(Box::new(disk(false)), line.clone())
        .expect("add");
    let worker = builder.spawn().expect("spawn");
    worker.ungate();
    let mut driver = Driver::new(mem, transport, line);
    driver.start();
    for round in 0..200_u32 {
        let data = driver.input(&[round as u8; 512]);
        let out = driver.output(512);
        let written = offer(&mut driver, T_OUT, u64::from(round), &[data]);
        let read = offer(&mut driver, T_IN, u64::from(round), &[out]);
        driver.wait_used(0);
        driver.wait_used(0);
        assert_eq!(
            (driver.peek(written.gpa, 1)[0], driver.peek(read.gpa, 1)[0]),
            (S_OK, S_OK)
        );
        assert_eq!(driver.peek(out.gpa, 512), [round as u8; 512]);
    }
}

proptest! {
    #![proptest_config(crate::testing::cases(48))]

    /// Against a plain array, with the device saved and restored at any point.
    #[test]
    fn requests_act_like_an_array(
        steps in proptest::collection::vec((0_u8..5, 0_u64..60, 0_u32..9, any::<u8>()), 1..40),
    ) {
        const SECTORS: usize = 64;
        let backend = || MemoryBackend::new(vec![0; SECTORS * 512], false);
        let mut model = vec![0; SECTORS * 512];
        let mut bench = Bench::default();
        let mut driver = bench.add(Block::new(backend(), BlockConfig::default()));
        driver.start();
        for (op, sector, sectors, fill) in steps {
            let fits = sector as usize + sectors as usize <= SECTORS;
            let range = sector as usize * 512..(sector as usize + sectors as usize) * 512;
            let status = if fits { S_OK } else { S_IOERR };
            match op {
                0 | 1 => {
                    let data = driver.input(&vec![fill; sectors as usize * 512]);
                    prop_assert_eq!(request(&bench, &mut driver, T_OUT, sector, &[data]).0, status);
                    if fits {
                        model[range].fill(fill);
                    }
                }
                2 => {
                    let out = driver.output(sectors * 512);
                    prop_assert_eq!(request(&bench, &mut driver, T_IN, sector, &[out]).0, status);
                    if fits {
                        prop_assert_eq!(&driver.peek(out.gpa, range.len()), &model[range]);
                    }
                }
                3 => {
                    let data = driver.input(&ranges(&[(sector, sectors, 0)]));
                    prop_assert_eq!(request(&bench, &mut driver, T_WRITE_ZEROES, 0, &[data]).0, status);
                    if fits {
                        model[range].fill(0);
                    }
                }
                _ => {
                    let saved = bench.lock().save(0);
                    let bytes = with_disk(&bench, |disk| disk.backend_mut().bytes().to_vec());
                    let mut next = Bench::new(bench.copy_ram());
                    let device = Block::new(MemoryBackend::new(bytes, false), BlockConfig::default());
                    driver = next.add_restored(device, &saved, &driver).expect("restore");
                    next.set_gate(false);
                    bench = next;
                }
            }
        }
        with_disk(&bench, |disk| assert_eq!(disk.backend_mut().bytes(), model));
    }
}
