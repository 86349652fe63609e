//! A relay with a wallet behind it, which says what it is told to.

use std::{net::SocketAddr, sync::Arc};

use futures_util::{SinkExt as _, StreamExt as _};
use nostr::{
    Event, EventBuilder, Keys, Kind, Tag,
    nips::{nip04, nip44},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// A request as the wallet reads it.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) event: Event,
    pub(crate) method: String,
    pub(crate) params: Value,
    wallet: Keys,
}

/// What the wallet publishes of itself.
#[derive(Clone, Copy, Default)]
pub(crate) struct Info {
    pub(crate) methods: &'static str,
    /// `nip44_v2`, `nip04`, or nothing at all.
    pub(crate) encryption: Option<&'static str>,
    pub(crate) notifications: Option<&'static str>,
    /// Whether the relay wants to know who asks.
    pub(crate) introduced_only: bool,
}

pub(crate) struct Relay {
    address: SocketAddr,
    wallet: Keys,
    client: Keys,
    requests: Arc<Mutex<Vec<Request>>>,
    accepting: JoinHandle<()>,
}

type Answer = dyn Fn(&Request) -> Vec<Value> + Send + Sync;

impl Relay {
    /// `answer` gives the messages that the relay sends for a request.
    pub(crate) async fn start(info: Info, answer: impl Fn(&Request) -> Vec<Value> + Send + Sync + 'static) -> Self {
        let (wallet, client) = (Keys::generate(), Keys::generate());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (keys, seen, answer): (_, _, Arc<Answer>) = (wallet.clone(), Arc::clone(&requests), Arc::new(answer));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (keys, seen, answer) = (keys.clone(), Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move { serve(client, info, &keys, &seen, &*answer).await });
            }
        });
        Self { address, wallet, client, requests, accepting }
    }

    pub(crate) fn uri(&self) -> String {
        let (wallet, secret) = (self.wallet.public_key().to_hex(), self.client.secret_key().to_secret_hex());
        format!("nostr+walletconnect://{wallet}?relay=ws%3A%2F%2F{}&secret={secret}&lud16=a%40b.example", self.address)
    }

    pub(crate) fn secret(&self) -> String {
        self.client.secret_key().to_secret_hex()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Request {
    fn is_nip44(&self) -> bool {
        self.event.tags.iter().any(|tag| tag.as_slice() == ["encryption", "nip44_v2"])
    }

    /// The wallet's answer.
    pub(crate) fn result(&self, result: &Value) -> Event {
        self.answer(&self.wallet, &json!({ "result_type": self.method, "error": null, "result": result }), 23_195)
    }

    pub(crate) fn error(&self, code: &str) -> Event {
        let error = json!({ "code": code, "message": "words \u{1b}[2J" });
        self.answer(&self.wallet, &json!({ "result_type": self.method, "error": error }), 23_195)
    }

    /// An answer by somebody who is not the wallet, and has read what passed in the open.
    pub(crate) fn forged(&self, result: &Value) -> Event {
        let content = json!({ "result_type": self.method, "error": null, "result": result });
        self.answer(&Keys::generate(), &content, 23_195)
    }

    /// A notice, or an answer that says what no wallet should.
    pub(crate) fn told(&self, content: &Value, kind: u16) -> Event {
        self.answer(&self.wallet, content, kind)
    }

    fn answer(&self, by: &Keys, content: &Value, kind: u16) -> Event {
        let client = self.event.pubkey;
        let closed = match self.is_nip44() && kind != 23_196 {
            true => nip44::encrypt(by.secret_key(), &client, content.to_string(), nip44::Version::V2).unwrap(),
            false => nip04::encrypt(by.secret_key(), &client, content.to_string()).unwrap(),
        };
        let answer = EventBuilder::new(Kind::Custom(kind), closed);
        answer.tags([Tag::public_key(client), Tag::event(self.event.id)]).sign_with_keys(by).unwrap()
    }
}

/// As the relay sends an event to a subscriber.
pub(crate) fn sent(event: &Event) -> Value {
    json!(["EVENT", "answers", event])
}

async fn serve(client: TcpStream, info: Info, wallet: &Keys, seen: &Mutex<Vec<Request>>, answer: &Answer) {
    let Ok(mut socket) = accept_async(client).await else { return };
    let mut introduced = !info.introduced_only;
    if !introduced && socket.send(Message::text(json!(["AUTH", "who goes there"]).to_string())).await.is_err() {
        return;
    }
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let Ok(Value::Array(parts)) = serde_json::from_str(&text) else { return };
        let out = match parts[0].as_str() {
            Some("AUTH") => {
                let event: Event = serde_json::from_value(parts[1].clone()).unwrap();
                introduced = event.verify().is_ok() && event.tags.challenge() == Some("who goes there");
                vec![json!(["OK", event.id, introduced, ""])]
            }
            Some("REQ") if !introduced => vec![json!(["CLOSED", parts[1], "auth-required: who are you"])],
            Some("REQ") if parts[1] == "info" => {
                let published = info.encryption.is_some() || !info.methods.is_empty();
                let event = published.then(|| json!(["EVENT", "info", info.event(wallet)]));
                event.into_iter().chain([json!(["EOSE", "info"])]).collect()
            }
            Some("REQ") => vec![json!(["EOSE", parts[1]])],
            Some("EVENT") => {
                let request = read(serde_json::from_value(parts[1].clone()).unwrap(), wallet);
                seen.lock().push(request.clone());
                answer(&request)
            }
            _ => vec![],
        };
        for message in out {
            if socket.send(Message::text(message.to_string())).await.is_err() {
                return;
            }
        }
    }
}

fn read(event: Event, wallet: &Keys) -> Request {
    event.verify().unwrap();
    let nip44 = event.tags.iter().any(|tag| tag.as_slice() == ["encryption", "nip44_v2"]);
    let text = match nip44 {
        true => nip44::decrypt(wallet.secret_key(), &event.pubkey, &event.content).unwrap(),
        false => nip04::decrypt(wallet.secret_key(), &event.pubkey, &event.content).unwrap(),
    };
    let content: Value = serde_json::from_str(&text).unwrap();
    let method = content["method"].as_str().unwrap().to_owned();
    Request { method, params: content["params"].clone(), event, wallet: wallet.clone() }
}

impl Info {
    fn event(self, wallet: &Keys) -> Event {
        let tag = |name: &str, value: Option<&str>| value.map(|value| Tag::parse([name, value]).unwrap());
        let tags = [tag("encryption", self.encryption), tag("notifications", self.notifications)];
        EventBuilder::new(Kind::Custom(13_194), self.methods)
            .tags(tags.into_iter().flatten())
            .sign_with_keys(wallet)
            .unwrap()
    }
}
