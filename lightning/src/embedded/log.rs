//! What ldk-node logs, told as ours.

use std::sync::atomic::{AtomicBool, Ordering};

use ldk_node::logger::{LogLevel, LogRecord, LogWriter};

/// What ldk-node says, in a log, when the loop that handles channels' events has ended for good; it says so nowhere else. Its task has
/// panicked then, for its store could not be written, and nothing is received any more.
const ENDED: &str = "Failed to process events:";

/// Longer lines are cut.
const LINE_CHARS_MAX: usize = 500;

/// Passes lines on, one level lower than ldk-node has them, for its "info" tells of every invoice; and notices the one that matters.
#[derive(Debug, Default)]
pub(super) struct Log {
    ended: AtomicBool,
}

impl Log {
    /// Whether the node stopped working although it runs.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl LogWriter for Log {
    fn log(&self, record: LogRecord<'_>) {
        // What goes unseen need not be formatted; errors are looked through.
        let seen = match record.level {
            LogLevel::Gossip | LogLevel::Trace | LogLevel::Debug => tracing::enabled!(tracing::Level::TRACE),
            LogLevel::Info => tracing::enabled!(tracing::Level::DEBUG),
            LogLevel::Warn | LogLevel::Error => true,
        };
        if !seen {
            return;
        }
        let text = record.args.to_string();
        if record.level == LogLevel::Error && text.starts_with(ENDED) {
            self.ended.store(true, Ordering::Release);
        }
        // Peers' words are in there: no line breaks, no moving of a terminal's cursor.
        let message: String = text.chars().take(LINE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let from = record.module_path;
        match record.level {
            LogLevel::Gossip | LogLevel::Trace | LogLevel::Debug => tracing::trace!(from, "{message}"),
            LogLevel::Info => tracing::debug!(from, "{message}"),
            LogLevel::Warn => tracing::info!(from, "lightning: {message}"),
            LogLevel::Error => tracing::warn!(from, "lightning: {message}"),
        }
    }
}
