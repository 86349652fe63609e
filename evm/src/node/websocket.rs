//! A node over a WebSocket: one connection, made when it is first needed and again after it is lost. Answers are matched by id, and
//! questions arrive in the order in which they were asked.

use std::{sync::Arc, time::Duration};

use alloy::{
    rpc::{client::RpcClient, json_rpc::RpcError},
    transports::{TransportError, TransportErrorKind},
};
use alloy_transport_ws::{WebSocketConfig, WsConnect};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use url::Url;

use super::{
    Answered, SourceError,
    ask::{Question, Reply},
};

/// The longest message that is read.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A lost connection is made again at once and once; then the next question does it, if the source is asked at all.
const RECONNECTS_MAX: u32 = 1;
const RECONNECT_WAIT: Duration = Duration::from_millis(100);

type Connecting = Shared<BoxFuture<'static, Result<RpcClient, Arc<TransportError>>>>;

pub(super) struct WebSocket {
    url: Url,
    timeout: Duration,
    /// Shared by everybody who asks while it is being made.
    connection: Mutex<Option<Connecting>>,
}

impl WebSocket {
    pub(super) fn new(url: &Url, timeout: Duration) -> Self {
        Self { url: url.clone(), timeout, connection: Mutex::new(None) }
    }

    pub(super) async fn all(&self, questions: &[Question]) -> Result<Vec<Reply>, SourceError> {
        let connecting = self.connection();
        let client = match connecting.clone().await {
            Ok(client) => client,
            Err(error) => {
                self.lose(&connecting);
                return Err(SourceError::Transport(Box::new(error)));
            }
        };
        // Joined, and so begun in this order on one connection.
        let asked = questions.iter().map(|question| {
            let asked = client.request::<_, Box<RawValue>>(question.method, question.params.clone());
            asked.into_future()
        });
        let mut replies = Vec::with_capacity(questions.len());
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(result) => replies.push(Ok(result)),
                Err(RpcError::ErrorResp(payload)) => replies.push(Err(Answered::new(payload.code, &payload.message))),
                Err(RpcError::NullResp) => replies.push(Ok(RawValue::NULL.to_owned())),
                Err(error) => {
                    if let RpcError::Transport(TransportErrorKind::BackendGone) = error {
                        self.lose(&connecting);
                    }
                    return Err(SourceError::Transport(Box::new(error)));
                }
            }
        }
        Ok(replies)
    }

    fn connection(&self) -> Connecting {
        let mut connection = self.connection.lock();
        connection.get_or_insert_with(|| connect(self.url.clone(), self.timeout).boxed().shared()).clone()
    }

    /// Unless somebody has made another one since.
    fn lose(&self, lost: &Connecting) {
        let mut connection = self.connection.lock();
        if connection.as_ref().is_some_and(|current| current.ptr_eq(lost)) {
            *connection = None;
        }
    }
}

async fn connect(url: Url, timeout: Duration) -> Result<RpcClient, Arc<TransportError>> {
    let limits = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
    let connect = WsConnect::new(url.as_str())
        .with_config(limits)
        .with_max_retries(RECONNECTS_MAX)
        .with_retry_interval(RECONNECT_WAIT);
    match tokio::time::timeout(timeout, RpcClient::connect_pubsub(connect)).await {
        Ok(connected) => connected.map_err(Arc::new),
        Err(late) => Err(Arc::new(TransportErrorKind::custom(late))),
    }
}
