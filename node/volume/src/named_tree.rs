//! The tree that the newest commit of a log names, made again from that log by a host that did not make it first.
//!
//! ```text
//!  T0 <- c1 .. c9 <- checkpoint(T1 = c1..c9) <- c11 .. c20 <- checkpoint(T2 = c1..c20) <- newest, names T2
//!  here                                                                                 commit 20 names T1, commit 9 names T0
//! ```
//!
//! It goes back from tree to tree until one is here, and from there derives each from the one before it. What always holds: a tree
//! counts as made only if it has the CID that the chain names; nothing is concluded from a log that changed meanwhile.

use cid::Cid;

use remora_dag::block::{BlockSink, BlockSource};
use remora_store::log::Log;

use crate::checkpoint::{CheckpointError, Tail, derive_from_log};
use crate::commit::Commit;
use crate::recover::{GoOn, OpenError, commit_at, last_commit};

/// Trees that are derived one after the other, at most: who is further behind does better to fetch the last one.
const TREES_MAX: usize = 4;

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// The tree is what the chain says. Its blocks are put, not synced.
    Same {
        /// Trees that were derived.
        n_trees: usize,
        /// Bytes of ops that they cover.
        ops_bytes: u64,
    },
    /// The same commits over the same tree give something else here.
    Different {
        /// The last commit in the tree.
        upto: u64,
        /// What the chain names.
        named: Cid,
        /// What was derived.
        derived: Cid,
    },
}

/// Why the tree cannot be made here. It has to be fetched.
#[derive(Debug, thiserror::Error)]
pub enum NamedTreeError {
    /// The log is empty, or does not reach back to a tree that is here.
    #[error("the log does not reach back to a tree that is here")]
    NoStart,
    /// Other commits took the place of those that were read.
    #[error("the log changed meanwhile")]
    Changed,
    /// The log cannot be read.
    #[error("read the log")]
    Log(#[from] OpenError),
    /// A tree cannot be derived.
    #[error("derive a tree")]
    Derive(#[from] CheckpointError),
}

/// Makes the tree that the newest commit of `log` names. `is_here` says whether a tree's own block is on this host; what hangs below
/// it need not be, but then `source` must have it. `go_on` as in [`derive_from_log`].
///
/// # Errors
/// [`NamedTreeError`]; blocks that were put are garbage, not harm.
pub fn make_named_tree(
    log: &Log,
    volume: &[u8; 16],
    (source, sink): (&dyn BlockSource, &dyn BlockSink),
    is_here: &dyn Fn(&Cid) -> bool,
    go_on: &GoOn<'_>,
) -> Result<Made, NamedTreeError> {
    let newest = last_commit(log)?.ok_or(NamedTreeError::NoStart)?;
    let steps = steps(log, &newest, is_here)?;
    let mut made = (0, 0);
    for step in steps.windows(2) {
        let [base, (named, upto)] = *step else { continue };
        let tail = Tail { log, volume, base, upto };
        let (derived, ops_bytes) = derive_from_log(&tail, source, sink, go_on)?;
        if derived.tree_cid != named {
            let is_same_log = commit_at(log, newest.header.seq)?.is_some_and(|now| now.tip() == newest.tip());
            let different = Made::Different { upto, named, derived: derived.tree_cid };
            return if is_same_log { Ok(different) } else { Err(NamedTreeError::Changed) };
        }
        made = (made.0 + 1, made.1 + ops_bytes);
    }
    Ok(Made::Same { n_trees: made.0, ops_bytes: made.1 })
}

/// The trees to go through, each with the last commit in it: first the one to begin with, last the one that `newest` names.
fn steps(
    log: &Log,
    newest: &Commit,
    is_here: &dyn Fn(&Cid) -> bool,
) -> Result<Vec<(Cid, u64)>, NamedTreeError> {
    let (mut tree, mut seq) = (newest.header.base, newest.header.base_seq);
    let mut steps = vec![(tree, seq)];
    while steps.len() <= TREES_MAX {
        let last = commit_at(log, seq)?.ok_or(NamedTreeError::NoStart)?;
        (tree, seq) = match (last.header.base, last.header.base_seq) {
            (base, base_seq) if base_seq < seq => (base, base_seq),
            _ => return Err(NamedTreeError::NoStart),
        };
        steps.push((tree, seq));
        let first: Option<u64> = log.first_seq();
        if first.is_none_or(|first| first > seq + 1) {
            return Err(NamedTreeError::NoStart);
        }
        if is_here(&tree) {
            steps.reverse();
            return Ok(steps);
        }
    }
    Err(NamedTreeError::NoStart)
}
