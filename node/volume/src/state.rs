//! The state of a volume: a base tree, and over it everything that has happened since.
//!
//! Sans-IO: it never reads. When it lacks a block of the base tree it answers [`Stop::Need`]; the caller fetches the
//! block without holding the state's lock, calls [`State::supply`], and asks again.
//!
//! What always holds:
//! * state = apply(operations, base), whoever computes it and in whatever batches;
//! * an inode that differs from the base is in the table; one that does not may be in it, and can be found again
//!   through the map of the base tree;
//! * a name that differs from the base has a slot in its directory's overlay;
//! * a question changes nothing that can be seen, only what is cached.
//!
//! It deliberately knows neither durability (an operation is in the state before it is on disk) nor permissions.

pub mod apply;
pub mod changes;
pub mod content;
pub mod handles;
pub mod names;
pub mod rebase;
mod acl;
mod apply_content;
mod apply_names;
mod load;
mod pages;
mod referred;
mod sums;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use cid::Cid;
use remora_vfs::attr::{Attr, Ino};
use remora_vfs::errno::Errno;

use crate::fasthash::{FastMap, FastSet};
use crate::inode::Inode;
use crate::nodes::Nodes;
use crate::state::changes::Changes;
use crate::state::handles::Handles;
use crate::state::pages::Pages;
use crate::state::rebase::Rebase;
use crate::state::sums::Sums;
use crate::stop::Stop;
use crate::tree::{Stats, Tree};

/// Clean inodes kept in the table: about 450 bytes each, found again in the base when they are asked for.
pub const CLEAN_INODES_MAX: usize = 32_768;

/// A volume's file system in memory.
#[derive(Debug)]
pub struct State {
    tree_cid: Cid,
    tree: Tree,
    table: FastMap<Ino, Box<Inode>>,
    nodes: Nodes,
    /// Pages of listings that wait for a block.
    pages: Pages,
    /// Data of long ranges, for questions that wait for a block.
    sums: Sums,
    handles: Handles,
    /// Inodes without names that have not been dropped.
    orphans: BTreeSet<Ino>,
    /// Inodes of a base that have been dropped since the last freeze.
    gone: FastSet<Ino>,
    /// Those dropped before it, which the base that is being derived has no more.
    gone_before: FastSet<Ino>,
    /// How much differs from the base.
    changes: Changes,
    /// Clean inodes in the order in which they will be looked at for eviction.
    clean: VecDeque<Ino>,
    next_ino: Ino,
    stats: Stats,
    size_limit: Option<u64>,
    /// The newest commit applied.
    last_seq: u64,
    /// The newest commit that moved a directory, and with it the names of everything below; 0 if none did.
    dirs_moved_seq: u64,
    /// The newest commit of the base that is being derived; 0 if none is.
    frozen: u64,
    rebase: Option<Rebase>,
    /// The oldest commit whose data was copied by reference since the last freeze.
    oldest_copied: Option<u64>,
    n_orphan_pages: usize,
}

impl State {
    /// The state that a tree describes. [`State::ready`] has to succeed before anything else.
    #[must_use]
    pub fn open(tree: Tree) -> State {
        let mut state = State {
            tree_cid: *tree.to_block().cid(),
            table: FastMap::default(),
            nodes: Nodes::default(),
            pages: Pages::default(),
            sums: Sums::default(),
            handles: Handles::default(),
            orphans: BTreeSet::new(),
            gone: FastSet::default(),
            gone_before: FastSet::default(),
            changes: Changes::default(),
            clean: VecDeque::new(),
            next_ino: tree.next_ino,
            stats: tree.stats,
            size_limit: None,
            last_seq: tree.made_from,
            dirs_moved_seq: 0,
            frozen: 0,
            rebase: None,
            oldest_copied: None,
            n_orphan_pages: 0,
            tree,
        };
        state.load_root();
        state
    }

    /// Puts a block of the base tree into the cache. The caller has verified it against its CID.
    pub fn supply(&mut self, cid: &Cid, bytes: Bytes) {
        self.nodes.supply(cid, bytes);
    }

    /// The base tree.
    #[must_use]
    pub fn base(&self) -> &Tree {
        &self.tree
    }

    /// The CID of the base tree.
    #[must_use]
    pub fn base_cid(&self) -> &Cid {
        &self.tree_cid
    }

    /// Inodes and bytes of data, everything included.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Sets how many bytes of data the volume may hold; `None`: no limit.
    pub fn set_size_limit(&mut self, bytes: Option<u64>) {
        self.size_limit = bytes;
    }

    /// How many bytes of data the volume may hold.
    #[must_use]
    pub fn size_limit(&self) -> Option<u64> {
        self.size_limit
    }

    /// The newest commit applied.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The newest commit that changed this inode or a name of it; 0 if the base has it as it is.
    #[must_use]
    pub fn dirty_seq(&self, ino: Ino) -> u64 {
        self.table.get(&ino).map_or(0, |inode| inode.seq)
    }

    /// The newest commit that moved a directory: a name that leads to any inode may have changed with it. 0 if none did.
    #[must_use]
    pub fn dirs_moved_seq(&self) -> u64 {
        self.dirs_moved_seq
    }

    /// Once a base has been taken over: the oldest commit in it whose data a read may still ask for, because an
    /// operation after the freeze copied a reference to it. An upper bound of what must be kept: the copy may be gone.
    #[must_use]
    pub fn oldest_copied(&self) -> Option<u64> {
        self.oldest_copied
    }

    /// How much differs from the base.
    #[must_use]
    pub fn changes(&self) -> Changes {
        let n_gone = self.gone.len() + self.gone_before.len();
        self.changes + Changes { names: n_gone, ..Changes::default() }
    }

    /// Attributes.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode; [`Stop`].
    pub fn attr(&mut self, ino: Ino) -> Result<Attr, Stop> {
        self.inode(ino).map(|inode| inode.attr)
    }

    /// The number that the next new inode gets.
    #[must_use]
    pub fn next_ino(&self) -> Ino {
        self.next_ino
    }

    /// How many inodes are in memory: those that differ from the base, and a bounded number of others.
    #[must_use]
    pub fn n_loaded(&self) -> usize {
        self.table.len()
    }

    /// How many entries a directory in the table has; 0 for everything else.
    pub(crate) fn n_entries(&self, ino: Ino) -> u64 {
        self.table.get(&ino).filter(|inode| inode.overlay().is_some()).map_or(0, |inode| inode.data)
    }

    /// The inodes in the table that differ from the base, in order.
    pub(crate) fn dirty(&self) -> Vec<&Inode> {
        let mut dirty: Vec<&Inode> =
            self.table.values().map(|inode| &**inode).filter(|inode| inode.is_dirty()).collect();
        dirty.sort_unstable_by_key(|inode| inode.attr.ino);
        dirty
    }

    /// An inode, if it is in the table.
    pub(crate) fn peek(&self, ino: Ino) -> Option<&Inode> {
        self.table.get(&ino).map(|inode| &**inode)
    }

    /// The inodes of the base that have been dropped, in order.
    pub(crate) fn gone(&self) -> Vec<Ino> {
        let mut gone: Vec<Ino> = self.gone.union(&self.gone_before).copied().collect();
        gone.sort_unstable();
        gone
    }

    /// The inode, loaded if need be.
    fn inode(&mut self, ino: Ino) -> Result<&mut Inode, Stop> {
        self.ensure(ino)?;
        self.loaded(ino)
    }

    /// An inode that has been loaded before.
    fn loaded(&mut self, ino: Ino) -> Result<&mut Inode, Stop> {
        let inode = self.table.get_mut(&ino).ok_or(Stop::Errno(Errno::ESTALE))?;
        inode.is_used = true;
        Ok(inode)
    }
}
