//! The fuzz targets' corpus, through the same functions, without a fuzzer.

use std::{fs, path::Path};

#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "public for the fuzz targets")]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let seed = fs::read(&path).unwrap();
        println!("{}", path.display());
        run(&seed);
        // Cut short and with one bit wrong, as links and proxies do.
        for at in 0..seed.len() {
            if at % 29 == 0 {
                run(&seed[..at]);
                let mut wrong = seed.clone();
                wrong[at] ^= 1 << (at % 8);
                run(&wrong);
            }
        }
        seeds += 1;
    }
    assert!(seeds >= 4, "{} has {seeds} seeds", folder.display());
}

#[test]
fn every_seed_keeps_what_the_fuzz_targets_assert() {
    replay("payment_signature", targets::payment_signature);
    replay("x_payment", targets::x_payment);
    replay("payment_required", targets::payment_required);
    replay("payment_response", targets::payment_response);
    replay("payment_code", targets::payment_code);
    replay("quote", targets::quote);
    replay("transfer_bill", targets::transfer_bill);
    replay("macaroon", targets::macaroon);
    replay("l402_credential", targets::l402_credential);
    replay("l402_challenge", targets::l402_challenge);
    replay("bolt11", targets::bolt11);
}
