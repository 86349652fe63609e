//! See `farebox_fuzz::l402_credential`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::l402_credential(data));
