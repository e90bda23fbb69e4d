//! Messages between daemon and VM process.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::vmm_messages(bytes));
