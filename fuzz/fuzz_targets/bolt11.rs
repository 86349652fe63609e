//! See `farebox_fuzz::bolt11`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::bolt11(data));
