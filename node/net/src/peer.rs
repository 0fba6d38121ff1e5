//! Peer ids at the border: ours are the 32 bytes of an ed25519 key, libp2p wraps them into a multihash.
//!
//! What always holds: a [`PeerId`] made here is the key the remote proved to hold during the noise handshake.

use libp2p::identity::{PublicKey, ed25519};
use libp2p::{Multiaddr, PeerId as WirePeerId};
use remora_cluster::identity::PeerId;
use thiserror::Error;

/// An id that is not an ed25519 key, in one direction or the other.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{id} is not the id of an ed25519 key")]
pub struct NotAKey {
    /// The id, printed.
    pub id: String,
}

/// The bytes libp2p puts before an ed25519 key in a peer id: identity multihash, 36 bytes, key type 1, 32 bytes of data.
const ED25519_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A text that is no address to listen on or to call.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{text:?} is no address: {reason}")]
pub struct NoAddress {
    /// The text; its beginning, if it is long.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads an address as people write it, like `/ip4/192.0.2.1/tcp/4717`.
///
/// # Errors
/// [`NoAddress`].
pub fn parse_address(text: &str) -> Result<Multiaddr, NoAddress> {
    let no = |reason: String| NoAddress { text: text.chars().take(80).collect(), reason };
    let address: Multiaddr = text.parse().map_err(|e: libp2p::multiaddr::Error| no(e.to_string()))?;
    let is_tcp = address.iter().any(|part| matches!(part, libp2p::multiaddr::Protocol::Tcp(_)));
    if is_tcp { Ok(address) } else { Err(no("it names no TCP port".into())) }
}

/// The id libp2p uses for `peer`.
///
/// # Errors
/// [`NotAKey`] if the bytes are not a point of the curve; nobody can have such an id.
pub fn to_wire(peer: &PeerId) -> Result<WirePeerId, NotAKey> {
    let key = ed25519::PublicKey::try_from_bytes(&peer.0).map_err(|_| NotAKey { id: peer.to_string() })?;
    Ok(PublicKey::from(key).to_peer_id())
}

/// Our id for a peer of libp2p.
///
/// # Errors
/// [`NotAKey`] if the peer uses another kind of key, which members never do.
pub fn from_wire(peer: &WirePeerId) -> Result<PeerId, NotAKey> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&ED25519_PREFIX).and_then(|key| <[u8; 32]>::try_from(key).ok());
    key.map(PeerId).ok_or_else(|| NotAKey { id: peer.to_string() })
}
