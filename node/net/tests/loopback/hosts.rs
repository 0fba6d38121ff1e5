//! A host of the tests: a handler whose members, answers and memories are in reach of the test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::Multiaddr;
use parking_lot::Mutex;
use remora_cluster::identity::{ClusterId, PeerId};
use remora_dag::block::{BlockSource, MemBlocks};
use remora_net::config::NetConfig;
use remora_net::exchange::{BlockProvider, serve};
use remora_net::handler::{Handler, RequestRefused};
use remora_net::identity::Identity;
use remora_net::net::Net;
use remora_net::protocol::Protocol;
use tokio::sync::mpsc;

/// Longer than anything here takes on a busy machine; no test waits for it unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Up(PeerId),
    Down(PeerId),
    Gossip(PeerId, Bytes),
}

/// What a host says when it is asked for blocks.
#[derive(Clone)]
pub(crate) enum Blocks {
    Honest(Arc<MemBlocks>),
    /// These bytes, whatever was asked.
    Forged(Bytes),
}

pub(crate) struct Rules {
    pub(crate) members: Mutex<BTreeSet<PeerId>>,
    pub(crate) blocks: Mutex<Blocks>,
    pub(crate) block_requests: AtomicUsize,
    seen: mpsc::UnboundedSender<Seen>,
}

struct Provided(Arc<MemBlocks>);

impl BlockProvider for Provided {
    fn block(&self, cid: &cid::Cid) -> Option<Bytes> {
        self.0.get(cid).ok()
    }
}

impl Handler for Rules {
    fn is_member(&self, peer: &PeerId) -> bool {
        self.members.lock().contains(peer)
    }

    /// Join makes the asker a member if it says "please"; Keeper echoes; Log answers with as many bytes as it is told, or
    /// never if it is told nothing; Registry refuses.
    fn on_request(
        &self,
        peer: PeerId,
        protocol: Protocol,
        request: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>> {
        let answer = match protocol {
            Protocol::Join if request == "please" => {
                self.members.lock().insert(peer);
                Ok(Bytes::from_static(b"welcome"))
            }
            Protocol::Join | Protocol::Keeper => Ok(request),
            Protocol::Registry => Err(RequestRefused::new("not today")),
            Protocol::Log if request.is_empty() => return std::future::pending().boxed(),
            Protocol::Log => {
                let len = u32::from_be_bytes(request.as_ref().try_into().unwrap());
                Ok(Bytes::from(vec![7; usize::try_from(len).unwrap()]))
            }
            Protocol::Blocks => {
                self.block_requests.fetch_add(1, Ordering::Relaxed);
                match self.blocks.lock().clone() {
                    Blocks::Honest(blocks) => return serve(Arc::new(Provided(blocks)), request).boxed(),
                    Blocks::Forged(bytes) => Ok(bytes),
                }
            }
        };
        async move { answer }.boxed()
    }

    fn on_gossip(&self, author: PeerId, message: Bytes) {
        let _ = self.seen.send(Seen::Gossip(author, message));
    }

    fn on_connected(&self, peer: PeerId) {
        let _ = self.seen.send(Seen::Up(peer));
    }

    fn on_disconnected(&self, peer: PeerId) {
        let _ = self.seen.send(Seen::Down(peer));
    }
}

pub(crate) struct Host {
    pub(crate) key: Identity,
    pub(crate) net: Net,
    pub(crate) rules: Arc<Rules>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Host {
    pub(crate) async fn start() -> Host {
        Host::start_with(Identity::generate(), "/ip4/127.0.0.1/tcp/0".parse().unwrap()).await
    }

    pub(crate) async fn start_with(key: Identity, listen: Multiaddr) -> Host {
        let (seen_in, seen) = mpsc::unbounded_channel();
        let rules = Arc::new(Rules {
            members: Mutex::default(),
            blocks: Mutex::new(Blocks::Honest(Arc::new(MemBlocks::new()))),
            block_requests: AtomicUsize::new(0),
            seen: seen_in,
        });
        let config = NetConfig {
            cluster: Some(ClusterId([9; 32])),
            listen: vec![listen],
            mdns: true,
            ..NetConfig::new(key.clone())
        };
        let net = Net::start(config, rules.clone()).unwrap();
        let addresses = tokio::time::timeout(PATIENCE, net.listening()).await.unwrap();
        Host { key, net, rules, seen, addresses }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.key.peer_id()
    }

    /// Replaces what peers get who ask for blocks.
    pub(crate) fn say_blocks(&self, blocks: Blocks) {
        *self.rules.blocks.lock() = blocks;
    }

    /// Waits until this has been seen; what comes before is forgotten.
    pub(crate) async fn wait_for(&mut self, wanted: &Seen) {
        let wait = async { while self.seen.recv().await.unwrap() != *wanted {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never saw {wanted:?}"));
    }

    pub(crate) async fn ask(&self, to: &Host, protocol: Protocol, request: impl Into<Bytes>) -> Bytes {
        self.net.request(&to.id(), protocol, request.into(), PATIENCE).await.unwrap()
    }
}

/// Makes all of them members of each other and waits until every pair is connected.
pub(crate) async fn befriend(hosts: &mut [Host]) {
    let ids: BTreeSet<PeerId> = hosts.iter().map(Host::id).collect();
    let book: BTreeMap<PeerId, Vec<Multiaddr>> =
        hosts.iter().map(|host| (host.id(), host.addresses.clone())).collect();
    for host in hosts.iter() {
        *host.rules.members.lock() = ids.clone();
    }
    for host in hosts.iter() {
        host.net.set_peers(book.clone());
    }
    for host in hosts.iter_mut() {
        let mut missing: BTreeSet<PeerId> = ids.iter().copied().filter(|id| *id != host.id()).collect();
        let wait = async {
            while !missing.is_empty() {
                match host.seen.recv().await.unwrap() {
                    Seen::Up(peer) => missing.remove(&peer),
                    Seen::Down(peer) => missing.insert(peer),
                    Seen::Gossip(..) => false,
                };
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("all hosts connect");
    }
}

pub(crate) async fn friends(count: usize) -> Vec<Host> {
    let mut hosts = Vec::new();
    for _ in 0..count {
        hosts.push(Host::start().await);
    }
    befriend(&mut hosts).await;
    hosts
}
