//! Why a question to the state, or an operation on it, did not go through.

use cid::Cid;
use remora_vfs::errno::Errno;
use thiserror::Error;

/// How many blocks one operation may need before it is given up: emptying the middle of a sparse file takes one for each gibibyte of it.
pub(crate) const FETCHES_MAX: usize = 1 << 16;

/// Why the state stopped. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Stop {
    /// A block of the base tree is needed: fetch it without holding the state's lock, supply it, ask again.
    #[error("block {0} is needed")]
    Need(Cid),
    /// The answer is this error.
    #[error("{0}")]
    Errno(Errno),
    /// A block of the base tree came and is no sound node: `EIO` for whoever asked.
    #[error("block {cid} of the base tree is damaged")]
    Damaged {
        /// The block.
        cid: Cid,
    },
    /// An operation that does not fit the state it is applied to: a log over the wrong base, or our own bug. The volume
    /// must step down.
    #[error("the operation does not fit the state: {0}")]
    Refused(&'static str),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}
