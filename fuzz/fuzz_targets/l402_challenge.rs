//! See `farebox_fuzz::l402_challenge`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::l402_challenge(data));
