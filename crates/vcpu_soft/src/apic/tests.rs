//! The local APIC against what the manual says and against a model of its priorities.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Hears of ends of interrupts.
#[derive(Default)]
struct Machine(RefCell<Vec<u8>>);

impl GuestIo for Machine {
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, vector: u8) {
        self.0.borrow_mut().push(vector);
    }
    fn stop_wanted(&self) -> bool {
        false
    }
}

const X2APIC_ON: u64 = BASE_RESET | BASE_ENABLED | BASE_X2APIC;

fn set(apic: &mut LocalApic, offset: u32, value: u32) {
    apic.page_write(offset, &value.to_le_bytes(), 0, &Machine::default());
}

fn get(apic: &mut LocalApic, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    apic.page_read(offset, &mut bytes, 0);
    u32::from_le_bytes(bytes)
}

fn wrmsr(apic: &mut LocalApic, index: u32, value: u64) -> bool {
    apic.msr_write(index, value, 0, &Machine::default())
}

/// `count` APICs that software has enabled.
fn enabled(count: u8) -> Vec<LocalApic> {
    let apics = Arc::new(Apics::new(count));
    let make = |index| {
        let mut apic = LocalApic::new(Arc::clone(&apics), index);
        set(&mut apic, 0xf0, 0x1ff);
        apic
    };
    (0..count).map(make).collect()
}

fn x2apics(count: u8) -> Vec<LocalApic> {
    let mut all = enabled(count);
    for (index, apic) in all.iter_mut().enumerate() {
        let boot = if index == 0 { BASE_BOOT } else { 0 };
        assert!(apic.set_base(X2APIC_ON | boot));
    }
    all
}

/// Which APICs got `vector`.
fn receivers(all: &[LocalApic], vector: u8) -> Vec<usize> {
    let got = |apic: &LocalApic| apic.inbox().requested.contains(vector);
    (0..all.len()).filter(|index| got(&all[*index])).collect()
}

#[test]
fn a_higher_interrupt_comes_first_and_a_lower_one_after_its_end() {
    let mut all = enabled(1);
    let apic = &mut all[0];
    for vector in [0x41, 0x91, 0x95] {
        assert!(apic.inbox().request(vector, false));
    }
    assert_eq!(apic.take(), Some(0x95));
    // The same class does not interrupt itself.
    assert_eq!(apic.take(), None);
    assert_eq!(get(apic, 0xa0), 0x90);
    set(apic, 0xb0, 0);
    assert_eq!(apic.take(), Some(0x91));
    set(apic, 0xb0, 0);
    set(apic, 0x80, 0x40);
    assert_eq!(apic.take(), None);
    set(apic, 0x80, 0x3f);
    assert_eq!(apic.take(), Some(0x41));
}

#[test]
fn the_end_of_a_level_interrupt_is_told() {
    let mut all = enabled(1);
    let machine = Machine::default();
    let apic = &mut all[0];
    apic.inbox().request(0x55, true);
    apic.inbox().request(0x66, false);
    assert_eq!(apic.take(), Some(0x66));
    apic.page_write(0xb0, &[0; 4], 0, &machine);
    assert_eq!(apic.take(), Some(0x55));
    apic.page_write(0xb0, &[0; 4], 0, &machine);
    apic.page_write(0xb0, &[0; 4], 0, &machine);
    assert_eq!(*machine.0.borrow(), [0x55]);
}

#[test]
fn an_apic_that_software_has_not_enabled_takes_no_vectors() {
    let apics = Arc::new(Apics::new(1));
    let mut apic = LocalApic::new(apics, 0);
    assert!(!apic.inbox().request(0x40, false));
    set(&mut apic, 0x320, 0x40);
    assert_eq!(get(&mut apic, 0x320), LVT_MASKED | 0x40);
    assert_eq!(get(&mut apic, 0x30), VERSION);
    apic.inbox().request_nmi();
    assert!(apic.inbox().take_nmi());
}

#[test]
fn ipis_of_xapic_mode_reach_whom_they_name() {
    let send = |high: u32, low: u32| {
        let mut all = enabled(4);
        for (index, apic) in all.iter_mut().enumerate() {
            set(apic, 0xd0, 1 << (24 + index));
        }
        set(&mut all[1], 0x310, high << 24);
        set(&mut all[1], 0x300, low);
        receivers(&all, 0x50)
    };
    assert_eq!(send(2, 0x50), [2]);
    assert_eq!(send(0xff, 0x50), [0, 1, 2, 3]);
    assert_eq!(send(0b1001, 0x850), [0, 3]);
    assert_eq!(send(0, 0x4_0050), [1]);
    assert_eq!(send(0, 0x8_0050), [0, 1, 2, 3]);
    assert_eq!(send(0, 0xc_0050), [0, 2, 3]);
    assert_eq!(send(9, 0x50), []);
    assert_eq!(send(0b0110, 0x950).len(), 1);
}

#[test]
fn clusters_of_xapic_mode() {
    let mut all = enabled(4);
    for (index, apic) in (0_u32..).zip(all.iter_mut()) {
        set(apic, 0xe0, 0);
        set(apic, 0xd0, (index / 2) << 28 | 1 << (24 + index % 2));
    }
    set(&mut all[0], 0x310, 0x13 << 24);
    set(&mut all[0], 0x300, 0x851);
    assert_eq!(receivers(&all, 0x51), [2, 3]);
    set(&mut all[0], 0x310, 0xf1 << 24);
    set(&mut all[0], 0x300, 0x852);
    assert_eq!(receivers(&all, 0x52), [0, 2]);
}

#[test]
fn ipis_of_x2apic_mode() {
    let mut all = x2apics(4);
    assert!(wrmsr(&mut all[0], 0x830, 3 << 32 | 0x60));
    assert_eq!(receivers(&all, 0x60), [3]);
    assert!(wrmsr(&mut all[0], 0x830, 0b0110 << 32 | 0x861));
    assert_eq!(receivers(&all, 0x61), [1, 2]);
    assert!(wrmsr(&mut all[0], 0x830, 0xffff_ffff << 32 | 0x62));
    assert_eq!(receivers(&all, 0x62), [0, 1, 2, 3]);
    assert!(wrmsr(&mut all[2], 0x83f, 0x63));
    assert_eq!(receivers(&all, 0x63), [2]);
    assert_eq!(all[3].msr_read(0x80d, 0), Some(0b1000));
    assert_eq!(all[3].msr_read(0x802, 0), Some(3));
}

#[test]
fn registers_that_x2apic_mode_lacks_are_faults() {
    let mut all = x2apics(1);
    let apic = &mut all[0];
    for index in [0x80e, 0x831, 0x80b, 0x83f, 0x8ff, 0x800] {
        assert_eq!(apic.msr_read(index, 0), None, "{index:#x}");
    }
    for (index, value) in [
        (0x80d, 0),
        (0x80e, 0),
        (0x802, 0),
        (0x80b, 1),
        (0x828, 1),
        (0x808, 0x100),
        (0x838, 1 << 32),
        (0x8ff, 0),
    ] {
        assert!(!wrmsr(apic, index, value), "{index:#x}");
    }
    assert_eq!(apic.register_at(BASE_RESET), None);
    assert!(!enabled(1)[0].set_base(BASE_RESET | BASE_X2APIC));
    assert!(!enabled(1)[0].set_base(1 << 52));
    assert_eq!(enabled(1)[0].msr_read(0x802, 0), None);
}

#[test]
fn init_and_start_up_reach_an_apic_that_is_not_enabled_by_software() {
    let apics = Arc::new(Apics::new(2));
    let mut boot = LocalApic::new(Arc::clone(&apics), 0);
    let other = LocalApic::new(apics, 1);
    set(&mut boot, 0x310, 1 << 24);
    set(&mut boot, 0x300, 0x0000_4500);
    // The end of the INIT signal does nothing.
    set(&mut boot, 0x300, 0x0000_8500);
    set(&mut boot, 0x300, 0x0000_4699);
    let signals = other.inbox().take_signals();
    assert!(signals.init);
    assert_eq!(signals.startup, Some(0x99));
    assert!(!other.inbox().signals_wait() && !boot.inbox().signals_wait());
}

#[test]
fn messages_of_devices_reach_whom_they_name() {
    let all = x2apics(4);
    let apics = Arc::clone(&all[0].apics);
    let send = |address, data| Message::of_msi(address, data).is_some_and(|m| apics.send(m));
    assert!(send(0xfee0_2000, 0x0070));
    assert_eq!(receivers(&all, 0x70), [2]);
    assert!(send(0xfeef_f000, 0x0071));
    assert_eq!(receivers(&all, 0x71), [0, 1, 2, 3]);
    // Logical, two of them.
    assert!(send(0xfee0_3004, 0x0072));
    assert_eq!(receivers(&all, 0x72), [0, 1]);
    // One of two is enough.
    assert!(send(0xfee0_300c, 0x0073));
    assert_eq!(receivers(&all, 0x73).len(), 1);
    assert!(send(0xfee0_1000, 0x8074));
    assert!(all[1].inbox().level.contains(0x74));
    assert!(!send(0xfee0_9000, 0x0075));
    assert!(!send(0xfed0_0000, 0x0075));
    assert!(send(0xfee0_3000, 0x0400));
    assert!(all[3].inbox().take_nmi());
}

#[test]
fn illegal_vectors_are_errors() {
    let mut all = enabled(1);
    let apic = &mut all[0];
    set(apic, 0x370, 0xfe);
    set(apic, 0x300, 0x4_0005);
    assert_eq!(apic.take(), Some(0xfe));
    set(apic, 0x280, 0);
    assert_eq!(get(apic, 0x280), ESR_SENT_ILLEGAL_VECTOR);
    apic.inbox().request(3, false);
    apic.poll(0);
    get(apic, 0x40);
    set(apic, 0x280, 0);
    let expected = ESR_RECEIVED_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER;
    assert_eq!(get(apic, 0x280), expected);
    set(apic, 0x280, 0);
    assert_eq!(get(apic, 0x280), 0);
}

#[test]
fn a_count_that_is_over_stays_over_in_another_mode() {
    let mut all = enabled(1);
    let apic = &mut all[0];
    set(apic, 0x3e0, 0b1011);
    set(apic, 0x320, 0x40);
    set(apic, 0x380, 50_000);
    let periodic = 1_u32 << 17 | 0x41;
    apic.page_write(0x320, &periodic.to_le_bytes(), 60_000, &Machine::default());
    assert_eq!(apic.take(), Some(0x40));
    assert_eq!(apic.fires_ns(), None);
    assert_eq!(apic.timer.current(60_000), 0);
}

#[test]
fn the_timer_fires_once_or_again_and_again() {
    let mut all = enabled(1);
    let apic = &mut all[0];
    set(apic, 0x3e0, 0b1011);
    set(apic, 0x320, 0x40);
    set(apic, 0x380, 50_000);
    assert_eq!(apic.fires_ns(), Some(50_000));
    assert_eq!(apic.timer.current(20_000), 30_000);
    apic.poll(49_999);
    assert_eq!(apic.take(), None);
    apic.poll(50_000);
    assert_eq!(apic.take(), Some(0x40));
    assert_eq!(apic.fires_ns(), None);
    set(apic, 0xb0, 0);
    // Divided by 4, periodic; late polls keep the phase.
    set(apic, 0x3e0, 0b0001);
    set(apic, 0x320, 1 << 17 | 0x41);
    set(apic, 0x380, 10_000);
    assert_eq!(apic.fires_ns(), Some(40_000));
    apic.poll(130_000);
    assert_eq!(apic.take(), Some(0x41));
    assert_eq!(apic.fires_ns(), Some(160_000));
    // Masked: it runs, and nobody is woken for it.
    set(apic, 0x320, 1 << 17 | LVT_MASKED | 0x41);
    set(apic, 0xb0, 0);
    assert_eq!(apic.fires_ns(), None);
    apic.poll(170_000);
    assert_eq!(apic.take(), None);
}

#[test]
fn a_deadline_of_the_counter() {
    let mut all = enabled(1);
    let apic = &mut all[0];
    // Without its mode the register is dead.
    apic.set_tsc_deadline(99, 1000);
    assert_eq!((apic.tsc_deadline(), apic.fires_ns()), (0, None));
    set(apic, 0x320, 2 << 17 | 0x42);
    apic.set_tsc_deadline(99, 1000);
    assert_eq!((apic.tsc_deadline(), apic.fires_ns()), (99, Some(1000)));
    set(apic, 0x380, 77);
    assert_eq!(get(apic, 0x380), 0);
    apic.poll(1001);
    assert_eq!(apic.take(), Some(0x42));
    assert_eq!((apic.tsc_deadline(), apic.fires_ns()), (0, None));
    apic.set_tsc_deadline(100, 2000);
    set(apic, 0x320, 0x42);
    assert_eq!((apic.tsc_deadline(), apic.fires_ns()), (0, None));
}

#[test]
fn a_saved_page_loads() {
    for x2apic in [false, true] {
        let mut all = if x2apic { x2apics(2) } else { enabled(2) };
        let apic = &mut all[1];
        if !x2apic {
            set(apic, 0xd0, 0x0200_0000);
        }
        apic.inbox().request(0x33, false);
        apic.inbox().request(0xe3, true);
        assert_eq!(apic.take(), Some(0xe3));
        apic.inbox().request(0xf1, true);
        for (number, value) in [
            (0x8, 0x20),
            (0x32, 0x1_0031),
            (0x36, 0x400),
            (0x38, 5_000_000),
        ] {
            assert!(apic.write(number, value, 0, &Machine::default()));
        }
        apic.command = 0x0300_0000_0000_00fd;
        let page = apic.save(1_000_000);
        let mut other = if x2apic { x2apics(2) } else { enabled(2) };
        let loaded = &mut other[1];
        loaded.load(&page, 7_000_000).unwrap();
        assert_eq!(loaded.save(7_000_000), page);
        assert_eq!(loaded.deliverable(), Some(0xf1));
        let left = apic.timer.fires_ns.unwrap() - 1_000_000;
        assert_eq!(loaded.timer.fires_ns.unwrap() - 7_000_000, left);
        assert!(other[0].load(&page, 0).is_err());
        assert!(other[1].load(&page[1..], 0).is_err());
    }
}

/// What a guest and its devices do.
#[derive(Clone, Debug)]
enum Step {
    Request(u8),
    Take,
    End,
    Priority(u8),
    Save,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (16_u8..).prop_map(Step::Request),
        3 => Just(Step::Take),
        2 => Just(Step::End),
        1 => any::<u8>().prop_map(Step::Priority),
        1 => Just(Step::Save),
    ]
}

proptest! {
    #[test]
    fn priorities_are_those_of_a_model(steps in prop::collection::vec(step(), 1..200)) {
        let mut all = enabled(1);
        let apic = &mut all[0];
        let (mut requested, mut serving) = (BTreeSet::new(), BTreeSet::new());
        let mut priority = 0_u8;
        for step in steps {
            match step {
                Step::Request(vector) => {
                    apic.inbox().request(vector, false);
                    requested.insert(vector);
                }
                Step::Take => {
                    let floor = serving.last().map_or(0, |v: &u8| v >> 4).max(priority >> 4);
                    let expected = requested.last().copied().filter(|v| v >> 4 > floor);
                    prop_assert_eq!(apic.take(), expected);
                    if let Some(vector) = expected {
                        requested.remove(&vector);
                        serving.insert(vector);
                    }
                }
                Step::End => {
                    set(apic, 0xb0, 0);
                    serving.pop_last();
                }
                Step::Priority(value) => {
                    set(apic, 0x80, value.into());
                    priority = value;
                }
                Step::Save => {
                    let page = apic.save(0);
                    apic.reset();
                    apic.load(&page, 0).unwrap();
                }
            }
        }
    }

    #[test]
    fn no_page_makes_it_panic(
        page in prop::collection::vec(any::<u8>(), 1024),
        writes in prop::collection::vec((0_u32..0x400, any::<u32>()), 0..20),
        now in 0_u64..1 << 50,
    ) {
        let mut all = enabled(1);
        let apic = &mut all[0];
        let mut page = page;
        page[0x20..0x24].fill(0);
        apic.load(&page, now).unwrap();
        for (number, value) in writes {
            apic.page_write(number << 4, &value.to_le_bytes(), now, &Machine::default());
            apic.poll(now.wrapping_add(value.into()));
            apic.take();
            let _ = get(apic, number << 2);
        }
        apic.save(now);
    }
}
