//! See `farebox_fuzz::payment_signature`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::payment_signature(data));
