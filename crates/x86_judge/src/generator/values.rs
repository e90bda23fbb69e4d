//! Values that instructions treat specially.

use crate::Random;
use crate::layout::{DATA, HIGH, MEMORY_BYTES, PAGE};
use crate::{Extended, State};

const INTEGERS: [u64; 24] = [
    0,
    1,
    2,
    3,
    7,
    0x0f,
    0x10,
    0x1f,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ff80,
    0xffff_ffff_8000_0000,
    0x0123_4567_89ab_cdef,
];

const SINGLES: [u32; 20] = [
    0x0000_0000, // 0
    0x8000_0000, // -0
    0x3f80_0000, // 1
    0xbf80_0000, // -1
    0x7f80_0000, // infinity
    0xff80_0000, // -infinity
    0x7fc0_0000, // quiet NaN
    0xffc1_2345, // quiet NaN with a payload
    0x7f80_0001, // signalling NaN
    0xffa0_0001, // signalling NaN
    0x0000_0001, // least denormal
    0x807f_ffff, // greatest denormal
    0x0080_0000, // least normal
    0x7f7f_ffff, // greatest finite
    0x4f00_0000, // 2^31
    0xcf00_0000, // -2^31
    0x5f00_0000, // 2^63
    0x3f00_0000, // 0.5
    0x4020_0000, // 2.5
    0x4b7f_ffff, // an integer with all bits of precision
];

const DOUBLES: [u64; 20] = [
    0x0000_0000_0000_0000,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_1234_5678_9abc,
    0x7ff0_0000_0000_0001,
    0xfff4_0000_0000_0001,
    0x0000_0000_0000_0001,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000, // 2^31
    0xc3e0_0000_0000_0000, // -2^63
    0x47ef_ffff_f000_0000, // rounds to more than the greatest single
    0x36a0_0000_0000_0000, // least denormal single
    0x4004_0000_0000_0000, // 2.5
    0x433f_ffff_ffff_ffff,
];

/// Sign and exponent, significand.
const EXTENDED: [(u16, u64); 24] = [
    (0x0000, 0x0000_0000_0000_0000), // 0
    (0x8000, 0x0000_0000_0000_0000), // -0
    (0x3fff, 0x8000_0000_0000_0000), // 1
    (0xbfff, 0x8000_0000_0000_0000), // -1
    (0x4000, 0xc90f_daa2_2168_c235), // pi
    (0x3ffe, 0x8000_0000_0000_0000), // 0.5
    (0x7fff, 0x8000_0000_0000_0000), // infinity
    (0xffff, 0x8000_0000_0000_0000), // -infinity
    (0xffff, 0xc000_0000_0000_0000), // indefinite
    (0x7fff, 0xc000_1234_5678_9abc), // quiet NaN
    (0x7fff, 0x8000_0000_0000_0001), // signalling NaN
    (0xffff, 0xa000_0000_0000_0000), // signalling NaN
    (0x0000, 0x0000_0000_0000_0001), // least denormal
    (0x8000, 0x7fff_ffff_ffff_ffff), // greatest denormal
    (0x0000, 0x8000_0000_0000_0000), // pseudo-denormal
    (0x0001, 0x8000_0000_0000_0000), // least normal
    (0x7ffe, 0xffff_ffff_ffff_ffff), // greatest finite
    (0x3fff, 0x0000_0000_0000_0001), // unnormal
    (0x4010, 0x7fff_0000_0000_0000), // unnormal
    (0x7fff, 0x0000_0000_0000_0000), // pseudo-infinity
    (0x7fff, 0x4000_0000_0000_0000), // pseudo-NaN
    (0x403e, 0x8000_0000_0000_0000), // 2^63
    (0xc03e, 0x8000_0000_0000_0000), // -2^63
    (0x3c00, 0x8000_0000_0000_0000), // denormal as a double
];

/// Returns an integer, often one at an edge.
pub fn integer(random: &mut Random) -> u64 {
    match random.below(8) {
        0..4 => random.pick(&INTEGERS),
        4 => random.pick(&INTEGERS).wrapping_neg(),
        5 => random.below(256),
        6 => 1 << random.below(64),
        _ => random.bits(),
    }
}

fn single(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => random.pick(&SINGLES),
        1 => random.bits() as u32,
        2 => ((random.below(2000) as f32 - 1000.0) / 8.0).to_bits(),
        // Exponents in the middle, so that results are finite.
        _ => (random.bits() as u32 & 0x807f_ffff) | ((0x70 + random.below(0x20) as u32) << 23),
    }
}

fn double(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.pick(&DOUBLES),
        1 => random.bits(),
        2 => ((random.below(20_000) as f64 - 10_000.0) / 16.0).to_bits(),
        _ => (random.bits() & 0x800f_ffff_ffff_ffff) | ((0x3e0 + random.below(0x40)) << 52),
    }
}

/// Returns the 80 bits of an x87 register.
pub fn extended(random: &mut Random) -> u128 {
    let (high, low) = match random.below(5) {
        0 => random.pick(&EXTENDED),
        1 => (random.bits() as u16, random.bits()),
        2 => (random.bits() as u16, random.bits() | 1 << 63),
        3 => {
            let sign = (random.bits() as u16) & 0x8000;
            (
                sign | (0x3fff + random.below(8) as u16),
                (random.below(64) << 58) | 1 << 63,
            )
        }
        _ => {
            let sign = (random.bits() as u16) & 0x8000;
            (
                sign | (0x3fe0 + random.below(0x60) as u16),
                random.bits() | 1 << 63,
            )
        }
    };
    u128::from(low) | u128::from(high) << 64
}

fn pair(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Returns 16 bytes of one of the kinds of data that instructions work on.
pub fn sixteen_bytes(random: &mut Random) -> u128 {
    match random.below(10) {
        0 => pair(random.bits(), random.bits()),
        1..3 => {
            let word = |random: &mut Random| u64::from(single(random));
            let low = word(random) | word(random) << 32;
            pair(word(random) | word(random) << 32, low)
        }
        3..5 => pair(double(random), double(random)),
        5 => extended(random) | u128::from(random.bits() as u16) << 80,
        6 => pair(integer(random), integer(random)),
        7 => pair(random.below(64), random.below(64)),
        8 => u128::from_le_bytes(std::array::from_fn(|_| {
            if random.chance(7) {
                0
            } else {
                b'a' + random.below(6) as u8
            }
        })),
        _ => random.pick(&[0, u128::MAX, 1, 1 << 127]),
    }
}

/// Returns the content of a case's memory.
pub fn memory(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MEMORY_BYTES);
    while bytes.len() < MEMORY_BYTES {
        bytes.extend_from_slice(&sixteen_bytes(random).to_le_bytes());
    }
    bytes
}

/// Returns MXCSR: mostly all exceptions masked.
pub fn mxcsr(random: &mut Random) -> u32 {
    let rounding = (random.below(4) as u32) << 13;
    match random.below(10) {
        0..5 => 0x1f80,
        5..7 => 0x1f80 | rounding,
        7 => 0x1f80 | rounding | random.pick(&[0x8000, 0x40, 0x8040]),
        8 => 0x1f80 | rounding | random.below(0x40) as u32,
        _ => random.below(0x1_0000) as u32,
    }
}

/// Returns an x87 control word: mostly all exceptions masked.
pub fn x87_control(random: &mut Random) -> u16 {
    let modes = (random.below(16) as u16) << 8;
    match random.below(10) {
        0..5 => 0x37f,
        5..9 => 0x7f | modes,
        _ => 0x40 | random.below(0x40) as u16 | modes,
    }
}

fn x87(random: &mut Random, state: &mut Extended) {
    state.control = x87_control(random);
    state.status = (random.below(8) << 11) as u16;
    if random.chance(30) {
        state.status |= random.bits() as u16 & 0x4700;
    }
    if random.chance(20) {
        state.status |= random.below(0x40) as u16 & state.control;
        if state.status & 1 != 0 {
            state.status |= random.below(2) as u16 * 0x40;
        }
    }
    if random.chance(3) {
        let pending = random.below(0x40) as u16;
        state.status |= pending;
        if state.status & !state.control & 0x3f != 0 {
            state.status |= 0x8080;
        }
    }
    state.tags = match random.below(4) {
        0 => 0,
        1 => 0xff,
        // The upper part of the stack is in use.
        2 => {
            let used = random.below(8) as u32;
            let mask = (1_u32 << used) - 1;
            let top = u32::from(state.status >> 11 & 7);
            ((mask << top) | (mask << top >> 8)) as u8
        }
        _ => random.bits() as u8,
    };
    for value in &mut state.stack {
        *value = extended(random);
    }
}

/// Returns registers to start from, without RIP; RSP lies in the data pages.
pub fn registers(random: &mut Random) -> State {
    let mut state = State::default();
    for register in &mut state.general {
        *register = match random.below(8) {
            0 => DATA + random.below(4 * PAGE),
            1 => HIGH + random.below(PAGE),
            _ => integer(random),
        };
    }
    let depth = if random.chance(95) {
        8 * random.below(256)
    } else {
        random.below(0x1000)
    };
    state.general[4] = DATA + PAGE + depth;
    state.rflags = 0x202 | (random.bits() & 0x8d5);
    if random.chance(15) {
        state.rflags |= 0x400;
    }
    state.extended.mxcsr = mxcsr(random);
    for value in &mut state.extended.xmm {
        *value = sixteen_bytes(random);
    }
    x87(random, &mut state.extended);
    state
}
