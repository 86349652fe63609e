//! See `farebox_fuzz::transfer_bill`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::transfer_bill(data));
