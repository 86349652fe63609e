//! The node of `[lightning]` with its secrets.

#[cfg(feature = "ldk")]
use std::path::PathBuf;
use std::{net::SocketAddr, ops::Range, path::Path};

#[cfg(feature = "ldk")]
use farebox_lightning::embedded::{ChainSource, ChainSourceError, EmbeddedConfig};
use farebox_lightning::node::{ClnConfig, LndConfig, NodeConfig, NodeUriError, NwcConfig, SecretSource};
use zeroize::Zeroizing;

use super::{
    lightning::{Lightning, Node},
    read::{Located, Notes},
    secret::{Environment, SecretRef, Template},
};

/// Which node invoices are made by.
#[derive(Clone, Debug)]
pub(crate) enum NodeSource {
    /// One that runs elsewhere.
    Remote(Box<NodeConfig>),
    /// One within this process.
    #[cfg(feature = "ldk")]
    Embedded(Box<EmbeddedConfig>),
    /// None: its invoices are not wanted. For checks, which make none.
    Idle,
}

/// A node within this process, as the config has it.
#[cfg(feature = "ldk")]
pub(crate) struct OwnNode {
    pub(crate) dir: PathBuf,
    /// Whom it asks about the chain; or what is wrong with that, which not every command needs.
    pub(crate) chain: Result<ChainSource, String>,
    pub(crate) listen: Vec<SocketAddr>,
}

impl Lightning {
    /// The node within this process, if it is one; fetches no secret but the chain source's.
    #[cfg(feature = "ldk")]
    pub(crate) fn own_node(&self, env: Environment<'_>) -> Option<OwnNode> {
        let Node::Ldk { dir, chain, listen } = self.node.get_ref() else { return None };
        Some(OwnNode { dir: dir.clone(), chain: chain_source(chain.get_ref(), env), listen: listen.clone() })
    }

    /// The node with its secrets. `None` after noting what could not be fetched.
    pub(super) fn with_secrets(&self, dir: &Path, env: Environment<'_>, notes: &mut Notes) -> Option<NodeSource> {
        let timeout = self.node_timeout;
        let remote = |config| Some(NodeSource::Remote(Box::new(config)));
        match self.node.get_ref() {
            Node::Lnd { url, macaroon, cert } => remote(NodeConfig::Lnd(LndConfig {
                url: url.clone(),
                macaroon: self.secret(macaroon, "lnd.macaroon", dir, env, notes)?,
                certificate: cert.clone(),
                timeout,
            })),
            Node::Cln { url, rune, cert } => remote(NodeConfig::Cln(ClnConfig {
                url: url.clone(),
                rune: self.secret(rune, "cln.rune", dir, env, notes)?,
                certificate: cert.clone(),
                timeout,
            })),
            Node::Nwc { uri } => {
                let fetched = uri.get_ref().fetch(dir, env);
                let parsed = fetched.and_then(|text| text.parse().map_err(|error: NodeUriError| error.to_string()));
                match parsed {
                    Ok(parsed) => remote(NodeConfig::Nwc(NwcConfig { uri: parsed, timeout })),
                    Err(why) => self.wrong(uri.span(), "nwc", format!("{}: {why}", uri.get_ref()), notes),
                }
            }
            Node::Ldk { dir, chain, listen } => self.embedded(dir, chain, listen, env, notes),
        }
    }

    #[cfg(feature = "ldk")]
    fn embedded(
        &self,
        dir: &Path,
        chain: &Located<Template>,
        listen: &[SocketAddr],
        env: Environment<'_>,
        notes: &mut Notes,
    ) -> Option<NodeSource> {
        let asked = match chain_source(chain.get_ref(), env) {
            Ok(asked) => asked,
            Err(why) => return self.wrong(chain.span(), "ldk.chain", why, notes),
        };
        let (dir, listen) = (dir.to_owned(), listen.to_vec());
        Some(NodeSource::Embedded(Box::new(EmbeddedConfig { dir, network: self.network, chain: asked, listen })))
    }

    #[cfg(not(feature = "ldk"))]
    fn embedded(
        &self,
        _dir: &Path,
        _chain: &Located<Template>,
        _listen: &[SocketAddr],
        _env: Environment<'_>,
        notes: &mut Notes,
    ) -> Option<NodeSource> {
        self.wrong(
            self.node.span(),
            "ldk",
            "this farebox was built without a node of its own (feature `ldk`)".to_owned(),
            notes,
        )
    }

    /// A file is left to the node, which may have it in a binary form.
    fn secret(
        &self,
        secret: &Located<SecretRef>,
        key: &str,
        dir: &Path,
        env: Environment<'_>,
        notes: &mut Notes,
    ) -> Option<SecretSource> {
        let fetched: Result<Zeroizing<String>, String> = match secret.get_ref() {
            SecretRef::File(path) => return Some(SecretSource::File(dir.join(path))),
            named @ SecretRef::Env(_) => named.fetch(dir, env),
        };
        match fetched {
            Ok(text) => Some(SecretSource::Text(text)),
            Err(why) => self.wrong(secret.span(), key, why, notes),
        }
    }

    fn wrong<T>(&self, span: Range<usize>, key: &str, why: String, notes: &mut Notes) -> Option<T> {
        notes.wrong(span, format!("lightning.node.{key}"), why)
    }
}

#[cfg(feature = "ldk")]
fn chain_source(text: &Template, env: Environment<'_>) -> Result<ChainSource, String> {
    text.fill(env)?.parse().map_err(|error: ChainSourceError| error.to_string())
}
