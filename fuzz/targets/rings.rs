//! What a guest puts into virtqueues and the memory behind them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::rings(bytes));
