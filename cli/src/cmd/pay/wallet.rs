//! Where the key comes from: the environment or a file, never the command line, which every process of the machine can read.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use farebox_core::{
    Amount, AssetId, BitcoinNetwork, EvmAddress, Network, Offer, PaymentHash, Timestamp, X402Credential,
    ports::{LightningWallet, NodeError, Outgoing, PayOrder, PayOutcome, Wallet, WalletError},
};
use farebox_evm::{EvmKey, LocalWallet, RpcUrl};
use farebox_lightning::node::{self, NodeConfig};
use zeroize::Zeroizing;

use super::{NetworkRpc, PayArgs, PayContext};

const KEY_VARIABLE: &str = "FAREBOX_WALLET_KEY";
const PASSWORD_VARIABLE: &str = "FAREBOX_WALLET_PASSWORD";

/// What the command pays with.
pub(super) struct Wallets {
    pub(super) evm: Option<Arc<dyn Wallet>>,
    pub(super) lightning: Option<Arc<dyn LightningWallet>>,
}

/// The wallets that are named, or one that cannot sign if none is: what is free needs none.
pub(super) fn open(args: &PayArgs, context: &PayContext) -> anyhow::Result<Wallets> {
    let lightning = args.lightning.as_ref().map(|uri| open_lightning(&uri.0, args, context)).transpose()?;
    let names_key = args.keystore.is_some() || args.key_file.is_some() || (context.environment)(KEY_VARIABLE).is_some();
    let evm = match (names_key, &lightning) {
        (false, Some(_)) => None,
        // A dry run signs nothing and asks for no secret.
        (false, None) => Some(Arc::new(NoKey) as Arc<dyn Wallet>),
        (true, _) if args.dry_run => Some(Arc::new(NoKey) as Arc<dyn Wallet>),
        (true, _) => Some(open_evm(args, context)?),
    };
    Ok(Wallets { evm, lightning })
}

fn open_lightning(uri: &str, args: &PayArgs, context: &PayContext) -> anyhow::Result<Arc<dyn LightningWallet>> {
    // The text is not repeated: it may hold a secret.
    let config: NodeConfig = uri.parse().context("--lightning names no wallet")?;
    if args.dry_run {
        return Ok(Arc::new(NoSats));
    }
    Ok(node::connect(&config, &context.clock).context("the Lightning wallet cannot be used")?.wallet)
}

fn open_evm(args: &PayArgs, context: &PayContext) -> anyhow::Result<Arc<dyn Wallet>> {
    let key = if let Some(path) = &args.keystore {
        let password = password(args, context)?;
        EvmKey::from_keystore(path, &password).context("the wallet cannot be opened")?
    } else if let Some(path) = &args.key_file {
        let text = read_secret(path)?;
        EvmKey::from_hex(&text).with_context(|| format!("{} holds no wallet key", path.display()))?
    } else if let Some(text) = (context.environment)(KEY_VARIABLE).map(Zeroizing::new) {
        EvmKey::from_hex(&text).with_context(|| format!("{KEY_VARIABLE} holds no wallet key"))?
    } else {
        return Ok(Arc::new(NoKey));
    };
    let mut nodes: BTreeMap<&Network, Vec<RpcUrl>> = BTreeMap::new();
    for NetworkRpc { network, url } in &args.rpc {
        nodes.entry(network).or_default().push(url.clone());
    }
    let mut wallet = LocalWallet::new(key, Arc::clone(&context.entropy));
    for (network, urls) in nodes {
        wallet = wallet
            .with_rpc(network.clone(), &urls)
            .map_err(|error| anyhow!(error).context(format!("the nodes of {network} cannot be used")))?;
    }
    Ok(Arc::new(wallet))
}

fn password(args: &PayArgs, context: &PayContext) -> anyhow::Result<Zeroizing<String>> {
    if let Some(path) = &args.password_file {
        let text = read_secret(path)?;
        return Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()));
    }
    (context.environment)(PASSWORD_VARIABLE)
        .map(Zeroizing::new)
        .ok_or_else(|| anyhow!("the keystore needs a password; set {PASSWORD_VARIABLE} or name a --password-file"))
}

fn read_secret(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    fs::read_to_string(path).map(Zeroizing::new).with_context(|| format!("cannot read {}", path.display()))
}

/// Stands where no key is named.
#[derive(Debug)]
struct NoKey;

#[async_trait]
impl Wallet for NoKey {
    fn evm_address(&self) -> EvmAddress {
        EvmAddress([0; 20])
    }

    async fn authorize(&self, _: &Offer, _: Timestamp) -> Result<X402Credential, WalletError> {
        let reason = format!("there is no wallet key; set {KEY_VARIABLE}, or name a --key-file or --keystore");
        Err(WalletError::Unsupported { reason })
    }

    async fn balance(&self, _: &AssetId) -> Result<Amount, WalletError> {
        Err(WalletError::Unsupported { reason: "there is no wallet key".to_owned() })
    }
}

/// Stands for the Lightning wallet in a dry run, which asks it nothing.
#[derive(Debug)]
struct NoSats;

impl NoSats {
    fn refusal() -> NodeError {
        NodeError::Refused { label: "the dry run".to_owned(), detail: "no wallet is asked in a dry run".to_owned() }
    }
}

#[async_trait]
impl LightningWallet for NoSats {
    fn label(&self) -> &str {
        "the dry run"
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        Err(Self::refusal())
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        Err(Self::refusal())
    }

    async fn pay(&self, _: &PayOrder) -> PayOutcome {
        PayOutcome::Failed { code: "refused", detail: Self::refusal().to_string() }
    }

    async fn outgoing(&self, _: PaymentHash) -> Result<Outgoing, NodeError> {
        Err(Self::refusal())
    }
}
