//! The walker against a plain one that follows the manual's figures, on random tables.

use proptest::prelude::*;

use super::super::walk::{Access, Mapping, Paging, Rules, walk};
use super::bench::Bench;
use crate::Fault;

/// Tables lie in the first pages.
const TABLES: u64 = 16;

/// Where a linear address leads, by a walk that changes nothing: the address, the bits to set in
/// which entries, or the error code.
type Plain = Result<(u64, Vec<(u64, u64)>), u32>;

struct Reference<'a> {
    bench: &'a Bench,
    rules: Rules,
    linear: u64,
    access: Access,
    user: bool,
    marks: Vec<(u64, u64)>,
    writable: bool,
    user_page: bool,
    no_execute: bool,
}

impl Reference<'_> {
    fn error(&self, present: u32) -> u32 {
        let mut error = present;
        error |= if self.access == Access::Write { 2 } else { 0 };
        error |= if self.user { 4 } else { 0 };
        let wide = self.rules.paging != Paging::Legacy;
        if self.access == Access::Execute && (wide && self.rules.no_execute || self.rules.smep) {
            error |= 16;
        }
        error
    }

    fn read(&self, gpa: u64, wide: bool) -> u64 {
        if wide {
            self.bench.cpu.ram.read64(gpa).unwrap_or(0)
        } else {
            self.bench.cpu.ram.read32(gpa).unwrap_or(0).into()
        }
    }

    fn level(&mut self, gpa: u64, reserved: u64) -> Result<u64, u32> {
        let wide = self.rules.paging != Paging::Legacy;
        let entry = self.read(gpa, wide);
        if entry & 1 == 0 {
            return Err(self.error(0));
        }
        let mut reserved = reserved;
        if wide {
            for bit in u64::from(self.rules.physical_bits)..52 {
                reserved |= 1 << bit;
            }
            if self.rules.paging == Paging::Pae {
                reserved |= 0x7ff0_0000_0000_0000;
            }
            if !self.rules.no_execute {
                reserved |= 1 << 63;
            }
        }
        if entry & reserved != 0 {
            return Err(self.error(1) | 8);
        }
        self.writable &= entry & 2 != 0;
        self.user_page &= entry & 4 != 0;
        self.no_execute |= entry >> 63 != 0;
        Ok(entry)
    }

    fn leaf(mut self, gpa: u64, entry: u64, shift: u64, frame: u64) -> Plain {
        let write_denied = !self.writable && (self.user || self.rules.write_protect);
        let execute_denied = self.no_execute || !self.user && self.user_page && self.rules.smep;
        let denied = match self.access {
            Access::Read => false,
            Access::Write => write_denied,
            Access::Execute => execute_denied,
        };
        if denied || self.user && !self.user_page {
            return Err(self.error(1));
        }
        let dirty = if self.access == Access::Write {
            0x40
        } else {
            0
        };
        let _ = entry;
        self.marks.push((gpa, 0x20 | dirty));
        let low = (1 << shift) - 1;
        Ok((frame & !low | self.linear & low, self.marks))
    }

    fn walk(mut self) -> Plain {
        let frame = 0x000f_ffff_ffff_f000;
        let mut table = self.rules.cr3 & frame;
        let levels: &[u64] = match self.rules.paging {
            Paging::Off => return Ok((self.linear, vec![])),
            Paging::Legacy => return self.walk_legacy(),
            Paging::Pae => {
                let gpa = (self.rules.cr3 & 0xffff_ffe0) + (self.linear >> 30) * 8;
                let saved = (self.writable, self.user_page);
                let entry = self.level(gpa, 0x8000_0000_0000_01e6)?;
                (self.writable, self.user_page) = saved;
                table = entry & frame;
                &[21, 12]
            }
            Paging::Long => &[39, 30, 21, 12],
        };
        for shift in levels {
            let gpa = table + (self.linear >> shift & 511) * 8;
            let probe = self.read(gpa, true);
            let large = probe & 0x80 != 0;
            let reserved = match (shift, large) {
                (39, true) => 0x80,
                (30, true) if !self.rules.huge_pages => 0x80,
                (30, true) => 0x3fff_e000,
                (21, true) => 0x001f_e000,
                _ => 0,
            };
            let entry = self.level(gpa, reserved)?;
            if *shift == 12 || large {
                return self.leaf(gpa, entry, *shift, entry & frame);
            }
            self.marks.push((gpa, 0x20));
            table = entry & frame;
        }
        unreachable!("the last level is a leaf")
    }

    fn walk_legacy(mut self) -> Plain {
        let gpa = (self.rules.cr3 & 0xffff_f000) + (self.linear >> 22) * 4;
        let large = self.rules.large_pages && self.read(gpa, false) & 0x80 != 0;
        let entry = self.level(gpa, if large { 0x003f_e000 } else { 0 })?;
        if large {
            return self.leaf(gpa, entry, 22, entry & 0xffff_f000);
        }
        self.marks.push((gpa, 0x20));
        let gpa = (entry & 0xffff_f000) + (self.linear >> 12 & 1023) * 4;
        let entry = self.level(gpa, 0)?;
        self.leaf(gpa, entry, 12, entry & 0xffff_f000)
    }
}

fn entries() -> impl Strategy<Value = u64> {
    let table = (0..TABLES + 4, any::<u16>(), 0..40u8).prop_map(|(page, flags, odd)| {
        let mut entry = page << 12 | u64::from(flags & 0xfff) | 1;
        // Mostly tables, sometimes large pages, other high bits rarely.
        entry &= if odd < 30 { !0x80 } else { u64::MAX };
        entry |= match odd {
            0..=3 => 1 << 63,
            4 => 1 << 45,
            5 => 1 << 55,
            30..=34 => 1 << 21,
            _ => 0,
        };
        entry | if odd < 35 { 6 } else { 0 }
    });
    prop_oneof![9 => table, 1 => any::<u64>()]
}

fn rules() -> impl Strategy<Value = Rules> {
    let paging = prop_oneof![
        Just(Paging::Off),
        Just(Paging::Legacy),
        Just(Paging::Pae),
        Just(Paging::Long),
        Just(Paging::Long)
    ];
    (paging, 0..TABLES, any::<[bool; 6]>(), 36..=52u8).prop_map(|(paging, root, flags, bits)| {
        let [
            write_protect,
            no_execute,
            smep,
            large_pages,
            global_pages,
            huge_pages,
        ] = flags;
        Rules {
            paging,
            cr3: root << 12,
            write_protect,
            no_execute,
            smep,
            large_pages,
            global_pages,
            huge_pages,
            physical_bits: bits,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn walks_agree_with_the_reference(
        seeds in proptest::collection::vec(entries(), 64),
        rules in rules(),
        linears in proptest::collection::vec(any::<u64>(), 20),
        user in any::<bool>(),
    ) {
        let bench = Bench::protected();
        // Every table has the same 64 entries, rotated, so that most walks go deep.
        for place in 0..TABLES * 512 {
            let seed = (place + place / 512 * 7) as usize % seeds.len();
            bench.poke64(place * 8, seeds[seed]);
        }
        for linear in linears {
            let linear = match rules.paging {
                Paging::Long => ((linear << 16) as i64 >> 16) as u64,
                _ => linear & 0xffff_ffff,
            };
            for access in [Access::Read, Access::Write, Access::Execute] {
                let reference = Reference {
                    bench: &bench, rules, linear, access, user, marks: vec![],
                    writable: true, user_page: true, no_execute: false,
                };
                let expected = reference.walk();
                let before = expected.as_ref().map(|(_, marks)| {
                    let read = |gpa: &u64| bench.peek64(gpa & !7);
                    marks.iter().map(|(gpa, bits)| (*gpa, *bits, read(gpa))).collect::<Vec<_>>()
                });
                let found = walk(&bench.cpu.ram, &rules, linear, access, user);
                prop_assert_eq!(
                    found.map(|Mapping { gpa, .. }| gpa),
                    expected.clone().map(|(gpa, _)| gpa).map_err(|e| Fault::page(e, linear))
                );
                for (gpa, bits, _) in before.unwrap_or_default() {
                    let shift = (gpa & 4) * 8;
                    prop_assert_eq!(bench.peek64(gpa & !7) >> shift & bits, bits);
                }
            }
        }
    }
}
