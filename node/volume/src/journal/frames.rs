//! How a commit is framed in a log; writers and keepers do it alike.

use remora_store::frame::{FrameKind, FrameMeta};

use crate::commit::Commit;

/// The dag-cbor codec of a frame.
const CODEC_DAG_CBOR: u32 = 0x71;

/// The frame a commit is stored in; `None` if its term does not fit one.
#[must_use]
pub fn commit_meta(commit: &Commit) -> Option<FrameMeta> {
    Some(FrameMeta {
        kind: FrameKind::COMMIT,
        term: u32::try_from(commit.header.term).ok()?,
        seq: commit.header.seq,
        codec: CODEC_DAG_CBOR,
        digest: commit.digest,
    })
}
