//! The container of saved states, cut and flipped anywhere.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::saved_state(bytes));
