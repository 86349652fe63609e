//! What attackers and broken peers send.

mod support;

use std::time::Duration;

use support::{
    PATIENCE, Upstream, client, config, pass_through, patiently, raw_upstream, read_head, serve, text, upstream,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

#[tokio::test]
async fn ambiguous_paths_are_400_and_never_forwarded() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let paths = [
        "/v1/../paid",
        "/v1/./paid",
        "/v1/%2e%2e/paid",
        "/v1/%2E./paid",
        "/v1/.%2e/paid",
        "/%2e/paid",
        "/..",
        "/v1/..",
        "/v1//paid",
        "//paid",
        "/v1/paid//",
        "/v1%2fpaid",
        "/v1%2Fpaid",
        "/v1%5cpaid",
        "/v1\\paid",
        "/v1/..\\paid",
        "/v1/paid;x=1",
        "/v1;/paid",
        "/v1/paid%3b",
        "/v1/%00",
        "/v1/a%0d%0aX:y",
        "/v1/%7f",
        "/v1/%",
        "/v1/%2",
        "/v1/%zz",
        "/v1/%u002e",
        "/v1/%ff",
        "/v1/%c0%ae%c0%ae/paid",
        "/v1/%e0%80%af",
        "/v1/%ed%a0%80",
        "/v1/%252e%252e/paid",
        "/v1/%252fpaid",
        "/v1/%2525",
        "/v1/%c0%af",
    ];
    for path in paths {
        let answer = gateway.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), "400", "{path}: {answer}");
        assert!(answer.contains("\"code\":\"ambiguous_path\""), "{path}: {answer}");
    }
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn smuggled_requests_stay_one_request() {
    // Whatever the framing says, an upstream sees at most the one request we saw, and never `/smuggled`.
    let attempts: [&[u8]; 14] = [
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nX: a\rGET /smuggled HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\n",
    ];
    for attempt in attempts {
        let origin = Upstream::echo().await;
        let mut tight = config(&[("ANY /*", &origin.url())]);
        tight.limits.idle_timeout = Duration::from_millis(300);
        let gateway = serve(tight).await;
        let answer = gateway.raw(attempt).await;
        let seen = origin.seen();
        let shown = String::from_utf8_lossy(attempt);
        assert!(seen.iter().all(|seen| seen.target == "/a" && seen.body.is_empty()), "{shown}\n{seen:?}");
        assert!(seen.len() <= 1 && !answer.contains("101 "), "{shown}\n{answer}");
        assert!(seen.len() == 1 || status(&answer) == "400" || answer.is_empty(), "{shown}\n{answer}");
    }
}

#[tokio::test]
async fn targets_and_hosts_that_contradict_are_refused() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let refused = [
        ("GET / HTTP/1.1\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n", "400"),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n", "400"),
        ("GET http://user@a/ HTTP/1.1\r\nHost: a\r\n", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n", "501"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: a-pony\r\n", "417"),
    ];
    for (head, expected) in refused {
        let answer = gateway.raw(format!("{head}Connection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), expected, "{head}: {answer}");
    }
    assert_eq!(origin.seen().len(), 0);
    let absolute = "GET http://shop.example/a?b HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&gateway.raw(absolute).await), "200");
    assert_eq!(origin.last().target, "/a?b");
    assert_eq!(origin.last().headers["x-forwarded-host"], "shop.example");
}

#[tokio::test]
async fn heads_that_are_too_large_are_431() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(40 * 1024));
    assert_eq!(status(&gateway.raw(long).await), "431");
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: a\r\n".repeat(120));
    assert_eq!(status(&gateway.raw(many).await), "431");
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let origin = Upstream::echo().await;
    let mut tight = config(&[("ANY /*", &origin.url())]);
    tight.limits.header_read_timeout = Duration::from_millis(200);
    tight.limits.idle_timeout = Duration::from_millis(700);
    let gateway = serve(tight).await;

    // A byte now and then does not help.
    let started = Instant::now();
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").await.unwrap();
    let mut byte = [0];
    let closed = async {
        loop {
            tokio::select! {
                read = slow.read(&mut byte) => return matches!(read, Ok(0) | Err(_)),
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
            }
            if slow.write_all(b"a").await.is_err() {
                return true;
            }
        }
    };
    assert!(patiently(closed).await);
    assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());

    let started = Instant::now();
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    patiently(idle.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(started.elapsed() >= Duration::from_millis(500), "an idle connection is kept longer than a slow head");

    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(patiently(silent.read(&mut byte)).await.unwrap(), 0);
}

#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let origin = Upstream::echo().await;
    let mut small = config(&[("ANY /*", &origin.url())]);
    small.routes[0].request_body_bytes_max = Some(10);
    let gateway = serve(small).await;
    let declared = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello world";
    assert_eq!(status(&gateway.raw(declared).await), "413");
    let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n";
    assert_eq!(status(&gateway.raw(chunked).await), "413");
    assert_eq!(origin.seen().len(), 0);
    let fits = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n6\r\nhello \r\n4\r\nworl\r\n0\r\n\r\n";
    assert_eq!(status(&gateway.raw(fits).await), "200");
}

#[tokio::test]
async fn an_upload_that_stalls_is_given_up() {
    let origin = Upstream::echo().await;
    let mut tight = config(&[("ANY /*", &origin.url())]);
    tight.limits.idle_timeout = Duration::from_millis(200);
    let gateway = serve(tight).await;
    let answer = gateway.raw("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert_eq!(status(&answer), "400", "{answer}");
    assert!(answer.contains("request_aborted"), "{answer}");
}

#[tokio::test]
async fn upstreams_that_fail_are_told_apart() {
    let free = tokio::net::TcpListener::bind(support::loopback()).await.unwrap().local_addr().unwrap();
    let silent = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
        tokio::time::sleep(PATIENCE).await;
    })
    .await;
    let closing = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
    })
    .await;
    let garbage = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
        drop(tcp.write_all(b"SMTP ready\r\n\r\n").await);
    })
    .await;
    let switching = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
        drop(tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await);
    })
    .await;
    let cases = [
        (free, 502, "upstream_unreachable"),
        (silent, 504, "upstream_timeout"),
        (closing, 502, "upstream_reset"),
        (garbage, 502, "upstream_bad_response"),
        (switching, 502, "upstream_"),
    ];
    for (address, status, code) in cases {
        let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
        config.routes[0].upstream.response_timeout = Duration::from_millis(200);
        let gateway = serve(config).await;
        let answer = client().get(gateway.url("/")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{code}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body = answer.text().await.unwrap();
        assert!(body.contains(code) && body.contains("\"charged\":false"), "{body}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_ends_cleanly() {
    let heads = ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"];
    for head in heads {
        let address = raw_upstream(move |mut tcp| async move {
            read_head(&mut tcp).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n5\r\nhello\r\n");
            tcp.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let gateway = serve(config(&[("ANY /*", &format!("http://{address}"))])).await;
        let answer = client().get(gateway.url("/")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.bytes().await.is_err(), "{head}");
        let raw = gateway.raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(!raw.ends_with("0\r\n\r\n"), "{raw}");
    }
}

#[tokio::test]
async fn an_answer_that_stalls_is_cut() {
    let address = raw_upstream(|mut tcp| async move {
        read_head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await.unwrap();
        tokio::time::sleep(PATIENCE).await;
    })
    .await;
    let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
    config.routes[0].upstream.idle_timeout = Duration::from_millis(150);
    let gateway = serve(config).await;
    let answer = client().get(gateway.url("/")).send().await.unwrap();
    assert!(patiently(answer.bytes()).await.is_err());
}

#[tokio::test]
async fn spoofed_and_hop_by_hop_headers_do_not_reach_the_upstream() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let answer = gateway
        .raw(
            "GET /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\n\
             Proxy-Authorization: x\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nPayment-Signature: x\r\nX-Payment: x\r\n\
             Farebox-Payer: me\r\nfarebox-payment-id: pay_1\r\nFarebox_Payer: me\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 1\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n\
             X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\nX-Kept: yes\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), "200");
    let mut headers: Vec<(String, String)> = origin
        .last()
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    let host = origin.address.to_string();
    let expected = [
        ("forwarded", "for=127.0.0.1;host=\"shop.example\";proto=http"),
        ("host", &host),
        ("via", "1.1 farebox"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "http"),
        ("x-kept", "yes"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn connection_headers_cannot_strip_what_we_add() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close, x-forwarded-for, via, host, content-length, farebox-payer\r\n\
                Content-Length: 2\r\n\r\nhi";
    assert_eq!(status(&gateway.raw(head).await), "200");
    let seen = origin.last();
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen.headers["via"], "1.1 farebox");
    assert_eq!(seen.headers["content-length"], "2");
    assert_eq!(seen.body, "hi");
}

#[tokio::test]
async fn hop_by_hop_headers_of_an_answer_stay_behind() {
    let address = upstream(|_| async {
        let mut response = text("x");
        for (name, value) in [("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=5"), ("x-kept", "yes")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let gateway = serve(config(&[("ANY /*", &format!("http://{address}"))])).await;
    let answer = client().get(gateway.url("/")).send().await.unwrap();
    assert!(["connection", "x-hop", "keep-alive"].iter().all(|name| !answer.headers().contains_key(*name)));
    assert_eq!(answer.headers()["x-kept"], "yes");
}
