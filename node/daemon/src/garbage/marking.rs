//! Which blocks of this host count: everything that its volumes and the roots that people added refer to.
//!
//! What always holds: a volume of this host that is not whole here stops the marking with a reason, because what is missing may lead
//! to blocks that are here and nowhere else; what is only history (an older tree that the log still names, a suffix that lost) is
//! marked as far as it is there.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::Codec;
use remora_dag::walk::links_of;
use remora_store::blocks::Blocks;
use remora_store::blocks::touches::Live;
use remora_store::disk::RealDisk;
use remora_store::fault::chain;
use remora_store::log::Log;
use remora_volume::commit::{Commit, digest_in};

use crate::keepers::desk::Keepers;
use crate::keepers::hydrate::collect::{Collect, Known, Reach, Stopped};
use crate::keepers::kept::Kept;

/// Nodes of what a person added, at most; more are not walked and stop the marking.
const NODES_MAX: usize = 16_000_000;

/// A marking under way.
pub(super) struct Marking<'a> {
    store: &'a Blocks,
    is_stopping: &'a dyn Fn() -> bool,
    live: RefCell<Live>,
}

impl<'a> Marking<'a> {
    pub(super) fn new(store: &'a Blocks, is_stopping: &'a dyn Fn() -> bool) -> Self {
        Marking { store, is_stopping, live: RefCell::default() }
    }

    /// What was marked.
    pub(super) fn finish(self) -> Live {
        self.live.into_inner()
    }

    /// Everything a volume refers to.
    pub(super) fn volume(&self, keepers: &Keepers, kept: &Kept) -> Result<(), String> {
        // Before the log is read: what is on its way there must be seen in one of the two.
        let local = kept.local();
        let referred = local.as_ref().map(|volume| volume.referred()).unwrap_or_default();
        let committed = local.map_or_else(|| kept.commit_seq(), |volume| volume.status().durable_seq);
        let mut history = History::default();
        for frame in kept.log().iter_from(0) {
            let frame = frame.map_err(|e| chain(&e))?;
            history.add(Commit::decode(frame.payload).map_err(|e| chain(&e))?, committed);
        }
        if history.newest.is_none() {
            history.newest = match kept.promise().checkpoint {
                Some(checkpoint) => Some((checkpoint.tree, checkpoint.tip.seq)),
                None => first_tree(keepers, kept)?.map(|tree| (tree, 0)),
            };
        }
        for path in kept.forks()? {
            self.fork(&path, &mut history.older)?;
        }
        let (base, base_seq) = history.newest.unzip();
        base.iter().chain(&history.committed).try_for_each(|tree| self.whole_tree(tree))?;
        for (seq, cid) in &history.data {
            if !self.has(cid).map_err(text)? && base_seq.is_some_and(|base_seq| *seq > base_seq) {
                return Err(format!("block {cid} of commit {seq} is not on this host (yet)"));
            }
        }
        history.older.iter().try_for_each(|tree| self.tree(tree).map(drop))?;
        referred.trees.iter().try_for_each(|tree| self.tree(tree).map(drop))?;
        referred.blocks.iter().try_for_each(|cid| self.dag(cid).map(drop))
    }

    /// A DAG that a person added.
    pub(super) fn added(&self, root: &Cid) -> Result<(), String> {
        match self.dag(root)? {
            0 => Ok(()),
            n => Err(format!("{n} blocks of {root}, which was added on this host, are missing")),
        }
    }

    fn whole_tree(&self, root: &Cid) -> Result<(), String> {
        match self.tree(root)? {
            0 => Ok(()),
            n => Err(format!("{n} blocks of it are not on this host (yet)")),
        }
    }

    /// Marks a volume's tree as far as it is here; answers how many blocks are missing.
    fn tree(&self, root: &Cid) -> Result<u64, String> {
        let mut collect = Collect::new(self);
        collect.tree(root, &Known::default()).map_err(text)?;
        Ok(collect.n_missing)
    }

    fn fork(&self, path: &std::path::Path, trees: &mut BTreeSet<Cid>) -> Result<(), String> {
        Log::read_fork(&RealDisk, path, &mut |view| {
            let commit = Commit::decode(Bytes::copy_from_slice(view.payload))?;
            trees.insert(commit.header.base);
            Ok(commit.data.iter().try_for_each(|cid| self.has(cid).map(drop)).map_err(text)?)
        })
        .map_err(|e| chain(&e))
    }

    /// Marks a DAG as far as it is here; answers how many blocks are missing.
    fn dag(&self, root: &Cid) -> Result<u64, String> {
        let mut n_missing = 0;
        let mut seen = HashSet::new();
        let mut stack = vec![*root];
        while let Some(cid) = stack.pop() {
            let Some(digest) = digest_in(&cid) else { continue };
            if !self.has(&cid).map_err(text)? {
                n_missing += 1;
                continue;
            }
            if Codec::of(&cid) == Some(Codec::Raw) || !seen.insert(digest) {
                continue;
            }
            if seen.len() > NODES_MAX {
                return Err(format!("{root} has more than {NODES_MAX} nodes"));
            }
            match self.get(&cid).map_err(text)? {
                Some(bytes) => {
                    stack.extend(links_of(&cid, &bytes).map_err(|e| format!("{cid}: {}", chain(&e)))?);
                }
                None => n_missing += 1,
            }
        }
        Ok(n_missing)
    }
}

/// What the commits of a log refer to, as far as it may be needed.
///
/// The newest tree, and what came after it. Also the tree that the newest *committed* commit names: what is not committed may be cut
/// off, and then the volume stands on that one. Who lags behind is brought up from these, never from what they replaced.
#[derive(Default)]
struct History {
    /// The tree that the newest commit names, and the last commit in it.
    newest: Option<(Cid, u64)>,
    /// The tree that the newest committed commit names.
    committed: Option<Cid>,
    committed_base_seq: u64,
    /// Trees that commits name which may not be committed.
    older: BTreeSet<Cid>,
    /// Blocks that commits refer to, with the commit.
    data: Vec<(u64, Cid)>,
}

impl History {
    /// Takes the next commit. `committed` is the newest one known to be committed; 0 if that is not known.
    fn add(&mut self, commit: Commit, committed: u64) {
        let (seq, base) = (commit.header.seq, commit.header.base);
        self.newest = Some((base, commit.header.base_seq));
        if seq <= committed {
            self.committed = Some(base);
            let is_newer = commit.header.base_seq > self.committed_base_seq;
            if is_newer {
                self.committed_base_seq = commit.header.base_seq;
                self.data.retain(|(seq, _)| *seq > commit.header.base_seq);
            }
        } else {
            self.older.insert(base);
        }
        self.data.extend(commit.data.into_iter().map(|cid| (seq, cid)));
    }
}

/// Marks what it is asked for; what is not here stays away.
impl Reach for Marking<'_> {
    fn has(&self, cid: &Cid) -> Result<bool, Stopped> {
        if (self.is_stopping)() {
            return Err(Stopped::Interrupted);
        }
        let Some(digest) = digest_in(cid) else { return Ok(true) };
        let is_here = self.store.knows(cid);
        if is_here {
            self.live.borrow_mut().add(&digest);
        }
        Ok(is_here)
    }

    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, Stopped> {
        Ok(Blocks::get(self.store, cid).unwrap_or_else(|e| {
            tracing::warn!(%cid, error = %e, "a node that counts cannot be read");
            None
        }))
    }

    fn fetch(&self, cids: &[Cid]) -> Result<Vec<Cid>, Stopped> {
        Ok(cids.to_vec())
    }
}

/// What a volume without commits begins with; `None` if this host knows nothing of it.
fn first_tree(keepers: &Keepers, kept: &Kept) -> Result<Option<Cid>, String> {
    let record = keepers.members().read(|registry| registry.volume(&kept.id()));
    record.map(|record| keepers.first_tree(&record).map(|base| base.tree).map_err(|e| e.text)).transpose()
}

fn text(stopped: Stopped) -> String {
    match stopped {
        Stopped::Interrupted => "the daemon is stopping".into(),
        Stopped::Failed(why) => why,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use remora_dag::block::Block;
    use remora_vfs::attr::Timestamp;
    use remora_volume::commit::{CommitHeader, FLAG_END};

    use super::*;

    fn cid(n: u8) -> Cid {
        *Block::seal(Codec::DagCbor, Bytes::from(vec![n])).cid()
    }

    fn commit(seq: u64, base: u8, base_seq: u64, data: u8) -> Commit {
        let header = CommitHeader {
            volume: [1; 16],
            prev: [0; 32],
            term: 1,
            seq,
            base: cid(base),
            base_seq,
            flags: FLAG_END,
            time: Timestamp(0),
        };
        Commit::seal(header, &[], vec![cid(data)]).unwrap()
    }

    fn history(committed: u64) -> History {
        let mut history = History::default();
        for commit in [commit(1, 0, 0, 11), commit(2, 0, 0, 12), commit(3, 90, 2, 13), commit(4, 90, 2, 14)] {
            history.add(commit, committed);
        }
        history
    }

    fn data(history: &History) -> Vec<Cid> {
        history.data.iter().map(|(_, cid)| *cid).collect()
    }

    #[test]
    fn what_a_committed_checkpoint_replaced_is_not_needed() {
        let history = history(4);
        assert_eq!((history.newest, history.committed), (Some((cid(90), 2)), Some(cid(90))));
        assert!(history.older.is_empty());
        assert_eq!(data(&history), [cid(13), cid(14)]);
    }

    #[test]
    fn until_a_checkpoint_is_committed_what_it_replaces_is_needed() {
        let history = history(2);
        assert_eq!((history.newest, history.committed), (Some((cid(90), 2)), Some(cid(0))));
        assert!(history.older.contains(&cid(90)));
        assert_eq!(data(&history), [cid(11), cid(12), cid(13), cid(14)]);
    }

    #[test]
    fn when_nobody_knows_what_is_committed_everything_in_the_log_is_needed() {
        let history = history(0);
        assert_eq!(history.older, BTreeSet::from([cid(0), cid(90)]));
        assert_eq!(data(&history).len(), 4);
    }
}
