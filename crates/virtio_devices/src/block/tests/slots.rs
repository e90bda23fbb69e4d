//! Empty slots, and media that come while the guest runs or with a clone.

use super::*;
use crate::interrupt::INTERRUPT_CONFIG;
use crate::regs::INTERRUPT_STATUS;
use crate::testing::Bench;
use chipset::BusDevice;

type Slot = Block<Option<MemoryBackend>>;

fn slot(medium: Option<MemoryBackend>) -> Slot {
    Block::new(medium, BlockConfig::default())
}

fn medium() -> MemoryBackend {
    MemoryBackend::new(pattern(DISK_BYTES), false)
}

fn insert(bench: &Bench, medium: MemoryBackend) -> Result<(), InsertError> {
    let mut guard = bench.lock();
    let slot = guard.device_mut::<Slot>(0).expect("a slot");
    slot.insert(medium)?;
    guard.config_changed(0);
    Ok(())
}

fn capacity(driver: &Driver) -> u64 {
    u64::from_le_bytes(driver.config(0))
}

/// The interrupt status register of the bench's device.
fn interrupts(bench: &Bench) -> u32 {
    let mut bytes = [0; 4];
    bench.transport(0).read(INTERRUPT_STATUS, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn generation(bench: &Bench) -> u32 {
    let mut bytes = [0; 4];
    bench
        .transport(0)
        .read(crate::regs::CONFIG_GENERATION, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn an_empty_slot_is_a_disk_of_nothing() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    driver.start();
    assert_eq!(capacity(&driver), 0);
    for kind in [T_IN, T_OUT] {
        let data = driver.output(512);
        let data = Piece {
            writable: kind == T_IN,
            ..data
        };
        assert_eq!(request(&bench, &mut driver, kind, 0, &[data]), (S_IOERR, 1));
    }
    let range = driver.input(&ranges(&[(0, 8, 0)]));
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        assert_eq!(
            request(&bench, &mut driver, kind, 0, &[range]),
            (S_IOERR, 1)
        );
    }
    assert_eq!(request(&bench, &mut driver, T_FLUSH, 0, &[]), (S_OK, 1));
    bench.lock().quiesce().expect("nothing to write");
}

#[test]
fn a_medium_that_comes_is_announced_and_works() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    driver.start();
    bench.run();
    let (edges, before) = (driver.line().edges(), generation(&bench));
    insert(&bench, medium()).expect("insert");
    assert_eq!(insert(&bench, medium()), Err(InsertError::Occupied));
    bench.run();
    assert!(driver.line().edges() > edges);
    assert_eq!(interrupts(&bench) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    assert_ne!(generation(&bench), before);
    assert_eq!(capacity(&driver), DISK_BYTES as u64 / 512);
    let out = driver.output(512);
    assert_eq!(request(&bench, &mut driver, T_IN, 3, &[out]), (S_OK, 513));
    assert_eq!(driver.peek(out.gpa, 512), pattern(DISK_BYTES)[1536..2048]);
}

#[test]
fn a_driver_that_comes_later_is_not_interrupted() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    insert(&bench, medium()).expect("insert");
    bench.run();
    assert_eq!((interrupts(&bench), driver.line().edges()), (0, 0));
    driver.start();
    assert_eq!(capacity(&driver), DISK_BYTES as u64 / 512);
}

#[test]
fn a_medium_of_the_other_kind_is_refused() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    driver.start();
    let fixed = MemoryBackend::new(pattern(DISK_BYTES), true);
    assert_eq!(insert(&bench, fixed), Err(InsertError::ReadOnly));
    assert_eq!(capacity(&driver), 0);
}

#[test]
fn the_gate_holds_the_word_back_but_does_not_lose_it() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    driver.start();
    bench.run();
    let edges = driver.line().edges();
    bench.set_gate(true);
    insert(&bench, medium()).expect("insert");
    bench.run();
    assert_eq!(driver.line().edges(), edges);
    bench.set_gate(false);
    bench.run();
    assert!(driver.line().edges() > edges);
}

#[test]
fn a_clone_of_an_empty_slot_gets_a_medium_at_once() {
    let mut bench = Bench::default();
    let mut driver = bench.add(slot(None));
    driver.start();
    bench.run();
    let saved = bench.lock().save(0);
    let mut copy = Bench::new(bench.copy_ram());
    copy.set_gate(true);
    let mut twin = copy
        .add_restored(slot(None), &saved, &driver)
        .expect("restore");
    insert(&copy, medium()).expect("insert");
    assert_eq!(interrupts(&copy) & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    // A checkpoint of this instant has the word in it too.
    let again = copy.lock().save(0);
    assert_eq!(again.interrupt_status & INTERRUPT_CONFIG, INTERRUPT_CONFIG);
    let edges = twin.line().edges();
    copy.set_gate(false);
    copy.run();
    assert!(twin.line().edges() > edges);
    let out = twin.output(512);
    assert_eq!(request(&copy, &mut twin, T_IN, 0, &[out]), (S_OK, 513));
    // The original stays empty.
    assert_eq!(capacity(&driver), 0);

    let mut third = Bench::new(copy.copy_ram());
    third.set_gate(true);
    let twin = third
        .add_restored(slot(Some(medium())), &again, &twin)
        .expect("restore");
    third.set_gate(false);
    third.run();
    assert!(twin.line().edges() > 0, "the driver had not acknowledged");
    let empty = Bench::default().add_restored(slot(None), &again, &twin);
    assert!(matches!(
        empty,
        Err(RestoreError::Field {
            field: "capacity_sectors",
            ..
        })
    ));
}
