//! A keeper makes the trees of its writer's checkpoints from the log that it has, whatever happened, and whatever happens to it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

mod model;
mod rig;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cid::Cid;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use remora_dag::block::{Block, BlockSink, BlockSource};
use remora_store::frame::FrameMeta;
use remora_store::log::Log;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{NewNode, Timestamp};
use remora_vfs::filesystem::Filesystem;
use remora_volume::checkpoint::{CheckpointError, Tail, derive_from_log};
use remora_volume::commit::{Commit, CommitHeader};
use remora_volume::journal::durability::{CommitFrame, Replicator};
use remora_volume::named_tree::{Made, NamedTreeError, make_named_tree};
use remora_volume::op::Op;
use remora_volume::recover::{OpenError, last_commit};
use remora_volume::state::changes::Changes;
use remora_volume::volume::Volume;

use model::drawn::{content_request, name_request};
use model::picture::{Picture, picture_of};
use model::request::{Request, Slots, Target};
use rig::{Store, VOLUME, dir, file, options_on, store_on, store_with};

const MIB: usize = 1 << 20;

/// What happens in a test.
#[derive(Clone, Debug)]
enum Step {
    Do(Request),
    Flush,
    Checkpoint,
    /// The writer ends in good order and comes back.
    Handoff,
    /// The keeper gets the log.
    Feed,
    /// The keeper gets the log, makes the tree that it names and drops what that stands for.
    Follow,
    /// As [`Step::Follow`], but the keeper's power is cut at the n-th call of its disk, or when all is done.
    FollowInto {
        n: u64,
        seed: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => name_request().prop_map(Step::Do),
        10 => content_request().prop_map(Step::Do),
        2 => Just(Step::Flush),
        3 => Just(Step::Checkpoint),
        1 => Just(Step::Handoff),
        1 => Just(Step::Feed),
        2 => Just(Step::Follow),
        2 => (1..25u64, any::<u64>()).prop_map(|(n, seed)| Step::FollowInto { n, seed }),
    ]
}

/// The first commit that the keeper lacks: the writer keeps its log from there.
#[derive(Default)]
struct Lack(AtomicU64);

impl Replicator for Lack {
    fn commit(&self, _frame: CommitFrame) {}

    fn oldest_needed(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed) + 1)
    }
}

/// A writer and a keeper, each with a disk of its own.
struct Pair {
    writer: Store,
    volume: Option<Volume>,
    lack: Arc<Lack>,
    slots: Slots,
    keeper_disk: SimDisk,
    keeper: Store,
    n_requests: i64,
    /// Checkpoints since the keeper made a tree.
    n_pending: usize,
    /// A mistake on purpose: the keeper drops the log before the tree is durable.
    is_hasty: bool,
    /// Trees that the keeper made.
    n_made: usize,
}

impl Pair {
    fn new(is_hasty: bool) -> Pair {
        let (disk, keeper_disk) = (SimDisk::new(1), SimDisk::new(2));
        let (writer, keeper) = (store_on(Arc::new(disk)), keeper_on(&keeper_disk));
        let (lack, slots) = (Arc::new(Lack::default()), Slots::default());
        let mut pair = Pair {
            writer,
            volume: None,
            lack,
            slots,
            keeper_disk,
            keeper,
            n_requests: 0,
            n_pending: 0,
            is_hasty,
            n_made: 0,
        };
        pair.open();
        pair
    }

    fn open(&mut self) {
        let mut options = options_on(&self.writer);
        options.replicator = self.lack.clone();
        self.volume = Some(Volume::open(options).unwrap());
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Do(request) => {
                self.n_requests += 1;
                let now = Timestamp(self.n_requests);
                // What cannot be done is refused; that is for other tests.
                let _done = request.apply(self.volume.as_ref().unwrap(), &mut self.slots, now);
            }
            Step::Flush => drop(self.volume().flush().unwrap()),
            Step::Checkpoint => {
                self.volume().checkpoint().unwrap();
                self.n_pending += 1;
            }
            Step::Handoff => {
                self.slots.clear(self.volume.as_ref().unwrap());
                self.volume.take().unwrap().close().unwrap();
                self.open();
            }
            Step::Feed => self.feed(),
            Step::Follow => {
                self.feed();
                self.follow();
            }
            Step::FollowInto { n, seed } => {
                self.feed();
                self.keeper_disk.plan_crash(*n, *seed);
                self.follow();
                let disk = self.keeper_disk.crashed().unwrap_or_else(|| self.keeper_disk.crash(*seed));
                self.come_back(&disk);
            }
        }
        // Who is further behind fetches the tree, which is for other tests.
        if self.n_pending == 4 {
            self.step(&Step::Follow);
        }
    }

    /// The keeper gets all commits that the writer has in its log, and the blocks that they refer to.
    fn feed(&mut self) {
        let next = self.keeper.log.tail().map_or(0, |tail| tail.seq) + 1;
        for frame in self.writer.log.iter_from(next) {
            let frame = frame.unwrap();
            let commit = Commit::decode(frame.payload.clone()).unwrap();
            for cid in &commit.data {
                copy(cid, &self.writer, &self.keeper);
            }
            self.keeper.blocks.sync().unwrap();
            self.keeper.log.append(&frame.header.meta, &[&frame.payload]).unwrap();
        }
        self.keeper.log.sync().unwrap();
        self.lack.0.store(self.keeper.log.tail().map_or(0, |tail| tail.seq), Ordering::Relaxed);
    }

    /// What a keeper does behind its log: makes the tree, makes it durable, drops what it stands for.
    fn follow(&mut self) {
        self.n_pending = 0;
        let Some((tree, seq)) = named(&self.keeper.log) else { return };
        if !self.keeper.blocks.has(&tree).unwrap() {
            self.n_made += make(&self.keeper).unwrap();
        }
        if !self.is_hasty {
            self.keeper.blocks.sync().unwrap();
        }
        self.keeper.log.drop_before(seq).unwrap();
    }

    /// After a power cut: either the log still leads to the tree, or all of the tree is on the disk.
    fn come_back(&mut self, disk: &SimDisk) {
        self.keeper_disk = disk.kill();
        self.keeper = keeper_on(&self.keeper_disk);
        self.lack.0.store(self.keeper.log.tail().map_or(0, |tail| tail.seq), Ordering::Relaxed);
        match make(&self.keeper) {
            Ok(n) => self.n_made += n,
            Err(NamedTreeError::NoStart) => {}
            Err(error) => panic!("{error:?}"),
        }
        let _whole = self.kept();
    }

    /// What the keeper has is the volume. (What differs would be too long to print.)
    fn check(&self) {
        let (kept, written) = (self.kept(), picture_of(self.volume()));
        assert_eq!(kept.names, written.names);
        assert!(kept.held == written.held, "the same names, but other bytes or attributes");
    }

    /// The volume as the keeper has it, without anybody's help.
    fn kept(&self) -> Picture {
        let alone = keeper_on(&self.keeper_disk.kill());
        picture_of(&Volume::open(options_on(&alone)).unwrap())
    }
}

fn keeper_on(disk: &SimDisk) -> Store {
    store_with(Arc::new(disk.clone()), 5 << 19, None)
}

fn copy(cid: &Cid, from: &Store, to: &Store) {
    if let Ok(bytes) = BlockSource::get(&*from.blocks, cid) {
        BlockSink::put(&*to.blocks, Block::verify(*cid, bytes).unwrap()).unwrap();
    }
}

/// The tree that the newest commit names, and the last commit in it; `None` while that is the volume's first.
fn named(log: &Log) -> Option<(Cid, u64)> {
    let newest = last_commit(log).unwrap()?;
    (newest.header.base_seq > 0).then_some((newest.header.base, newest.header.base_seq))
}

/// Makes the tree that a host's log names; answers how many trees it took.
fn make(host: &Store) -> Result<usize, NamedTreeError> {
    if named(&host.log).is_none() {
        return Ok(0);
    }
    let is_here = |cid: &Cid| host.blocks.has(cid).unwrap();
    match make_named_tree(&host.log, &VOLUME, (&*host.blocks, &*host.blocks), &is_here, &|_| true)? {
        Made::Same { n_trees, .. } => Ok(n_trees),
        Made::Different { upto, named, derived } => panic!("{named} up to {upto} was derived as {derived}"),
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// Goes through the steps and a last checkpoint; answers how many trees the keeper made.
fn live(steps: &[Step], is_hasty: bool) -> usize {
    let mut pair = Pair::new(is_hasty);
    steps.iter().for_each(|step| pair.step(step));
    pair.slots.clear(pair.volume.as_ref().unwrap());
    pair.volume().flush().unwrap();
    pair.volume().checkpoint().unwrap();
    pair.feed();
    pair.follow();
    pair.check();
    pair.n_made
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_keeper_makes_the_same_trees_after_anything_and_any_power_cut(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        live(&steps, false);
    }
}

#[test]
fn a_log_that_is_dropped_before_the_tree_is_durable_is_noticed() {
    let write = Request::Write { file: Target::At("a"), offset: 10, len: MIB - 20, fill: 3, skip: 0 };
    let step = |seed| {
        let follow = Step::FollowInto { n: u64::MAX >> 1, seed };
        [Step::Do(write.clone()), Step::Flush, Step::Checkpoint, follow]
    };
    let make = Step::Do(Request::Make { at: "a", node: NewNode::File, mode: 0o644 });
    let steps: Vec<Step> = [make].into_iter().chain((0..12).flat_map(step)).collect();
    assert!(live(&steps, false) >= 12);
    assert!(catch_unwind(AssertUnwindSafe(|| live(&steps, true))).is_err());
}

/// A keeper with a file of 300,000 bytes in its log, and the checkpoint of it.
fn fed() -> (Pair, Cid, u64) {
    let mut pair = Pair::new(false);
    let attr = file(pair.volume(), b"a");
    pair.volume().flush().unwrap();
    pair.volume().write(attr.ino, 0, &[7; 300_000], Timestamp(2)).unwrap();
    pair.volume().flush().unwrap();
    let (tree, seq) = pair.volume().checkpoint().unwrap();
    pair.feed();
    (pair, tree, seq)
}

#[test]
fn only_the_log_is_needed_for_the_tree_of_what_is_in_it() {
    let (mut pair, tree, seq) = fed();
    assert!(!pair.keeper.blocks.has(&tree).unwrap());
    assert_eq!(make(&pair.keeper).unwrap(), 1);
    assert!(pair.keeper.blocks.has(&tree).unwrap());
    pair.follow();
    assert_eq!(named(&pair.keeper.log), Some((tree, seq)));
    pair.check();
}

#[test]
fn a_keeper_that_missed_checkpoints_makes_them_one_after_the_other() {
    let (mut pair, first, _) = fed();
    let attr = file(pair.volume(), b"b");
    for n in 2..5 {
        pair.volume().write(attr.ino, 0, &[n; 10], Timestamp(3)).unwrap();
        pair.volume().checkpoint().unwrap();
    }
    pair.feed();
    assert_eq!(make(&pair.keeper).unwrap(), 4);
    assert!(pair.keeper.blocks.has(&first).unwrap());
    pair.volume().write(attr.ino, 0, &[9; 10], Timestamp(4)).unwrap();
    pair.volume().checkpoint().unwrap();
    pair.feed();
    assert_eq!(make(&pair.keeper).unwrap(), 1);
    for n in 10..15 {
        pair.volume().write(attr.ino, 0, &[n; 10], Timestamp(5)).unwrap();
        pair.volume().checkpoint().unwrap();
    }
    pair.feed();
    let too_far = make(&pair.keeper);
    assert!(matches!(too_far, Err(NamedTreeError::NoStart)), "{too_far:?}");
}

#[test]
fn a_tree_over_one_that_is_not_here_is_not_made() {
    let (pair, _, _) = fed();
    let keeper = &pair.keeper;
    let blocks = (&*keeper.blocks as _, &*keeper.blocks as _);
    let made = make_named_tree(&keeper.log, &VOLUME, blocks, &|_| false, &|_| true);
    assert!(matches!(made, Err(NamedTreeError::NoStart)), "{made:?}");
}

#[test]
fn a_tree_over_one_of_which_blocks_are_missing_is_not_made() {
    let (mut pair, first, _) = fed();
    let sub = dir(pair.volume(), b"d");
    pair.volume().checkpoint().unwrap();
    pair.feed();
    // The first tree's own block came, and nothing of what is below it.
    copy(&first, &pair.writer, &pair.keeper);
    let made = make(&pair.keeper);
    assert!(matches!(made, Err(NamedTreeError::Log(_) | NamedTreeError::Derive(_))), "{made:?} {sub:?}");
    let (tree, _) = named(&pair.keeper.log).unwrap();
    assert!(!pair.keeper.blocks.has(&tree).unwrap());
}

#[test]
fn a_chain_that_names_another_tree_is_found_out() {
    let (pair, tree, _) = fed();
    let keeper = &pair.keeper;
    let last = last_commit(&keeper.log).unwrap().unwrap();
    let header = &last.header;
    let upto_seq = header.seq;
    let wrong = CommitHeader {
        prev: last.digest,
        seq: upto_seq + 1,
        base: tree,
        base_seq: upto_seq,
        ..header.clone()
    };
    let mut ops = Vec::new();
    Op::Checkpoint { tree, upto_seq }.encode(&mut ops);
    let commit = Commit::seal(wrong, &ops, Vec::new()).unwrap();
    let frame = keeper.log.frame(keeper.log.tail().unwrap().position).unwrap();
    let meta = FrameMeta { seq: upto_seq + 1, digest: commit.digest, ..frame.header.meta };
    keeper.log.append(&meta, &[&commit.bytes]).unwrap();
    let blocks = (&*keeper.blocks as _, &*keeper.blocks as _);
    let is_here = |cid: &Cid| keeper.blocks.has(cid).unwrap();
    match make_named_tree(&keeper.log, &VOLUME, blocks, &is_here, &|_| true).unwrap() {
        Made::Different { upto, named, derived } => {
            assert_eq!((upto, named), (upto_seq, tree));
            assert_ne!(derived, tree);
        }
        made @ Made::Same { .. } => panic!("{made:?}"),
    }
}

#[test]
fn a_derivation_ends_when_it_is_told_to() {
    let (pair, tree, seq) = fed();
    let keeper = &pair.keeper;
    let blocks = (&*keeper.blocks as _, &*keeper.blocks as _);
    let n_asked = AtomicU64::new(0);
    let go_on = |_: &Changes| n_asked.fetch_add(1, Ordering::Relaxed) == 0;
    let made = make_named_tree(&keeper.log, &VOLUME, blocks, &|_| true, &go_on);
    let is_given_up =
        matches!(made, Err(NamedTreeError::Derive(CheckpointError::Replay(OpenError::GivenUp))));
    assert!(is_given_up, "{made:?}");
    assert!(n_asked.into_inner() <= 2 && !keeper.blocks.has(&tree).unwrap(), "commit {seq}");
}

#[test]
fn a_log_that_ends_too_early_gives_no_tree() {
    let (pair, _, seq) = fed();
    let keeper = &pair.keeper;
    let base = (keeper.base.tree, keeper.base.seq);
    let tail = Tail { log: &keeper.log, volume: &VOLUME, base, upto: seq + 100 };
    let made = derive_from_log(&tail, &*keeper.blocks, &*keeper.blocks, &|_| true).map(drop);
    assert!(matches!(made, Err(CheckpointError::Replay(OpenError::Short { .. }))), "{made:?}");
}
