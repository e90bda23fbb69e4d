//! A guest's accesses to the registers of all virtio devices.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::register_writes(bytes));
