//! The balloon.

use std::io;
use std::sync::{Arc, Mutex};

use super::regs::*;
use super::*;
use crate::testing::{Bench, Driver, Piece};
use crate::transport::regs;
use chipset::BusDevice;

type Given = Arc<Mutex<Vec<(u64, u64)>>>;

/// Notes what is given back, and can fail.
#[derive(Debug)]
struct Notes(Given, bool);

impl ReclaimRam for Notes {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        assert!(len > 0 && gpa.is_multiple_of(4096) && len.is_multiple_of(4096));
        self.0.lock().expect("lock").push((gpa, len));
        if self.1 {
            Err(io::ErrorKind::Other.into())
        } else {
            Ok(())
        }
    }
}

fn bench() -> (Bench, Driver, Given) {
    let given = Given::default();
    let mut bench = Bench::default();
    let mut driver = bench.add(Balloon::new(Box::new(Notes(given.clone(), false))));
    driver.start();
    (bench, driver, given)
}

fn inflate(bench: &Bench, driver: &mut Driver, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    let piece = driver.input(&bytes);
    driver.offer(INFLATE, &[piece]);
    driver.kick(INFLATE);
    bench.run();
}

fn taken(given: &Given) -> Vec<(u64, u64)> {
    std::mem::take(&mut *given.lock().expect("lock"))
}

fn free(gpa: u64, len: u32) -> Piece {
    Piece {
        gpa,
        len,
        writable: true,
    }
}

#[test]
fn inflated_pages_are_given_back_in_runs() {
    let (bench, mut driver, given) = bench();
    inflate(
        &bench,
        &mut driver,
        &[0x305, 0x300, 0x301, 0x300, 0x304, 0x302, 0x310],
    );
    assert_eq!(
        taken(&given),
        [
            (0x30_0000, 0x3000),
            (0x30_4000, 0x2000),
            (0x31_0000, 0x1000)
        ]
    );
    assert!(driver.used(INFLATE).is_some());
    let many: Vec<u32> = (0..3000).map(|i| 0x100 + i % 0x200).collect();
    inflate(&bench, &mut driver, &many);
    assert!(
        taken(&given)
            .iter()
            .all(|&(gpa, len)| gpa >= 0x10_0000 && gpa + len <= 0x30_0000)
    );
}

#[test]
fn pages_outside_ram_are_ignored() {
    let (bench, mut driver, given) = bench();
    inflate(
        &bench,
        &mut driver,
        &[u32::MAX, u32::MAX - 1, 0x3ff, 0x400, 0x401, 0x8_0000],
    );
    assert_eq!(taken(&given), [(0x3f_f000, 0x1000)]);
    assert!(!driver.needs_reset());
}

#[test]
fn odd_and_oversized_lists() {
    let (bench, mut driver, given) = bench();
    let odd = driver.input(&[0, 3, 0, 0, 1, 3, 0]);
    driver.offer(INFLATE, &[odd]);
    driver.kick(INFLATE);
    bench.run();
    assert_eq!(taken(&given), [(0x30_0000, 0x1000)]);
    driver.offer(
        INFLATE,
        &[Piece {
            gpa: 0,
            len: 4 << 20,
            writable: false,
        }],
    );
    driver.kick(INFLATE);
    bench.run();
    assert!(driver.needs_reset());
}

#[test]
fn reported_pages_are_given_back_on_whichever_queue_the_driver_uses() {
    for queue in REPORTING {
        let (bench, mut driver, given) = bench();
        driver.offer(
            queue,
            &[
                free(0x20_0000, 0x4000),
                free(0x30_0800, 0x1fff),
                free(0x30_0000, 9),
            ],
        );
        driver.kick(queue);
        bench.run();
        assert_eq!(taken(&given), [(0x20_0000, 0x4000), (0x30_1000, 0x1000)]);
        assert!(driver.used(queue).is_some());
        let reclaimed = bench
            .lock()
            .device_mut::<Balloon>(0)
            .expect("balloon")
            .reclaimed_bytes();
        assert_eq!(reclaimed, 0x5000);
        // Without the feature the queue is dead.
        driver.start_with(0);
        driver.offer(queue, &[free(0x20_0000, 0x4000)]);
        driver.kick(queue);
        bench.run();
        assert_eq!(taken(&given), []);
    }
}

#[test]
fn poison_is_never_offered() {
    let (_bench, driver, _) = bench();
    assert_eq!(driver.offered() & 0xff_ffff, 1 << 2 | 1 << 5);
}

#[test]
fn a_new_target_interrupts_the_driver_once() {
    let (bench, mut driver, _) = bench();
    bench.run();
    let set = |pages| {
        bench
            .lock()
            .device_mut::<Balloon>(0)
            .expect("balloon")
            .set_target_pages(pages);
        bench.run();
        driver.read(regs::INTERRUPT_STATUS)
    };
    assert_eq!(set(0), 0);
    assert_eq!(set(512), 2);
    assert_eq!(driver.config::<4>(0), 512_u32.to_le_bytes());
    driver.write(regs::INTERRUPT_ACK, 2);
    driver
        .transport()
        .write(regs::CONFIG + 4, &300_u32.to_le_bytes());
    driver.transport().write(regs::CONFIG, &1_u32.to_le_bytes());
    let mut guard = bench.lock();
    let balloon = guard.device_mut::<Balloon>(0).expect("balloon");
    assert_eq!((balloon.target_pages(), balloon.actual_pages()), (512, 300));
    drop(guard);
    driver.start();
    assert_eq!(
        bench
            .lock()
            .device_mut::<Balloon>(0)
            .expect("balloon")
            .actual_pages(),
        0
    );
}

#[test]
fn deflated_pages_are_acknowledged() {
    let (bench, mut driver, given) = bench();
    let piece = driver.input(&0x300_u32.to_le_bytes());
    driver.offer(DEFLATE, &[piece]);
    driver.kick(DEFLATE);
    bench.run();
    assert!(driver.used(DEFLATE).is_some());
    assert_eq!(taken(&given), []);
}

#[test]
fn a_failing_host_does_not_stop_the_balloon() {
    let given = Given::default();
    let mut bench = Bench::default();
    let mut driver = bench.add(Balloon::new(Box::new(Notes(given.clone(), true))));
    driver.start();
    inflate(&bench, &mut driver, &[0x300]);
    assert!(driver.used(INFLATE).is_some() && !driver.needs_reset());
    assert_eq!(
        bench
            .lock()
            .device_mut::<Balloon>(0)
            .expect("balloon")
            .reclaimed_bytes(),
        0
    );
}

#[test]
fn a_restored_balloon_goes_on() {
    let (bench, mut driver, given) = bench();
    bench
        .lock()
        .device_mut::<Balloon>(0)
        .expect("balloon")
        .set_target_pages(77);
    driver
        .transport()
        .write(regs::CONFIG + 4, &5_u32.to_le_bytes());
    bench.set_gate(true);
    inflate(&bench, &mut driver, &[0x300]);
    assert_eq!(taken(&given), [], "behind the gate nothing is given back");
    let saved = bench.lock().save(0);
    let copy_given = Given::default();
    let mut copy = Bench::new(bench.copy_ram());
    let device = Balloon::new(Box::new(Notes(copy_given.clone(), false)));
    let mut twin = copy.add_restored(device, &saved, &driver).expect("restore");
    assert_eq!(copy.lock().save(0), saved);
    copy.set_gate(false);
    copy.run();
    assert!(twin.used(INFLATE).is_some());
    assert_eq!(
        (taken(&copy_given), taken(&given)),
        (vec![(0x30_0000, 0x1000)], vec![])
    );
    assert_eq!(twin.config::<4>(0), 77_u32.to_le_bytes());
}
