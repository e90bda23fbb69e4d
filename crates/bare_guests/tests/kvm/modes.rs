//! One test per mode and entry.

use crate::pc::Pc;

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

fn counts(elf: &[u8]) {
    let Some(pc) = Pc::start(elf, "touch=8 every=500", 1, 64) else {
        return;
    };
    pc.wait_for("M");
    let first = hex(&pc.wait_for("c="));
    let second = hex(&pc.wait_for("c="));
    assert_eq!((first % 500, second), (0, first + 500));
    pc.send(b"g");
    let gap: u64 = pc.wait_for("gap=").parse().unwrap();
    assert!(gap > 0);
    pc.send(b"Tv");
    pc.wait_for("D");
    pc.wait_for("V");
}

#[test]
fn counter_runs_after_a_long_mode_entry() {
    counts(bare_guests::guest_elf());
}

#[test]
fn counter_runs_after_a_pvh_entry() {
    counts(bare_guests::guest_pvh_elf());
}

#[test]
fn dirty_answers_each_byte() {
    let line = "mode=dirty touch=16 percent=50 scatter=1 thre=1";
    let Some(pc) = Pc::start(bare_guests::guest_elf(), line, 1, 64) else {
        return;
    };
    pc.wait_for("M");
    for _ in 0..3 {
        pc.send(b"x");
        pc.wait_for("D");
    }
    pc.send(b"v");
    pc.wait_for("V");
}

#[test]
fn idle_guest_wakes_for_serial_input() {
    let line = "mode=dirty touch=1 idle=1";
    let Some(pc) = Pc::start(bare_guests::guest_elf(), line, 1, 64) else {
        return;
    };
    pc.wait_for("M");
    for _ in 0..3 {
        pc.send(b"c");
        pc.wait_for("c=");
        pc.send(b"g");
        pc.wait_for("gap=");
    }
}

#[test]
fn every_cpu_of_the_tables_counts() {
    let Some(pc) = Pc::start(bare_guests::guest_elf(), "mode=smp", 3, 64) else {
        return;
    };
    assert_eq!(pc.wait_for("s="), "3");
    let counters = || -> Vec<u64> {
        pc.wait_for("p=")
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let before = counters();
    assert_eq!(before.len(), 3);
    loop {
        let after = counters();
        if after
            .iter()
            .zip(&before)
            .all(|(after, before)| after > before)
        {
            break;
        }
    }
}

#[test]
fn too_much_memory_to_touch_is_an_error_line() {
    let Some(pc) = Pc::start(bare_guests::guest_elf(), "touch=64", 1, 64) else {
        return;
    };
    assert_eq!(pc.wait_for("E "), "touch=64");
}
