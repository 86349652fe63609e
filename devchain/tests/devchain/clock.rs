//! Timestamps follow the clock that was handed in, and never go back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use farebox_devchain::Mining;
use serde_json::json;

use crate::harness::{Net, START_S};

const TELLS_TIME: &str = "0x00000000000000000000000000000000000000aa";

impl Net {
    async fn time_s(&self, block: &str) -> u64 {
        let block = self.rpc("eth_getBlockByNumber", json!([block, false])).await;
        u64::from_str_radix(block["result"]["timestamp"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    /// The time that a contract sees.
    async fn time_in_call_s(&self, block: &str) -> u64 {
        let answer = self.rpc("eth_call", json!([{"to": TELLS_TIME}, block])).await;
        u64::from_str_radix(answer["result"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }
}

#[tokio::test]
async fn blocks_have_the_clocks_time_and_never_go_back() {
    let net = Net::new(Mining::Instant).await;
    let mut times = Vec::new();
    for clock_s in [START_S, START_S, START_S + 100, START_S + 50, START_S + 101] {
        net.clock_s.store(clock_s, Ordering::SeqCst);
        net.chain.mine();
        times.push(net.time_s("latest").await - START_S);
    }
    assert_eq!(times, [0, 0, 100, 100, 101]);

    net.chain.increase_time(Duration::from_secs(1000));
    net.chain.mine();
    assert_eq!(net.time_s("latest").await, START_S + 1101);
}

#[tokio::test]
async fn a_call_at_latest_has_the_clocks_time_though_no_block_was_made_for_an_hour() {
    let net = Net::new(Mining::Instant).await;
    net.rpc("anvil_setCode", json!([TELLS_TIME, "0x425f5260205ff3"])).await;
    net.chain.mine();
    net.clock_s.store(START_S + 3600, Ordering::SeqCst);
    assert_eq!(net.time_in_call_s("latest").await, START_S + 3600);
    assert_eq!(net.time_in_call_s("pending").await, START_S + 3600);
    assert_eq!(net.time_in_call_s("0x0").await, START_S);
}

#[tokio::test(start_paused = true)]
async fn blocks_come_by_the_interval_until_they_are_held() {
    let net = Net::new(Mining::Interval(Duration::from_secs(2))).await;
    tokio::time::sleep(Duration::from_millis(6100)).await;
    assert_eq!(net.chain.block_number(), 3);
    net.chain.set_mining(Mining::Held);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(net.chain.block_number(), 3);
}
