//! IOAPIC behaviour seen through its window, its lines and its sink.

use proptest::prelude::*;

use super::*;
use crate::test_lines::RecordingSink;

struct Bench {
    ioapic: Arc<IoApic>,
    sink: Arc<RecordingSink>,
}

impl Bench {
    fn new() -> Self {
        let sink = Arc::new(RecordingSink::default());
        Self {
            ioapic: IoApic::new(sink.clone()),
            sink,
        }
    }

    fn write(&self, register: u8, value: u32) {
        self.ioapic.write(SELECT_OFFSET, &[register, 0, 0, 0]);
        self.ioapic.write(WINDOW_OFFSET, &value.to_le_bytes());
    }

    fn read(&self, register: u8) -> u32 {
        self.ioapic.write(SELECT_OFFSET, &[register]);
        let mut data = [0; 4];
        self.ioapic.read(WINDOW_OFFSET, &mut data);
        u32::from_le_bytes(data)
    }

    fn entry(&self, pin: u8, entry: u64) {
        self.write(REGISTER_REDIRECTION + 2 * pin + 1, (entry >> 32) as u32);
        self.write(REGISTER_REDIRECTION + 2 * pin, entry as u32);
    }

    fn low(&self, pin: u8) -> u64 {
        self.read(REGISTER_REDIRECTION + 2 * pin).into()
    }
}

#[test]
fn registers_read_as_the_hardware_has_them() {
    let bench = Bench::new();
    assert_eq!(bench.read(REGISTER_VERSION), 0x0017_0020);
    bench.write(REGISTER_ID, u32::MAX);
    assert_eq!(bench.read(REGISTER_ID), 0x0f00_0000);
    assert_eq!(bench.low(23), MASKED);
    assert_eq!(bench.read(0x40), 0);
    bench.entry(2, u64::MAX);
    assert_eq!(bench.low(2), WRITABLE & 0xffff_ffff);
    assert_eq!(bench.read(REGISTER_REDIRECTION + 5), 0xff00_0000);
}

#[test]
fn edge_becomes_a_message() {
    let bench = Bench::new();
    bench.entry(16, 0x31 | 3 << 56);
    bench.ioapic.line(16).trigger();
    bench.ioapic.line(16).trigger();
    let expect = MsiMessage {
        address: 0xfee0_3000,
        data: 0x31,
    };
    assert_eq!(bench.sink.take(), [expect, expect]);
    bench.entry(16, 0x31 | 1 << 8 | 1 << 11 | 0xff << 56);
    bench.ioapic.line(16).trigger();
    assert_eq!(
        bench.sink.take(),
        [MsiMessage {
            address: 0xfeef_f004,
            data: 0x131
        }]
    );
}

#[test]
fn masked_pin_delivers_one_edge_when_unmasked() {
    let bench = Bench::new();
    bench.entry(4, 0x40 | MASKED);
    let line = bench.ioapic.line(4);
    line.trigger();
    line.trigger();
    assert_eq!(bench.sink.take(), []);
    bench.entry(4, 0x40);
    assert_eq!(
        bench.sink.take(),
        [MsiMessage {
            address: 0xfee0_0000,
            data: 0x40
        }]
    );
    bench.entry(4, 0x40 | MASKED);
    bench.entry(4, 0x40);
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn level_repeats_after_eoi_only_while_high() {
    let bench = Bench::new();
    bench.entry(9, 0x51 | LEVEL);
    bench.ioapic.set_level(9, true);
    bench.ioapic.set_level(9, true);
    let expect = MsiMessage {
        address: 0xfee0_0000,
        data: 0xc051,
    };
    assert_eq!(bench.sink.take(), [expect]);
    assert_eq!(bench.low(9), 0x51 | LEVEL | REMOTE_IRR);
    bench.ioapic.eoi(0x52);
    assert_eq!(bench.sink.take(), []);
    bench.ioapic.eoi(0x51);
    assert_eq!(bench.sink.take(), [expect]);
    bench.ioapic.set_level(9, false);
    bench.ioapic.write(EOI_OFFSET, &[0x51, 0, 0, 0]);
    assert_eq!(bench.sink.take(), []);
    assert_eq!(bench.low(9), 0x51 | LEVEL);
}

#[test]
fn pulses_reach_a_level_pin_without_an_end_of_interrupt() {
    let bench = Bench::new();
    bench.entry(9, 0x51 | LEVEL);
    for _ in 0..2 {
        bench.ioapic.line(9).trigger();
        let data: Vec<_> = bench.sink.take().iter().map(|m| m.data).collect();
        assert_eq!(data, [0xc051]);
        assert_eq!(bench.low(9), 0x51 | LEVEL);
    }
    bench.ioapic.eoi(0x51);
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn switching_to_edge_clears_remote_irr() {
    let bench = Bench::new();
    bench.entry(9, 0x51 | LEVEL);
    bench.ioapic.set_level(9, true);
    bench.entry(9, 0x51 | MASKED);
    assert_eq!(bench.low(9), 0x51 | MASKED);
    bench.sink.take();
    bench.entry(9, 0x51 | LEVEL);
    assert_eq!(bench.sink.take().len(), 1);
}

#[test]
fn external_interrupts_are_dropped() {
    let bench = Bench::new();
    bench.entry(0, 0x20 | DELIVERY_EXTINT << 8);
    bench.ioapic.line(0).trigger();
    assert_eq!(bench.sink.take(), []);
}

#[test]
fn pins_out_of_range_are_ignored() {
    let bench = Bench::new();
    bench.ioapic.set_level(24, true);
    bench.ioapic.set_level(255, true);
    assert_eq!(bench.ioapic.save().levels, 0);
}

#[test]
fn restored_controller_goes_on() {
    let bench = Bench::new();
    bench.entry(5, 0x61 | MASKED);
    bench.ioapic.line(5).trigger();
    bench.entry(9, 0x51 | LEVEL);
    bench.ioapic.set_level(9, true);
    let saved = bench.ioapic.save();
    let sink = Arc::new(RecordingSink::default());
    let ioapic = IoApic::restore(sink.clone(), &saved).unwrap();
    assert_eq!(ioapic.save(), saved);
    let restored = Bench { ioapic, sink };
    restored.entry(5, 0x61);
    restored.ioapic.eoi(0x51);
    let data: Vec<_> = restored.sink.take().iter().map(|m| m.data).collect();
    assert_eq!(data, [0x61, 0xc051]);
}

#[test]
fn impossible_saved_states_are_refused() {
    let saved = Bench::new().ioapic.save();
    let check = |field, change: &dyn Fn(&mut SavedIoApic)| {
        let mut bad = saved.clone();
        change(&mut bad);
        let sink = Arc::new(RecordingSink::default());
        assert_eq!(IoApic::restore(sink, &bad).unwrap_err().field, field);
    };
    check("id", &|s| s.id = 1);
    check("levels", &|s| s.levels = 1 << 24);
    check("latched", &|s| s.latched = 1 << 31);
    check("entries", &|s| s.entries[3] = 1 << 17);
    check("entries", &|s| s.entries[3] = REMOTE_IRR);
}

proptest! {
    #[test]
    fn any_accesses_keep_a_restorable_state(
        steps in prop::collection::vec((0u8..6, any::<u8>(), any::<u64>(), 1usize..=8), 0..200)
    ) {
        let bench = Bench::new();
        for (kind, small, value, len) in steps {
            match kind {
                0 => bench.ioapic.write(SELECT_OFFSET, &[small % 0x44]),
                1 => bench.ioapic.write(WINDOW_OFFSET, &value.to_le_bytes()[..len]),
                2 => bench.ioapic.set_level(small, value & 1 == 1),
                3 => bench.ioapic.line(small % PINS).trigger(),
                4 => bench.ioapic.read(value & 0xff, &mut [0; 8][..len]),
                _ => bench.ioapic.write(value & 0xff, &[small; 8][..len]),
            }
        }
        let saved = bench.ioapic.save();
        let restored = IoApic::restore(bench.sink.clone(), &saved).unwrap();
        prop_assert_eq!(restored.save(), saved);
    }
}
