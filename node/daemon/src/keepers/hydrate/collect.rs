//! What a volume refers to, looked for on this host and fetched if it is not there: commits' blocks and trees, a batch at a time.
//!
//! What always holds: what is held in memory is bounded by the nodes of one tree, never by its leaves; a subtree that is known to be
//! whole is not walked again; no recursion.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::Codec;
use remora_dag::walk::links_of;
use remora_store::fault::chain;
use remora_volume::commit::{Commit, Digest, digest_in};
use remora_volume::tree::{Tree, decode_orphan_page};

/// Blocks that are fetched at a time: 32 MiB at most, 16 MiB of full leaves.
pub(super) const BATCH: usize = 16;

/// Nodes that are read at a time.
const NODES_BATCH: usize = 128;

/// Nodes (directories, files of several blocks) of one tree, at most.
const NODES_MAX: usize = 16_000_000;

/// Nodes that are remembered as whole, about 40 bytes each; beyond that some are walked again.
const KNOWN_MAX: usize = 512 * 1024;

/// Why collecting ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Something more urgent began; to be tried again.
    Interrupted,
    /// It cannot go on; the text is for the operator.
    Failed(String),
}

/// Where blocks are, and how to get those that are not here.
pub(crate) trait Reach {
    /// Whether the block is on this host.
    fn has(&self, cid: &Cid) -> Result<bool, Stopped>;

    /// The bytes of a block that is on this host; `None` if they cannot be read.
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, Stopped>;

    /// Brings blocks to this host; answers those that could not be had.
    fn fetch(&self, cids: &[Cid]) -> Result<Vec<Cid>, Stopped>;
}

/// Nodes below which nothing is missing.
#[derive(Debug, Default)]
pub(crate) struct Known(HashSet<Digest>);

impl Known {
    /// Takes the nodes of another tree that was found whole.
    pub(crate) fn add(&mut self, nodes: HashSet<Digest>) {
        if self.0.len() + nodes.len() > KNOWN_MAX {
            self.0.clear();
        }
        if nodes.len() <= KNOWN_MAX {
            self.0.extend(nodes);
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }
}

/// One look at a volume.
pub(crate) struct Collect<'a> {
    reach: &'a dyn Reach,
    wanted: Vec<Cid>,
    /// Blocks that were not here.
    pub(crate) n_fetched: u64,
    /// Blocks that could not be had.
    pub(crate) n_missing: u64,
}

impl<'a> Collect<'a> {
    pub(crate) fn new(reach: &'a dyn Reach) -> Self {
        Collect { reach, wanted: Vec::new(), n_fetched: 0, n_missing: 0 }
    }

    /// The blocks that a commit refers to.
    pub(crate) fn commit(&mut self, commit: &Commit) -> Result<(), Stopped> {
        commit.data.iter().try_for_each(|cid| self.want(cid))
    }

    /// All blocks of a volume's tree; answers its nodes, which are whole if nothing was missing.
    pub(crate) fn tree(&mut self, root: &Cid, known: &Known) -> Result<HashSet<Digest>, Stopped> {
        let mut found = HashSet::new();
        let mut orphans = BTreeSet::new();
        let mut stack = Vec::new();
        let mut n_nodes = 0;
        note(root, known, &mut found, &mut stack);
        while !stack.is_empty() {
            let nodes = stack.split_off(stack.len().saturating_sub(NODES_BATCH));
            n_nodes += nodes.len();
            if n_nodes > NODES_MAX {
                return Err(Stopped::Failed(format!("tree {root} has more than {NODES_MAX} nodes")));
            }
            let lost = self.bring(&nodes)?;
            for cid in nodes.iter().filter(|cid| !lost.contains(cid)) {
                let Some(bytes) = self.reach.get(cid)? else {
                    self.n_missing += 1;
                    continue;
                };
                for link in links(cid, &bytes, cid == root, &mut orphans)? {
                    match Codec::of(&link) {
                        Some(Codec::Raw) => self.want(&link)?,
                        _ => note(&link, known, &mut found, &mut stack),
                    }
                }
            }
        }
        self.flush()?;
        Ok(found)
    }

    /// As [`Collect::tree`], but a tree that is not here at all, or of which blocks cannot be had, is first to be made here by `make`,
    /// which says whether it is made. What it did not make is fetched.
    pub(crate) fn made_or_fetched(
        &mut self,
        root: &Cid,
        known: &Known,
        make: &mut dyn FnMut() -> Result<bool, Stopped>,
    ) -> Result<HashSet<Digest>, Stopped> {
        if !self.reach.has(root)? {
            make()?;
        }
        let n_missing = self.n_missing;
        let nodes = self.tree(root, known)?;
        if self.n_missing == n_missing || !make()? {
            return Ok(nodes);
        }
        self.n_missing = n_missing;
        self.tree(root, known)
    }

    /// Fetches what is still to be fetched.
    pub(crate) fn flush(&mut self) -> Result<(), Stopped> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let wanted = std::mem::take(&mut self.wanted);
        self.fetch(&wanted).map(drop)
    }

    fn want(&mut self, cid: &Cid) -> Result<(), Stopped> {
        if digest_in(cid).is_none() || self.wanted.contains(cid) || self.reach.has(cid)? {
            return Ok(());
        }
        self.wanted.push(*cid);
        if self.wanted.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Brings all of these here; answers those that cannot be had.
    fn bring(&mut self, nodes: &[Cid]) -> Result<BTreeSet<Cid>, Stopped> {
        let mut absent = Vec::new();
        for cid in nodes {
            if !self.reach.has(cid)? {
                absent.push(*cid);
            }
        }
        let mut lost = BTreeSet::new();
        for batch in absent.chunks(BATCH) {
            lost.extend(self.fetch(batch)?);
        }
        Ok(lost)
    }

    fn fetch(&mut self, cids: &[Cid]) -> Result<Vec<Cid>, Stopped> {
        let lost = self.reach.fetch(cids)?;
        self.n_missing += lost.len() as u64;
        self.n_fetched += cids.len().saturating_sub(lost.len()) as u64;
        Ok(lost)
    }
}

/// A node to be walked, once, unless it is whole already. A CID that is its own block needs no walk.
fn note(cid: &Cid, known: &Known, found: &mut HashSet<Digest>, stack: &mut Vec<Cid>) {
    if let Some(digest) = digest_in(cid)
        && !known.has(&digest)
        && found.insert(digest)
    {
        stack.push(*cid);
    }
}

/// The links of a node, those included that lie in rows of attributes in place of links of their own.
fn links(cid: &Cid, bytes: &Bytes, is_root: bool, orphans: &mut BTreeSet<Cid>) -> Result<Vec<Cid>, Stopped> {
    let failed = |why: String| Stopped::Failed(format!("block {cid}: {why}"));
    let mut links = links_of(cid, bytes).map_err(|e| failed(chain(&e)))?;
    if is_root {
        let tree = Tree::decode(cid, bytes).map_err(|e| failed(chain(&e)))?;
        links.extend(tree.root_row.xattrs_block.as_deref());
        orphans.extend(tree.orphans);
    } else if orphans.contains(cid) {
        let page = decode_orphan_page(bytes).ok_or_else(|| failed("not a page of orphans".into()))?;
        links.extend(page.iter().filter_map(|orphan| orphan.row.xattrs_block.as_deref()));
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use remora_dag::block::{Block, BlockSink, BlockSource, MemBlocks};
    use remora_dag::directory::{Entry, build_dir};
    use remora_dag::file::FileBuilder;
    use remora_dag::posix::Row;
    use remora_vfs::attr::Timestamp;
    use remora_volume::tree::{Orphan, genesis, orphan_pages};

    use super::*;

    /// An empty host beside one that has everything.
    struct Rig {
        here: MemBlocks,
        there: MemBlocks,
        asked: RefCell<Vec<usize>>,
        n_read: Cell<usize>,
    }

    impl Rig {
        fn new() -> Rig {
            let (here, there) = (MemBlocks::new(), MemBlocks::new());
            Rig { here, there, asked: RefCell::default(), n_read: Cell::new(0) }
        }

        /// A tree with a directory of small files, a file of many leaves, long xattrs and an orphan; `seed` is in one file.
        fn tree(&self, seed: u8) -> Cid {
            let sink = &self.there;
            let (mut tree, _) = genesis(0, 0, 0o755, Timestamp(0)).unwrap();
            let leaf = |n: u8| {
                let block = Block::seal(Codec::Raw, vec![n; 64].into());
                let cid = *block.cid();
                sink.put(block).unwrap();
                cid
            };
            let entry = |name: &str, cid: Cid| Entry { name: name.into(), cid, tsize: 64, row: None };
            let small: Vec<Entry> = (0..40).map(|n| entry(&format!("f{n}"), leaf(n))).collect();
            let small = build_dir(tree.profile, small, sink).unwrap().cid;
            let mut big = FileBuilder::new(tree.profile, sink);
            (0..20).for_each(|n| big.write(&vec![n; 1 << 20]).unwrap());
            let big = big.finish().unwrap().cid;
            let top = [entry("small", small), entry("big", big), entry("seed", leaf(100 + seed))];
            tree.root = build_dir(tree.profile, top, sink).unwrap().cid;
            tree.root_row.xattrs_block = Some(Box::new(leaf(50)));
            let row = Row { ino: 9, kind: 1, xattrs_block: Some(Box::new(leaf(51))), ..Row::default() };
            for page in orphan_pages(&[Orphan { row, cid: leaf(52), tsize: 64 }]) {
                tree.orphans.push(*page.cid());
                sink.put(page).unwrap();
            }
            sink.put(remora_volume::inomap::empty_map()).unwrap();
            let block = tree.to_block();
            let cid = *block.cid();
            sink.put(block).unwrap();
            cid
        }
    }

    impl Reach for Rig {
        fn has(&self, cid: &Cid) -> Result<bool, Stopped> {
            Ok(self.here.contains(cid))
        }

        fn get(&self, cid: &Cid) -> Result<Option<Bytes>, Stopped> {
            self.n_read.set(self.n_read.get() + 1);
            Ok(self.here.get(cid).ok())
        }

        fn fetch(&self, cids: &[Cid]) -> Result<Vec<Cid>, Stopped> {
            self.asked.borrow_mut().push(cids.len());
            let mut lost = Vec::new();
            for cid in cids {
                match self.there.get(cid) {
                    Ok(bytes) => self.here.put(Block::verify(*cid, bytes).unwrap()).unwrap(),
                    Err(_) => lost.push(*cid),
                }
            }
            Ok(lost)
        }
    }

    #[test]
    fn every_block_of_a_tree_comes_here_also_those_named_in_rows() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        let mut collect = Collect::new(&rig);
        collect.tree(&tree, &Known::default()).unwrap();
        assert_eq!(collect.n_missing, 0);
        assert_eq!(rig.here.cids(), rig.there.cids());
        assert_eq!(collect.n_fetched, rig.there.len() as u64);
        assert!(rig.asked.borrow().iter().all(|n| *n <= BATCH));
    }

    #[test]
    fn a_second_look_asks_for_nothing() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        Collect::new(&rig).tree(&tree, &Known::default()).unwrap();
        rig.asked.borrow_mut().clear();
        Collect::new(&rig).tree(&tree, &Known::default()).unwrap();
        assert!(rig.asked.borrow().is_empty());
    }

    #[test]
    fn of_the_next_tree_only_the_difference_is_read() {
        let rig = Rig::new();
        let mut known = Known::default();
        let nodes = Collect::new(&rig).tree(&rig.tree(0), &known).unwrap();
        known.add(nodes);
        let next = rig.tree(1);
        rig.n_read.set(0);
        let mut collect = Collect::new(&rig);
        collect.tree(&next, &known).unwrap();
        assert_eq!(rig.n_read.get(), 2, "the tree's own block and the root directory");
        assert_eq!(collect.n_fetched, 3, "those two and the leaf that changed");
    }

    /// Makes a tree here by copying all of it but `left`.
    fn made(rig: &Rig, left: Option<&Cid>) {
        for cid in rig.there.cids().iter().filter(|cid| Some(*cid) != left) {
            rig.here.put(Block::verify(*cid, rig.there.get(cid).unwrap()).unwrap()).unwrap();
        }
    }

    #[test]
    fn of_a_tree_that_is_made_here_only_what_it_lacks_is_fetched() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        let raw = |cid: &Cid| Codec::of(cid) == Some(Codec::Raw);
        let leaf = rig.there.cids().into_iter().find(raw).unwrap();
        let mut collect = Collect::new(&rig);
        let mut make = || {
            made(&rig, Some(&leaf));
            Ok(true)
        };
        collect.made_or_fetched(&tree, &Known::default(), &mut make).unwrap();
        assert_eq!((collect.n_fetched, collect.n_missing), (1, 0));
        assert_eq!(rig.here.cids(), rig.there.cids());
    }

    #[test]
    fn a_tree_that_cannot_be_made_here_is_fetched() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        let mut n_tries = 0;
        let mut collect = Collect::new(&rig);
        let mut make = || {
            n_tries += 1;
            Ok(false)
        };
        collect.made_or_fetched(&tree, &Known::default(), &mut make).unwrap();
        assert_eq!((n_tries, collect.n_missing), (1, 0));
        assert_eq!(rig.here.cids(), rig.there.cids());
    }

    #[test]
    fn a_tree_that_nobody_has_any_more_is_made_here() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        let all = MemBlocks::new();
        for cid in rig.there.cids() {
            all.put(Block::verify(cid, rig.there.get(&cid).unwrap()).unwrap()).unwrap();
        }
        // The host that made it is gone, and here is its own block alone.
        rig.here.put(Block::verify(tree, rig.there.get(&tree).unwrap()).unwrap()).unwrap();
        assert!(all.cids().iter().all(|cid| rig.there.remove(cid)));
        let mut collect = Collect::new(&rig);
        let mut make = || {
            for cid in all.cids() {
                rig.here.put(Block::verify(cid, all.get(&cid).unwrap()).unwrap()).unwrap();
            }
            Ok(true)
        };
        collect.made_or_fetched(&tree, &Known::default(), &mut make).unwrap();
        assert_eq!((collect.n_fetched, collect.n_missing), (0, 0));
        assert_eq!(rig.here.cids(), all.cids());
    }

    #[test]
    fn a_tree_that_is_here_is_not_made_again() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        made(&rig, None);
        let mut collect = Collect::new(&rig);
        let mut make = || panic!("it is here");
        collect.made_or_fetched(&tree, &Known::default(), &mut make).unwrap();
        assert_eq!(collect.n_fetched, 0);
    }

    #[test]
    fn what_nobody_has_is_counted_and_the_rest_comes() {
        let rig = Rig::new();
        let tree = rig.tree(0);
        let raw = |cid: &Cid| Codec::of(cid) == Some(Codec::Raw);
        let lost = rig.there.cids().into_iter().find(raw).unwrap();
        rig.there.remove(&lost);
        let mut collect = Collect::new(&rig);
        collect.tree(&tree, &Known::default()).unwrap();
        assert_eq!(collect.n_missing, 1);
        assert_eq!(rig.here.cids(), rig.there.cids());
    }

    #[test]
    fn more_nodes_than_are_remembered_are_walked_again_and_not_kept() {
        let mut known = Known::default();
        known.add(HashSet::from([[1; 32]]));
        let many = (0..=KNOWN_MAX as u64).map(|n| {
            let mut digest = [2; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            digest
        });
        known.add(many.collect());
        assert!(!known.has(&[1; 32]));
        assert!(known.0.is_empty());
    }
}
