//! Many connections, kept connections, and the end.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use support::{
    Upstream, client, config, loopback, pass_through, patiently, raw_upstream, read_head, serve, text, upstream,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (here, go) = (arrived.clone(), go_on.clone());
    let address = upstream(move |_| {
        let (here, go) = (here.clone(), go.clone());
        async move {
            here.notify_one();
            go.notified().await;
            text("late")
        }
    })
    .await;
    let mut gateway = serve(config(&[("ANY /*", &format!("http://{address}"))])).await;
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    let asking = tokio::spawn(client().get(gateway.url("/")).send());
    patiently(arrived.notified()).await;
    gateway.shut_down();
    assert_eq!(patiently(idle.read(&mut [0])).await.unwrap(), 0, "an idle connection is closed at once");
    patiently(async { while TcpStream::connect(gateway.address).await.is_ok() {} }).await;
    go_on.notify_one();
    let answer = patiently(asking).await.unwrap().unwrap();
    assert_eq!(answer.text().await.unwrap(), "late");
    gateway.ended().await;
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_cut() {
    let address = upstream(|_| std::future::pending()).await;
    let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
    config.limits.drain_timeout = Duration::from_millis(200);
    let gateway = serve(config).await;
    let mut tcp = TcpStream::connect(gateway.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    gateway.ended().await;
    assert_eq!(patiently(tcp.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_thousand_connections_are_served_over_few_upstream_ones() {
    let origin = Upstream::echo().await;
    let gateway = pass_through(&origin).await;
    let mut open = Vec::new();
    for _ in 0..1000 {
        open.push(TcpStream::connect(gateway.address).await.unwrap());
    }
    for tcp in &mut open {
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    }
    for tcp in &mut open {
        let head = patiently(read_head(tcp)).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert_eq!(origin.seen().len(), 1000);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let origin = Upstream::echo().await;
    let mut narrow = config(&[("ANY /*", &origin.url())]);
    narrow.limits.connections_max = 1;
    let gateway = serve(narrow).await;
    let mut first = TcpStream::connect(gateway.address).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    patiently(read_head(&mut first)).await;
    let mut second = TcpStream::connect(gateway.address).await.unwrap();
    second.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(150), second.read(&mut [0])).await;
    assert!(early.is_err(), "the second must wait");
    drop(first);
    assert!(patiently(read_head(&mut second)).await.starts_with("HTTP/1.1 200"));
}

/// Counts connections and requests; closes each connection after `requests_max` requests, without saying so.
async fn forgetful(requests_max: usize) -> (std::net::SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (connections.clone(), requests.clone());
    let address = raw_upstream(move |mut tcp| {
        let (connections, requests) = counters.clone();
        async move {
            connections.fetch_add(1, Ordering::SeqCst);
            for _ in 0..requests_max {
                if read_head(&mut tcp).await.is_empty() {
                    return;
                }
                requests.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    (address, connections, requests)
}

#[tokio::test]
async fn upstream_connections_are_kept() {
    let (address, connections, requests) = forgetful(100).await;
    let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
    config.workers = 1;
    let gateway = serve(config).await;
    let client = client();
    for _ in 0..20 {
        assert_eq!(client.get(gateway.url("/")).send().await.unwrap().text().await.unwrap(), "ok");
    }
    assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (1, 20));
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_closed_costs_nothing() {
    let (address, connections, requests) = forgetful(1).await;
    let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
    config.workers = 1;
    let gateway = serve(config).await;
    let client = client();
    for _ in 0..10 {
        assert_eq!(client.post(gateway.url("/")).send().await.unwrap().status(), 200);
        // Long enough for the close to arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (10, 10));
}

#[tokio::test]
async fn only_safe_requests_are_repeated_after_bytes_were_sent() {
    // Answers the first request of a connection; takes the second and hangs up.
    for (method, status, sent) in [("GET", 200, 3), ("POST", 502, 2)] {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let address = raw_upstream(move |mut tcp| {
            let requests = counter.clone();
            async move {
                read_head(&mut tcp).await;
                requests.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                if !read_head(&mut tcp).await.is_empty() {
                    requests.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .await;
        let mut config = config(&[("ANY /*", &format!("http://{address}"))]);
        config.workers = 1;
        let gateway = serve(config).await;
        let client = client();
        let send = || client.request(method.parse().unwrap(), gateway.url("/")).send();
        assert_eq!(send().await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(send().await.unwrap().status(), status, "{method}");
        assert_eq!(requests.load(Ordering::SeqCst), sent, "{method}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_upstreams_work() {
    let gone = Arc::new(Notify::new());
    let notice = gone.clone();
    let address = raw_upstream(move |mut tcp| {
        let gone = notice.clone();
        async move {
            read_head(&mut tcp).await;
            if let Ok(0) | Err(_) = tcp.read(&mut [0]).await {
                gone.notify_one();
            }
        }
    })
    .await;
    let gateway = serve(config(&[("ANY /*", &format!("http://{address}"))])).await;
    let mut tcp = TcpStream::connect(gateway.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(tcp);
    patiently(gone.notified()).await;
}

#[tokio::test]
async fn a_port_in_use_and_conflicting_routes_are_refused_at_bind() {
    let taken = std::net::TcpListener::bind(loopback()).unwrap();
    let origin = "http://127.0.0.1:1";
    let mut occupied = config(&[("GET /a", origin)]);
    occupied.listeners[0].address = taken.local_addr().unwrap();
    assert_eq!(farebox_gateway::Gateway::bind(occupied, support::ports()).await.unwrap_err().code(), "cannot_listen");
    let conflict = config(&[("GET /a/{x}", origin), ("GET,POST /a/{y}", origin)]);
    assert_eq!(farebox_gateway::Gateway::bind(conflict, support::ports()).await.unwrap_err().code(), "route_conflict");
}
