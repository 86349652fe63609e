//! Paid calls in every form HTTP has: HTTP/2, streams both ways, WebSocket, browsers, pages of other origins, caches.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{process::Stdio, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use farebox_e2e::{
    Account, Answer, Authorization, Counter, Farebox, Tool, books, header, payment, signed_payment, tool,
};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time::Instant,
};

const DOLLAR: u128 = 1_000_000;
const CENT: u128 = 10_000;
/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(50);

struct Gate {
    counter: Counter,
    farebox: Farebox,
    payer: Account,
}

impl Gate {
    async fn open() -> Self {
        let counter = Counter::open(&[]).await.unwrap();
        let farebox = counter.serve(&counter.route("GET,POST /v1/*", "price = \"$0.01\"")).await.unwrap();
        let payer = counter.payer("payer", DOLLAR).await.unwrap();
        Self { counter, farebox, payer }
    }

    async fn sign(&self, path: &str) -> String {
        signed_payment(&self.farebox.url(path), &self.payer, path).await.unwrap()
    }

    /// One payment, made and delivered.
    async fn sold_once(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = books(self.farebox.setup()).await.unwrap();
            if rows.len() == 1 && rows[0]["state"] == "settled" && rows[0]["delivery"] == "delivered" {
                break;
            }
            // A stream's delivery is booked with its last byte, which may still be on its way to us.
            assert!(Instant::now() < deadline, "{rows:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.counter.paid_by(self.payer.address()).await.unwrap(), [CENT]);
        assert_eq!(self.counter.echo.hits(), 1);
    }

    fn address(&self) -> String {
        self.farebox.url("").replace("http://", "")
    }
}

#[tokio::test]
async fn a_call_is_billed_and_paid_over_http2() {
    let gate = Gate::open().await;
    let tcp = TcpStream::connect(gate.address()).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    let driver = tokio::spawn(connection);
    let url = gate.farebox.url("/v1/report?over=h2");
    let request = |payment: Option<&str>| {
        let request = Request::get(&url);
        let request = payment.into_iter().fold(request, |request, value| request.header("payment-signature", value));
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let bill = sender.send_request(request(None)).await.unwrap();
    assert_eq!((bill.status().as_u16(), bill.version()), (402, http::Version::HTTP_2));
    let terms = BASE64_STANDARD.decode(&bill.headers()["payment-required"]).unwrap();
    let terms: Value = serde_json::from_slice(&terms).unwrap();
    assert_eq!(terms["resource"]["url"], json!(url), "the bill names another URL than was asked for");

    let payment = gate.sign("/v1/report?over=h2").await;
    let paid = sender.send_request(request(Some(&payment))).await.unwrap();
    assert_eq!((paid.status().as_u16(), paid.version()), (200, http::Version::HTTP_2));
    assert!(paid.headers().contains_key("payment-response"));
    let echo: Value = serde_json::from_slice(&paid.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(echo["path"], "/v1/report?over=h2");
    gate.sold_once().await;
    drop(sender);
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_first_event_of_a_paid_stream_comes_before_the_second_is_made() {
    let gate = Gate::open().await;
    let pause = Duration::from_secs(3);
    let pieces = vec!["data: one\n\n", "data: two\n\n"];
    gate.counter.echo.answer(Answer::Pieces { content_type: "text/event-stream", pieces, pause });
    let payment = gate.sign("/v1/events").await;
    let client = farebox_e2e::http_client().unwrap();
    let request = client.get(gate.farebox.url("/v1/events")).header("accept", "text/event-stream");
    let mut answer = request.header("payment-signature", payment).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    assert!(answer.headers().contains_key("payment-response"));
    let first = answer.chunk().await.unwrap().unwrap();
    let at = Instant::now();
    assert_eq!(first, "data: one\n\n");
    let second = answer.chunk().await.unwrap().unwrap();
    assert_eq!(second, "data: two\n\n");
    // Held back, both would have come together.
    assert!(at.elapsed() > pause / 3, "the first event came only {:?} before the second", at.elapsed());
    assert_eq!(answer.chunk().await.unwrap(), None);
    gate.sold_once().await;
}

#[tokio::test]
async fn a_large_upload_reaches_the_upstream_as_it_was_sent() {
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 128;
    let gate = Gate::open().await;
    let payment = gate.sign("/v1/upload").await;
    let piece = |index: usize| Bytes::from(vec![u8::try_from(index % 251).unwrap(); PIECE]);
    let body = futures_util::stream::iter((0..PIECES).map(move |index| Ok::<_, std::io::Error>(piece(index))));
    let client = farebox_e2e::http_client().unwrap();
    let request = client.post(gate.farebox.url("/v1/upload")).header("payment-signature", payment);
    let request = request.header("content-type", "multipart/form-data; boundary=x");
    let answer = request.body(reqwest::Body::wrap_stream(body)).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    let seen = gate.counter.echo.seen();
    assert_eq!(seen[0].header("content-type"), Some("multipart/form-data; boundary=x"));
    assert_eq!(seen[0].body.len(), PIECE * PIECES);
    assert!(seen[0].body.chunks(PIECE).enumerate().all(|(index, chunk)| chunk == piece(index)));
    // What the answer echoes is too large to be kept, so it was streamed: read it to its end.
    let echo: Value = answer.json().await.unwrap();
    assert_eq!(BASE64_STANDARD.decode(echo["body"].as_str().unwrap()).unwrap(), seen[0].body);
    gate.sold_once().await;
}

#[tokio::test]
async fn an_upload_is_passed_on_while_it_is_sent() {
    let counter = Counter::open(&[]).await.unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", upstream.local_addr().unwrap());
    let route = counter.route("POST /upload", "price = \"$0.01\"").replace(&counter.echo.url(), &origin);
    let farebox = counter.serve(&route).await.unwrap();
    let payer = counter.payer("payer", DOLLAR).await.unwrap();
    let unpaid = farebox_e2e::http_client().unwrap().post(farebox.url("/upload")).send().await.unwrap();
    let terms = BASE64_STANDARD.decode(&unpaid.headers()["payment-required"]).unwrap();
    let authorization = Authorization::new(&payer, Counter::SELLER, CENT, "upload");
    let signature = authorization.sign(&payer).await.unwrap();
    let credential = header(&payment(&serde_json::from_slice(&terms).unwrap(), &authorization, &signature));

    let mut stream = TcpStream::connect(farebox.url("").replace("http://", "")).await.unwrap();
    let head =
        format!("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\npayment-signature: {credential}\r\n\r\n");
    stream.write_all(format!("{head}first").as_bytes()).await.unwrap();
    let (mut passed_on, _) = tokio::time::timeout(PATIENCE, upstream.accept()).await.unwrap().unwrap();
    assert!(read_head(&mut passed_on).await.to_lowercase().contains("content-length: 10"));
    let mut half = [0; 5];
    // Only once the first half has come out is the second sent.
    tokio::time::timeout(PATIENCE, passed_on.read_exact(&mut half)).await.unwrap().unwrap();
    assert_eq!(&half, b"first");
    stream.write_all(b"other").await.unwrap();
    tokio::time::timeout(PATIENCE, passed_on.read_exact(&mut half)).await.unwrap().unwrap();
    assert_eq!(&half, b"other");
    passed_on.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 201 "));
    assert_eq!(counter.paid_by(payer.address()).await.unwrap(), [CENT]);
}

#[tokio::test]
async fn bills_name_the_url_that_a_listed_proxy_was_asked_for_and_believe_nobody_else() {
    let counter = Counter::open(&[]).await.unwrap();
    let config = counter.chain(counter.anvil.url()) + &counter.route("GET /v1/*", "price = \"$0.01\"");
    let stranger = Farebox::start(counter.setup(&config).unwrap()).await.unwrap();
    let listed = counter.setup(&format!("trusted_proxies = [\"127.0.0.1/32\"]\n{config}")).unwrap();
    let listed = Farebox::start(listed).await.unwrap();
    let own = stranger.url("/v1/report");
    for (farebox, named) in [(&stranger, own.as_str()), (&listed, "https://api.example/v1/report")] {
        let request = farebox_e2e::http_client().unwrap().get(farebox.url("/v1/report"));
        let request = request.header("x-forwarded-proto", "https").header("x-forwarded-host", "api.example");
        let answer = request.header("x-forwarded-for", "203.0.113.9").send().await.unwrap();
        let terms = BASE64_STANDARD.decode(&answer.headers()["payment-required"]).unwrap();
        let terms: Value = serde_json::from_slice(&terms).unwrap();
        assert_eq!(terms["resource"]["url"], named);
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["accepts"][0]["resource"], named);
    }
}

#[tokio::test]
async fn a_websocket_opens_only_after_payment() {
    let counter = Counter::open(&[]).await.unwrap();
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", upstream.local_addr().unwrap());
    // An upstream that switches protocols and then says everything back.
    let echoing = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.unwrap();
        let head = read_head(&mut stream).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
        head
    });
    let route = counter.route("GET /socket", "price = \"$0.01\"").replace(&counter.echo.url(), &origin);
    let farebox = counter.serve(&route).await.unwrap();
    let payer = counter.payer("payer", DOLLAR).await.unwrap();
    let payment = signed_payment(&farebox.url("/socket"), &payer, "socket").await.unwrap();
    let open = async |more: &str| {
        let mut stream = TcpStream::connect(farebox.url("").replace("http://", "")).await.unwrap();
        let head = format!(
            "GET /socket HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        (stream, head)
    };
    let (_, unpaid) = open("").await;
    assert!(unpaid.starts_with("HTTP/1.1 402 ") && unpaid.contains("payment-required: "), "{unpaid}");

    let (mut stream, paid) = open(&format!("payment-signature: {payment}\r\n")).await;
    assert!(paid.starts_with("HTTP/1.1 101 ") && paid.contains("payment-response: "), "{paid}");
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"ping");
    let head = echoing.await.unwrap().to_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("farebox-payment-id: "), "{head}");
    assert!(!head.contains("payment-signature"), "{head}");
    assert_eq!(counter.paid_by(payer.address()).await.unwrap(), [CENT]);
}

/// A head, to its empty line and no further.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn no_cache_keeps_a_bill_and_no_shared_one_an_answer_that_was_paid_for() {
    let gate = Gate::open().await;
    let client = farebox_e2e::http_client().unwrap();
    let get = |path: &str| client.get(gate.farebox.url(path));
    let unpaid = get("/v1/cached").send().await.unwrap();
    assert_eq!(unpaid.headers()["cache-control"], "no-store");
    let varies = |headers: &http::HeaderMap| {
        let vary: Vec<_> = headers.get_all("vary").iter().map(|value| value.to_str().unwrap().to_lowercase()).collect();
        vary.join(",")
    };
    let bill = varies(unpaid.headers());
    assert!(bill.contains("payment-signature") && bill.contains("x-payment") && bill.contains("accept"), "{bill}");
    let total: usize = unpaid.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    assert!(total < 8192, "{total} bytes of headers: more than proxies take");

    let paid = get("/v1/cached").header("payment-signature", gate.sign("/v1/cached").await).send().await.unwrap();
    assert_eq!((paid.status().as_u16(), &paid.headers()["cache-control"]), (200, &"private".parse().unwrap()));
    let vary = varies(paid.headers());
    assert!(vary.contains("payment-signature") && vary.contains("x-payment"), "{vary}");
    gate.sold_once().await;
}

/// What the page script of `in_chromium` found.
async fn in_chromium(script: &str, arguments: &Value) -> Value {
    let playwright = tool(Tool::NodeModules).unwrap().join("playwright-core/index.mjs");
    let script = format!(
        "import {{ chromium }} from {playwright};\nconst arguments_ = {arguments};\n\
         const browser = await chromium.launch({{ executablePath: {chromium}, args: ['--no-sandbox'] }});\n\
         try {{\n  const page = await browser.newPage();\n  const found = await (async () => {{ {script} }})();\n  \
         process.stdout.write(JSON.stringify(found));\n}} finally {{ await browser.close(); }}\n",
        playwright = json!(playwright),
        chromium = json!(tool(Tool::Chromium).unwrap()),
    );
    let mut command = Command::new(tool(Tool::Node).unwrap());
    command.args(["--input-type=module", "--eval", &script]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_browser_shows_its_user_the_price() {
    let gate = Gate::open().await;
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("page.png");
    let script = "const errors = [];
        page.on('console', (message) => { if (message.type() === 'error') errors.push(message.text()); });
        const response = await page.goto(arguments_.url);
        await page.screenshot({ path: arguments_.picture });
        const text = await page.innerText('body');
        const headers = await response.allHeaders();
        const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
        return { status: response.status(), title: await page.title(), text, headers, errors, wide };";
    let found = in_chromium(script, &json!({ "url": gate.farebox.url("/v1/report"), "picture": picture })).await;
    assert_eq!(found["status"], 402, "{found}");
    let text = found["text"].as_str().unwrap();
    for told in ["$0.01", "eip155:84532", &Counter::SELLER.to_string(), "farebox pay", &gate.farebox.url("/v1/report")]
    {
        assert!(text.contains(told), "no {told} in: {text}");
    }
    assert!(found["headers"]["payment-required"].is_string(), "{found}");
    assert_eq!((&found["headers"]["cache-control"], &found["wide"]), (&json!("no-store"), &json!(false)));
    // Chromium reports the 402 itself; a style or script that the page's own policy blocks would be one more.
    let errors = found["errors"].as_array().unwrap();
    assert!(errors.iter().all(|error| error.as_str().unwrap().contains("402")), "{errors:?}");
    let picture = std::fs::read(picture).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{} bytes", picture.len());
    assert_eq!(gate.counter.echo.hits(), 0);
}

#[tokio::test]
async fn a_page_of_another_origin_reads_the_bill_pays_and_reads_the_receipt() {
    let gate = Gate::open().await;
    let payment = gate.sign("/v1/report").await;
    // Another port is another origin, and any page there will do.
    let page = gate.counter.route("GET /page", "free = true");
    let other = gate.counter.serve(&page).await.unwrap();
    let script = "await page.goto(arguments_.page);
        return page.evaluate(async ({ url, payment }) => {
            const told = async (response, name) => ({ status: response.status, header: response.headers.get(name), text: await response.text() });
            const bill = await told(await fetch(url), 'PAYMENT-REQUIRED');
            const headers = { 'PAYMENT-SIGNATURE': payment, 'Idempotency-Key': 'page-1' };
            const paid = await told(await fetch(url, { headers }), 'PAYMENT-RESPONSE');
            return { origin: location.origin, bill, paid };
        }, arguments_);";
    let (url, page) = (gate.farebox.url("/v1/report"), other.url("/page"));
    let found = in_chromium(script, &json!({ "url": url, "page": page, "payment": payment })).await;
    assert!(!url.starts_with(found["origin"].as_str().unwrap()), "{found}");
    let decode = |value: &Value| -> Value {
        serde_json::from_slice(&BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
    };
    assert_eq!(found["bill"]["status"], 402, "{found}");
    assert_eq!(decode(&found["bill"]["header"])["accepts"][0]["amount"], "10000");
    let body: Value = serde_json::from_str(found["bill"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(body["accepts"][0]["maxAmountRequired"], "10000");
    assert_eq!(found["paid"]["status"], 200, "{found}");
    assert_eq!(decode(&found["paid"]["header"])["success"], true);
    assert_eq!(gate.counter.paid_by(gate.payer.address()).await.unwrap(), [CENT]);
}
