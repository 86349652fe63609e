//! The node of `[lightning]` with its secrets.

use std::{ops::Range, path::Path};

use farebox_lightning::node::{ClnConfig, LndConfig, NodeConfig, SecretSource};
use zeroize::Zeroizing;

use super::{
    lightning::{Lightning, Node},
    read::{Located, Notes},
    secret::{Environment, SecretRef},
};

/// Which node invoices are made by.
#[derive(Clone, Debug)]
pub(crate) enum NodeSource {
    /// One that runs elsewhere.
    Remote(Box<NodeConfig>),
    /// None: its invoices are not wanted. For checks, which make none.
    Idle,
}

impl Lightning {
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
            Node::Nwc { .. } | Node::Ldk { .. } => {
                notes.wrong(self.node.span(), "lightning.node", "this farebox was built without that kind of node")
            }
        }
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
