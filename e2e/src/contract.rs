//! Contracts of `e2e/contracts`, compiled when a test asks for one.

use std::{collections::HashMap, process::Command, sync::OnceLock};

use alloy::{
    primitives::{Address, hex},
    sol,
};
use anyhow::{Context, Result, anyhow, ensure};

use crate::{Anvil, Tool, tool, tools::script};

sol! {
    /// A payer's contract, whichever: each function is that of the contract in `Hostile.sol` that has it.
    interface Contracts {
        function mint(address to, uint256 value) external;
        function transfer(address to, uint256 value) external returns (bool);
        function approve(address spender, uint256 value) external returns (bool);
        function lie(address from, address to, uint256 value) external;
        function pay(address token, address to, uint256 value, uint256 times) external;
        function payEach(address token, address to, uint256[] values) external;
        function execute(address to, uint256 value, bytes data) external payable;
        function set(int256 answer, uint256 updatedAt) external;
    }
}

/// Deploys the contract called `name` of `Hostile.sol` from the rich account; `arguments` are ABI-encoded.
///
/// # Errors
/// There is none, it does not compile, or its creation reverts.
pub async fn deploy(anvil: &Anvil, name: &str, arguments: &[u8]) -> Result<Address> {
    let code = compiled()?.get(name).with_context(|| format!("there is no contract {name}"))?;
    anvil.deploy(&hex::decode(code)?, arguments).await
}

/// Creation codes by contract, in hex. The compiler takes two seconds, so it runs once a process.
fn compiled() -> Result<&'static HashMap<String, String>> {
    static COMPILED: OnceLock<Result<HashMap<String, String>, String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
    compiled.as_ref().map_err(|error| anyhow!("{error}"))
}

fn compile() -> Result<HashMap<String, String>> {
    let contracts = script("contracts");
    let mut node = Command::new(tool(Tool::Node)?);
    let output = node.arg(contracts.join("compile.mjs")).arg(contracts.join("Hostile.sol")).output()?;
    ensure!(output.status.success(), "solc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
