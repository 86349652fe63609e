//! Tokens and draws for tests of books: the right shape, and no node behind them.

use std::time::Duration;

use farebox_core::{
    Binding, BitcoinNetwork, CallerId, Draw, DrawId, Grant, InstanceId, Invoice, NewToken, PassId, PaymentId, Preimage,
    RequestId, RootKey, RouteId, Timestamp,
};

/// What the invoice of a [`test_token`] asks for: 10 satoshis.
pub const TEST_TOKEN_MSAT: u64 = 10_000;

/// How long the invoice of a [`test_token`] can be paid.
const INVOICE_EXPIRY: Duration = Duration::from_secs(600);

/// Token `number`, sold at `now`: of the node `node`, valid for an hour after its invoice's time. Its route is `route-0` or `route-1`, as
/// the number is even or odd.
#[must_use]
pub fn test_token(number: u64, grant: Grant, now: Timestamp) -> NewToken {
    let expires_at = now.plus(INVOICE_EXPIRY);
    NewToken {
        pass: test_pass(number),
        root_key: RootKey::new(wide(number ^ 0xff)),
        invoice: Invoice {
            payment_hash: test_preimage(number).hash(),
            bolt11: format!("lnbcrt100n1test{number}").into(),
            amount_msat: TEST_TOKEN_MSAT,
            created_at: now,
            expires_at,
        },
        network: BitcoinNetwork::Regtest.network(),
        node: "node".into(),
        route: RouteId::new(format!("route-{}", number % 2)),
        method: "GET".into(),
        resource: format!("/{number}?q='\"%00\u{1b}é"),
        request: RequestId::new(format!("req_{number}")),
        grant,
        valid_until: expires_at.plus(Duration::from_secs(3600)),
    }
}

/// The pass that token `number` is.
#[must_use]
pub fn test_pass(number: u64) -> PassId {
    PassId(wide(number))
}

/// What paying the invoice of token `number` gives.
#[must_use]
pub fn test_preimage(number: u64) -> Preimage {
    Preimage(wide(number ^ 0xabcd))
}

/// Draw `id` of token `number`, without a key, for `/<number>`; the payment that it may make has the id's number too.
#[must_use]
pub fn test_draw(number: u64, id: u64, holder: InstanceId, now: Timestamp) -> Draw {
    let pass = test_pass(number);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&id.to_be_bytes());
    Draw {
        pass,
        id: test_draw_id(id),
        proved: test_preimage(number).hash(),
        payment: PaymentId::new(now, random),
        binding: Binding {
            route: RouteId::new(format!("route-{}", number % 2)),
            method: "GET".into(),
            resource: format!("/{number}"),
            caller: CallerId::from_pass(pass),
        },
        key: None,
        request: RequestId::new(format!("req_{id}")),
        holder,
        lease: Duration::from_secs(30),
        now,
    }
}

/// Names a draw by its number.
#[must_use]
pub fn test_draw_id(id: u64) -> DrawId {
    DrawId(u128::from(id).to_be_bytes())
}

fn wide(number: u64) -> [u8; 32] {
    let mut bytes = [0x5e; 32];
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    bytes
}
