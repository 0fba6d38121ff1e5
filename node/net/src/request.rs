//! Requests: what may go wrong with one, and what is kept of it until it is answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use remora_cluster::identity::PeerId;
use thiserror::Error;

use crate::protocol::Protocol;

/// No request stays open longer, whatever its caller asks for.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(120);

/// Why a request brought no answer.
#[derive(Debug, Error, Clone)]
pub enum RequestError {
    /// There is no connection and none could be made. Nothing was sent.
    #[error("not connected to {peer}: {reason}")]
    NotConnected {
        /// Who was asked, or the addresses that were tried if the id was not known.
        peer: String,
        /// What the last attempt said.
        reason: String,
    },
    /// No answer came in time. The peer may have done what was asked.
    #[error("no answer from {peer} to {protocol} within {after:?}")]
    Timeout {
        /// Who was asked, or the addresses that were tried if the id was not known.
        peer: String,
        /// What was asked.
        protocol: Protocol,
        /// How long we waited.
        after: Duration,
    },
    /// The peer understood and said no, with this reason.
    #[error("refused: {0}")]
    Refused(String),
    /// One of the two hosts does not know the other as a member (yet), or speaks an older version.
    #[error("{peer} and this host do not accept each other as members for {protocol}")]
    NotMember {
        /// Who was asked.
        peer: PeerId,
        /// What was asked.
        protocol: Protocol,
    },
    /// Too much is under way with this peer. Nothing was done; try again later.
    #[error("too many requests are under way with {peer}")]
    Busy {
        /// Who was asked.
        peer: PeerId,
    },
    /// The request is longer than the protocol allows. Nothing was sent.
    #[error("a request of {len} bytes is too long for {protocol}, which takes {max}")]
    TooLong {
        /// What was asked.
        protocol: Protocol,
        /// Its length, in bytes.
        len: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Somebody else answers at that address. Nothing was sent.
    #[error("expected {expected} and found {found}")]
    WrongPeer {
        /// Who was asked.
        expected: PeerId,
        /// Who is there.
        found: String,
    },
    /// The connection or the stream broke. The peer may have done what was asked.
    #[error("the connection to {peer} broke")]
    Broken {
        /// Who was asked.
        peer: PeerId,
        /// What broke.
        source: Arc<io::Error>,
    },
    /// The network of this host has been stopped.
    #[error("the network has been stopped")]
    Stopped,
}

impl RequestError {
    /// Whether the same request may succeed in a moment without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            RequestError::NotConnected { .. }
            | RequestError::Timeout { .. }
            | RequestError::NotMember { .. }
            | RequestError::Busy { .. }
            | RequestError::Broken { .. } => true,
            RequestError::Refused(_)
            | RequestError::TooLong { .. }
            | RequestError::WrongPeer { .. }
            | RequestError::Stopped => false,
        }
    }
}
