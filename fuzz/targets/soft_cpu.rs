//! Code, page tables, descriptor tables and registers of a guest on the software engine.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::soft_cpu(bytes));
