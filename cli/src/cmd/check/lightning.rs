//! The Lightning node, asked who it is and what it can receive. No invoice is made.

use std::sync::Arc;

use farebox_core::ports::{Clock, NodeInfo};

#[cfg(feature = "ldk")]
use farebox_lightning::embedded::{self, Command, ControlError, Done, EmbeddedConfig};

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
    #[cfg(feature = "ldk")]
    if let NodeSource::Embedded(own) = source {
        return embedded(own, subject, findings).await;
    }
    let node = match connect(config, settings, source, &clock).await {
        Ok(connected) => connected.node,
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

/// A node of our own is asked if it runs, and not started for a check: its peers would see it come and go.
#[cfg(feature = "ldk")]
async fn embedded(own: &EmbeddedConfig, subject: String, findings: &mut Findings) {
    let made_for = match embedded::network_of(&own.dir) {
        Ok(network) => network,
        Err(error) => {
            let why = format!("{}; `farebox lightning init` makes one", super::world::chain_of(&error));
            return findings.fail("lightning_node", subject, why);
        }
    };
    if made_for != own.network {
        let why = format!("the node in {} was made for Bitcoin's {made_for}", own.dir.display());
        return findings.fail("lightning_node", subject, why);
    }
    match embedded::ask(&own.dir, &Command::Status).await {
        Ok(Done::Status(report)) => {
            let channels = super::count(report.channels.len(), "channel");
            findings.pass("lightning_node", subject.clone(), format!("the node {} runs, {channels}", report.node_id));
            if !report.synced {
                findings.warn("lightning_node", subject.clone(), format!("{} has not answered lately", report.chain));
            }
            for advice in report.advice {
                findings.warn("lightning_node", subject.clone(), advice);
            }
            let message = format!("can receive {} sat now", report.receivable_msat / 1000);
            findings.pass("lightning_receivable", subject, message);
        }
        Ok(_) => findings.fail("lightning_node", subject, "the node answers something else than was asked"),
        Err(ControlError::NotRunning) => {
            let message = format!(
                "the node in {} does not run; `farebox serve` starts it, and `farebox lightning status` says what it can receive",
                own.dir.display()
            );
            findings.pass("lightning_node", subject, message);
        }
        Err(error) => findings.warn("lightning_node", subject, super::world::chain_of(&error)),
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
