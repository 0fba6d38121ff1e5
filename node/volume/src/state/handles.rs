//! Who holds an inode: the kernel's references and open files.
//!
//! They are kept apart from the inodes, so that a clean inode that the kernel remembers can still leave the table. They
//! are not part of the state that operations describe: a replay has none.

use remora_vfs::attr::Ino;

use crate::state::State;

/// The holders of one inode. A count that has reached its end stays there: what cannot be counted is not let go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handles {
    refs: u32,
    opens: u32,
}

impl State {
    /// Adds references to an inode that has just been answered.
    pub fn reference(&mut self, ino: Ino, n: u64) {
        let handles = self.handles.entry(ino).or_default();
        handles.refs = handles.refs.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// Takes references back; true: the inode is an orphan that nobody holds any more, to be dropped by `Op::Drop`.
    #[must_use]
    pub fn forget(&mut self, ino: Ino, n: u64) -> bool {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.let_go(ino, |handles| {
            if handles.refs != u32::MAX {
                handles.refs = handles.refs.saturating_sub(n);
            }
        })
    }

    /// Adds an open file.
    pub fn open_handle(&mut self, ino: Ino) {
        let handles = self.handles.entry(ino).or_default();
        handles.opens = handles.opens.saturating_add(1);
    }

    /// Ends an open file; the answer is that of [`State::forget`].
    #[must_use]
    pub fn release(&mut self, ino: Ino) -> bool {
        self.let_go(ino, |handles| handles.opens = handles.opens.saturating_sub(1))
    }

    fn let_go(&mut self, ino: Ino, change: impl FnOnce(&mut Handles)) -> bool {
        let Some(handles) = self.handles.get_mut(&ino) else { return false };
        change(handles);
        if handles.refs > 0 || handles.opens > 0 {
            return false;
        }
        self.handles.remove(&ino);
        self.orphans.contains(&ino)
    }

    /// Whether anybody holds the inode.
    #[must_use]
    pub fn is_held(&self, ino: Ino) -> bool {
        self.handles.contains_key(&ino)
    }

    /// All inodes without names that have not been dropped, in order.
    pub fn orphans(&self) -> impl Iterator<Item = Ino> {
        self.orphans.iter().copied()
    }
}
