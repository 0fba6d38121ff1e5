//! Chunks that come from other files: the CID is that of the same bytes built anew, and what has its place already is not touched.

// A test may fail where it stands.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::{Strategy, prop, prop_assert_eq, proptest};
use proptest::test_runner::Config;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks, SinkError, SourceError};
use remora_dag::edit::graft::{Changes, GraftSource};
use remora_dag::edit::{edit_file, update_file};
use remora_dag::errors::WriteError;
use remora_dag::file::{FileBuilder, FileRoot, Leaf, assemble, next_data};
use remora_dag::profile::Profile;
use remora_dag::read::BlockNodes;
use remora_dag::zero::{ZERO_LEAF, hole_len};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Counts what passes.
#[derive(Default)]
struct Counted {
    blocks: MemBlocks,
    n: AtomicUsize,
}

impl Counted {
    /// How many blocks passed since the last question.
    fn n(&self) -> usize {
        self.n.swap(0, Ordering::Relaxed)
    }
}

impl BlockSource for Counted {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.blocks.get(cid)
    }
}

impl BlockSink for Counted {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.blocks.put(block)
    }
}

/// A leaf for each number: zeros for 0. The leaves themselves are stored, so that files of other profiles can be read.
fn leaf(fill: u8, blocks: &dyn BlockSink) -> Leaf {
    let block = Block::seal(Codec::Raw, Bytes::from(vec![fill; usize::try_from(MIB).unwrap()]));
    let cid = *block.cid();
    blocks.put(block).unwrap();
    Leaf { cid, size: MIB }
}

fn whole(fills: &[u8], blocks: &dyn BlockSink) -> FileRoot {
    let known: Vec<Leaf> = (0..4).map(|fill| leaf(fill, blocks)).collect();
    assemble(Profile::V1_2025, fills.iter().map(|fill| known[usize::from(*fill)]), blocks).unwrap()
}

/// Runs of chunks, so that files of a few thousand are made of a few numbers.
fn runs() -> impl Strategy<Value = Vec<u8>> {
    let run = (0..4u8, prop::sample::select(vec![1usize, 3, 500, 1024, 1025]));
    prop::collection::vec(run, 1..5)
        .prop_map(|runs| runs.into_iter().flat_map(|(fill, n)| std::iter::repeat_n(fill, n)).collect())
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn a_grafted_file_has_the_cid_of_the_same_chunks_put_one_by_one(
        old in runs(),
        other in runs(),
        cuts in prop::collection::vec((0..3000u64, 0..3000u64, 1..2500u64, 0..3u8), 1..5),
        single in (0..3000u64, 1..4u8),
    ) {
        let blocks = MemBlocks::new();
        let (root, source) = (whole(&old, &blocks), whole(&other, &blocks));
        let mut new = old.clone();
        let mut changes = Changes::default();
        let mut free = 0;
        for (gap, from, n, kind) in cuts {
            // Half of them keep the place within the nodes above the leaves.
            let first = free + gap % 700;
            let from = if kind == 0 { first % 1024 } else { from };
            let n = if kind == 2 { n } else { n.min((other.len() as u64).saturating_sub(from)) };
            if n == 0 {
                continue;
            }
            let range = usize::try_from(first).unwrap()..usize::try_from(first + n).unwrap();
            new.resize(new.len().max(range.end), 0);
            if kind == 2 {
                new[range].fill(0);
                changes.graft(first, n, GraftSource::Zero);
            } else {
                let from_at = usize::try_from(from).unwrap();
                let part = &other[from_at..][..range.len()];
                new[range].copy_from_slice(part);
                let file = GraftSource::File { cid: source.cid, size: source.size, first: from };
                changes.graft(first, n, file);
            }
            free = first + n;
        }
        let (at, fill) = (single.0 % new.len() as u64, single.1);
        new[usize::try_from(at).unwrap()] = fill;
        changes.leaves.insert(at, leaf(fill, &blocks));
        let size = new.len() as u64 * MIB;
        let found = edit_file(&blocks, &blocks, Some(&root.cid), root.size, &changes, size).unwrap();
        prop_assert_eq!(found, whole(&new, &MemBlocks::new()));
    }

    #[test]
    fn the_next_data_is_where_the_first_chunk_of_data_is(fills in runs(), from in 0..4000u64) {
        let blocks = MemBlocks::new();
        let root = whole(&fills, &blocks);
        let nodes = BlockNodes::new(&blocks);
        let found = next_data(&nodes, &root.cid, root.size, from * MIB + 5).unwrap();
        let wanted = (from..fills.len() as u64).find(|at| fills[usize::try_from(*at).unwrap()] != 0);
        prop_assert_eq!(found.map(|leaf| leaf.start / MIB), wanted);
    }
}

/// A file of a tebibyte with one chunk of data in the middle.
fn sparse(counted: &Counted) -> FileRoot {
    let changes = [(600_000, leaf(1, counted))].into();
    update_file(counted, counted, None, 0, &changes, 1024 * GIB).unwrap()
}

#[test]
fn a_copy_of_a_tebibyte_touches_the_nodes_at_its_ends() {
    let counted = Counted::default();
    let file = sparse(&counted);
    counted.n();
    let mut changes = Changes::default();
    let source = |first| GraftSource::File { cid: file.cid, size: file.size, first };
    changes.graft(0, file.size / MIB, source(0));
    assert_eq!(edit_file(&counted, &counted, None, 0, &changes, file.size).unwrap(), file);
    assert!(counted.n() <= 2);
    // A gibibyte further, with ends in the middle of nodes.
    let mut changes = Changes::default();
    changes.graft(1024 + 5, file.size / MIB - 10, source(5));
    let size = file.size + GIB;
    edit_file(&counted, &counted, None, 0, &changes, size).unwrap();
    assert!(counted.n() <= 16);
}

#[test]
fn a_hole_of_a_tebibyte_touches_the_nodes_at_its_ends() {
    let counted = Counted::default();
    let file = sparse(&counted);
    counted.n();
    let mut changes = Changes::default();
    changes.graft(3, file.size / MIB - 5, GraftSource::Zero);
    let found = edit_file(&counted, &counted, Some(&file.cid), file.size, &changes, file.size).unwrap();
    assert!(counted.n() <= 16);
    assert_eq!(hole_len(&found.cid), Some(file.size));
}

#[test]
fn chunks_of_a_file_of_another_profile_are_copied() {
    for profile in Profile::ALL {
        let blocks = MemBlocks::new();
        let bytes: Vec<u8> = (0..4 * MIB).map(|i| (i / 4096) as u8).collect();
        let mut builder = FileBuilder::new(profile, &blocks);
        builder.write(&bytes).unwrap();
        let foreign = builder.finish().unwrap();
        let mut changes = Changes::default();
        changes.graft(0, 1, GraftSource::Zero);
        changes.graft(1, 3, GraftSource::File { cid: foreign.cid, size: foreign.size, first: 1 });
        let found = edit_file(&blocks, &blocks, None, 0, &changes, 4 * MIB + 1).unwrap();
        let mut wanted = FileBuilder::new(Profile::V1_2025, &blocks);
        wanted.write_zeros(MIB).unwrap();
        wanted.write(&bytes[usize::try_from(MIB).unwrap()..]).unwrap();
        wanted.write_zeros(1).unwrap();
        assert_eq!(found, wanted.finish().unwrap(), "{profile}");
    }
}

#[test]
fn a_graft_that_does_not_fit_its_place_is_refused() {
    let blocks = MemBlocks::new();
    let short = Leaf { size: 5, ..leaf(1, &blocks) };
    let file = GraftSource::File { cid: short.cid, size: 5, first: 0 };
    for (first, n_chunks, source, size) in
        [(0, 1, GraftSource::Zero, MIB - 1), (1, 2, GraftSource::Zero, 2 * MIB), (0, 1, file, MIB)]
    {
        let mut changes = Changes::default();
        changes.graft(first, n_chunks, source);
        let result = edit_file(&blocks, &blocks, None, 0, &changes, size);
        assert!(matches!(result, Err(WriteError::LeafSize { .. })), "{first} {n_chunks} {size}");
    }
    assert_eq!(hole_len(&ZERO_LEAF), Some(MIB));
}
