//! What a network is started with.

use libp2p::Multiaddr;
use remora_cluster::identity::ClusterId;

use crate::identity::Identity;

/// Everything [`crate::net::Net::start`] wants to know.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The key of this host; its public half is the peer id.
    pub key: Identity,
    /// The cluster whose gossip this host hears. `None` before it has joined one: then there is no gossip at all.
    pub cluster: Option<ClusterId>,
    /// Where to listen, such as `/ip4/0.0.0.0/tcp/4001`; port 0 lets the system choose. Empty: only calls others.
    pub listen: Vec<Multiaddr>,
    /// Whether to look for the addresses of members on the local network. Has no effect if all of `listen` is loopback.
    pub mdns: bool,
    /// Bounds on connections.
    pub limits: Limits,
}

impl NetConfig {
    /// For a host with this key, which listens nowhere, hears no gossip and uses the default limits.
    #[must_use]
    pub fn new(key: Identity) -> NetConfig {
        NetConfig { key, cluster: None, listen: Vec::new(), mdns: false, limits: Limits::default() }
    }
}

/// Bounds on connections. What exceeds them is closed during or right after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that stand, in both directions together.
    pub connections_max: u32,
    /// Connections to one peer. Two hosts that call each other at the same moment have two.
    pub per_peer_max: u32,
    /// Incoming connections whose handshake is not finished.
    pub pending_in_max: u32,
    /// The same from one IP address, so that one of them cannot take all places.
    pub pending_in_per_ip_max: u32,
    /// Connections of peers that are not members, so that they never keep a member out.
    pub strangers_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 1024,
            per_peer_max: 4,
            pending_in_max: 128,
            pending_in_per_ip_max: 32,
            strangers_max: 64,
        }
    }
}
