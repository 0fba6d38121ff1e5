//! Anti-entropy: two hosts compare what they have and send one another what is missing.
//!
//! Runs with every member as soon as it is connected, and in turn with one of them every half minute, because gossip
//! carries hints only.

use std::sync::Arc;
use std::time::Duration;

use remora_cluster::identity::PeerId;
use remora_cluster::registry::exchange::{EXCHANGE_BYTES_MAX, RegistryMessage};
use remora_net::net::Net;
use remora_net::protocol::Protocol;
use remora_store::fault::chain;

use crate::members::membership::Membership;

/// How long one message of an exchange may take.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// How often some member is compared with, though nothing happened.
const ROUND_EVERY: Duration = Duration::from_secs(30);

/// Messages of one exchange; far more than any registry needs, so that a member cannot keep us busy for ever.
const MESSAGES_MAX: usize = 10_000;

/// Brings this host and `peer` to the same registry, as far as they reach.
pub(crate) async fn exchange(members: &Arc<Membership>, net: &Net, peer: PeerId) -> Result<(), String> {
    let mut hello = members.read(|registry| registry.hello());
    for _ in 0..MESSAGES_MAX {
        let answer = say(net, &peer, &RegistryMessage::Hello(hello)).await?;
        let RegistryMessage::Deltas(deltas) = answer else {
            return Err("an answer that is no deltas".into());
        };
        let theirs = deltas.hello.clone();
        let keeper = Arc::clone(members);
        // The disk is waited for on a thread that may wait.
        let merged =
            tokio::task::spawn_blocking(move || keeper.merge(deltas)).await.map_err(|e| e.to_string())?;
        let lacking =
            theirs.and_then(|hello| members.read(|r| r.deltas_for(&hello, EXCHANGE_BYTES_MAX - 4096)));
        let is_sent = lacking.as_ref().is_none_or(|deltas| !deltas.more);
        if let Some(deltas) = lacking {
            say(net, &peer, &RegistryMessage::Deltas(deltas)).await?;
        }
        match merged.next {
            Some(next) => hello = next,
            None if is_sent => return Ok(()),
            None => hello = members.read(|registry| registry.hello()),
        }
    }
    Err("the exchange does not come to an end".into())
}

async fn say(net: &Net, peer: &PeerId, message: &RegistryMessage) -> Result<RegistryMessage, String> {
    let bytes = message.encode().into();
    let answer =
        net.request(peer, Protocol::Registry, bytes, MESSAGE_TIMEOUT).await.map_err(|e| chain(&e))?;
    RegistryMessage::decode(&answer).map_err(|e| chain(&e))
}

/// Compares with one connected member after another, for ever.
pub(crate) async fn rounds(members: Arc<Membership>, net: Net) {
    let mut turn = 0usize;
    loop {
        tokio::time::sleep(ROUND_EVERY).await;
        let connected = net.connected();
        if connected.is_empty() {
            continue;
        }
        turn = turn.wrapping_add(1);
        let peer = connected[turn % connected.len()].peer;
        if let Err(why) = exchange(&members, &net, peer).await {
            tracing::debug!(%peer, why, "anti-entropy did not complete");
        }
    }
}
