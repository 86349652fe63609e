//! See `farebox_fuzz::macaroon`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farebox_fuzz::macaroon(data));
