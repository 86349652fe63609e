//! The upstream fails in the ways it is told to, as a client sees them.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use farebox_e2e::{Answer, Echo, http_client};
use serde_json::Value;

#[tokio::test]
async fn echo_tells_method_path_headers_and_body_and_counts_by_payment() {
    let echo = Echo::start().await.unwrap();
    let url = format!("{}/a%20b?x=1", echo.url());
    let request = http_client().unwrap().put(url).header("Farebox-Payment-Id", "pay_1").body("hello");
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["method"], "PUT");
    assert_eq!(answer["path"], "/a%20b?x=1");
    assert_eq!(BASE64_STANDARD.decode(answer["body"].as_str().unwrap()).unwrap(), b"hello");
    assert_eq!((echo.hits(), echo.hits_for("pay_1"), echo.hits_for("pay_2")), (1, 1, 0));
    assert_eq!(echo.seen()[0].header("farebox-payment-id"), Some("pay_1"));
}

#[tokio::test]
async fn scripted_answers_come_in_order_and_then_the_standing_one() {
    let echo = Echo::start().await.unwrap();
    echo.answer(Answer::Empty);
    echo.answer_next(Answer::Status(500));
    echo.answer_next(Answer::Status(404));
    assert_eq!(get(&echo).await.unwrap().status(), 500);
    assert_eq!(get(&echo).await.unwrap().status(), 404);
    assert_eq!(get(&echo).await.unwrap().bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn an_upstream_can_hang_up_reset_hold_and_stream() {
    let echo = Echo::start().await.unwrap();
    echo.answer_next(Answer::HangUp);
    assert!(get(&echo).await.is_err());

    echo.answer_next(Answer::ResetMidBody);
    let mut answer = get(&echo).await.unwrap();
    assert_eq!(answer.content_length(), Some(1000));
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "ten bytes!");
    assert!(answer.chunk().await.is_err());

    let pieces =
        Answer::Pieces { content_type: "text/event-stream", pieces: vec!["a", "b"], pause: Duration::from_secs(30) };
    echo.answer_next(pieces);
    let mut answer = get(&echo).await.unwrap();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "a");
    drop(answer);

    echo.answer_next(Answer::Held);
    let held = get(&echo);
    tokio::pin!(held);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut held).await.is_err());
    echo.release(1);
    assert_eq!(held.await.unwrap().status(), 200);
    echo.wait_for_hits(4, Duration::from_secs(1)).await.unwrap();
    assert!(echo.wait_for_hits(5, Duration::from_millis(10)).await.is_err());
}

async fn get(echo: &Echo) -> reqwest::Result<reqwest::Response> {
    http_client().unwrap().get(echo.url()).send().await
}
