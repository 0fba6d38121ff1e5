//! The entries of a directory, by name and in listing order.
//!
//! What always holds: both maps hold the same entries; a cookie is given once and belongs to a name for as long as the
//! name exists, whatever it leads to. So a walk that goes on "after cookie c" gives a name that stays exactly once.

use crate::attr::Ino;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Names in a directory and what they lead to.
pub(super) struct Directory {
    /// The directory this one is in; the root is its own.
    pub(super) parent: Ino,
    by_name: BTreeMap<Vec<u8>, Entry>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
    cookie_next: u64,
}

struct Entry {
    ino: Ino,
    cookie: u64,
}

impl Directory {
    /// An empty directory below `parent`.
    pub(super) fn new(parent: Ino) -> Self {
        Directory { parent, by_name: BTreeMap::new(), by_cookie: BTreeMap::new(), cookie_next: 1 }
    }

    /// What a name leads to.
    pub(super) fn get(&self, name: &[u8]) -> Option<Ino> {
        self.by_name.get(name).map(|entry| entry.ino)
    }

    /// Whether no name is left.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Lets a name lead to `ino`; answers what it led to before.
    pub(super) fn set(&mut self, name: &[u8], ino: Ino) -> Option<Ino> {
        if let Some(entry) = self.by_name.get_mut(name) {
            return Some(std::mem::replace(&mut entry.ino, ino));
        }
        let cookie = self.cookie_next;
        self.cookie_next += 1;
        self.by_name.insert(name.to_vec(), Entry { ino, cookie });
        self.by_cookie.insert(cookie, name.to_vec());
        None
    }

    /// Removes a name; answers what it led to.
    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Ino> {
        let entry = self.by_name.remove(name)?;
        self.by_cookie.remove(&entry.cookie);
        Some(entry.ino)
    }

    /// The entries after a cookie: (cookie, name, inode).
    pub(super) fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], Ino)> {
        self.by_cookie
            .range((Bound::Excluded(cookie), Bound::Unbounded))
            .filter_map(|(cookie, name)| self.get(name).map(|ino| (*cookie, name.as_slice(), ino)))
    }
}
