//! The Lightning node, asked who it is and what it can receive. No invoice is made.

use std::sync::Arc;

use farebox_core::ports::{Clock, NodeInfo};

use super::finding::Findings;
use crate::{
    config::{Config, NodeSource},
    system::SystemClock,
    wiring::lightning::{Unfit, connect, inspect},
};

/// Asks the node, if there is one.
pub(super) async fn look(config: &Config, source: Option<&NodeSource>, findings: &mut Findings) {
    let (Some(settings), Some(source)) = (&config.lightning, source) else { return };
    let subject = format!("lightning, Bitcoin's {}", settings.network);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let node = match connect(config, settings, source, &clock) {
        Ok(node) => node,
        Err(error) => return findings.fail("lightning_node", subject, format!("{error:#}")),
    };
    let (known, unfit) = inspect(settings, &*node).await;
    for unfit in unfit {
        match unfit {
            Unfit::ForGood(why) => findings.fail("lightning_node", subject.clone(), why),
            // The gateway starts without it, and takes no Lightning payments until it is there.
            Unfit::ForNow(why) if known.is_none() => findings.fail("lightning_node", subject.clone(), why),
            Unfit::ForNow(why) => findings.warn("lightning_node", subject.clone(), why),
        }
    }
    let Some(info) = known else { return };
    findings.pass("lightning_node", subject.clone(), format!("{} answers: {}", node.label(), told(&info)));
    match info.receivable_msat {
        None => findings.warn("lightning_receivable", subject, "the node does not tell what it can receive"),
        Some(0) => {}
        Some(msat) => findings.pass("lightning_receivable", subject, format!("can receive {} sat now", msat / 1000)),
    }
}

fn told(info: &NodeInfo) -> String {
    let channels =
        info.channels.map_or_else(String::new, |count| format!(", {}", super::count(count as usize, "channel")));
    let alias = if info.alias.is_empty() {
        String::new()
    } else {
        format!(" ({})", farebox_core::Untrusted::new(info.alias.as_str()))
    };
    format!("node {}{alias}{channels}", info.id)
}
