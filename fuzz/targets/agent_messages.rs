//! Messages between host and guest agent, in any pieces.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::agent_messages(bytes));
