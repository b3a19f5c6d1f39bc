//! See `margay_fuzz::wire::update_roundtrip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| margay_fuzz::wire::update_roundtrip(input));
