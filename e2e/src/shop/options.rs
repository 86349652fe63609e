//! What differs between shops, and the config that says it.

use alloy::primitives::Address;

use crate::{Echo, NETWORK, Shop};

/// How one shop differs from another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShopOptions {
    /// Lines for the `[[chain]]` table, such as `settle_timeout = "1s"`.
    pub chain: &'static str,
    /// Keys of the top level, such as `replay.body_bytes_max = 500`.
    pub top: &'static str,
    /// What is sold beside the usual; `$UPSTREAM` stands for the upstream.
    pub routes: &'static str,
    /// How it can be paid.
    pub rails: Rails,
    /// Contracts of `Hostile.sol` that it takes for dollar tokens, by their names.
    pub tokens: &'static [&'static str],
    /// How many nodes it has beside the first.
    pub nodes_more: usize,
    /// Further sources, each as it stands in `rpc` and with a comma after it: `$WEBSOCKET` stands for the node's own, `$EXPLORER` for
    /// an explorer's address.
    pub sources: &'static str,
    /// How old the chain is at its start, seconds.
    pub chain_behind_s: u64,
}

/// The ways to pay that a shop knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rails {
    /// x402 alone, in USDC.
    #[default]
    X402,
    /// x402, and transfers of USDC and ether.
    Both,
    /// Transfers alone: it has no relayer.
    Transfers,
}

impl ShopOptions {
    /// x402 and transfers.
    pub const BOTH: Self = Self { rails: Rails::Both, ..Self::X402 };
    /// Transfers alone.
    pub const TRANSFERS: Self = Self { rails: Rails::Transfers, ..Self::X402 };
    /// x402 alone.
    pub const X402: Self = Self {
        chain: "",
        top: "",
        routes: "",
        rails: Rails::X402,
        tokens: &[],
        nodes_more: 0,
        sources: "",
        chain_behind_s: 0,
    };
}

pub(super) fn config(sources: &str, tokens: &[Address], echo: &Echo, options: ShopOptions) -> String {
    let (upstream, seller) = (echo.url(), Shop::SELLER);
    let ShopOptions { chain, top, routes, rails, .. } = options;
    let mut config = format!("admission.busy_wait = \"2s\"\nserver.workers = 2\n{top}\n");
    if !top.contains("reconciler.interval") {
        config += "reconciler.interval = \"100ms\"\n";
    }
    let mut assets = vec!["\"USDC\"".to_owned()];
    if rails != Rails::X402 {
        if !top.contains("lookups_per_minute") {
            config += "admission.lookups_per_minute = 100000\n";
        }
        config += "public_url = \"$ORIGIN\"\ntransfer = {}\n[[rate]]\nsymbol = \"ETH\"\nfixed = \"2500\"\n";
        assets.push("\"native\"".to_owned());
    }
    for (name, token) in options.tokens.iter().zip(tokens) {
        assets.push(format!("{{ address = \"{token}\", symbol = \"{name}\", dollar = true }}"));
    }
    config += &format!(
        "[[chain]]\nnetwork = \"{NETWORK}\"\nrpc = [{sources}]\nassets = [{}]\npay_to = \"{seller}\"\nmax_timeout = \"10m\"\n",
        assets.join(", ")
    );
    if rails != Rails::Transfers {
        config += "relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }\n";
    }
    config += &format!("{chain}\n");
    for (folder, settle) in [("after", "before_response"), ("before", "before_upstream")] {
        for (pattern, response_timeout) in [("*", "10s"), ("hasty", "500ms")] {
            config += &format!(
                "[[route]]\nmatch = \"* /{folder}/{pattern}\"\nupstream = \"{upstream}\"\nprice = \"$0.01\"\n\
                 settle = \"{settle}\"\nresponse_timeout = \"{response_timeout}\"\n"
            );
        }
    }
    config + &routes.replace("$UPSTREAM", &upstream)
}
