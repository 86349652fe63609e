//! See `farebox_fuzz::x_payment`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::x_payment(data));
