//! Who holds an inode: the kernel's references and open files.
//!
//! They are kept apart from the inodes, so that a clean inode that the kernel remembers can still leave the table. They
//! are not part of the state that operations describe: a replay has none.
//!
//! The kernel remembers every inode it was told of until it is short of memory itself, so there are as many references as
//! a volume has files. Inodes made together have numbers in a row: the counts of eight share one entry.

use remora_vfs::attr::Ino;

use crate::fasthash::FastMap;
use crate::state::State;

/// Inodes whose counts share an entry.
const ROW: u64 = 8;

/// Room that is never given back.
const ROOM_MIN: usize = 4096;

/// The holders of all inodes. A count that has reached its end stays there: what cannot be counted is not let go.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    /// References of the kernel; no row is without any.
    refs: FastMap<u64, [u32; ROW as usize]>,
    /// Open files; no inode is here without one.
    opens: FastMap<Ino, u32>,
}

impl Handles {
    fn add_refs(&mut self, ino: Ino, n: u32) {
        let count = &mut self.refs.entry(ino / ROW).or_default()[(ino % ROW) as usize];
        *count = count.saturating_add(n);
    }

    fn take_refs(&mut self, ino: Ino, n: u32) {
        let Some(row) = self.refs.get_mut(&(ino / ROW)) else { return };
        let count = &mut row[(ino % ROW) as usize];
        if *count != u32::MAX {
            *count = count.saturating_sub(n);
        }
        if row.iter().all(|count| *count == 0) {
            self.remove_row(ino / ROW);
        }
    }

    fn remove_row(&mut self, row: u64) {
        self.refs.remove(&row);
        if self.refs.capacity() > ROOM_MIN && self.refs.len() < self.refs.capacity() / 8 {
            self.refs.shrink_to(2 * self.refs.len());
        }
    }

    fn is_held(&self, ino: Ino) -> bool {
        let row = self.refs.get(&(ino / ROW));
        row.is_some_and(|row| row[(ino % ROW) as usize] > 0) || self.opens.contains_key(&ino)
    }

    /// Nobody holds the inode any more, whatever was counted.
    pub(super) fn remove(&mut self, ino: Ino) {
        self.opens.remove(&ino);
        if let Some(row) = self.refs.get_mut(&(ino / ROW)) {
            row[(ino % ROW) as usize] = 0;
            if row.iter().all(|count| *count == 0) {
                self.remove_row(ino / ROW);
            }
        }
    }
}

impl State {
    /// Adds references to an inode that has just been answered.
    pub fn reference(&mut self, ino: Ino, n: u64) {
        self.handles.add_refs(ino, u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// Takes references back; true: the inode is an orphan that nobody holds any more, to be dropped by `Op::Drop`.
    #[must_use]
    pub fn forget(&mut self, ino: Ino, n: u64) -> bool {
        let was_held = self.is_held(ino);
        self.handles.take_refs(ino, u32::try_from(n).unwrap_or(u32::MAX));
        was_held && self.is_let_go(ino)
    }

    /// Adds an open file.
    pub fn open_handle(&mut self, ino: Ino) {
        let opens = self.handles.opens.entry(ino).or_default();
        *opens = opens.saturating_add(1);
    }

    /// Ends an open file; the answer is that of [`State::forget`].
    #[must_use]
    pub fn release(&mut self, ino: Ino) -> bool {
        let was_held = self.is_held(ino);
        if let Some(opens) = self.handles.opens.get_mut(&ino) {
            *opens = opens.saturating_sub(1);
            if *opens == 0 {
                self.handles.opens.remove(&ino);
            }
        }
        was_held && self.is_let_go(ino)
    }

    fn is_let_go(&self, ino: Ino) -> bool {
        !self.is_held(ino) && self.orphans.contains(&ino)
    }

    /// Whether anybody holds the inode.
    #[must_use]
    pub fn is_held(&self, ino: Ino) -> bool {
        self.handles.is_held(ino)
    }

    /// All inodes without names that have not been dropped, in order.
    pub fn orphans(&self) -> impl Iterator<Item = Ino> {
        self.orphans.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Handles, ROOM_MIN, ROW};

    #[test]
    fn inodes_numbered_in_a_row_share_their_entries_and_an_entry_goes_with_its_last_reference() {
        let mut handles = Handles::default();
        let inos = 1..=100_000u64;
        for ino in inos.clone() {
            handles.add_refs(ino, 2);
        }
        assert_eq!(handles.refs.len() as u64, 100_000 / ROW + 1);
        for ino in inos.clone() {
            handles.take_refs(ino, 1);
            assert!(handles.is_held(ino));
        }
        for ino in inos.clone() {
            handles.take_refs(ino, 1);
            assert!(!handles.is_held(ino) && (ino == 100_000 || handles.is_held(ino + 1)));
        }
        assert!(handles.refs.is_empty() && handles.refs.capacity() <= ROOM_MIN, "the room is given back");
    }

    #[test]
    fn a_count_that_reached_its_end_stays_there() {
        let mut handles = Handles::default();
        handles.add_refs(9, u32::MAX - 1);
        handles.add_refs(9, 5);
        handles.take_refs(9, u32::MAX);
        assert!(handles.is_held(9));
        handles.remove(9);
        assert!(!handles.is_held(9) && handles.refs.is_empty());
    }
}
