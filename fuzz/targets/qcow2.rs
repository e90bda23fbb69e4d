//! Disk images: looked at, opened, read and written.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::qcow2(bytes));
