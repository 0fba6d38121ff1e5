//! Changing the base under a live state: a tree that was derived from it takes the place of base and old operations.
//!
//! ```text
//!  freeze(s)  everything applied so far is in commits <= s        operations go on, in commits > s
//!  derive     elsewhere, from a replay of the same operations     (hours, if need be)
//!  rebase     inode by inode: what commits <= s changed goes, what is newer stays
//! ```
//!
//! What always holds while it goes on: an inode in the table is either still over the old base with all its changes, or
//! over the new one with those after `s`; both read the same. None that the new base has anew leaves the table meanwhile: a
//! directory above it may still be over the old base, where it is found as it was.

use std::sync::Arc;

use cid::Cid;

use remora_vfs::attr::Ino;

use crate::derive::Derived;
use crate::fasthash::FastSet;
use crate::inode::{Base, Body};
use crate::state::State;
use crate::state::changes::Changes;
use crate::stop::Stop;

/// A change of base that is under way.
#[derive(Debug)]
pub(crate) struct Rebase {
    /// The tree that inodes which are not moved yet read from.
    before: Cid,
    upto: u64,
    /// Sorted by inode number.
    changed: Arc<[(Ino, Changed)]>,
    /// How many of them are done.
    n_done: usize,
    /// Where the changed ranges or names of the next one are still to be looked at.
    from: u64,
}

/// The content of an inode in the new base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    /// Its content.
    pub base: Base,
    /// How many bytes of a file are data; entries of a directory.
    pub data: u64,
}

impl Rebase {
    /// The new content of an inode, if it has one.
    pub(crate) fn base_of(&self, ino: Ino) -> Option<Base> {
        let at = self.changed.binary_search_by_key(&ino, |(ino, _)| *ino).ok()?;
        self.changed.get(at).map(|(_, changed)| changed.base)
    }
}

impl State {
    /// Announces that a tree will be derived from everything applied so far, which is in commits up to `upto`. From now
    /// on the state keeps what it takes to go over to that tree.
    ///
    /// # Errors
    /// [`Stop::Refused`] if operations of a later commit have been applied, or another derivation is under way.
    pub fn freeze(&mut self, upto: u64) -> Result<(), Stop> {
        if upto < self.last_seq || upto == 0 {
            return Err(Stop::Refused("a freeze at a commit that is not the last"));
        }
        if self.frozen != 0 {
            return Err(Stop::Refused("a freeze while another tree is being derived"));
        }
        self.frozen = upto;
        self.oldest_copied = None;
        // Nothing is left from before, unless the last derivation was given up.
        let gone = std::mem::take(&mut self.gone);
        if self.gone_before.is_empty() {
            self.gone_before = gone;
        } else {
            self.gone_before.extend(gone);
        }
        Ok(())
    }

    /// Gives up a derivation that has not been taken over. Does nothing if there is none.
    pub fn thaw(&mut self) {
        if self.rebase.is_none() {
            self.frozen = 0;
        }
    }

    /// Takes over a derived tree, about `max_items` inodes, names and ranges a call; answers whether it is done. The
    /// calls after the first are given the same arguments.
    ///
    /// # Errors
    /// [`Stop::Refused`] if the state was not frozen at `upto`, or stands on another tree than the one it was derived over.
    pub fn rebase(&mut self, derived: &Derived, upto: u64, max_items: usize) -> Result<bool, Stop> {
        if self.frozen != upto || upto == 0 {
            return Err(Stop::Refused("a tree that was not derived at the freeze"));
        }
        if self.rebase.is_none() {
            if derived.over != self.tree_cid {
                return Err(Stop::Refused("a tree that was derived over another one"));
            }
            self.tree = derived.tree.clone();
            self.tree_cid = derived.tree_cid;
            self.n_orphan_pages = self.tree.orphans.len();
            self.rebase = Some(Rebase {
                before: derived.over,
                upto,
                changed: Arc::clone(&derived.changed),
                n_done: 0,
                from: 0,
            });
        }
        let mut n_items = 0;
        while n_items < max_items {
            let Some(rebase) = &self.rebase else { return Ok(true) };
            let from = rebase.from;
            let Some((ino, changed)) = rebase.changed.get(rebase.n_done).copied() else {
                self.frozen = 0;
                self.rebase = None;
                self.gone_before = FastSet::default();
                return Ok(true);
            };
            let n_max = max_items - n_items;
            let next = self.rebase_part(ino, &changed, upto, (from, n_max));
            n_items += if next.is_some() { n_max } else { 1 };
            if let Some(rebase) = &mut self.rebase {
                rebase.from = next.unwrap_or(0);
                rebase.n_done += usize::from(next.is_none());
            }
        }
        self.trim();
        Ok(false)
    }

    /// Moves one inode onto the new base: of its changes, `part.1` from `part.0` on. Answers where to go on; `None`: that
    /// was all. In between, what is left of the old changes says what the new base says.
    fn rebase_part(&mut self, ino: Ino, changed: &Changed, upto: u64, part: (u64, usize)) -> Option<u64> {
        let inode = self.table.get_mut(&ino)?;
        let before = Changes::of(inode);
        inode.base = Some(Box::new(changed.base));
        let next = match &mut inode.body {
            Body::File(extents) => extents.forget_upto(upto, part.0, part.1),
            Body::Directory(overlay) => overlay.forget_upto(upto, part.0, part.1),
            Body::Symlink(_) | Body::Special => None,
        };
        if next.is_none() {
            if inode.born <= upto {
                inode.born = 0;
            }
            if inode.seq <= upto {
                let was_dirty = std::mem::take(&mut inode.seq) != 0;
                if matches!(inode.body, Body::File(_)) {
                    let data = inode.data;
                    inode.set_data(changed.data);
                    self.stats.bytes = (self.stats.bytes + changed.data).saturating_sub(data);
                }
                if was_dirty {
                    inode.is_used = false;
                    self.clean.push_back(ino);
                }
            }
        }
        self.changes = self.changes + Changes::of(inode) - before;
        next
    }

    /// Whether both may well be the same file system: a check of what is quick to compare.
    pub(crate) fn is_like(&self, other: &State) -> bool {
        self.stats.inodes == other.stats.inodes
            && self.next_ino == other.next_ino
            && self.last_seq == other.last_seq
            && self.orphans == other.orphans
    }

    /// Takes the place of `old`, which is the same file system over another base: who holds what there holds it here.
    pub(crate) fn succeed(&mut self, old: &mut State) {
        self.handles = std::mem::take(&mut old.handles);
        self.size_limit = old.size_limit;
    }

    /// The trees it reads from: the base, and the one before it while inodes move.
    #[must_use]
    pub fn base_trees(&self) -> Vec<Cid> {
        let before = self.rebase.as_ref().map(|rebase| rebase.before);
        before.into_iter().chain([*self.base_cid()]).collect()
    }

    /// The commit up to which the base being taken over reaches, while that goes on.
    #[must_use]
    pub fn rebasing_upto(&self) -> Option<u64> {
        self.rebase.as_ref().map(|rebase| rebase.upto)
    }
}
