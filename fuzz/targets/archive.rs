//! Archives of VMs, and changes of memory in them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::archive(bytes));
