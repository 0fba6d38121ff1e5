//! The directories above everything that changed, and the map of names.

use std::collections::{BTreeMap, BTreeSet};

use remora_dag::directory::{Entry, update_dir};
use remora_dag::list::lookup;
use remora_dag::posix::Row;
use remora_dag::read::BlockNodes;
use remora_vfs::attr::{Ino, Kind, ROOT_INO};
use serde_bytes::ByteBuf;

use crate::derive::content::Contents;
use crate::derive::{DeriveError, Io, content_of, put_row};
use crate::inode::Base;
use crate::inomap::{Name, names_of};
use crate::state::State;

/// Directories above one another at most; more is a loop in a damaged tree.
const PATH_DEPTH_MAX: usize = 1 << 20;

/// A directory that is as in the base, above something that is not.
#[derive(Debug)]
struct Clean {
    parent: Ino,
    name: Vec<u8>,
    /// Filled from the top down, once the directory above is known.
    entry: Option<Entry>,
}

/// The directories that have to be written.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    /// What changes in each: the name, and the inode it leads to.
    changes: BTreeMap<Ino, BTreeMap<Vec<u8>, Option<Ino>>>,
    clean: BTreeMap<Ino, Clean>,
    written: BTreeMap<Ino, Base>,
}

impl Directories {
    /// Writes every directory that changed, and all above them.
    pub(crate) fn derive(state: &State, io: Io<'_>, contents: &Contents) -> Result<Directories, DeriveError> {
        let mut dirs = Directories::default();
        dirs.collect(state);
        let order = dirs.climb(state, io)?;
        for ino in &order {
            dirs.find_clean(state, io, *ino)?;
        }
        for ino in order.iter().rev() {
            dirs.write(state, io, contents, *ino)?;
        }
        Ok(dirs)
    }

    /// The new content of a directory, if it was written.
    pub(crate) fn get(&self, ino: Ino) -> Option<Base> {
        self.written.get(&ino).copied()
    }

    /// All directories that were written, with their new content.
    pub(crate) fn written(&self) -> impl Iterator<Item = (Ino, Base)> {
        self.written.iter().map(|(ino, base)| (*ino, *base))
    }

    /// The names of every inode that changed, for the map of names.
    pub(crate) fn name_changes(&self, state: &State) -> BTreeMap<Ino, Vec<Name>> {
        let mut changes = BTreeMap::new();
        for ino in state.gone() {
            changes.insert(ino, Vec::new());
        }
        for inode in state.dirty().into_iter().filter(|inode| inode.attr.ino != ROOT_INO) {
            let names = inode.names.iter().map(|(parent, name)| (parent, ByteBuf::from(name)));
            changes.insert(inode.attr.ino, names.collect());
        }
        changes
    }

    /// What changes in which directory: names that differ, and the rows of inodes that do.
    fn collect(&mut self, state: &State) {
        for inode in state.dirty() {
            if let Some(overlay) = inode.overlay() {
                let changes = self.changes.entry(inode.attr.ino).or_default();
                for (_, slot) in overlay.iter_from(0) {
                    changes.insert(slot.name.to_vec(), slot.ino());
                }
            }
            for (parent, name) in inode.names.iter() {
                self.changes.entry(parent).or_default().insert(name.to_vec(), Some(inode.attr.ino));
            }
        }
        self.changes.entry(ROOT_INO).or_default();
    }

    /// Adds every directory above one that changes; answers all of them, parents before children.
    fn climb(&mut self, state: &State, io: Io<'_>) -> Result<Vec<Ino>, DeriveError> {
        let mut depths: BTreeMap<Ino, usize> = BTreeMap::from([(ROOT_INO, 0)]);
        let starts: Vec<Ino> = self.changes.keys().copied().collect();
        for start in starts {
            let (mut path, mut at) = (Vec::new(), start);
            while !depths.contains_key(&at) {
                if path.len() > PATH_DEPTH_MAX {
                    return Err(DeriveError::Misplaced { ino: start });
                }
                path.push(at);
                match self.place(state, io, at)? {
                    Some((parent, name)) => {
                        self.changes.entry(parent).or_default().insert(name, Some(at));
                        at = parent;
                    }
                    // Removed while somebody had it open: it hangs nowhere.
                    None => break,
                }
            }
            let mut depth = depths.get(&at).copied().unwrap_or(0);
            for ino in path.into_iter().rev() {
                depth += 1;
                depths.insert(ino, depth);
            }
        }
        let order: BTreeSet<(usize, Ino)> = depths.into_iter().map(|(ino, depth)| (depth, ino)).collect();
        Ok(order.into_iter().map(|(_, ino)| ino).collect())
    }

    /// Where a directory hangs; `None` for one that was removed.
    fn place(&mut self, state: &State, io: Io<'_>, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>, DeriveError> {
        if let Some(inode) = state.peek(ino) {
            return Ok(inode.names.first().map(|(parent, name)| (parent, name.to_vec())));
        }
        let names = names_of(io.source, &state.base().names, ino)?;
        let (parent, name) = names.into_iter().next().ok_or(DeriveError::Misplaced { ino })?;
        let name = name.into_vec();
        self.clean.insert(ino, Clean { parent, name: name.clone(), entry: None });
        Ok(Some((parent, name)))
    }

    /// Looks up the entry that the base has for a directory the state does not hold. Those above it are known.
    fn find_clean(&mut self, state: &State, io: Io<'_>, ino: Ino) -> Result<(), DeriveError> {
        let Some(clean) = self.clean.get(&ino) else { return Ok(()) };
        let above = match state.peek(clean.parent) {
            Some(inode) => inode.base.as_deref().map(|base| base.cid),
            None => self.clean.get(&clean.parent).and_then(|dir| dir.entry.as_ref()).map(|entry| entry.cid),
        };
        let above = above.ok_or(DeriveError::Misplaced { ino })?;
        let entry = lookup(&BlockNodes::new(io.source), &above, &clean.name)?;
        let is_it = |row: &Row| row.ino == ino && row.kind == Kind::Directory as u8;
        let entry = entry.filter(|entry| entry.row.as_ref().is_some_and(is_it));
        let entry = entry.ok_or(DeriveError::Misplaced { ino })?;
        if let Some(clean) = self.clean.get_mut(&ino) {
            clean.entry = Some(entry);
        }
        Ok(())
    }

    /// Writes one directory; those below it have been written.
    fn write(&mut self, state: &State, io: Io<'_>, contents: &Contents, ino: Ino) -> Result<(), DeriveError> {
        let names = self.changes.remove(&ino).unwrap_or_default();
        let (old, size) = match (state.peek(ino), self.clean.get(&ino).and_then(|dir| dir.entry.as_ref())) {
            (Some(inode), _) => (inode.base.as_deref().map(|base| base.cid), inode.data),
            (None, Some(entry)) => (Some(entry.cid), entry.row.as_ref().map_or(0, |row| row.size)),
            (None, None) => return Err(DeriveError::Misplaced { ino }),
        };
        if names.is_empty()
            && let Some(inode) = state.peek(ino)
            && let Some(base) = inode.base.as_deref()
        {
            self.written.insert(ino, *base);
            return Ok(());
        }
        let mut changes = BTreeMap::new();
        for (name, child) in names {
            let entry = match child {
                Some(child) => Some(self.entry(state, io, contents, child, &name)?),
                None => None,
            };
            changes.insert(name, entry);
        }
        let profile = state.base().profile;
        let root = update_dir(io.source, io.sink, old.as_ref(), &changes, profile)?;
        self.written.insert(ino, Base { cid: root.cid, tsize: root.tsize, size, is_sparse: false });
        Ok(())
    }

    /// The entry of an inode in the directory above it.
    fn entry(
        &self,
        state: &State,
        io: Io<'_>,
        contents: &Contents,
        ino: Ino,
        name: &[u8],
    ) -> Result<Entry, DeriveError> {
        if let Some(inode) = state.peek(ino) {
            let content = content_of(inode, contents, self)?;
            let row = Some(put_row(inode, io)?);
            return Ok(Entry { name: name.to_vec(), cid: content.cid, tsize: content.tsize, row });
        }
        let clean = self.clean.get(&ino).and_then(|dir| dir.entry.as_ref());
        let mut entry = clean.cloned().ok_or(DeriveError::Misplaced { ino })?;
        let written = self.written.get(&ino).ok_or(DeriveError::Misplaced { ino })?;
        (entry.cid, entry.tsize) = (written.cid, written.tsize);
        Ok(entry)
    }
}
