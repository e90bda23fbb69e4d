//! Bare-metal 64-bit guests for tests, benches and demos: no kernel, no BIOS, simple integer
//! instructions only, so that they also run where KVM emulates guest code.
//!
//! One program has several modes, chosen on its command line (`mode=counter` without one); it
//! prints on COM1 and takes one-byte commands there. Words of the command line:
//!
//! | word | meaning |
//! | --- | --- |
//! | `mode=` | `counter`, `dirty`, `disk`, `net` or `smp` |
//! | `touch=N` | write a word into each page of N MiB from 16 MiB on, then print `M` |
//! | `late=1` | write none of these words: commands that dirty pages touch them first, `v` says `E` |
//! | `every=N` | report every N iterations instead of every `ticks=` TSC ticks |
//! | `write=1` | `counter` also writes one touched page per iteration |
//! | `percent=N`, `scatter=1` | share and choice of the pages that a dirty command writes: the first ones, scattered ones in the order of addresses (1) or in no order (2) |
//! | `idle=1` | wait for serial input with HLT instead of spinning |
//! | `thre=1` | wait for the transmitter before each byte |
//! | `slot=N` | virtio-mmio slot of `disk` and `net` |
//! | `blocks=N`, `flush=N` | `disk`: 4 KiB blocks in use, writes per flush |
//! | `echo=1` | `net`: send frames of type 0x88b5 back as 0x88b6 |
//!
//! | command | answer |
//! | --- | --- |
//! | `g` | `gap=N`: longest time between two of its steps since the last answer, TSC ticks |
//! | `c` | `c=` and the counter, 16 hexadecimal digits |
//! | `d`, `1`, `T`, `A` | dirties `percent`, 1, 10, 100 % of the touched pages, then `D` |
//! | `v` | checks all touched pages, then `V` |
//! | `l` | `l=COUNT,TICKS,MAX`: writes of mode `disk` since the last answer, each with its flush; TSC ticks of all and of the longest |
//!
//! Any other byte means `g`, in mode `dirty` it means `d`. Reports: `counter` prints `c=HEX`,
//! `disk` `d=ROUND` after each round it has verified, `net` `n=SENT r=RECEIVED`, `smp` `s=CPUS`
//! once and then `p=` with one counter per CPU. A line that starts with `E` is an error; the
//! guest then only answers commands.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

/// Returns the guest as an ELF64 file without a PVH note: entered in long mode.
pub fn guest_elf() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"))
}

/// Returns a static Linux program that tells how fast the CPU is; as process 1 it tells when it was
/// reached and goes on with the shell script `/speed.sh`. Its source lists what it prints.
pub fn speed_elf() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/speed.elf"))
}

/// Returns the guest as an ELF64 file with a PVH note: entered in 32-bit protected mode.
pub fn guest_pvh_elf() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/guest-pvh.elf"))
}
