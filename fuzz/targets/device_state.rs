//! Saved states of devices, restored and run.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::device_state(bytes));
