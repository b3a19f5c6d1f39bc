//! See `margay_fuzz::wire::message_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| margay_fuzz::wire::message_decode(input));
