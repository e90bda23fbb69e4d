//! Builds the guest with the system's C compiler, once with and once without a PVH note, and the
//! Linux program that tells a CPU's speed.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 11] = [
    "start.S",
    "main.c",
    "text.c",
    "clock.c",
    "serial.c",
    "memory.c",
    "counter.c",
    "virtio.c",
    "disk.c",
    "net.c",
    "smp.c",
];

const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    // No library, no position-independent code, nothing below the stack pointer.
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pic",
    "-fno-pie",
    "-mno-red-zone",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    // Simple integer instructions only.
    "-march=x86-64",
    "-mgeneral-regs-only",
    "-fcf-protection=none",
    "-fno-tree-vectorize",
    // Loops that fill or copy stay loops instead of calls to themselves.
    "-fno-tree-loop-distribute-patterns",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noseparate-code",
];

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    build(&out.join("guest.elf"), &["-T", "guest/link.ld"], &SOURCES);
    build(
        &out.join("guest-pvh.elf"),
        &["-T", "guest/link.ld", "-DPVH_NOTE"],
        &SOURCES,
    );
    build(&out.join("speed.elf"), &[], &["linux/speed.c"]);
}

fn build(output: &Path, flags: &[&str], sources: &[&str]) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let guest = Path::new("guest");
    let mut command = Command::new(&compiler);
    command.args(FLAGS).args(flags);
    command
        .arg("-o")
        .arg(output)
        .args(sources.iter().map(|source| guest.join(source)));
    let status = command.status().unwrap_or_else(|error| {
        panic!("running the C compiler {compiler:?}: {error}; install gcc or set CC")
    });
    assert!(status.success(), "{command:?} failed");
}
