//! Changing the base under a live state: a tree that was derived from it takes the place of base and old operations.
//!
//! ```text
//!  freeze(s)  everything applied so far is in commits <= s        operations go on, in commits > s
//!  derive     elsewhere, from a replay of the same operations     (hours, if need be)
//!  rebase     inode by inode: what commits <= s changed goes, what is newer stays
//! ```
//!
//! What always holds while it goes on: an inode in the table is either still over the old base with all its changes, or
//! over the new one with those after `s`; both read the same.

use std::sync::Arc;

use remora_vfs::attr::Ino;

use crate::derive::Derived;
use crate::inode::{Base, Body};
use crate::state::State;
use crate::stop::Stop;

/// A change of base that is under way.
#[derive(Debug)]
pub(crate) struct Rebase {
    upto: u64,
    /// Sorted by inode number.
    changed: Arc<[(Ino, Changed)]>,
    /// How many of them are done.
    n_done: usize,
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
        Ok(())
    }

    /// Gives up a derivation that has not been taken over. Does nothing if there is none.
    pub fn thaw(&mut self) {
        if self.rebase.is_none() {
            self.frozen = 0;
        }
    }

    /// Takes over a derived tree, `max_items` inodes a call; answers whether it is done. The calls after the first are
    /// given the same arguments.
    ///
    /// # Errors
    /// [`Stop::Refused`] if the state was not frozen at `upto`.
    pub fn rebase(&mut self, derived: &Derived, upto: u64, max_items: usize) -> Result<bool, Stop> {
        if self.frozen != upto || upto == 0 {
            return Err(Stop::Refused("a tree that was not derived at the freeze"));
        }
        if self.rebase.is_none() {
            self.tree = derived.tree.clone();
            self.tree_cid = derived.tree_cid;
            self.n_orphan_pages = self.tree.orphans.len();
            self.rebase = Some(Rebase { upto, changed: Arc::clone(&derived.changed), n_done: 0 });
        }
        for _ in 0..max_items {
            let Some(rebase) = &mut self.rebase else { return Ok(true) };
            let Some((ino, changed)) = rebase.changed.get(rebase.n_done).copied() else {
                self.frozen = 0;
                self.rebase = None;
                self.gone.retain(|_, seq| *seq > upto);
                return Ok(true);
            };
            rebase.n_done += 1;
            self.rebase_one(ino, &changed, upto);
        }
        Ok(false)
    }

    fn rebase_one(&mut self, ino: Ino, changed: &Changed, upto: u64) {
        let Some(inode) = self.table.get_mut(&ino) else { return };
        inode.base = Some(Box::new(changed.base));
        match &mut inode.body {
            Body::File(extents) => extents.forget_upto(upto),
            Body::Directory(overlay) => overlay.forget_upto(upto),
            Body::Symlink(_) | Body::Special => {}
        }
        if inode.born <= upto {
            inode.born = 0;
        }
        if inode.seq > upto {
            return;
        }
        let was_dirty = std::mem::take(&mut inode.seq) != 0;
        if matches!(inode.body, Body::File(_)) {
            let before = inode.data;
            inode.set_data(changed.data);
            self.stats.bytes = (self.stats.bytes + changed.data).saturating_sub(before);
        }
        if was_dirty {
            self.clean.push_back(ino);
        }
    }

    /// The commit up to which the base being taken over reaches, while that goes on.
    #[must_use]
    pub fn rebasing_upto(&self) -> Option<u64> {
        self.rebase.as_ref().map(|rebase| rebase.upto)
    }
}
