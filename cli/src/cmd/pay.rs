//! `farebox pay`: curl's habits, and a wallet.

mod output;
mod request;
#[cfg(test)]
mod tests;
mod wallet;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use farebox_agent::{
    Agent, Charge, DollarAsset, FetchError, Journal, LightningError, NotSent, PaymentMade, PlainHttp, Policy, Quote,
    Redirects, RetryPolicy, RoutingFee, Stake, Usd, well_known_assets,
};
use farebox_core::{
    AssetId, BitcoinNetwork, Decimal, EvmAddress, Network, RailName,
    ports::{Clock, Entropy, WalletError},
};
use farebox_evm::RpcUrl;
use zeroize::Zeroizing;

use self::wallet::Wallets;

/// How many redirects `-L` follows.
const REDIRECTS_MAX: u32 = 20;

/// Of every EVM network's coin.
const COIN_DECIMALS: u8 = 18;

/// Of millisatoshis in a satoshi.
const SAT_DECIMALS: u8 = 3;

/// What one call may cost over Lightning if nothing is said of money: not more than the limit in dollars as long as a bitcoin is worth less than
/// $100,000.
const MAX_MSAT_DEFAULT: u64 = 100_000;

/// The exit codes, as the help tells them.
const EXIT_CODES: &str = "\
Exit codes:
  0   answered with a status below 400, and paid if it had to be
  1   something else went wrong
  2   the command line is wrong
  3   the wallet or the journal is missing or cannot be used, or the wallet holds too little, has no node for a transfer or
      finds no way over Lightning; nothing was sent, signed or paid over it
  4   the policy forbids the payment or its gas, or the method is HEAD, which is not sold; nothing new was signed
  5   the seller refused the payment or could not serve it, and says it was not charged
  6   not known whether the payment was charged: run the same command again, it cannot pay twice
  7   no answer from the server; nothing was signed
  8   the seller's 402 cannot be read
  9   charged, and the seller gives no answer for it; if the error is charged_not_served, the same command redeems it
  10  the answer to a payment broke off: run the same command again, it sends the same payment and cannot pay twice
  11  a transfer moved nothing and never will: it failed on the chain, or its nonce was used; the same command pays anew
  12  a transfer came too late for its bill: the seller keeps it as credit and did not serve the request
  13  a Lightning wallet paid and gave no preimage: the money is gone, and without the preimage the seller gives nothing; the
      same command asks the wallet for it again and never pays a second time
  22  answered with a status of 400 or more, without a payment
  23  answered with a status of 400 or more, after a payment was sent

An error of --json has a member \"charged\": true, false or \"unknown\". False is said only if nothing was signed, or if the seller
said that it did not charge; then \"authorizationValidUntil\", seconds since 1970, is there as long as what was signed is still
valid, so that a seller who broke its word could charge it until then.";

/// Fetch a URL and pay for it if it must be paid for
///
/// Pays by x402 if the bill has terms for that which the wallet can pay, else over Lightning (L402), which needs a wallet (--lightning), else by an
/// ordinary transfer, which needs a node (--rpc) and takes until it is confirmed. Takes the key from FAREBOX_WALLET_KEY, --key-file or --keystore,
/// never from the command line. What is to be paid is noted in the journal first: after a crash or a lost answer, the same command goes on with the
/// same payment. Tokens that Lightning payments buy are kept beside the journal and used until they are spent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct PayArgs {
    /// What to fetch; https:// if it has no scheme, and http:// for localhost
    #[arg(value_name = "URL")]
    url: String,
    /// The method, as it is [default: GET, or POST with data]
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    method: Option<String>,
    /// A header, "Name: value"; "Name:" leaves a header out
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Form data; @FILE reads a file without its line ends, @- standard input; several are joined by &
    #[arg(short = 'd', long = "data", value_name = "DATA", conflicts_with = "data_binary")]
    data: Vec<String>,
    /// Data as it is; @FILE and @- likewise
    #[arg(long, value_name = "DATA")]
    data_binary: Option<String>,
    /// Ask for the head alone; HEAD is not sold, so nothing is ever signed for it
    #[arg(short = 'I', long, conflicts_with_all = ["data", "data_binary", "method"])]
    head: bool,
    /// Write the body to a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print status and headers before the body
    #[arg(short, long, conflicts_with = "json")]
    include: bool,
    /// Print no receipt; errors are told all the same
    #[arg(short, long)]
    silent: bool,
    /// Follow redirects of the unpaid request; a paid one is never redirected
    #[arg(short = 'L', long)]
    location: bool,
    /// Pay also where a redirect leads, whoever that is; without it only the origin of the URL is paid
    #[arg(long, requires = "location")]
    pay_redirects: bool,
    /// Pay over plain http too, where anybody on the way can change who is paid; to this machine it is always allowed
    #[arg(long)]
    allow_http: bool,
    /// The most this call may cost, such as 0.10 [default: $0.10]
    #[arg(long, value_name = "DOLLARS", value_parser = dollars)]
    max: Option<Usd>,
    /// Pay in this way only: x402, l402 or transfer; repeated, in this order of preference [default: x402, l402, transfer]
    #[arg(long = "rail", value_name = "RAIL", value_parser = rail)]
    rails: Vec<RailName>,
    /// Ask this node about a network, for transfers: eip155:8453=https://…; may be repeated. FAREBOX_RPC takes several with spaces
    /// between, and keeps a key in them from the command line
    #[arg(long = "rpc", value_name = "NETWORK=URL", env = "FAREBOX_RPC", hide_env_values = true, value_delimiter = ' ', value_parser = network_rpc)]
    rpc: Vec<NetworkRpc>,
    /// Pay over Lightning with this wallet: lnd+https://HOST:PORT?macaroon=FILE&cert=FILE, cln+https://HOST:PORT?rune=FILE&cert=FILE, or
    /// nostr+walletconnect://…, which is a secret: FAREBOX_LIGHTNING keeps it from the command line
    #[arg(long, value_name = "WALLET", env = "FAREBOX_LIGHTNING", hide_env_values = true)]
    lightning: Option<WalletUri>,
    /// The most this call may cost over Lightning, in sats, fees for the way not counted [default: 100 if neither --max nor --btc-usd is given]
    #[arg(long, value_name = "SATS", value_parser = sats)]
    max_sat: Option<Msat>,
    /// What one bitcoin is worth in dollars: then --max counts over Lightning too
    #[arg(long, value_name = "DOLLARS")]
    btc_usd: Option<Decimal>,
    /// The most that forwarding nodes may take of a Lightning payment: percent of it, and how many sats are fine in any
    /// case. Nostr Wallet Connect knows no such limit: what such a wallet takes is told afterwards
    #[arg(long, value_name = "PERCENT[,SATS]", default_value = "5,10", value_parser = routing_fee)]
    max_routing_fee: RoutingFee,
    /// The most that the gas of a transfer may cost, in whole coins of its network [default: 0.001]
    #[arg(long, value_name = "COINS", value_parser = coins)]
    max_gas: Option<Wei>,
    /// Also pay in this token or coin: CAIP-19 name, symbol and decimals, with commas between, and what one of it is worth in
    /// dollars if that is not 1: eip155:8453/slip44:60,ETH,18,4000
    #[arg(long = "asset", value_name = "ASSET,SYMBOL,DECIMALS[,DOLLARS]", value_parser = dollar_asset)]
    assets: Vec<DollarAsset>,
    /// Pay on this network only, such as eip155:8453; may be repeated
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<Network>,
    /// Pay to this address only; may be repeated
    #[arg(long = "pay-to", value_name = "ADDRESS", value_parser = farebox_evm::parse_address)]
    payees: Vec<EvmAddress>,
    /// Read the wallet's key, 64 hex digits, from a file
    #[arg(long, value_name = "FILE", conflicts_with = "keystore")]
    key_file: Option<PathBuf>,
    /// Read the wallet's key from an encrypted keystore (geth, foundry); its password is in FAREBOX_WALLET_PASSWORD
    #[arg(long, value_name = "FILE")]
    keystore: Option<PathBuf>,
    /// Read the keystore's password from the first line of a file
    #[arg(long, value_name = "FILE", requires = "keystore")]
    password_file: Option<PathBuf>,
    /// Print one JSON object: status, headers, body, payment; or the error
    #[arg(long)]
    json: bool,
    /// Show the bill and what would be paid; sign nothing
    #[arg(long)]
    dry_run: bool,
    /// Give up after so many seconds, all attempts together [default: 120, and 1200 once a transfer is made]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
    /// The journal's folder [default: farebox/journal in the user's state folder]
    #[arg(long, value_name = "FOLDER", env = "FAREBOX_JOURNAL")]
    journal: Option<PathBuf>,
    /// Pay for its own even if the same request is being paid for: commands with one label share a payment
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    label: String,
}

/// What the command gets from the process.
#[derive(Clone, Debug)]
pub(crate) struct PayContext {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    /// Reads an environment variable.
    pub(crate) environment: fn(&str) -> Option<String>,
}

/// Why the command ends without an answer.
#[derive(Debug)]
enum Failure {
    Usage(anyhow::Error),
    /// Wallet or journal.
    SetUp(anyhow::Error),
    Fetch(FetchError),
    /// The body of a paid answer did not arrive whole.
    BrokenOff {
        payment: Box<PaymentMade>,
        source: reqwest::Error,
    },
    Other(anyhow::Error),
}

/// Runs the command; errors that have an exit code of their own are told here.
///
/// # Errors
/// Standard output or the output file cannot be written.
pub(crate) async fn run(args: PayArgs, context: PayContext) -> anyhow::Result<ExitCode> {
    match pay(&args, &context).await {
        Ok(code) => Ok(code),
        Err(Failure::Other(error)) => Err(error),
        Err(failure) => {
            output::failure(&args, &failure)?;
            Ok(failure.exit_code())
        }
    }
}

async fn pay(args: &PayArgs, context: &PayContext) -> Result<ExitCode, Failure> {
    let request = request::build(args).map_err(Failure::Usage)?;
    let (method, url) = (request.method().clone(), request.url().clone());
    let agent = agent(args, context).map_err(Failure::SetUp)?;
    if args.dry_run {
        let quote = agent.quote_distinct(request, &args.label).await.map_err(Failure::Fetch)?;
        output::quote(args, &quote).map_err(Failure::Other)?;
        return Ok(match &quote {
            Quote::Bill { offers, .. } if !offers.iter().any(|offer| offer.chosen) => ExitCode::from(4),
            Quote::Free(response) if response.status().as_u16() >= 400 => ExitCode::from(22),
            _ => ExitCode::SUCCESS,
        });
    }
    // A file that cannot be written must not be found out once the money is gone.
    let out = output::open(args).map_err(Failure::Usage)?;
    let fetched = agent.fetch_distinct(request, &args.label).await.map_err(Failure::Fetch)?;
    let (status, paid) = (fetched.response.status().as_u16(), fetched.payment.is_some());
    output::answer(args, out, &method, &url, fetched).await?;
    Ok(match (status, paid) {
        (400.., false) => ExitCode::from(22),
        (400.., true) => ExitCode::from(23),
        _ => ExitCode::SUCCESS,
    })
}

fn agent(args: &PayArgs, context: &PayContext) -> anyhow::Result<Agent> {
    let folder = journal_folder(args, context)?;
    let journal = if args.dry_run {
        Journal::unopened(&folder)
    } else {
        Journal::open(&folder, context.clock.now())
            .with_context(|| format!("the payment journal in {} cannot be used", folder.display()))?
    };
    let mut policy = Policy::default();
    policy.max_per_call = args.max.unwrap_or(policy.max_per_call);
    // What the user says of a token goes before what we know of it.
    policy.assets = args.known_assets();
    if let Some(rate) = args.btc_usd {
        for network in BitcoinNetwork::ALL {
            let sats = DollarAsset::sats(&network.network()).worth_each(rate).context("--btc-usd is no rate")?;
            policy.assets.push(sats);
        }
    }
    policy.max_msat_per_call = args.max_msat();
    policy.routing_fee = args.max_routing_fee;
    policy.networks = some_set(&args.networks);
    policy.payees = some_set(&args.payees);
    if !args.rails.is_empty() {
        policy.rails.clone_from(&args.rails);
    }
    policy.max_gas_wei = args.max_gas.map_or(policy.max_gas_wei, |Wei(wei)| wei);
    let mut retry = RetryPolicy::default();
    if let Some(seconds) = args.timeout {
        retry.deadline = Duration::from_secs(seconds);
        retry.transfer_deadline = retry.deadline;
    }
    let client = reqwest::Client::builder().user_agent(concat!("farebox/", env!("CARGO_PKG_VERSION")));
    let redirects = match (args.location, args.pay_redirects) {
        (false, _) => Redirects::Return,
        (true, false) => Redirects::Follow { hops_max: REDIRECTS_MAX },
        (true, true) => Redirects::FollowAndPay { hops_max: REDIRECTS_MAX },
    };
    let plain_http = if args.allow_http { PlainHttp::Paid } else { PlainHttp::Unpaid };
    let Wallets { evm, lightning } = wallet::open(args, context)?;
    let mut agent = Agent::builder();
    if let Some(wallet) = evm {
        agent = agent.wallet(wallet);
    }
    if let Some(wallet) = lightning {
        agent = agent.lightning(wallet);
    }
    let agent = agent
        .journal(journal)
        .clock(Arc::clone(&context.clock))
        .entropy(Arc::clone(&context.entropy))
        .policy(policy)
        .retry(retry)
        .redirects(redirects)
        .plain_http(plain_http)
        .on_foreign_resend(output::foreign_resend)
        .client(client);
    Ok(agent.build()?)
}

impl PayArgs {
    fn known_assets(&self) -> Vec<DollarAsset> {
        self.assets.iter().cloned().chain(well_known_assets()).collect()
    }

    fn max_msat(&self) -> Option<u64> {
        let nothing_said = self.max.is_none() && self.btc_usd.is_none();
        self.max_sat.map(|Msat(msat)| msat).or(nothing_said.then_some(MAX_MSAT_DEFAULT))
    }
}

fn some_set<T: Ord + Clone>(items: &[T]) -> Option<BTreeSet<T>> {
    (!items.is_empty()).then(|| items.iter().cloned().collect())
}

/// `--journal`, or the user's state folder. Source: XDG Base Directory Specification.
fn journal_folder(args: &PayArgs, context: &PayContext) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &args.journal {
        return Ok(folder.clone());
    }
    let absolute = |name: &str| (context.environment)(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("LOCALAPPDATA"))
        .or_else(|| absolute("HOME").map(|home| home.join(Path::new(".local/state"))));
    let state = state.ok_or_else(|| anyhow!("there is no folder for the payment journal; name one with --journal"))?;
    Ok(state.join("farebox").join("journal"))
}

fn dollars(text: &str) -> anyhow::Result<Usd> {
    Ok(Usd::new(text.strip_prefix('$').unwrap_or(text).parse()?)?)
}

fn dollar_asset(text: &str) -> anyhow::Result<DollarAsset> {
    let (id, symbol, decimals, worth) = match text.split(',').collect::<Vec<_>>()[..] {
        [id, symbol, decimals] => (id, symbol, decimals, None),
        [id, symbol, decimals, worth] => (id, symbol, decimals, Some(worth)),
        _ => anyhow::bail!("expected a token as eip155:8453/erc20:0x833589fcd6edb6e08f4c7c32d4f71b54bda02913,USDC,6"),
    };
    let decimals = decimals.parse().with_context(|| format!("expected decimals of 0 to 18, found {decimals}"))?;
    let (id, worth): (AssetId, _) = (id.parse()?, worth.map(|text| text.strip_prefix('$').unwrap_or(text)));
    // A coin that is taken for a dollar by a slip would be paid in thousands.
    anyhow::ensure!(worth.is_some() || !id.is_native(), "say what one {symbol} is worth in dollars: {text},4000");
    let asset = DollarAsset::new(id, symbol, decimals)?;
    match worth {
        None => Ok(asset),
        Some(worth) => Ok(asset.worth_each(worth.parse()?)?),
    }
}

fn rail(text: &str) -> anyhow::Result<RailName> {
    let found = RailName::ALL.into_iter().find(|rail| rail.as_str() == text);
    found.ok_or_else(|| anyhow!("expected x402, l402 or transfer"))
}

/// A node, and the network it is of.
#[derive(Clone, Debug)]
struct NetworkRpc {
    network: Network,
    url: RpcUrl,
}

fn network_rpc(text: &str) -> anyhow::Result<NetworkRpc> {
    // The text is not repeated: it may hold an API key.
    let (network, url) = text.split_once('=').context("expected a node as eip155:8453=https://mainnet.base.org")?;
    Ok(NetworkRpc { network: network.parse()?, url: RpcUrl::parse(url)? })
}

/// Wei.
#[derive(Clone, Copy, Debug)]
struct Wei(u128);

fn coins(text: &str) -> anyhow::Result<Wei> {
    Ok(Wei(text.parse::<Decimal>()?.to_units(COIN_DECIMALS)?))
}

/// A Lightning wallet as its user names it. Does not print: over Nostr Wallet Connect the name is the secret.
#[derive(Clone)]
struct WalletUri(Zeroizing<String>);

impl From<&str> for WalletUri {
    fn from(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }
}

impl fmt::Debug for WalletUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WalletUri(..)")
    }
}

/// Millisatoshis.
#[derive(Clone, Copy, Debug)]
struct Msat(u64);

fn sats(text: &str) -> anyhow::Result<Msat> {
    Ok(Msat(u64::try_from(text.parse::<Decimal>()?.to_units(SAT_DECIMALS)?)?))
}

fn routing_fee(text: &str) -> anyhow::Result<RoutingFee> {
    let (percent, floor) = text.split_once(',').unwrap_or((text, "0"));
    let percent =
        percent.parse().with_context(|| format!("expected whole percent as in 5 or 5,10, found {percent}"))?;
    let Msat(floor_msat) = sats(floor)?;
    Ok(RoutingFee { percent, floor_msat })
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::SetUp(_) => 3,
            Self::Fetch(error) => match error {
                FetchError::Request(_) => 2,
                FetchError::NotSent(error) if matches!(**error, NotSent::GasOverMax { .. }) => 4,
                FetchError::Lightning(error) => match error {
                    LightningError::Wallet(_) | LightningError::NotPaid { .. } => 3,
                    LightningError::Unclear { .. } | LightningError::OtherWallet { .. } => 6,
                    LightningError::NoPreimage { .. } => 13,
                },
                FetchError::NotSent(_)
                | FetchError::Wallet(_)
                | FetchError::WalletStrayed { .. }
                | FetchError::Journal(_) => 3,
                FetchError::Policy(_) | FetchError::HeadNotSold { .. } => 4,
                FetchError::Refused { .. }
                | FetchError::InsufficientBalance { .. }
                | FetchError::NotServed { .. }
                | FetchError::StoppedAfterRefusal { .. } => 5,
                FetchError::OutcomeUnclear { .. }
                | FetchError::OtherWallet { .. }
                | FetchError::TransferUnconfirmed { .. }
                | FetchError::TransferLate { .. } => 6,
                FetchError::Network { .. } => 7,
                FetchError::Bill(_) => 8,
                FetchError::ChargedNotServed { .. } | FetchError::ChargedNotDelivered { .. } => 9,
                FetchError::TransferVoid { .. } => 11,
                FetchError::Credited { .. } => 12,
            },
            Self::BrokenOff { .. } => 10,
            Self::Other(_) => 1,
        })
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::SetUp(_) => "set_up",
            Self::Fetch(error) => error.code(),
            Self::BrokenOff { .. } => "answer_broke_off",
            Self::Other(_) => "other",
        }
    }

    fn stake(&self) -> Stake {
        match self {
            Self::Fetch(error) => error.stake(),
            Self::BrokenOff { payment, .. } => match payment.charge {
                Charge::Charged { .. } => Stake::Charged,
                Charge::NotCharged { .. } => Stake::Declined,
                Charge::Prepaid => Stake::Charged,
                Charge::NoReceipt { .. } | Charge::NotSettled { .. } => Stake::Unclear,
            },
            _ => Stake::Nothing,
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Fetch(error) => error.retryable(),
            Self::BrokenOff { .. } => true,
            Self::Usage(_) | Self::SetUp(_) | Self::Other(_) => false,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        let again = "run the same command again: it sends the same payment and cannot pay twice";
        let error = match self {
            Self::Fetch(error) => error,
            Self::BrokenOff { .. } => return Some(again),
            Self::Usage(_) | Self::SetUp(_) | Self::Other(_) => return None,
        };
        match error {
            FetchError::Policy(_) => Some(
                "--dry-run shows the whole bill; --max, --max-sat, --btc-usd, --asset, --network, --rail, --pay-redirects and --allow-http widen the policy",
            ),
            FetchError::Lightning(LightningError::Unclear { .. }) => {
                Some("run the same command again: it asks the wallet what became of this payment and cannot pay twice")
            }
            FetchError::Lightning(LightningError::NoPreimage { .. }) => Some(
                "the money is gone; ask whoever runs the wallet for the preimage of this payment hash, run the same command again if the wallet \
                 has it by then, and use a wallet that gives preimages; to pay again on purpose, use a --label of its own",
            ),
            FetchError::Lightning(LightningError::OtherWallet { .. }) => {
                Some("run it again with that wallet; to pay again on purpose, use a --label of its own")
            }
            FetchError::Lightning(LightningError::NotPaid { .. }) => Some(
                "nothing was paid: see that the wallet has a channel with enough sats in it, or allow more with --max-routing-fee",
            ),
            FetchError::Wallet(WalletError::Unsupported { .. }) => Some(
                "a key (FAREBOX_WALLET_KEY, --key-file, --keystore) pays by x402 and transfer, a wallet (--lightning) by l402",
            ),
            FetchError::NotSent(error) if matches!(**error, NotSent::GasOverMax { .. }) => {
                Some("wait for lower fees, allow more with --max-gas, or pay on another --network")
            }
            FetchError::Wallet(WalletError::NoNode { .. }) => Some("name one with --rpc NETWORK=URL or in FAREBOX_RPC"),
            FetchError::OutcomeUnclear { .. } => Some(again),
            FetchError::TransferUnconfirmed { .. } => {
                Some("run the same command again: it goes on with this one transfer and cannot pay twice")
            }
            FetchError::TransferLate { .. } => {
                Some("run the same command again to see whether it was mined; --label NAME makes a payment of its own")
            }
            FetchError::Credited { .. } => Some("to pay again on purpose, run it again with a --label of its own"),
            FetchError::NotServed { .. } => Some("run the same command again to try again: it sends the same payment"),
            FetchError::ChargedNotServed { .. } => Some("run the same command again: it redeems this payment"),
            FetchError::InsufficientBalance { .. } => Some("fund the wallet or name another one, and run this again"),
            _ => None,
        }
    }

    /// What happened, then what caused it, outermost first.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Usage(error) | Self::SetUp(error) | Self::Other(error) => {
                error.chain().map(|e| e.to_string()).collect()
            }
            Self::Fetch(error) => error_lines(error),
            Self::BrokenOff { source, .. } => {
                let mut lines = vec!["the answer to the payment broke off".to_owned()];
                lines.extend(error_lines(source));
                lines
            }
        }
    }
}

fn error_lines(error: &dyn std::error::Error) -> Vec<String> {
    let mut lines: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    // An error that tells its cause itself need not be told twice.
    lines.dedup_by(|cause, line| line.ends_with(cause.as_str()));
    lines
}
