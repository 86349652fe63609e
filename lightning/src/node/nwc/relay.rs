//! One connection to one relay: requests go out, the wallet's answers and notices come in. Source: NIP-01, NIP-42.
//!
//! The relay is nobody's friend: it may send what was not asked for, from others, twice, or late. What counts is what the wallet signed,
//! for this client, about a request that is waiting.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use farebox_core::{Untrusted, ports::BoxError};
use futures_util::{SinkExt as _, StreamExt as _};
use nostr::{Event, EventBuilder, EventId, JsonUtil as _, RelayMessage, RelayUrl, Timestamp};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};
use url::Url;

use super::{NwcError, NwcUri};
use crate::node::{Trust, tls};

/// The wallet tells what it can do.
const INFO: u16 = 13_194;
/// The wallet answers a request.
pub(super) const RESPONSE: u16 = 23_195;
/// The wallet tells of something by itself: in NIP-04, in NIP-44.
pub(super) const NOTICES: [u16; 2] = [23_196, 23_197];
/// Our two subscriptions.
const INFO_ID: &str = "info";
const ANSWERS_ID: &str = "answers";

/// How far the wallet's clock may be behind ours: what it dates earlier the relay does not pass on.
const CLOCKS_APART: Duration = Duration::from_secs(3600);
/// The longest message that is read.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Requests that wait to be sent.
const OUTBOX_MAX: usize = 64;
/// Notices that nobody has taken; beyond that the wallet's list is read instead.
const NOTICES_MAX: usize = 1024;
/// How often a silent connection is pinged, and for how long it may be silent all the same.
const PING: Duration = Duration::from_secs(20);
const SILENCE_MAX: Duration = Duration::from_secs(50);

/// A connection, as long as it lasts. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<String>,
    running: JoinHandle<()>,
    /// What the wallet published of itself; nothing if the relay has nothing.
    pub(super) info: Option<Event>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<EventId, oneshot::Sender<Result<Event, NwcError>>>>,
    notices: Mutex<Notices>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Notices {
    events: VecDeque<Event>,
    /// Since the last time that somebody looked: too many came, or the connection is gone.
    lost: bool,
    closed: bool,
}

/// What came by itself.
#[derive(Debug)]
pub(super) enum Noticed {
    /// The wallet tells of something.
    Event(Box<Event>),
    /// Some were dropped; the wallet's list has them.
    Lost,
    /// The connection is gone.
    Closed,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
type Socket = WebSocketStream<Box<dyn Stream>>;

impl Relay {
    /// Connects, and waits until the relay has taken the subscriptions: an answer cannot be missed from then on.
    pub(super) async fn connect(url: &Url, uri: &NwcUri, now: Timestamp) -> Result<Self, NwcError> {
        let mut socket = open(url, &Trust::WebPki).await.map_err(NwcError::Relay)?;
        let mut session = Session { uri: uri.clone(), url: url.clone(), now, introduced: false };
        let info = session.subscribe(&mut socket).await?;
        let shared = Arc::new(Shared::default());
        let (outbox, sent) = mpsc::channel(OUTBOX_MAX);
        let running = tokio::spawn(run(socket, session, Arc::clone(&shared), sent));
        Ok(Self { shared, outbox, running, info })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.shared.notices.lock().closed
    }

    /// Publishes a request and waits for its answer.
    pub(super) async fn ask(&self, request: &Event) -> Result<Event, NwcError> {
        let (sender, answer) = oneshot::channel();
        self.shared.waiting.lock().insert(request.id, sender);
        let _waiting = Waiting { shared: &self.shared, id: request.id };
        // The task may have ended in between, and would not see who came after.
        if !self.is_open() || self.outbox.send(json!(["EVENT", request]).to_string()).await.is_err() {
            return Err(NwcError::Gone);
        }
        answer.await.unwrap_or(Err(NwcError::Gone))
    }

    /// The next notice.
    pub(super) async fn noticed(&self) -> Noticed {
        loop {
            let news = self.shared.news.notified();
            {
                let mut notices = self.shared.notices.lock();
                if std::mem::take(&mut notices.lost) {
                    return Noticed::Lost;
                }
                if let Some(event) = notices.events.pop_front() {
                    return Noticed::Event(Box::new(event));
                }
                if notices.closed {
                    return Noticed::Closed;
                }
            }
            news.await;
        }
    }
}

impl Shared {
    fn answer(&self, request: &EventId, answer: Result<Event, NwcError>) {
        let waiting = self.waiting.lock().remove(request);
        // Nobody, if it was answered before or is not waited for any more.
        if let Some(waiting) = waiting {
            drop(waiting.send(answer));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Takes a request that is no longer waited for out of the list.
struct Waiting<'a> {
    shared: &'a Shared,
    id: EventId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.id);
    }
}

async fn open(url: &Url, trust: &Trust) -> Result<Socket, BoxError> {
    let host = url.host_str().ok_or("the relay's URL names no host")?;
    let port = url.port_or_known_default().ok_or("the relay's URL names no port")?;
    let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Stream> = if url.scheme() == "wss" {
        let connector = TlsConnector::from(Arc::new(tls::client_config(trust)?));
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        Box::new(connector.connect(name, tcp).await?)
    } else {
        Box::new(tcp)
    };
    let limits =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let (socket, _response) = client_async_with_config(url.as_str(), stream, Some(limits)).await?;
    Ok(socket)
}

/// What is to be known to speak with a relay.
struct Session {
    uri: NwcUri,
    url: Url,
    now: Timestamp,
    /// Whether the relay was told who we are (NIP-42), which is told once a connection.
    introduced: bool,
}

impl Session {
    /// Asks for the wallet's info and for everything that it will tell this client, until the relay says that it has nothing older.
    async fn subscribe(&mut self, socket: &mut Socket) -> Result<Option<Event>, NwcError> {
        let (mut info, mut pending) = (None, vec![INFO_ID, ANSWERS_ID]);
        self.request(socket).await?;
        while !pending.is_empty() {
            let message = socket.next().await.ok_or(NwcError::Gone)?.map_err(|e| NwcError::Relay(e.into()))?;
            let Message::Text(text) = message else { continue };
            match RelayMessage::from_json(text.as_bytes()) {
                Ok(RelayMessage::Event { event, .. }) if self.is_wallets(&event, INFO) => {
                    info = Some(event.into_owned())
                }
                Ok(RelayMessage::EndOfStoredEvents(id)) => pending.retain(|waited| *waited != id.as_str()),
                Ok(RelayMessage::Auth { challenge }) => {
                    self.introduce(socket, &challenge).await?;
                    self.request(socket).await?;
                }
                // It wants to know who asks first, and says so above.
                Ok(RelayMessage::Closed { message, .. })
                    if message.starts_with("auth-required") && !self.introduced => {}
                Ok(RelayMessage::Closed { message, .. }) if !message.starts_with("auth-required") => {
                    return Err(NwcError::Relay(
                        format!("it refuses the subscription: {}", Untrusted::new(message)).into(),
                    ));
                }
                _ => {}
            }
        }
        Ok(info)
    }

    async fn request(&self, socket: &mut Socket) -> Result<(), NwcError> {
        let (wallet, own) = (self.uri.wallet.to_hex(), self.uri.keys.public_key().to_hex());
        let [nip04, nip44] = NOTICES;
        let info = json!(["REQ", INFO_ID, { "kinds": [INFO], "authors": [wallet], "limit": 1 }]);
        let since = self.now.as_secs().saturating_sub(CLOCKS_APART.as_secs());
        let kinds = [RESPONSE, nip04, nip44];
        let answers = json!(["REQ", ANSWERS_ID, { "kinds": kinds, "authors": [wallet], "#p": [own], "since": since }]);
        for message in [info, answers] {
            send(socket, message).await?;
        }
        Ok(())
    }

    async fn introduce(&mut self, socket: &mut Socket, challenge: &str) -> Result<(), NwcError> {
        if std::mem::replace(&mut self.introduced, true) {
            return Ok(());
        }
        let url = RelayUrl::parse(self.url.as_str()).map_err(|e| NwcError::Relay(Box::new(e)))?;
        let event = EventBuilder::auth(challenge, url).custom_created_at(self.now).sign_with_keys(&self.uri.keys);
        send(socket, json!(["AUTH", event.map_err(|e| NwcError::Relay(Box::new(e)))?])).await
    }

    /// Of this kind, from the wallet, and signed by it.
    fn is_wallets(&self, event: &Event, kind: u16) -> bool {
        event.kind.as_u16() == kind && event.pubkey == self.uri.wallet && event.verify().is_ok()
    }

    fn is_for_us(&self, event: &Event) -> bool {
        event.tags.public_keys().any(|key| *key == self.uri.keys.public_key())
    }
}

async fn send(socket: &mut Socket, message: Value) -> Result<(), NwcError> {
    socket.send(Message::text(message.to_string())).await.map_err(|e| NwcError::Relay(e.into()))
}

async fn run(mut socket: Socket, mut session: Session, shared: Arc<Shared>, mut outbox: mpsc::Receiver<String>) {
    let mut heard = Instant::now();
    loop {
        let wait = tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    session.take(&mut socket, &shared, &message).await
                }
                Some(Err(_)) | None => Err(NwcError::Gone),
            },
            message = outbox.recv() => match message {
                Some(message) => socket.send(Message::text(message)).await.map_err(|e| NwcError::Relay(e.into())),
                None => Err(NwcError::Gone),
            },
            () = tokio::time::sleep(PING) => match heard.elapsed() > SILENCE_MAX {
                true => Err(NwcError::Gone),
                false => socket.send(Message::Ping(Vec::new().into())).await.map_err(|e| NwcError::Relay(e.into())),
            },
        };
        if wait.is_err() {
            break;
        }
    }
    shared.notices.lock().closed = true;
    shared.waiting.lock().clear();
    shared.news.notify_waiters();
}

impl Session {
    async fn take(&mut self, socket: &mut Socket, shared: &Shared, message: &Message) -> Result<(), NwcError> {
        let Message::Text(text) = message else { return Ok(()) };
        match RelayMessage::from_json(text.as_bytes()) {
            Ok(RelayMessage::Event { event, .. }) => self.sort(shared, event.into_owned()),
            // The request went no further than the relay, as far as the relay says.
            Ok(RelayMessage::Ok { event_id, status: false, message }) => {
                let refused = NwcError::Relay(format!("it refuses the request: {}", Untrusted::new(message)).into());
                shared.answer(&event_id, Err(refused));
            }
            Ok(RelayMessage::Auth { challenge }) => self.introduce(socket, &challenge).await?,
            Ok(RelayMessage::Closed { .. }) => return Err(NwcError::Gone),
            _ => {}
        }
        Ok(())
    }

    fn sort(&self, shared: &Shared, event: Event) {
        if !self.is_for_us(&event) {
            return;
        }
        if self.is_wallets(&event, RESPONSE) {
            let request = event.tags.event_ids().next().copied();
            if let Some(id) = request {
                shared.answer(&id, Ok(event));
            }
        } else if NOTICES.iter().any(|kind| self.is_wallets(&event, *kind)) {
            let mut notices = shared.notices.lock();
            if notices.events.len() == NOTICES_MAX {
                notices.events.clear();
                notices.lost = true;
            }
            notices.events.push_back(event);
            shared.news.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::node::Pins;

    #[tokio::test]
    async fn a_relay_is_reached_over_tls_if_its_certificate_is_good() {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![CertificateDer::from(own.clone())], private).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("wss://localhost:{}/v1", listener.local_addr().unwrap().port()).parse().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let relay = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(client) = acceptor.accept(client).await else { continue };
                let mut socket = tokio_tungstenite::accept_async(client).await.unwrap();
                socket.send(Message::text("hello")).await.unwrap();
            }
        });

        let error = open(&url, &Trust::WebPki).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        let pinned = Trust::Pinned(Pins::parse(own.der()).unwrap());
        let mut socket = open(&url, &pinned).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        relay.abort();
    }
}
