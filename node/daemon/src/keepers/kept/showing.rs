//! What a keeper shows of its log to those who lack it.

use remora_cluster::message::{Append, COMMIT_BYTES_MAX, COMMITS_MAX, LogChunk, Message};
use remora_cluster::tip::{Checkpoint, Term, Tip};

use crate::keepers::chain::{checkpoint_in, commits_after};
use crate::keepers::kept::Kept;

impl Kept {
    /// The tree to begin with for a host whose log ends before what this one keeps.
    pub(crate) fn checkpoint(&self) -> Option<Checkpoint> {
        checkpoint_in(&self.log).or_else(|| self.promise().checkpoint)
    }

    /// Part of the log, for somebody who has everything up to `after`.
    pub(super) fn fetch(&self, after: Tip, bytes_max: u32) -> Message {
        let mut inner = self.inner.lock();
        self.note_local(&mut inner);
        let end = inner.machine.durable_tip();
        let chain = inner.machine.chain().clone();
        drop(inner);
        // Who ends before what is kept here, or on another branch, begins with the tree.
        let joins = after.seq >= chain.base.seq && chain.holds(&after) && self.goes_on_from(after.seq);
        let checkpoint = if joins { None } else { self.checkpoint() };
        let from = match (&checkpoint, joins) {
            (_, true) => after.seq,
            (Some(checkpoint), false) => checkpoint.tip.seq,
            (None, false) => 0,
        };
        let bytes = (bytes_max as usize).min(COMMIT_BYTES_MAX);
        match commits_after(&self.log, from, bytes, COMMITS_MAX) {
            Ok(commits) => {
                // What is written and not yet on disk is not told.
                let known = commits.into_iter().map(|c| serde_bytes::ByteBuf::from(c.to_vec()));
                let kept = usize::try_from(end.seq.saturating_sub(from)).unwrap_or(usize::MAX);
                Message::LogChunk(LogChunk { checkpoint, commits: known.take(kept).collect(), end })
            }
            Err(why) => {
                tracing::warn!(volume = %self.id, why, "the log cannot be read for a peer");
                Message::NotHere
            }
        }
    }

    /// What a keeper whose log ends at `after` has to be sent next, written or on disk; `None` if the log cannot be read.
    pub(crate) fn append_after(&self, term: Term, after: Tip, commit_seq: u64) -> Option<Append> {
        let mut inner = self.inner.lock();
        self.note_local(&mut inner);
        let chain = inner.machine.chain().clone();
        drop(inner);
        let is_known = chain.holds(&after) || after.seq >= chain.tip.seq;
        let joins = after.seq >= chain.base.seq && is_known && self.goes_on_from(after.seq);
        let checkpoint = if joins { None } else { self.checkpoint() };
        let from = if joins { after.seq } else { checkpoint.map_or(0, |c| c.tip.seq) };
        let commits = commits_after(&self.log, from, COMMIT_BYTES_MAX, COMMITS_MAX);
        let commits =
            commits.map_err(|why| tracing::error!(volume = %self.id, why, "the log cannot be read")).ok()?;
        let commits = commits.into_iter().map(|c| serde_bytes::ByteBuf::from(c.to_vec())).collect();
        Some(Append { term, checkpoint, commits, commit_seq })
    }

    /// Whether the log has what comes after this commit: what a tree stands for may have been dropped.
    fn goes_on_from(&self, seq: u64) -> bool {
        self.log.first_seq().is_none_or(|first| first <= seq + 1)
    }
}
