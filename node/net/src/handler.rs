//! What the network asks of the one who started it.

use bytes::Bytes;
use futures::future::BoxFuture;
use remora_cluster::identity::PeerId;
use thiserror::Error;

use crate::protocol::Protocol;

/// The longest reason that travels, in bytes; the rest is cut.
pub const REASON_BYTES_MAX: usize = 1024;

/// A request that was understood and will not be done.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{reason}")]
pub struct RequestRefused {
    /// Why, for the person at the other end; cut to [`REASON_BYTES_MAX`] on the wire.
    pub reason: String,
}

impl RequestRefused {
    /// A refusal with this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> RequestRefused {
        RequestRefused { reason: reason.into() }
    }
}

/// The rules behind the sockets.
///
/// `is_member` is called from the loop that turns the network: it reads memory and returns. The three notices come from
/// tasks of their own, one at a time, and may take their time; gossip that arrives meanwhile is dropped once its queue is
/// full, connections are never.
pub trait Handler: Send + Sync + 'static {
    /// Whether `peer` has a valid certificate. Every protocol but [`Protocol::Join`] is closed to all others. Asked again
    /// every second for every connection, so a revoked member loses its connections.
    fn is_member(&self, peer: &PeerId) -> bool;

    /// Answers a request. `peer` holds the key of that id and was a member when the request came (unless it is a join).
    ///
    /// # Cancel
    /// The future is dropped when the network stops or after [`crate::request::REQUEST_TIME_MAX`], but runs on when the
    /// asker has given up.
    fn on_request(
        &self,
        peer: PeerId,
        protocol: Protocol,
        request: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, RequestRefused>>;

    /// A message that the member `author` signed and published. A hint: it may come late, twice or never.
    fn on_gossip(&self, author: PeerId, message: Bytes);

    /// The first connection to a member stands. The member may not yet know us as one.
    fn on_connected(&self, peer: PeerId);

    /// The last connection to a peer is gone. Always after its `on_connected`.
    fn on_disconnected(&self, peer: PeerId);
}
