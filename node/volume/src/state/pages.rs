//! Pages of directories of the base that are being read.
//!
//! A page of a large directory needs many blocks, and each that is not here ends the question. What was read for it is kept
//! until the question is asked again, so that a page is read once and not once for every block.
//!
//! What always holds:
//! * a page follows from the directory's CID, the hash where it begins and its length alone, so it never goes stale;
//! * at most [`PAGES_MAX`] are kept, and the oldest goes first.

use std::collections::VecDeque;

use cid::Cid;
use remora_dag::directory::Entry;
use remora_dag::list::{Listing, Position, list_after};

use crate::nodes::Nodes;
use crate::state::names::cookie_of;
use crate::stop::Stop;

/// Pages kept: as many as readers can be waiting for blocks at once. A page has about 300 KiB at most.
const PAGES_MAX: usize = 8;

/// Which page: the directory, the hash where it begins, and how many entries it has at most.
type Key = (Cid, u64, usize);

/// Entries of a directory of the base, in whole groups of equal cookies.
#[derive(Debug)]
pub(crate) struct Page {
    key: Key,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Listing(Box<Listing>),
    Listed(Vec<(u64, Entry)>, Option<u64>),
}

/// The pages that wait for a block.
#[derive(Debug, Default)]
pub(crate) struct Pages(VecDeque<Page>);

impl Pages {
    /// The page that waited for a block, or one that begins.
    pub(crate) fn take(&mut self, key: Key) -> Page {
        let waiting = self.0.iter().position(|page| page.key == key).and_then(|at| self.0.remove(at));
        waiting.unwrap_or_else(|| {
            let listing = Listing::new(&key.0, Some(Position::before_hash(key.1)));
            Page { key, progress: Progress::Listing(Box::new(listing)) }
        })
    }

    /// Keeps a page that lacks a block.
    pub(crate) fn put(&mut self, page: Page) {
        self.0.truncate(PAGES_MAX - 1);
        self.0.push_front(page);
    }
}

impl Page {
    /// Goes on reading. When a block is missing, what was read stays.
    pub(crate) fn fill(&mut self, nodes: &Nodes) -> Result<(), Stop> {
        let (base, from, max) = self.key;
        let Progress::Listing(listing) = &mut self.progress else { return Ok(()) };
        listing.run(nodes, max + 1)?;
        let found = std::mem::replace(listing, Box::new(Listing::new(&base, None))).found();
        self.progress = Progress::Listed(found, None);
        self.close_group(nodes).inspect_err(|_| {
            // Names whose hashes agree: so rare that the page may be read again.
            let listing = Listing::new(&base, Some(Position::before_hash(from)));
            self.progress = Progress::Listing(Box::new(listing));
        })
    }

    /// Cuts a page that is full behind a whole group.
    fn close_group(&mut self, nodes: &Nodes) -> Result<(), Stop> {
        let (base, _, max) = self.key;
        let Progress::Listed(entries, upto) = &mut self.progress else { return Ok(()) };
        if entries.len() <= max {
            return Ok(());
        }
        let end = entries.pop().map_or(0, |(hash, _)| cookie_of(hash));
        while let Some((hash, entry)) = entries.last()
            && cookie_of(*hash) == end
        {
            let after = Position { hash: *hash, name: entry.name.clone() };
            match list_after(nodes, &base, Some(&after), 1)?.pop() {
                Some((hash, entry)) if cookie_of(hash) == end => entries.push((hash, entry)),
                Some(_) => break,
                None => return Ok(()),
            }
        }
        *upto = entries.last().map(|(hash, _)| cookie_of(*hash));
        Ok(())
    }

    /// The hash where it begins.
    pub(crate) fn from(&self) -> u64 {
        self.key.1
    }

    /// The entries, once the page is full.
    pub(crate) fn entries(&self) -> &[(u64, Entry)] {
        match &self.progress {
            Progress::Listing(_) => &[],
            Progress::Listed(entries, _) => entries,
        }
    }

    /// The cookie of the last entry; `None`: the directory ends there.
    pub(crate) fn upto(&self) -> Option<u64> {
        match &self.progress {
            Progress::Listing(_) => None,
            Progress::Listed(_, upto) => *upto,
        }
    }
}
