//! Kernel files: bzImage, vmlinux, other ELF.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::kernel(bytes));
