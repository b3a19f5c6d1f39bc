//! See `margay_fuzz::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| margay_fuzz::session::session(input));
