//! See `farebox_fuzz::quote`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::quote(data));
