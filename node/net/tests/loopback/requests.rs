//! Requests between members.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use remora_net::protocol::Protocol;
use remora_net::request::RequestError;

use crate::hosts::{PATIENCE, friends};

const MIB: usize = 1024 * 1024;

fn number(n: usize) -> Bytes {
    Bytes::copy_from_slice(&u32::try_from(n).unwrap().to_be_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_8_mib_and_a_request_of_5_mib_arrive_whole() {
    let hosts = friends(2).await;
    let answer = hosts[0].ask(&hosts[1], Protocol::Log, number(8 * MIB)).await;
    assert_eq!(answer, vec![7; 8 * MIB]);
    let request: Bytes = (0..5 * MIB).map(|i| (i * 31 % 251).to_le_bytes()[0]).collect();
    assert_eq!(hosts[1].ask(&hosts[0], Protocol::Keeper, request.clone()).await, request);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_at_once_are_all_answered() {
    let hosts = friends(2).await;
    for protocol in [Protocol::Keeper, Protocol::Log, Protocol::Join] {
        let asks = (0..200).map(|n| {
            let (hosts, request) = (&hosts, number(n));
            async move { (n, hosts[n % 2].ask(&hosts[1 - n % 2], protocol, request).await) }
        });
        for (n, answer) in join_all(asks).await {
            let expected = if protocol == Protocol::Log { Bytes::from(vec![7; n]) } else { number(n) };
            assert_eq!(answer, expected, "{protocol} {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_carries_its_reason() {
    let hosts = friends(2).await;
    let refused = hosts[0].net.request(&hosts[1].id(), Protocol::Registry, Bytes::new(), PATIENCE).await;
    assert!(matches!(refused, Err(RequestError::Refused(reason)) if reason == "not today"));
    let answer = hosts[0].net.request(&hosts[1].id(), Protocol::Log, number(10 * MIB), PATIENCE).await;
    assert!(matches!(answer, Err(RequestError::Refused(_))), "an answer over the bound is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_bound_is_not_sent() {
    let hosts = friends(2).await;
    let long = Bytes::from(vec![0; Protocol::Log.request_bytes_max() + 1]);
    let refused = hosts[0].net.request(&hosts[1].id(), Protocol::Log, long, PATIENCE).await;
    assert!(matches!(refused, Err(RequestError::TooLong { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_timed_out_give_their_places_free() {
    let hosts = friends(2).await;
    let short = Duration::from_millis(300);
    // Those beyond what the other side serves at a time are told "busy" instead.
    let peer = hosts[1].id();
    let never = |_| hosts[0].net.request(&peer, Protocol::Log, Bytes::new(), short);
    for result in join_all((0..Protocol::Log.in_flight_max() + 1).map(never)).await {
        assert!(matches!(result, Err(RequestError::Timeout { .. })), "{result:?}");
    }
    assert_eq!(hosts[0].ask(&hosts[1], Protocol::Log, number(3)).await, vec![7; 3]);
    assert_eq!(hosts[0].ask(&hosts[1], Protocol::Keeper, "other lanes never noticed").await.len(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_unanswered_requests_than_a_peer_is_served_are_busy() {
    let hosts = friends(2).await;
    let short = Duration::from_millis(100);
    let mut results = Vec::new();
    while results.len() < 2 * Protocol::Log.serve_max() {
        results.push(hosts[0].net.request(&hosts[1].id(), Protocol::Log, Bytes::new(), short).await);
    }
    assert!(matches!(results.first(), Some(Err(RequestError::Timeout { .. }))));
    assert!(matches!(results.last(), Some(Err(RequestError::Busy { .. }))), "{:?}", results.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_open_ends_when_the_network_stops() {
    let hosts = friends(2).await;
    let net = hosts[0].net.clone();
    let peer = hosts[1].id();
    let never = net.request(&peer, Protocol::Log, Bytes::new(), PATIENCE);
    let (result, ()) = tokio::join!(never, hosts[0].net.stop());
    assert!(matches!(result, Err(RequestError::Stopped | RequestError::Broken { .. })), "{result:?}");
    let late = net.request(&hosts[1].id(), Protocol::Keeper, Bytes::new(), PATIENCE).await;
    assert!(matches!(late, Err(RequestError::Stopped)));
    hosts[0].net.stop().await;
    assert!(hosts[0].net.connected().is_empty() && hosts[0].net.listen_addrs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_an_address_is_not_waited_for() {
    let hosts = friends(1).await;
    let nobody = remora_net::identity::Identity::generate().peer_id();
    let result = hosts[0].net.request(&nobody, Protocol::Keeper, Bytes::new(), PATIENCE).await;
    assert!(matches!(result, Err(RequestError::NotConnected { .. })), "{result:?}");
    let myself = hosts[0].net.request(&hosts[0].id(), Protocol::Keeper, Bytes::new(), PATIENCE).await;
    assert!(matches!(myself, Err(RequestError::NotConnected { .. })));
}
