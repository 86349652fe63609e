//! What an honest client and an honest upstream may expect.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_gateway::{TlsFiles, UpstreamHost};
use http::{HeaderMap, HeaderValue, Request, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{TestBody, Upstream, client, config, pass_through, patiently, serve, text, upstream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The end of a body that is in the test's hand.
struct BodySender(tokio::sync::mpsc::Sender<Frame<Bytes>>);

impl BodySender {
    async fn send_data(&self, data: Bytes) {
        self.0.send(Frame::data(data)).await.unwrap();
    }

    async fn send_trailers(&self, trailers: HeaderMap) {
        self.0.send(Frame::trailers(trailers)).await.unwrap();
    }
}

fn channel_body() -> (BodySender, TestBody) {
    let (sender, frames) = tokio::sync::mpsc::channel(4);
    let frames =
        futures_util::stream::unfold(frames, |mut frames| async move { Some((Ok(frames.recv().await?), frames)) });
    (BodySender(sender), http_body_util::BodyExt::boxed(StreamBody::new(Box::pin(frames) as Frames)))
}

type Frames = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + Sync>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("42"))])
}

async fn h1(address: std::net::SocketAddr) -> hyper::client::conn::http1::SendRequest<TestBody> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn h2(address: std::net::SocketAddr) -> hyper::client::conn::http2::SendRequest<TestBody> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends one request over HTTP/1.1 or h2c and gives the answer.
async fn send(
    gateway: &support::Running,
    version: Version,
    mut request: Request<TestBody>,
) -> http::Response<hyper::body::Incoming> {
    if version == Version::HTTP_2 {
        *request.uri_mut() = format!("http://shop.example{}", request.uri()).parse().unwrap();
        patiently(h2(gateway.address).await.send_request(request)).await.unwrap()
    } else {
        request.headers_mut().insert("host", HeaderValue::from_static("shop.example"));
        patiently(h1(gateway.address).await.send_request(request)).await.unwrap()
    }
}

#[tokio::test]
async fn what_is_forwarded_is_the_canonical_path_and_the_query_as_sent() {
    let origin = Upstream::echo().await;
    let gateway =
        serve(config(&[("GET /v1/*", &format!("{}/base", origin.url())), ("GET /plain", &origin.url())])).await;
    let cases = [
        ("/v1/reports", "/base/v1/reports"),
        ("/v1/", "/base/v1/"),
        ("/v1/%7euser/%61?q=%7e&r=/../x;y", "/base/v1/~user/a?q=%7e&r=/../x;y"),
        ("/v1/caf%c3%a9/a%20b", "/base/v1/caf%C3%A9/a%20b"),
        ("/v1/a%3ab+c%2Bd", "/base/v1/a%3Ab+c%2Bd"),
        ("/plain", "/plain"),
        ("/plain?", "/plain?"),
    ];
    for (sent, seen) in cases {
        let answer = gateway.raw(format!("GET {sent} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{sent}: {answer}");
        assert_eq!(origin.last().target, seen);
    }
}

#[tokio::test]
async fn what_no_route_names_is_404_and_head_belongs_to_get() {
    let origin = Upstream::echo().await;
    let gateway = serve(config(&[("GET /v1/*", &origin.url()), ("POST /jobs", &origin.url())])).await;
    let client = client();
    for (method, path, status) in [
        ("GET", "/v1/a", 200),
        ("HEAD", "/v1/a", 200),
        ("OPTIONS", "/v1/a", 200),
        ("POST", "/v1/a", 404),
        ("GET", "/v1", 404),
        ("GET", "/V1/a", 404),
        ("GET", "/jobs", 404),
        ("HEAD", "/jobs", 404),
        ("POST", "/jobs", 200),
        ("POST", "/jobs/", 404),
        ("GET", "/", 404),
    ] {
        let before = origin.seen().len();
        let answer = client.request(method.parse().unwrap(), gateway.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method} {path}");
        assert_eq!(origin.seen().len() - before, usize::from(status == 200), "{method} {path}");
    }
}

#[tokio::test]
async fn listed_proxies_are_believed() {
    let origin = Upstream::echo().await;
    let mut trusting = config(&[("ANY /*", &origin.url())]);
    trusting.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    let gateway = serve(trusting).await;
    let answer = client()
        .get(gateway.url("/"))
        .header("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "shop.example")
        .header("farebox-payer", "me")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let headers = origin.last().headers;
    assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 203.0.113.9, 10.0.0.1, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "shop.example");
    assert_eq!(headers["forwarded"], "for=127.0.0.1;host=\"shop.example\";proto=https");
    assert!(!headers.contains_key("farebox-payer"));
}

#[tokio::test]
async fn the_host_is_the_upstreams_unless_preserved() {
    let origin = Upstream::echo().await;
    let mut preserving = config(&[("GET /a", &origin.url()), ("GET /b", &origin.url())]);
    preserving.routes[1].upstream.host = UpstreamHost::Preserve;
    let gateway = serve(preserving).await;
    for (path, host) in [("/a", origin.address.to_string()), ("/b", "shop.example".to_owned())] {
        gateway.raw(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(origin.last().headers["host"], host);
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_in_every_pair_of_versions() {
    for inside in [Version::HTTP_11, Version::HTTP_2] {
        let seen: Arc<parking_lot::Mutex<Option<HeaderMap>>> = Arc::default();
        let notes = seen.clone();
        let address = upstream(move |request| {
            let notes = notes.clone();
            async move {
                let whole = request.into_body().collect().await.unwrap();
                *notes.lock() = whole.trailers().cloned();
                let (sender, body) = channel_body();
                tokio::spawn(async move {
                    sender.send_data(Bytes::from("answer")).await;
                    sender.send_trailers(trailers()).await;
                });
                let mut response = http::Response::new(body);
                response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
                response
            }
        })
        .await;
        let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
        config.routes[0].upstream.http2 = inside == Version::HTTP_2;
        let gateway = serve(config).await;
        for outside in [Version::HTTP_11, Version::HTTP_2] {
            let frames = [Ok(Frame::data(Bytes::from("ask"))), Ok(Frame::trailers(trailers()))];
            let body: TestBody = StreamBody::new(futures_util::stream::iter(frames)).boxed();
            let request = Request::post("/").header("te", "trailers").header("trailer", "x-sum").body(body).unwrap();
            let answer = send(&gateway, outside, request).await;
            assert_eq!(answer.status(), 200);
            let whole = patiently(answer.into_body().collect()).await.unwrap();
            assert_eq!(whole.trailers(), Some(&trailers()), "{outside:?} to {inside:?}");
            assert_eq!(seen.lock().take(), Some(trailers()), "{outside:?} to {inside:?}");
            assert_eq!(whole.to_bytes(), "answer");
        }
    }
}

#[tokio::test]
async fn bodies_stream_both_ways_without_buffering() {
    for (outside, inside) in [(Version::HTTP_11, Version::HTTP_11), (Version::HTTP_2, Version::HTTP_2)] {
        // Echoes frame by frame: a frame held back anywhere would be waited for in vain.
        let address = upstream(|request| async move {
            let (sender, body) = channel_body();
            let mut incoming = request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = incoming.frame().await {
                    if let Ok(data) = frame.into_data() {
                        sender.send_data(data).await;
                    }
                }
            });
            http::Response::new(body)
        })
        .await;
        let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
        config.routes[0].upstream.http2 = inside == Version::HTTP_2;
        let gateway = serve(config).await;
        let (sender, body) = channel_body();
        let answer = send(&gateway, outside, Request::post("/").body(body).unwrap()).await;
        let mut answer = answer.into_body();
        for word in ["one", "two", "three"] {
            sender.send_data(Bytes::from(word)).await;
            let echoed = patiently(answer.frame()).await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(echoed, word, "{outside:?}");
        }
        drop(sender);
        assert!(patiently(answer.collect()).await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let body: Bytes = (0..8 * 1024 * 1024_u32).map(|i| i.to_le_bytes()[1]).collect::<Vec<u8>>().into();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let sent = Full::new(body.clone()).map_err(|never| match never {}).boxed();
        let answer = send(&gateway, version, Request::post("/").body(sent).unwrap()).await;
        let echoed = patiently(answer.into_body().collect()).await.unwrap().to_bytes();
        assert!(echoed == body, "{version:?}");
    }
}

#[tokio::test]
async fn http2_requests_reach_an_http1_upstream_as_http1() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let request =
        Request::get("/a?b").header("cookie", "a=1").header("cookie", "b=2").body(text("").into_body()).unwrap();
    assert_eq!(send(&gateway, Version::HTTP_2, request).await.status(), 200);
    let seen = origin.last();
    assert_eq!(seen.target, "/a?b");
    assert_eq!(seen.headers["host"], origin.address.to_string());
    assert_eq!(seen.headers["x-forwarded-host"], "shop.example");
    assert_eq!(seen.headers["via"], "2.0 farebox");
    assert_eq!(seen.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
}

#[tokio::test]
async fn a_websocket_is_tunnelled() {
    use futures_util::{SinkExt as _, StreamExt as _};
    let address = support::raw_upstream(|tcp| async move {
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    })
    .await;
    let mut gateway = serve(config(&[("GET /ws", &format!("http://{address}"))])).await;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", gateway.address)).await.unwrap();
    for word in ["hello", "world"] {
        socket.send(word.into()).await.unwrap();
        assert_eq!(patiently(socket.next()).await.unwrap().unwrap().into_text().unwrap(), word);
    }
    // A drain lets an open tunnel go on.
    gateway.shut_down();
    socket.send("still".into()).await.unwrap();
    assert_eq!(patiently(socket.next()).await.unwrap().unwrap().into_text().unwrap(), "still");
    socket.close(None).await.unwrap();
    drop(socket);
    gateway.ended().await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let address = support::raw_upstream(|mut tcp| async move {
        support::read_head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
            .await
            .unwrap();
        let (mut read, mut write) = tcp.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
    })
    .await;
    let mut config = config(&[("GET /*", &format!("http://{address}"))]);
    config.limits.tunnel_idle_timeout = Duration::from_millis(200);
    let gateway = serve(config).await;
    let mut tcp = TcpStream::connect(gateway.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await.unwrap();
    let head = patiently(support::read_head(&mut tcp)).await;
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: echo"), "{head}");
    tcp.write_all(b"ping").await.unwrap();
    let mut rest = Vec::new();
    patiently(tcp.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"ping");
}

#[tokio::test]
async fn an_expectation_is_met_when_the_body_is_wanted() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let mut tcp = TcpStream::connect(gateway.address).await.unwrap();
    tcp.write_all(
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    assert_eq!(patiently(support::read_head(&mut tcp)).await, "HTTP/1.1 100 Continue\r\n\r\n");
    tcp.write_all(b"hi").await.unwrap();
    assert!(patiently(support::read_head(&mut tcp)).await.starts_with("HTTP/1.1 200"));
    assert_eq!(origin.last().body, "hi");
    // Nobody uploads for a 404.
    let narrow = serve(config(&[("GET /only", &origin.url())])).await;
    let refused = narrow.raw("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
}

#[tokio::test]
async fn http_1_0_clients_are_served() {
    let address = upstream(|_| async {
        let (sender, body) = channel_body();
        tokio::spawn(async move { sender.send_data(Bytes::from("streamed")).await });
        http::Response::new(body)
    })
    .await;
    let gateway = serve(config(&[("ANY /*", &format!("http://{address}"))])).await;
    let answer = gateway.raw("GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\nstreamed"), "{answer}");
}

#[tokio::test]
async fn tls_serves_both_versions_and_reaches_upstreams_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let files = TlsFiles { cert: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&files.cert, pair.cert.pem()).unwrap();
    std::fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();

    let origin = Upstream::echo().await;
    let mut inner = config(&[("ANY /*", &origin.url())]);
    inner.listeners[0].tls = Some(files.clone());
    let inner = serve(inner).await;
    // The first gateway is the https upstream of the second.
    for http2 in [false, true] {
        let mut outer = config(&[("ANY /*", &format!("https://localhost:{}", inner.address.port()))]);
        outer.routes[0].upstream.ca = Some(files.cert.clone());
        outer.routes[0].upstream.http2 = http2;
        outer.listeners[0].tls = Some(files.clone());
        let outer = serve(outer).await;
        drop(client());
        let roots = [reqwest::Certificate::from_pem(pair.cert.pem().as_bytes()).unwrap()];
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let builder = reqwest::Client::builder().no_proxy().tls_certs_only(roots.clone());
            let builder = if version == Version::HTTP_11 { builder.http1_only() } else { builder };
            let url = format!("https://localhost:{}/a", outer.address.port());
            let answer = builder.build().unwrap().get(url).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
            let headers = origin.last().headers;
            assert_eq!(headers["x-forwarded-proto"], "https");
            assert_eq!(
                headers.get_all("via").iter().next_back().unwrap(),
                if http2 { "2.0 farebox" } else { "1.1 farebox" }
            );
        }
    }
    // A certificate that nobody vouches for is no upstream.
    let outer = serve(config(&[("ANY /*", &format!("https://localhost:{}", inner.address.port()))])).await;
    assert_eq!(client().get(outer.url("/")).send().await.unwrap().status(), 502);
}
