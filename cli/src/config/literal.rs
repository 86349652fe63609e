//! The config as it is written: tables, keys, defaults. The reference page `docs/config.md` is made from this file.

use std::net::SocketAddr;

use farebox_core::{Network, Price, RailName, SettleWhen};
use farebox_gateway::{UpstreamHost, UpstreamUrl};
use ipnet::IpNet;

use super::{
    lightning::{Calls, LightningLiteral, RouteTokenLiteral, TokenTime},
    money::{
        Confirmations, FinalityLiteral, NetworkFeeLiteral, Percent, PricingLiteral, QuorumLiteral, RateLiteral,
        RpcSource, TransferLiteral,
    },
    read::{
        Absent::{Default, Means, Refused},
        keys,
    },
    secret::SecretRef,
    values::{
        AssetLiteral, Bytes, Count, FilePath, Gwei, LogFormat, Many, Match, Millis, NativeCoins, OneOrMany, PayTo,
        PublicUrl, Symbol, Tables,
    },
};

/// Durations that bound one request or one step of it.
pub(crate) type Timeout = Millis<1, 86_400_000>;

keys! {
    /// Keys before the first `[table]`.
    FileLiteral = "the file" {
        /// Where the gateway listens: HTTP/1.1 and HTTP/2 on the same port.
        "listen" listen: OneOrMany<SocketAddr, 16>, Default("\"127.0.0.1:8402\"");
        /// The URL under which callers know the gateway; bills name it.
        "public_url" public_url: PublicUrl, Means("scheme and Host of each request; those of `Forwarded` or `X-Forwarded-*` if a listed proxy says so");
        /// The payments' SQLite file.
        "ledger" ledger: FilePath, Default("\"farebox.db\"");
        /// Proxies whose `Forwarded` and `X-Forwarded-*` headers are believed.
        "trusted_proxies" trusted_proxies: Many<IpNet, 0, 256>, Default("[]");
        /// Certificate and key, PEM, to serve HTTPS.
        "tls" tls: TlsLiteral, Means("plain HTTP/1.1 and h2c");
        /// Limits and timeouts towards callers.
        "server" server: ServerLiteral, Default("{}");
        /// Limits and timeouts towards the upstreams; a route may override those that are also named there.
        "upstream" upstream: UpstreamLiteral, Default("{}");
        /// What is kept of delivered answers, for payers who lost them.
        "replay" replay: ReplayLiteral, Default("{}");
        /// How long requests with credentials wait, and claims last.
        "admission" admission: AdmissionLiteral, Default("{}");
        /// How payments in doubt are looked into.
        "reconciler" reconciler: ReconcilerLiteral, Default("{}");
        /// What is logged, to standard error.
        "log" log: LogLiteral, Default("{}");
        /// Metrics and health for operators, on a listener of their own.
        "admin" admin: AdminLiteral, Means("there is none");
        /// Where the audit log is also written, as JSON lines.
        "audit_file" audit_file: FilePath, Means("it is in the ledger alone: `farebox audit export`");
        /// Transfers claimed by their hash.
        "transfer" transfer: TransferLiteral, Means("transfers are not taken");
        /// Payments by Bitcoin Lightning (L402).
        "lightning" lightning: LightningLiteral, Means("Lightning payments are not taken");
        /// How prices follow rates and network fees.
        "pricing" pricing: PricingLiteral, Default("{}");
        /// What coins and tokens are worth in dollars.
        "rate" rate: Tables<RateLiteral, 64>, Default("[]");
        /// Networks to be paid on; at least one if a route has a price that is not paid by Lightning alone.
        "chain" chain: Tables<ChainLiteral, 32>, Default("[]");
        /// What is sold, and what is given away. What no route names is answered 404.
        "route" route: Tables<RouteLiteral, 10_000>, Refused;
    }
}

keys! {
    /// `tls = { cert = "cert.pem", key = "key.pem" }`
    TlsLiteral = "[tls]" {
        /// The certificate chain, PEM.
        "cert" cert: FilePath, Refused;
        /// Its private key, PEM: PKCS#8, PKCS#1 or SEC1.
        "key" key: FilePath, Refused;
    }
}

keys! {
    /// Answers `GET /metrics` (Prometheus), `/healthz` (the process is up) and `/readyz` (the books answer and every chain's head is fresh; else 503 and the reasons). It asks for no password: keep it on loopback or a private network.
    AdminLiteral = "[admin]" {
        /// Where it listens, plain HTTP.
        "listen" listen: SocketAddr, Default("\"127.0.0.1:8403\"");
    }
}

keys! {
    /// Limits and timeouts towards callers.
    ServerLiteral = "[server]" {
        /// Threads that serve requests.
        "workers" workers: Count<1, 1024>, Means("one a processor");
        /// Connections at once, over all listeners; more wait to be accepted.
        "connections_max" connections_max: Count<1, 10_000_000>, Default("16384");
        /// Bytes of a request's head; more is answered 431.
        "header_bytes_max" header_bytes_max: Bytes<8_192, 1_048_576>, Default("\"32KiB\"");
        /// Header fields of a request; more is answered 431.
        "headers_max" headers_max: Count<16, 1_000>, Default("100");
        /// How long a request's head, or a TLS handshake, may take to arrive.
        "header_read_timeout" header_read_timeout: Timeout, Default("\"10s\"");
        /// How long a connection may stay idle between requests, and how long a caller may neither take nor send what it owes.
        "idle_timeout" idle_timeout: Timeout, Default("\"75s\"");
        /// How long running requests may take to end after SIGTERM or SIGINT.
        "drain_timeout" drain_timeout: Timeout, Default("\"30s\"");
        /// Bytes of a request's body; more is answered 413.
        "request_body_bytes_max" request_body_bytes_max: Bytes<0, 1_099_511_627_776>, Default("\"16MiB\"");
        /// Requests at once on one HTTP/2 connection.
        "streams_max" streams_max: Count<1, 10_000>, Default("128");
        /// How long an upgraded connection (WebSocket) may be silent in both directions.
        "tunnel_idle_timeout" tunnel_idle_timeout: Timeout, Default("\"10m\"");
    }
}

keys! {
    /// Limits and timeouts towards the upstreams.
    UpstreamLiteral = "[upstream]" {
        /// How long name resolution, connecting and TLS may take together.
        "connect_timeout" connect_timeout: Timeout, Default("\"3s\"");
        /// How long an upstream may take until the head of its answer.
        "response_timeout" response_timeout: Timeout, Default("\"30s\"");
        /// How long an upstream may be silent within its body.
        "idle_timeout" idle_timeout: Timeout, Default("\"60s\"");
        /// Idle connections kept for each upstream, by worker.
        "pool_idle_max" pool_idle_max: Count<0, 100_000>, Default("256");
        /// How long an idle connection is kept. Keep it below the upstream's own: a request on a connection that the upstream is closing is answered 502.
        "pool_idle_timeout" pool_idle_timeout: Timeout, Default("\"4s\"");
        /// Bytes of the head of an upstream's answer.
        "header_bytes_max" header_bytes_max: Bytes<8_192, 1_048_576>, Default("\"64KiB\"");
        /// Speak HTTP/2: by prior knowledge (h2c) to http, negotiated to https. Otherwise HTTP/1.1.
        "http2" http2: bool, Default("false");
        /// Which `Host` an upstream sees: its own, or the caller's.
        "host" host: UpstreamHost, Default("\"upstream\"");
        /// Certificates trusted besides the public roots, PEM, for https.
        "ca" ca: FilePath, Means("the public roots alone");
    }
}

keys! {
    /// A payer whose connection broke gets the answer again by sending the same credential again.
    ReplayLiteral = "[replay]" {
        /// Bytes of an answer's body; a longer one is not kept.
        "body_bytes_max" body_bytes_max: Bytes<0, 16_777_216>, Default("\"64KiB\"");
        /// How long it is kept.
        "keep_for" keep_for: Millis<1_000, 604_800_000>, Default("\"10m\"");
    }
}

keys! {
    /// How long requests with credentials wait, and claims last.
    AdmissionLiteral = "[admission]" {
        /// How long a request waits for the outcome of another with the same credential.
        "busy_wait" busy_wait: Timeout, Default("\"10s\"");
        /// How long a claim is held without a sign of life from who holds it. Longer than any upstream and settlement together.
        "lease" lease: Millis<10_000, 86_400_000>, Default("\"10m\"");
        /// How many payments of one payer may be claimed and not yet settled. Each may cost an upstream call, and the gas of a transaction that reverts because the payer's balance is gone.
        "unsettled_per_payer_max" unsettled_per_payer_max: Count<1, 100_000>, Default("32");
        /// How many questions to a chain one caller's address may cause a minute by naming transactions and wallets that nobody has vouched for.
        "lookups_per_minute" lookups_per_minute: Count<1, 1_000_000>, Default("120");
        /// How much longer than its upstream may take an authorization must live, for the settlement that follows.
        "settle_margin" settle_margin: Millis<1_000, 600_000>, Default("\"5s\"");
        /// How long the body of an answer that is small enough to be kept may take; after that the payment is not charged.
        "answer_timeout" answer_timeout: Timeout, Default("\"60s\"");
    }
}

keys! {
    /// How payments in doubt are looked into, until the chain has said what became of each.
    ReconcilerLiteral = "[reconciler]" {
        /// The pause between two rounds.
        "interval" interval: Millis<100, 3_600_000>, Default("\"2s\"");
        /// The most payments of each kind that one round looks at.
        "batch" batch: Count<1, 10_000>, Default("256");
        /// How long one question to a chain may take.
        "question_timeout" question_timeout: Millis<1_000, 600_000>, Default("\"20s\"");
    }
}

keys! {
    /// What is logged, to standard error. Credentials and keys never are.
    LogLiteral = "[log]" {
        /// For people or for programs.
        "format" format: LogFormat, Default("\"pretty\"");
        /// The least grave level that is logged. The environment variable `FAREBOX_LOG` overrides it, by module too.
        "level" level: tracing::Level, Default("\"info\"");
    }
}

keys! {
    /// A network to be paid on. A token's name, version and decimals are not configured: they are read from the chain at start.
    ChainLiteral = "[[chain]]" {
        /// The network.
        "network" network: Network, Refused;
        /// Its sources, in order of preference: nodes by URL, block explorers as `{ url = "..", kind = "explorer", key = "${NAME}" }`.
        "rpc" rpc: OneOrMany<RpcSource, 16>, Refused;
        /// How many of them must agree before a payment above an amount is believed.
        "quorum" quorum: QuorumLiteral, Means("one source is believed");
        /// A source whose newest block is older than this cannot say that a transaction does not exist.
        "head_age_max" head_age_max: Millis<5_000, 86_400_000>, Default("\"2m\"");
        /// What rates and prices call the network's own coin.
        "native" native: Symbol, Means("its name if the network is a known one, else none");
        /// Tokens to be paid in, in order of preference; `"native"` is the network's own coin, by transfer only.
        "assets" assets: Many<AssetLiteral, 1, 32>, Refused;
        /// The account that is paid.
        "pay_to" pay_to: PayTo, Refused;
        /// The key that sends the settling transactions and pays their gas. It never holds revenue.
        "relayer" relayer: RelayerLiteral, Means("x402 is not offered here, transfers alone");
        /// What makes a payment final: blocks, of which 1 is the block it is in; `"safe"` or `"finalized"`; or tiers by amount.
        "confirmations" confirmations: Confirmations, Default("1");
        /// What a payer must wait for of whom a reorganisation has undone a payment.
        "confirmations_marked" confirmations_marked: FinalityLiteral, Default("64");
        /// How long a request waits for its settlement; after that the payment is in doubt and looked into in the background.
        "settle_timeout" settle_timeout: Millis<1_000, 600_000>, Default("\"30s\"");
        /// The bill's `maxTimeoutSeconds`: how long a payer's authorization lives.
        "max_timeout" max_timeout: Millis<10_000, 86_400_000>, Default("\"120s\"");
        /// The most gas that a settlement, its simulation or a contract wallet's signature check may take.
        "gas_limit_max" gas_limit_max: Count<60_000, 10_000_000>, Default("200000");
        /// The most that is paid for a unit of gas, tip included; gwei.
        "fee_gwei_max" fee_gwei_max: Gwei, Default("200");
        /// The most that the relayer spends on gas in one UTC day, in the chain's own coin. A restart begins anew.
        "gas_per_day_max" gas_per_day_max: NativeCoins, Default("0.1");
        /// How long one call to one node may take.
        "rpc_timeout" rpc_timeout: Millis<100, 60_000>, Default("\"5s\"");
        /// A transaction that is not mined after so long is sent again with a higher fee, at the same nonce.
        "bump_after" bump_after: Millis<1_000, 600_000>, Default("\"10s\"");
        /// Transactions of the relayer that may be unmined at once.
        "in_flight_max" in_flight_max: Count<1, 1_024>, Default("64");
        /// Settlements that may wait for a place among those in flight.
        "lane_queue_max" lane_queue_max: Count<1, 100_000>, Default("1024");
        /// How long a settlement waits for such a place.
        "lane_wait" lane_wait: Millis<100, 600_000>, Default("\"5s\"");
        /// How many blocks below the head a reorganisation is believed possible: payments in them are looked at again.
        "watch_depth" watch_depth: Count<1, 100_000>, Default("64");
    }
}

keys! {
    /// `relayer = { key = "${FAREBOX_RELAYER_KEY}" }`, or a keystore and its password.
    RelayerLiteral = "relayer" {
        /// The private key, 64 hex digits.
        "key" key: SecretRef, Means("`keystore` is used");
        /// An encrypted keystore (Web3 Secret Storage, version 3).
        "keystore" keystore: FilePath, Means("`key` is used");
        /// The keystore's password.
        "password" password: SecretRef, Means("`key` is used");
    }
}

keys! {
    /// What is sold at which price, or free. A request takes the most specific route that matches; two that match equally are refused.
    RouteLiteral = "[[route]]" {
        /// Methods and a path pattern: `GET /v1/x`, `GET,POST /v1/*`, `* /v1/{id}/file`. `{name}` is one segment, a trailing `/*` or `{*rest}` the rest. Case-sensitive.
        "match" pattern: Match, Refused;
        /// The route's name in the books.
        "id" id: String, Means("the text of `match`");
        /// Where requests go: an origin, and maybe a path that is put before the request's.
        "upstream" upstream: UpstreamUrl, Refused;
        /// The price of one request: in dollars, payable in every dollar token, or in one token.
        "price" price: Price, Means("the route must say `free = true`");
        /// The route costs nothing.
        "free" free: bool, Means("the route must have a price");
        /// How many calls one Lightning invoice buys.
        "calls" calls: Calls, Means("1, unless `for` or `l402` says otherwise");
        /// How long what one Lightning invoice buys can be used.
        "for" time: TokenTime, Means("`calls` says how often");
        /// What else there is to say of the tokens that Lightning invoices buy.
        "l402" l402: RouteTokenLiteral, Means("as if it were empty");
        /// Ways to pay.
        "rails" rails: Many<RailName, 1, 3>, Means("all that are configured");
        /// What the settlement's gas has to do with the price, where we pay it (x402).
        "network_fee" network_fee: NetworkFeeLiteral, Means("the seller bears it");
        /// The most that the network's fee may be of what is charged; an offer over it is not made.
        "max_fee_share" max_fee_share: Percent, Means("any; `farebox check` warns of one above 100%");
        /// When the money moves: after the upstream's head and before ours, so that an answer of 400 or more is not charged, or before the upstream is called. Of x402: a transfer is paid already, and an answer below 500 is its delivery.
        "settle" settle: SettleWhen, Default("\"before_response\"");
        /// What the bill says is sold.
        "description" description: String, Means("nothing");
        /// The answer's media type, for the bill.
        "mime_type" mime_type: String, Means("nothing");
        /// As in `[upstream]`, for this route.
        "connect_timeout" connect_timeout: Timeout, Means("as in `[upstream]`");
        /// As in `[upstream]`, for this route.
        "response_timeout" response_timeout: Timeout, Means("as in `[upstream]`");
        /// As in `[upstream]`, for this route.
        "idle_timeout" idle_timeout: Timeout, Means("as in `[upstream]`");
        /// As in `[server]`, for this route.
        "request_body_bytes_max" request_body_bytes_max: Bytes<0, 1_099_511_627_776>, Means("as in `[server]`");
    }
}
