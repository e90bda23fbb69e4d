//! The entropy device.

use super::*;
use crate::testing::{Bench, Driver};

fn bench() -> (Bench, Driver) {
    let mut bench = Bench::default();
    let mut driver = bench.add(Rng::new());
    driver.start();
    (bench, driver)
}

fn draw(bench: &Bench, driver: &mut Driver, len: u32) -> Vec<u8> {
    let room = driver.output(len);
    driver.offer(0, &[room]);
    driver.kick(0);
    bench.run();
    let used = driver.used(0).expect("served");
    driver.peek(room.gpa, used.len as usize)
}

#[test]
fn requests_are_filled_up_to_the_bound() {
    let (bench, mut driver) = bench();
    assert_eq!(draw(&bench, &mut driver, 8).len(), 8);
    assert_eq!(draw(&bench, &mut driver, 1 << 20).len(), 4096);
    assert_ne!(draw(&bench, &mut driver, 32), draw(&bench, &mut driver, 32));
}

#[test]
fn a_request_without_room_is_given_back() {
    let (bench, mut driver) = bench();
    let sent = driver.input(b"no room here");
    driver.offer(0, &[sent]);
    driver.kick(0);
    bench.run();
    assert_eq!(driver.used(0).map(|used| used.len), Some(0));
}

#[test]
fn a_flood_of_requests_is_served() {
    let (bench, mut driver) = bench();
    let room = driver.output(64);
    for _ in 0..64 {
        driver.offer(0, &[room]);
    }
    driver.kick(0);
    bench.run();
    assert_eq!((0..65).filter(|_| driver.used(0).is_some()).count(), 64);
}

#[test]
fn source_and_clone_draw_different_bytes() {
    let (bench, mut driver) = bench();
    bench.set_gate(true);
    let room = driver.output(32);
    driver.offer(0, &[room]);
    driver.kick(0);
    let saved = bench.lock().save(0);
    let mut copy = Bench::new(bench.copy_ram());
    let mut twin = copy
        .add_restored(Rng::new(), &saved, &driver)
        .expect("restore");
    for (bench, driver) in [(&bench, &mut driver), (&copy, &mut twin)] {
        bench.set_gate(false);
        bench.run();
        assert_eq!(driver.used(0).map(|used| used.len), Some(32));
    }
    assert_ne!(driver.peek(room.gpa, 32), twin.peek(room.gpa, 32));
}

#[test]
fn another_devices_state_is_refused() {
    let (bench, driver) = bench();
    let mut saved = bench.lock().save(0);
    saved.device = crate::SavedDevice::Block(crate::SavedBlock {
        capacity_sectors: 1,
        read_only: true,
    });
    assert!(
        Bench::default()
            .add_restored(Rng::new(), &saved, &driver)
            .is_err()
    );
}
