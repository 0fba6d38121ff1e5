//! A log as the protocol's machines see it.

use cid::Cid;
use remora_cluster::tip::{Chain, Checkpoint, CommitHeader, CommitId, Term, Tip};
use remora_dag::block::Codec;
use remora_store::fault::chain as cause;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::log::{Frame, Log};
use remora_store::scan::FrameView;
use remora_volume::commit::Commit;

/// The header of a commit. The first commit of a volume follows a tree, which the machines know as "no commit yet".
pub(crate) fn header_of(commit: &Commit) -> CommitHeader {
    let is_first = commit.header.seq == 1;
    let prev = if is_first { CommitId::default() } else { CommitId(commit.header.prev) };
    CommitHeader { tip: tip_of(commit), prev }
}

/// The tip of a chain that ends with this commit.
pub(crate) fn tip_of(commit: &Commit) -> Tip {
    Tip { term: Term(commit.header.term), seq: commit.header.seq, id: CommitId(commit.digest) }
}

/// The tip as the volume knows it.
pub(crate) fn from_volume(tip: remora_volume::commit::Tip) -> Tip {
    if tip.seq == 0 {
        return Tip::default();
    }
    Tip { term: Term(tip.term), seq: tip.seq, id: CommitId(tip.digest) }
}

fn tip_in(header: &remora_store::frame::FrameHeader) -> Tip {
    Tip { term: Term(u64::from(header.meta.term)), seq: header.meta.seq, id: CommitId(header.meta.digest) }
}

/// Builds a [`Chain`] from the frames of a log as they are shown at its opening.
#[derive(Default)]
pub(crate) struct ChainBuilder {
    chain: Option<Chain>,
}

impl ChainBuilder {
    /// Takes the next frame.
    pub(crate) fn take(&mut self, view: &FrameView<'_>) -> Result<(), String> {
        if view.header.meta.kind != FrameKind::COMMIT {
            return Ok(());
        }
        let tip = tip_in(view.header);
        match &mut self.chain {
            Some(chain) if tip.seq == chain.tip.seq + 1 && tip.term >= chain.tip.term => chain.push(tip),
            Some(chain) => return Err(format!("commit {} follows commit {}", tip.seq, chain.tip.seq)),
            None => self.chain = Some(begin(view, tip)?),
        }
        Ok(())
    }

    /// The chain; `base` if the log was empty.
    pub(crate) fn finish(self, base: Tip) -> Chain {
        self.chain.unwrap_or_else(|| Chain::from_base(base))
    }
}

/// A chain whose first kept commit is `tip`. What came before it was dropped: its number and digest are in the commit; its term is that
/// of the commit, unless that is the first of its term.
fn begin(view: &FrameView<'_>, tip: Tip) -> Result<Chain, String> {
    let commit = Commit::decode(bytes::Bytes::copy_from_slice(view.payload)).map_err(|e| cause(&e))?;
    let base = match header_of(&commit).prev {
        prev if prev == CommitId::default() => Tip::default(),
        prev => Tip { term: tip.term, seq: tip.seq.saturating_sub(1), id: prev },
    };
    let mut chain = Chain::from_base(base);
    chain.push(tip);
    Ok(chain)
}

/// The tip that ends with commit `seq`, if the log has it.
pub(crate) fn tip_at(log: &Log, seq: u64) -> Option<Tip> {
    let frame = frame_at(log, seq)?;
    Some(tip_in(&frame.header))
}

fn frame_at(log: &Log, seq: u64) -> Option<Frame> {
    let position = log.position_of(seq)?;
    log.frame(position).ok()
}

/// The tree that the newest commit of a log stands on, as a place to begin; `None` while that is the volume's first tree, or if the
/// log does not have the commit it stands for (then the promise's record has it).
pub(crate) fn checkpoint_in(log: &Log) -> Option<Checkpoint> {
    let tail = log.tail()?;
    let newest = log.frame(tail.position).ok()?;
    let commit = Commit::decode(newest.payload).ok()?;
    let (tree, seq): (Cid, u64) = (commit.header.base, commit.header.base_seq);
    if seq == 0 {
        return None;
    }
    Some(Checkpoint { tip: tip_at(log, seq)?, tree })
}

/// The frame in which a keeper's log holds a commit.
pub(crate) fn frame_of(commit: &Commit) -> FrameMeta {
    FrameMeta {
        kind: FrameKind::COMMIT,
        term: u32::try_from(commit.header.term).unwrap_or(u32::MAX),
        seq: commit.header.seq,
        codec: u32::try_from(Codec::DagCbor.code()).unwrap_or(0),
        digest: commit.digest,
    }
}

/// The tree that commit `seq` stands on, and the last commit in that tree; `None` if the log does not have the commit.
pub(crate) fn named_base(log: &Log, seq: u64) -> Option<(Cid, u64)> {
    let commit = Commit::decode(frame_at(log, seq)?.payload).ok()?;
    Some((commit.header.base, commit.header.base_seq))
}

/// Commits after `after`, at most `bytes_max` bytes of them (at least one if there is one).
pub(crate) fn commits_after(
    log: &Log,
    after: u64,
    bytes_max: usize,
    count_max: usize,
) -> Result<Vec<bytes::Bytes>, String> {
    let mut commits = Vec::new();
    let mut left = bytes_max;
    for frame in log.iter_from(after + 1) {
        let frame = frame.map_err(|e| cause(&e))?;
        if commits.len() >= count_max || (frame.payload.len() > left && !commits.is_empty()) {
            break;
        }
        left = left.saturating_sub(frame.payload.len());
        commits.push(frame.payload);
    }
    Ok(commits)
}
