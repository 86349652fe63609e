//! See `farebox_fuzz::payment_code`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::payment_code(data));
