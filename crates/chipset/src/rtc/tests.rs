//! Real-time clock behaviour seen through its two ports.

use proptest::prelude::*;

use super::*;

/// 2026-02-28 23:59:58 UTC, a Saturday.
const NOW: i64 = 1_772_323_198;

fn clock() -> Rtc {
    Rtc::with_clock(|| NOW, Registers::new())
}

fn read(rtc: &Rtc, register: u8) -> u8 {
    rtc.write(INDEX_OFFSET, &[register | 0x80]);
    let mut data = [0];
    rtc.read(DATA_OFFSET, &mut data);
    data[0]
}

fn write(rtc: &Rtc, register: u8, value: u8) {
    rtc.write(INDEX_OFFSET, &[register]);
    rtc.write(DATA_OFFSET, &[value]);
}

fn time(rtc: &Rtc) -> [u8; 8] {
    TIME_REGISTERS.map(|register| read(rtc, register))
}

#[test]
fn shows_host_time_in_bcd() {
    let rtc = clock();
    assert_eq!(time(&rtc), [0x58, 0x59, 0x23, 7, 0x28, 0x02, 0x26, 0x20]);
    assert_eq!(
        [REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D].map(|r| read(&rtc, r)),
        [0x26, 0x02, 0, 0x80]
    );
}

#[test]
fn time_set_by_the_guest_is_kept_as_an_offset() {
    let rtc = clock();
    write(&rtc, REGISTER_B, B_SET | 0x02);
    for (register, value) in [
        (0, 1),
        (2, 2),
        (4, 3),
        (7, 0x29),
        (8, 2),
        (9, 0x28),
        (0x32, 0x20),
    ] {
        write(&rtc, register, value);
    }
    assert_eq!(lock(&rtc.registers).offset_seconds, 0);
    write(&rtc, REGISTER_B, 0x02);
    assert_eq!(time(&rtc), [1, 2, 3, 3, 0x29, 2, 0x28, 0x20]);
    write(&rtc, 4, 0x10);
    assert_eq!(read(&rtc, 4), 0x10);
}

#[test]
fn impossible_times_are_ignored() {
    let rtc = clock();
    let before = time(&rtc);
    for (register, value) in [
        (0, 0x60),
        (2, 0x0a),
        (4, 0x24),
        (7, 0x29),
        (7, 0),
        (8, 0x13),
    ] {
        write(&rtc, register, value);
        assert_eq!(time(&rtc), before, "register {register} value {value:#x}");
    }
}

#[test]
fn ram_is_kept_and_interrupts_cannot_be_enabled() {
    let rtc = clock();
    write(&rtc, 0x7f, 0x5a);
    write(&rtc, 0x0f, 0x33);
    write(&rtc, REGISTER_B, 0x70);
    assert_eq!(
        [0x7f, 0x0f, REGISTER_B].map(|r| read(&rtc, r)),
        [0x5a, 0x33, 0x02]
    );
    let mut data = [0];
    rtc.read(INDEX_OFFSET, &mut data);
    assert_eq!(data, [0xff]);
}

#[test]
fn impossible_saved_states_are_refused() {
    let saved = clock().save();
    let check = |field, change: &dyn Fn(&mut SavedRtc)| {
        let mut bad = saved.clone();
        change(&mut bad);
        assert_eq!(Rtc::restore(&bad).unwrap_err().field, field);
    };
    check("index", &|s| s.index = 128);
    check("a", &|s| s.a = 0x80);
    check("b", &|s| s.b = 0x12);
    check("b", &|s| s.staged = Some([0; 8]));
    check("ram", &|s| s.ram.push(0));
}

proptest! {
    #[test]
    fn every_time_survives_the_registers(seconds in -62_167_219_200i64..=253_402_300_799) {
        let fields = Fields::from_seconds(seconds);
        prop_assert_eq!(fields.to_seconds(), Some(seconds));
    }

    #[test]
    fn any_accesses_keep_a_restorable_state(
        steps in prop::collection::vec((0u64..3, any::<bool>(), any::<u8>(), 0usize..=8), 0..100)
    ) {
        let rtc = clock();
        for (offset, write, value, len) in steps {
            if write {
                rtc.write(offset, &[value; 8][..len]);
            } else {
                rtc.read(offset, &mut [0; 8][..len]);
            }
        }
        let saved = rtc.save();
        let registers = Registers::try_from(&saved).unwrap();
        let restored = Rtc::with_clock(|| NOW, registers);
        prop_assert_eq!(restored.save(), saved);
        prop_assert_eq!(time(&restored), time(&rtc));
    }
}
