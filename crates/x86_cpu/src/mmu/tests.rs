//! Guest memory through the TLB, and a bench that the tests of `system` share.

mod bench;
mod reference;
mod sharing;

pub(crate) use bench::*;

use super::walk::{DIRTY, GLOBAL, NO_EXECUTE, PRESENT, USER, WRITABLE};
use super::*;

/// Linear page whose entry the tests change.
const PAGE: u64 = 0x5_0000;
const ENTRY: u64 = bench::TABLE + (PAGE >> 12) * 8;

fn fault<T: std::fmt::Debug>(result: Result<T, Fault>) -> (u8, Option<u32>, u64) {
    let fault = result.expect_err("a fault");
    (fault.vector, fault.error, fault.payload)
}

#[test]
fn every_combination_of_rights_gives_the_right_error() {
    for flags in 0..16u64 {
        let has = |bit: u64| flags & bit != 0;
        let mut entry = PAGE;
        for (bit, flag) in [(1, PRESENT), (2, WRITABLE), (4, USER), (8, NO_EXECUTE)] {
            entry |= if has(bit) { flag } else { 0 };
        }
        for (user, protect) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut bench = Bench::long();
            bench.poke64(ENTRY, entry);
            bench.cpu.cr0 |= if protect { CR0_WP } else { 0 };
            bench.cpu.cr0 &= if protect { u64::MAX } else { !CR0_WP };
            bench.set_cpl(if user { 3 } else { 0 });
            let (cpu, env) = bench.parts();
            let denied_user = user && !has(4);
            let expect = |bad: bool, bits: u32| {
                let who = if user { 4 } else { 0 };
                match (has(1), denied_user || bad) {
                    (false, _) => Some(bits | who),
                    (true, true) => Some(bits | who | 1),
                    (true, false) => None,
                }
            };
            let read_only = !has(2) && (user || protect);
            let read = cpu.load::<u32>(env, PAGE + 8).err();
            assert_eq!(
                read.map(|f| f.error),
                expect(false, 0).map(Some),
                "read {flags:x}"
            );
            let write = cpu.store::<u32>(env, PAGE + 8, 1).err();
            assert_eq!(
                write.map(|f| f.error),
                expect(read_only, 2).map(Some),
                "write {flags:x}"
            );
            let fetch = cpu.fetch_page(env, PAGE + 8).err();
            assert_eq!(
                fetch.map(|f| f.error),
                expect(has(8), 0x10).map(Some),
                "fetch {flags:x}"
            );
            let changed = cpu.change::<u16>(env, PAGE, |old| Some(old + 1)).err();
            assert_eq!(changed, write.map(|f| Fault { payload: PAGE, ..f }));
        }
    }
}

#[test]
fn a_write_after_reads_sets_the_dirty_bit() {
    let mut bench = Bench::long();
    bench.poke64(ENTRY, PAGE | 7);
    let (cpu, env) = bench.parts();
    cpu.load::<u8>(env, PAGE).unwrap();
    assert_eq!(bench.peek64(ENTRY), PAGE | 0x27);
    let (cpu, env) = bench.parts();
    cpu.store::<u8>(env, PAGE, 1).unwrap();
    assert_eq!(bench.peek64(ENTRY), PAGE | 0x67);
    // From now on without a walk.
    assert!(bench.cpu.store_fast::<u8>(PAGE, 2));
}

#[test]
fn straddling_accesses_touch_both_pages_or_nothing() {
    let mut bench = Bench::long();
    bench.poke64(ENTRY + 8, 0x7_0000 | 7);
    let at = PAGE + 0xffd;
    let (cpu, env) = bench.parts();
    cpu.store::<u64>(env, at, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(cpu.load::<u64>(env, at).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(bench.peek64(0x7_0000) & 0xff_ffff_ffff, 0x11_2233_4455);
    bench.poke64(ENTRY + 8, 0x7_0000 | 5);
    bench.cpu.flush_tlb();
    let before = bench.peek64(PAGE + 0xff8);
    let (cpu, env) = bench.parts();
    assert_eq!(
        fault(cpu.store::<u64>(env, at, 0)),
        (14, Some(3), PAGE + 0x1000)
    );
    assert_eq!(
        fault(cpu.load_to_change::<u64>(env, at)),
        (14, Some(3), PAGE + 0x1000)
    );
    assert_eq!(bench.peek64(PAGE + 0xff8), before);
    let (cpu, env) = bench.parts();
    assert_eq!(cpu.load::<u64>(env, at).unwrap(), 0x1122_3344_5566_7788);
}

#[test]
fn a_locked_change_of_a_straddling_value_is_whole() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    let at = PAGE + 0xffe;
    cpu.store::<u32>(env, at, 0xffff).unwrap();
    let old = cpu.change::<u32>(env, at, |value| Some(value + 1)).unwrap();
    assert_eq!((old, cpu.load::<u32>(env, at).unwrap()), (0xffff, 0x10000));
    let unaligned = cpu.change::<u128>(env, PAGE + 8, Some);
    assert_eq!(fault(unaligned), (13, Some(0), 0));
    cpu.store::<u128>(env, PAGE, 5).unwrap();
    let old = cpu.change::<u128>(env, PAGE, |value| Some(value << 100));
    assert_eq!(old, Ok(5));
    assert_eq!(cpu.load::<u128>(env, PAGE).unwrap(), 5 << 100);
}

#[test]
fn changes_of_all_sizes_are_seen() {
    fn check<T: Value + std::fmt::Debug>(value: T, other: T) {
        let mut bench = Bench::long();
        let (cpu, env) = bench.parts();
        for at in [PAGE, PAGE + 16] {
            cpu.store(env, at, value).unwrap();
            assert_eq!(cpu.load::<T>(env, at), Ok(value));
            assert_eq!(cpu.change(env, at, |_| Some(other)), Ok(value));
            assert_eq!(cpu.change::<T>(env, at, |_| None), Ok(other));
            assert_eq!(cpu.load::<T>(env, at), Ok(other));
        }
    }
    check(0x81u8, 0x7f);
    check(0x8123u16, 0x7fff);
    check(0x8123_4567u32, 1);
    check(0x8123_4567_89ab_cdefu64, 2);
    check(u128::MAX - 7, 3);
}

#[test]
fn non_canonical_addresses_are_protection_faults() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0x7fff_ffff_fffd] {
        let result = cpu.load::<u32>(env, address);
        let vector = result.unwrap_err().vector;
        // The last one starts in the canonical half, whose page is absent.
        assert_eq!(vector, if address == 0x7fff_ffff_fffd { 14 } else { 13 });
    }
    assert_eq!(Fault::protection(0).on_stack(), Fault::stack(0));
    assert_eq!(Fault::protection(8).on_stack(), Fault::protection(8));
}

#[test]
fn devices_and_holes_are_never_cached() {
    let mut bench = Bench::long();
    bench.poke64(ENTRY, 0xfee0_0000 | 7);
    let (cpu, env) = bench.parts();
    cpu.store::<u32>(env, PAGE + 0xb0, 7).unwrap();
    cpu.store::<u32>(env, PAGE + 0xb0, 8).unwrap();
    assert_eq!(cpu.load::<u32>(env, PAGE + 0x20), Ok(0x4141_4141));
    assert_eq!(
        env.mmio_writes,
        [
            (0xfee0_00b0, vec![7, 0, 0, 0]),
            (0xfee0_00b0, vec![8, 0, 0, 0])
        ]
    );
    assert_eq!(env.mmio_reads, [(0xfee0_0020, 4)]);
    assert_eq!(cpu.page_span(env, PAGE, 64, true), Ok(None));
    assert_eq!(cpu.fetch_page(env, PAGE), Err(Fault::UNDEFINED));
}

#[test]
fn tables_outside_ram_are_not_present() {
    let mut bench = Bench::long();
    bench.cpu.cr3 = 0xfff_f000_0000;
    bench.cpu.flush_tlb();
    let (cpu, env) = bench.parts();
    assert_eq!(fault(cpu.load::<u8>(env, PAGE)), (14, Some(0), PAGE));
}

#[test]
fn global_pages_outlive_a_new_cr3_until_invlpg() {
    let mut bench = Bench::long();
    bench.poke64(ENTRY, PAGE | 7 | GLOBAL | DIRTY);
    bench.poke64(ENTRY + 8, PAGE | 0x1007 | DIRTY);
    bench.cpu.cr4 |= CR4_PGE;
    let (cpu, env) = bench.parts();
    cpu.load::<u8>(env, PAGE).unwrap();
    cpu.load::<u8>(env, PAGE + 0x1000).unwrap();
    cpu.flush_tlb_local();
    assert!(cpu.load_fast::<u8>(PAGE).is_some());
    assert!(cpu.load_fast::<u8>(PAGE + 0x1000).is_none());
    cpu.flush_page(PAGE + 5);
    assert!(cpu.load_fast::<u8>(PAGE).is_none());
}

#[test]
fn invlpg_of_a_large_page_removes_all_of_it() {
    let mut bench = Bench::long();
    bench.poke64(bench::DIRECTORY, 0x87);
    let (cpu, env) = bench.parts();
    cpu.load::<u8>(env, 0x1_0000).unwrap();
    cpu.load::<u8>(env, 0x3_0000).unwrap();
    cpu.flush_page(0x7_0000);
    assert!(cpu.load_fast::<u8>(0x1_0000).is_none() && cpu.load_fast::<u8>(0x3_0000).is_none());
}

#[test]
fn privilege_levels_do_not_share_tags() {
    let mut bench = Bench::long();
    bench.poke64(ENTRY, PAGE | 3);
    let (cpu, env) = bench.parts();
    cpu.load::<u8>(env, PAGE).unwrap();
    bench.set_cpl(3);
    let (cpu, env) = bench.parts();
    assert_eq!(fault(cpu.load::<u8>(env, PAGE)), (14, Some(5), PAGE));
    // The system's own accesses have the supervisor's rights.
    assert!(cpu.load_system::<u8>(env, PAGE).is_ok());
}

#[test]
fn alignment_is_checked_for_users_who_ask() {
    let mut bench = Bench::long();
    bench.cpu.cr0 |= CR0_AM;
    bench.cpu.rflags |= FLAG_AC;
    bench.set_cpl(3);
    let (cpu, env) = bench.parts();
    assert_eq!(cpu.load::<u32>(env, PAGE + 2), Err(Fault::ALIGNMENT));
    assert_eq!(cpu.store::<u16>(env, PAGE + 1, 0), Err(Fault::ALIGNMENT));
    assert!(cpu.load::<u32>(env, PAGE + 4).is_ok());
    assert!(cpu.load::<u32>(env, PAGE + 4).is_ok());
    bench.set_cpl(0);
    let (cpu, env) = bench.parts();
    assert!(cpu.load::<u32>(env, PAGE + 2).is_ok());
}

#[test]
fn spans_end_with_the_page() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    let span = cpu.page_span(env, PAGE + 0xff0, 64, true).unwrap().unwrap();
    assert_eq!(span.len, 16);
    assert_eq!(span.host, cpu.ram.page(PAGE).unwrap() + 0xff0);
    cpu.mark_code_page(PAGE);
    cpu.flush_tlb();
    assert_eq!(cpu.page_span(env, PAGE, 64, true), Ok(None));
    assert!(cpu.page_span(env, PAGE, 64, false).unwrap().is_some());
}

#[test]
fn watched_bytes_are_seen_among_others() {
    let mut bench = Bench::long();
    bench.cpu.debug_address = [PAGE + 8, PAGE + 16, 0, 0];
    // Writes of four bytes in the first, reads and writes of one byte in the second.
    bench.cpu.dr7 = 0b0011_1101 << 16 | 0b101;
    bench.cpu.watch_registers_changed();
    let (cpu, env) = bench.parts();
    for _ in 0..2 {
        cpu.load::<u64>(env, PAGE + 8).unwrap();
        cpu.store::<u64>(env, PAGE, 1).unwrap();
        assert_eq!(cpu.take_watch_hits(), 0);
        cpu.store::<u64>(env, PAGE + 4, 1).unwrap();
        assert_eq!(cpu.take_watch_hits(), 1);
        cpu.load::<u16>(env, PAGE + 15).unwrap();
        assert_eq!(cpu.take_watch_hits(), 2);
    }
    cpu.dr7 = 0x400;
    cpu.watch_registers_changed();
    cpu.store::<u64>(env, PAGE + 8, 1).unwrap();
    assert_eq!(cpu.take_watch_hits(), 0);
    assert!(cpu.store_fast::<u64>(PAGE + 8, 1));
}

#[test]
fn bytes_cross_into_the_next_page() {
    let mut bench = Bench::long();
    let (cpu, env) = bench.parts();
    let bytes = (0..=255).collect::<Vec<u8>>();
    cpu.write_bytes(env, PAGE + 0xf83, &bytes).unwrap();
    let mut back = [0; 256];
    cpu.read_bytes(env, PAGE + 0xf83, &mut back).unwrap();
    assert_eq!(bytes, back);
}

#[test]
fn addresses_are_physical_without_paging() {
    let mut bench = Bench::protected();
    let (cpu, env) = bench.parts();
    cpu.store::<u32>(env, 0x1_2346, 0xdead_beef).unwrap();
    assert_eq!(cpu.load::<u32>(env, 0x1_2346), Ok(0xdead_beef));
    assert_eq!(bench.peek64(0x1_2340) >> 48, 0xbeef);
}
