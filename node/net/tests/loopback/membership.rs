//! Members that come, go, restart and are revoked; and their gossip.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use remora_net::net::PublishError;
use remora_net::protocol::Protocol;
use remora_net::request::RequestError;

use crate::hosts::{Host, PATIENCE, Seen, befriend, friends};

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_on_the_same_port_is_connected_again() {
    let mut hosts = friends(2).await;
    let second = hosts.pop().unwrap();
    let (key, address) = (second.key.clone(), second.addresses[0].clone());
    second.net.stop().await;
    hosts[0].wait_for(&Seen::Down(key.peer_id())).await;
    assert!(hosts[0].net.connected().is_empty());

    let again = Host::start_with(key, address).await;
    again.rules.members.lock().insert(hosts[0].id());
    hosts[0].wait_for(&Seen::Up(again.id())).await;
    assert_eq!(hosts[0].net.connected().len(), 1);
    // The other side knows no address of ours, and needs none.
    assert_eq!(hosts[0].ask(&again, Protocol::Keeper, "back").await, "back");
    assert_eq!(again.ask(&hosts[0], Protocol::Keeper, "and forth").await, "and forth");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_calls_a_known_member_that_is_not_connected() {
    let (first, second) = (Host::start().await, Host::start().await);
    first.rules.members.lock().insert(second.id());
    second.rules.members.lock().insert(first.id());
    first.net.set_peers(BTreeMap::from([(second.id(), second.addresses.clone())]));
    assert_eq!(first.ask(&second, Protocol::Keeper, "hello").await, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_becomes_a_member_is_admitted_without_a_restart() {
    let (mut first, second) = (Host::start().await, Host::start().await);
    // One-sided: the second does not know the first yet.
    first.rules.members.lock().insert(second.id());
    first.net.set_peers(BTreeMap::from([(second.id(), second.addresses.clone())]));
    first.wait_for(&Seen::Up(second.id())).await;
    let refused = first.net.request(&second.id(), Protocol::Keeper, Bytes::new(), PATIENCE).await;
    assert!(matches!(refused, Err(RequestError::NotMember { .. })), "{refused:?}");
    assert!(second.net.connected().is_empty());

    second.rules.members.lock().insert(first.id());
    first.wait_for(&Seen::Down(second.id())).await;
    first.wait_for(&Seen::Up(second.id())).await;
    assert_eq!(first.ask(&second, Protocol::Keeper, "now").await, "now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_member_loses_its_connections() {
    let mut hosts = friends(2).await;
    let (first, second) = (hosts[0].id(), hosts[1].id());
    hosts[0].rules.members.lock().remove(&second);
    let refused = hosts[1].net.request(&first, Protocol::Keeper, Bytes::new(), PATIENCE).await;
    assert!(refused.is_err(), "refused from the next request on, even before the connection ends");
    hosts[0].wait_for(&Seen::Down(second)).await;
    assert!(hosts[0].net.connected().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_reaches_all_members_under_the_name_of_its_author() {
    let mut hosts = friends(3).await;
    let author = hosts[0].id();
    let message = Bytes::from_static(b"volume notes is mine");
    let net = hosts[0].net.clone();
    // A hint may get lost while the others still say what they listen to, so it is said until it was heard.
    let saying = tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        loop {
            beat.tick().await;
            net.publish(Bytes::from_static(b"volume notes is mine")).unwrap();
        }
    });
    for host in &mut hosts[1..] {
        host.wait_for(&Seen::Gossip(author, message.clone())).await;
    }
    saying.abort();
    let long = Bytes::from(vec![0; 64 * 1024]);
    assert!(matches!(hosts[0].net.publish(long), Err(PublishError::TooLong { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_gossip_arrives() {
    let mut hosts = friends(2).await;
    let (author, net) = (hosts[0].id(), hosts[0].net.clone());
    let message = Bytes::from(vec![1; 62 * 1024]);
    let said = message.clone();
    let saying = tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        loop {
            beat.tick().await;
            net.publish(said.clone()).unwrap();
        }
    });
    hosts[1].wait_for(&Seen::Gossip(author, message)).await;
    saying.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn round_trips_are_measured_and_shown() {
    let hosts = friends(2).await;
    let measured = async {
        while hosts[0].net.connected().iter().all(|link| link.rtt.is_none()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, measured).await.expect("a ping is answered");
    assert_eq!(hosts[0].net.connected()[0].peer, hosts[1].id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_at_the_start() {
    let mut hosts = vec![Host::start().await];
    befriend(&mut hosts).await;
    let address = hosts[0].addresses[0].clone();
    let config = remora_net::config::NetConfig {
        listen: vec![address.clone()],
        ..remora_net::config::NetConfig::new(remora_net::identity::Identity::generate())
    };
    let error = remora_net::net::Net::start(config, hosts[0].rules.clone()).expect_err("the port is taken");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
