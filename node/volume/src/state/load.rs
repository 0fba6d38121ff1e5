//! How inodes of the base tree come into the table, and leave it again.

use remora_dag::directory::Entry;
use remora_dag::list::lookup;
use remora_vfs::attr::{Ino, Kind, ROOT_INO};
use remora_vfs::errno::Errno;

use crate::inode::{Inode, Names};
use crate::inomap::{Found, Name, Step, decode_names, step};
use crate::state::{CLEAN_INODES_MAX, State};
use crate::stop::Stop;
use crate::tree::decode_orphan_page;

/// Directories above one another at most; more is a loop in a damaged tree.
const PATH_DEPTH_MAX: usize = 1 << 20;

/// Clean inodes looked at for eviction at a time: far more than one step brings in, even if all of them were used.
const TRIM_MAX: usize = 1024;

impl State {
    /// Reads what has to be known before the first question: the orphans of the base.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn ready(&mut self) -> Result<(), Stop> {
        while let Some(cid) = self.tree.orphans.get(self.n_orphan_pages).copied() {
            let damaged = Stop::Damaged { cid };
            let page = decode_orphan_page(&self.nodes.bytes(&cid)?).ok_or(damaged.clone())?;
            for orphan in page {
                let inode = Inode::from_row(&orphan.row, &orphan.cid, orphan.tsize).ok_or(damaged.clone())?;
                self.orphans.insert(inode.attr.ino);
                self.table.insert(inode.attr.ino, Box::new(inode));
            }
            self.n_orphan_pages += 1;
        }
        Ok(())
    }

    /// Puts the root directory into the table, where it stays.
    pub(super) fn load_root(&mut self) {
        let tree = &self.tree;
        // The tree was checked when it was decoded: the row is a directory's.
        if let Some(mut root) = Inode::from_row(&tree.root_row, &tree.root, tree.root_tsize) {
            root.attr.ino = ROOT_INO;
            self.table.insert(ROOT_INO, Box::new(root));
        }
    }

    /// Sees to it that an inode is in the table.
    pub(super) fn ensure(&mut self, ino: Ino) -> Result<(), Stop> {
        if let Some(inode) = self.table.get_mut(&ino) {
            // What one operation needs together must not be evicted while the rest of it is loaded.
            inode.is_used = true;
            return Ok(());
        }
        self.trim();
        let mut path = vec![ino];
        while let Some(&wanted) = path.last() {
            if self.table.contains_key(&wanted) {
                path.pop();
                continue;
            }
            if self.is_gone(wanted) || wanted >= self.next_ino {
                return Err(Errno::ESTALE.into());
            }
            let names = self.base_names(wanted)?;
            let (parent, name) = names.first().ok_or(Errno::ESTALE)?;
            if !self.table.contains_key(parent) {
                if path.len() >= PATH_DEPTH_MAX {
                    return Err(Stop::Damaged { cid: self.tree.names });
                }
                path.push(*parent);
                continue;
            }
            let damaged = Stop::Damaged { cid: self.tree.names };
            let base =
                self.table.get(parent).and_then(|inode| inode.base.as_deref()).ok_or(damaged.clone())?;
            let entry = lookup(&self.nodes, &base.cid, name)?.ok_or(damaged.clone())?;
            if self.admit(*parent, name, &entry)? != wanted {
                return Err(damaged);
            }
        }
        Ok(())
    }

    fn is_gone(&self, ino: Ino) -> bool {
        self.gone.contains(&ino) || self.gone_before.contains(&ino)
    }

    /// The names that the base has for an inode; empty if it has none.
    fn base_names(&self, ino: Ino) -> Result<Vec<Name>, Stop> {
        let (mut cid, mut height) = (self.tree.names, None);
        loop {
            let node = self.nodes.map_node(&cid)?;
            match step(&node, height, ino).ok_or(Stop::Damaged { cid })? {
                Step::Down(child, below) => (cid, height) = (child, Some(below)),
                Step::Done(Found::Names(names)) => return Ok(names),
                Step::Done(Found::Block(cid)) => {
                    return decode_names(&self.nodes.bytes(&cid)?).ok_or(Stop::Damaged { cid });
                }
            }
        }
    }

    /// Puts the inode of a directory entry of the base into the table, unless it is there, and answers its number.
    pub(super) fn admit(&mut self, parent: Ino, name: &[u8], entry: &Entry) -> Result<Ino, Stop> {
        let damaged = Stop::Damaged { cid: entry.cid };
        let row = entry.row.as_ref().ok_or(damaged.clone())?;
        let ino = row.ino;
        if self.table.contains_key(&ino) {
            return Ok(ino);
        }
        let mut inode = Inode::from_row(row, &entry.cid, entry.tsize).ok_or(damaged.clone())?;
        if ino >= self.next_ino || ino == ROOT_INO {
            return Err(damaged);
        }
        inode.names = Names::One(parent, name.into());
        if inode.attr.nlink > 1 && inode.attr.kind != Kind::Directory {
            let names = self.base_names(ino)?;
            inode.names = Names::Many(names.into_iter().map(|(p, n)| (p, n.into_vec().into())).collect());
        }
        // A base that is being taken over has a newer content for directories above a change.
        if let Some(base) = self.rebase.as_ref().and_then(|rebase| rebase.base_of(ino)) {
            inode.base = Some(Box::new(base));
        }
        self.table.insert(ino, Box::new(inode));
        self.clean.push_back(ino);
        Ok(ino)
    }

    /// Evicts clean inodes that have not been used for long, if there are too many.
    pub(super) fn trim(&mut self) {
        let mut n_seen = 0;
        while self.clean.len() > CLEAN_INODES_MAX && n_seen < TRIM_MAX {
            n_seen += 1;
            let Some(ino) = self.clean.pop_front() else { return };
            let Some(inode) = self.table.get_mut(&ino) else { continue };
            if inode.is_dirty() || ino == ROOT_INO || inode.attr.nlink == 0 {
                // It comes back to the queue when a base has it.
                continue;
            }
            // Until a new base is taken over, a directory may still lead to what the inode was in the old one.
            let is_anew = self.rebase.as_ref().is_some_and(|rebase| rebase.base_of(ino).is_some());
            if inode.is_used || is_anew {
                inode.is_used = false;
                self.clean.push_back(ino);
            } else {
                self.table.remove(&ino);
            }
        }
    }
}
