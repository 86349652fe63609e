//! Where the tools are that `.ci/tools` installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// What a test may need beside Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Foundry's development node.
    Anvil,
    /// Foundry's command line: a wallet for shell scripts.
    Cast,
    /// The folder of npm packages.
    NodeModules,
    /// Node.js.
    Node,
    /// Python, with the packages of `e2e/requirements.txt`.
    Python,
    /// Python, with the packages of `e2e/requirements-l402.txt`.
    PythonL402,
    /// What makes a process believe in another time.
    Faketime,
    /// The browser.
    Chromium,
    /// The peer of the benchmark, and its origin.
    Nginx,
    /// The load of the benchmark.
    Wrk,
    /// Bitcoin Core's daemon, without a wallet.
    Bitcoind,
    /// A Lightning node.
    Lnd,
    /// Lightning Labs' reverse proxy that speaks L402.
    Aperture,
    /// Its gRPC client, and a gRPC service: `e2e/tools/aperture/l402-grpc`.
    L402Grpc,
    /// The `farebox` binary; `FAREBOX_BIN`, else the debug build beside the running test.
    Farebox,
}

impl Tool {
    const fn variable(self) -> &'static str {
        match self {
            Self::Anvil => "FAREBOX_ANVIL",
            Self::Cast => "FAREBOX_CAST",
            Self::NodeModules => "FAREBOX_NODE_MODULES",
            Self::Node => "FAREBOX_NODE",
            Self::Python => "FAREBOX_PYTHON",
            Self::PythonL402 => "FAREBOX_PYTHON_L402",
            Self::Faketime => "FAREBOX_FAKETIME",
            Self::Chromium => "FAREBOX_CHROMIUM",
            Self::Nginx => "FAREBOX_NGINX",
            Self::Wrk => "FAREBOX_WRK",
            Self::Bitcoind => "FAREBOX_BITCOIND",
            Self::Lnd => "FAREBOX_LND",
            Self::Aperture => "FAREBOX_APERTURE",
            Self::L402Grpc => "FAREBOX_L402_GRPC",
            Self::Farebox => "FAREBOX_BIN",
        }
    }
}

/// The path of `tool`: its environment variable, else the line `.ci/tools` wrote to `.cache/env`.
///
/// # Errors
/// Neither names it, or nothing is there.
pub fn tool(tool: Tool) -> Result<PathBuf> {
    let variable = tool.variable();
    #[expect(clippy::disallowed_methods, reason = "the test harness is told by the environment where the tools are")]
    let told = std::env::var_os(variable).map(PathBuf::from);
    let path = match (told, tool) {
        (Some(path), _) => path,
        (None, Tool::Farebox) => beside_this_test()?,
        (None, _) => from_env_file(variable)?,
    };
    ensure!(
        path.exists(),
        "{variable} is {}, and nothing is there; run .ci/tools, and `cargo build -p farebox` for the binary",
        path.display()
    );
    Ok(path)
}

/// A file of this crate's folder.
pub(crate) fn script(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn from_env_file(variable: &str) -> Result<PathBuf> {
    let file = script("../.cache/env");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("{variable} is not set and there is no {}: run .ci/tools", file.display()))?;
    let prefix = format!("export {variable}=");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    value.map(PathBuf::from).with_context(|| format!("{} does not name {variable}: run .ci/tools", file.display()))
}

/// Test binaries lie in `TARGET/PROFILE/deps`, the binary in `TARGET/PROFILE`.
fn beside_this_test() -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test")?;
    let profile = test.parent().and_then(Path::parent).context("a test binary two folders deep in target")?;
    Ok(profile.join("farebox"))
}
