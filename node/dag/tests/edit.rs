//! Editing a file gives the CID that building it anew gives, and costs what was touched.

// A test may fail where it stands.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
use proptest::test_runner::Config;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks, SinkError, SourceError};
use remora_dag::edit::update_file;
use remora_dag::errors::WriteError;
use remora_dag::file::{FileBuilder, FileRoot, Leaf, assemble};
use remora_dag::profile::Profile;
use remora_dag::read::{FileReader, file_size, read};
use remora_dag::zero::{ZERO_LEAF, hole_len, zero_leaf};

const MIB: u64 = 1024 * 1024;

fn build(profile: Profile, bytes: &[u8], blocks: &MemBlocks) -> FileRoot {
    let mut builder = FileBuilder::new(profile, blocks);
    builder.write(bytes).unwrap();
    builder.finish().unwrap()
}

fn put_leaf(blocks: &MemBlocks, bytes: &[u8]) -> Leaf {
    let block = Block::seal(Codec::Raw, Bytes::copy_from_slice(bytes));
    let leaf = Leaf { cid: *block.cid(), size: bytes.len() as u64 };
    blocks.put(block).unwrap();
    leaf
}

/// Counts what passes.
#[derive(Default)]
struct Counted {
    blocks: MemBlocks,
    n_gets: AtomicUsize,
    n_puts: AtomicUsize,
}

impl BlockSource for Counted {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        self.n_gets.fetch_add(1, Ordering::Relaxed);
        self.blocks.get(cid)
    }
}

impl BlockSink for Counted {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.n_puts.fetch_add(1, Ordering::Relaxed);
        self.blocks.put(block)
    }
}

/// The content of a file as small numbers: every chunk is filled with one byte, the last may be short.
fn content(chunks: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for fill in chunks {
        bytes.resize(bytes.len() + MIB as usize, *fill);
    }
    bytes.resize(size.try_into().unwrap(), 0);
    bytes
}

fn sizes() -> impl Strategy<Value = u64> {
    (0..5u64, prop::sample::select(vec![0, 1, 4096, MIB - 1])).prop_map(|(n, more)| n * MIB + more)
}

proptest! {
    #![proptest_config(Config::with_cases(48))]

    #[test]
    fn an_edited_file_has_the_cid_of_the_same_bytes_built_anew(
        fills in prop::collection::vec(0..3u8, 5),
        old_size in sizes(),
        new_size in sizes(),
        edits in prop::collection::btree_map(0..6u64, any::<u8>(), 0..4),
        profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        let blocks = MemBlocks::new();
        let old = content(&fills, old_size);
        let root = build(profile, &old, &blocks);
        let mut new = old;
        new.resize(new_size.try_into().unwrap(), 0);
        let mut leaves = BTreeMap::new();
        for (index, fill) in edits {
            let start = usize::try_from(index * MIB).unwrap();
            if start < new.len() {
                let end = new.len().min(start + MIB as usize);
                new[start..end].fill(fill);
                leaves.insert(index, put_leaf(&blocks, &new[start..end]));
            }
        }
        let found = update_file(&blocks, &blocks, Some(&root.cid), old_size, &leaves, new_size).unwrap();
        let wanted = build(Profile::V1_2025, &new, &MemBlocks::new());
        prop_assert_eq!(found, wanted);
        let back = read(&blocks, &found.cid, 0, usize::MAX).unwrap();
        assert!(back == new);
    }

    #[test]
    fn pieces_of_any_size_make_the_same_file(
        cuts in prop::collection::vec(0..700_000usize, 0..8),
        profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        let blocks = MemBlocks::new();
        let bytes: Vec<u8> = (0..2_200_000u32).map(|i| (i / 5000) as u8).collect();
        let wanted = build(profile, &bytes, &blocks);
        let mut builder = FileBuilder::new(profile, &blocks);
        let mut rest = Bytes::from(bytes);
        for (place, cut) in cuts.into_iter().enumerate() {
            let piece = rest.split_to(cut.min(rest.len()));
            if place % 2 == 0 { builder.write(&piece).unwrap() } else { builder.write_bytes(piece).unwrap() }
        }
        builder.write_bytes(rest).unwrap();
        prop_assert_eq!(builder.finish().unwrap(), wanted);
    }

    #[test]
    fn zeros_are_the_same_whether_written_or_announced(
        before in 0..2_200_000usize, hole in 0..3_300_000u64, after in 0..1_200_000usize,
        profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        let blocks = MemBlocks::new();
        let mut bytes = vec![7; before];
        bytes.resize(before + usize::try_from(hole).unwrap(), 0);
        bytes.resize(bytes.len() + after, 9);
        let wanted = build(profile, &bytes, &blocks);
        let mut builder = FileBuilder::new(profile, &blocks);
        builder.write(&vec![7; before]).unwrap();
        builder.write_zeros(hole).unwrap();
        builder.write(&vec![9; after]).unwrap();
        prop_assert_eq!(builder.finish().unwrap(), wanted);
    }

    #[test]
    fn any_range_is_read_as_it_was_written(offset in 0..3_000_000u64, len in 0..2_500_000usize) {
        let bytes: Vec<u8> = (0..2_600_000u32).map(|i| (i / 777) as u8).collect();
        for profile in Profile::ALL {
            let blocks = MemBlocks::new();
            let root = build(profile, &bytes, &blocks);
            let start = bytes.len().min(offset.try_into().unwrap());
            let end = bytes.len().min(start + len);
            let found = read(&blocks, &root.cid, offset, len).unwrap();
            assert!(found == bytes[start..end], "{profile}");
        }
    }
}

/// The tree over `n` leaves of which those in `data` are not zero, built leaf by leaf.
fn assembled(blocks: &MemBlocks, n: u64, data: &BTreeMap<u64, Leaf>) -> FileRoot {
    let zero = Leaf { cid: *ZERO_LEAF, size: MIB };
    let leaves = (0..n).map(|index| data.get(&index).copied().unwrap_or(zero));
    assemble(Profile::V1_2025, leaves, blocks).unwrap()
}

#[test]
fn edits_agree_with_the_builder_across_every_height() {
    let blocks = MemBlocks::new();
    let leaf = put_leaf(&blocks, &vec![5; MIB as usize]);
    let sizes = [1u64, 2, 1023, 1024, 1025, 2048, 2049, 5000];
    for old in sizes {
        let old_data: BTreeMap<u64, Leaf> = [(0, leaf), (old - 1, leaf)].into();
        let root = assembled(&blocks, old, &old_data);
        for new in sizes {
            let changes: BTreeMap<u64, Leaf> = [(new / 2, leaf)].into();
            let found =
                update_file(&blocks, &blocks, Some(&root.cid), old * MIB, &changes, new * MIB).unwrap();
            let data: BTreeMap<u64, Leaf> =
                old_data.clone().into_iter().chain(changes).filter(|(index, _)| *index < new).collect();
            assert_eq!(found, assembled(&blocks, new, &data), "{old} -> {new}");
        }
    }
}

#[test]
fn a_hole_of_a_tebibyte_costs_its_depth() {
    let counted = Counted::default();
    let leaf = put_leaf(&counted.blocks, &vec![5; MIB as usize]);
    let root = update_file(&counted, &counted, None, 0, &[(0, leaf)].into(), MIB).unwrap();
    let tail = put_leaf(&counted.blocks, b"the end");
    let size = (1u64 << 40) + 7;
    let changes = [(1 << 20, tail)].into();
    let big = update_file(&counted, &counted, Some(&root.cid), MIB, &changes, size).unwrap();
    let (gets, puts) = (counted.n_gets.load(Ordering::Relaxed), counted.n_puts.load(Ordering::Relaxed));
    assert!(gets <= 4, "{gets} blocks read");
    assert!(puts <= 10_000, "{puts} blocks written");
    assert!(counted.blocks.len() <= 16, "{} blocks", counted.blocks.len());
    assert_eq!(big.size, size);
    assert_eq!(file_size(&counted, &big.cid).unwrap(), size);
    assert_eq!(read(&counted, &big.cid, size - 10, 100).unwrap(), &b"\0\0\0the end"[..]);
    assert_eq!(read(&counted, &big.cid, 1 << 39, 3).unwrap(), &b"\0\0\0"[..]);

    let mut builder = FileBuilder::new(Profile::V1_2025, &counted);
    builder.write(&vec![5; MIB as usize]).unwrap();
    builder.write_zeros((1 << 40) - MIB).unwrap();
    builder.write(b"the end").unwrap();
    assert_eq!(builder.finish().unwrap(), big);

    let small = update_file(&counted, &counted, Some(&big.cid), size, &BTreeMap::new(), MIB).unwrap();
    assert_eq!(small, root);
}

#[test]
fn an_edit_in_the_middle_of_a_large_file_writes_one_path() {
    let counted = Counted::default();
    let size = 1u64 << 40;
    let root = update_file(&counted, &counted, None, 0, &BTreeMap::new(), size).unwrap();
    assert_eq!(hole_len(&root.cid), Some(size));
    let leaf = put_leaf(&counted.blocks, &vec![1; MIB as usize]);
    let before = (counted.n_gets.load(Ordering::Relaxed), counted.n_puts.load(Ordering::Relaxed));
    let changes = [(123_456, leaf)].into();
    update_file(&counted, &counted, Some(&root.cid), size, &changes, size).unwrap();
    assert_eq!(counted.n_puts.load(Ordering::Relaxed) - before.1, 2);
    assert!(counted.n_gets.load(Ordering::Relaxed) - before.0 <= 3);
}

#[test]
fn a_file_that_does_not_change_keeps_its_cid_and_writes_nothing() {
    let counted = Counted::default();
    let root = build(Profile::V1_2025, &vec![3; 3 * MIB as usize + 5], &counted.blocks);
    let same =
        update_file(&counted, &counted, Some(&root.cid), root.size, &BTreeMap::new(), root.size).unwrap();
    assert_eq!(same, root);
    assert_eq!(counted.n_puts.load(Ordering::Relaxed), 0);
}

#[test]
fn a_leaf_that_does_not_fit_its_place_is_refused() {
    let blocks = MemBlocks::new();
    let leaf = put_leaf(&blocks, b"short");
    for (index, new_size) in [(0, MIB), (0, 4), (1, MIB), (9, 5)] {
        let result = update_file(&blocks, &blocks, None, 0, &[(index, leaf)].into(), new_size);
        assert!(matches!(result, Err(WriteError::LeafSize { .. })), "{index} {new_size}");
    }
    let too_large = update_file(&blocks, &blocks, None, 0, &BTreeMap::new(), 1 << 53);
    assert!(matches!(too_large, Err(WriteError::FileTooLarge { .. })));
    let gap = assemble(Profile::V1_2025, [leaf, leaf], &blocks);
    assert!(matches!(gap, Err(WriteError::LeafSize { index: 1, .. })));
}

#[test]
fn zero_leaves_of_any_length_are_plain_zeros() {
    for len in [0usize, 1, 4096, 1 << 20] {
        let block = zero_leaf(len);
        assert_eq!(block, Block::seal(Codec::Raw, Bytes::from(vec![0; len])));
    }
    assert_eq!(hole_len(&ZERO_LEAF), Some(MIB));
    assert_eq!(hole_len(zero_leaf(5).cid()), None);
}

#[test]
fn a_reader_can_start_anywhere() {
    let blocks = MemBlocks::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 333) as u8).collect();
    let root = build(Profile::V0_2015, &bytes, &blocks);
    let mut reader = FileReader::open(&blocks, &root.cid).unwrap();
    for start in [2_999_999usize, 0, 262_144, 262_143, 4_000_000] {
        reader.seek_to(start as u64);
        let mut back = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut back).unwrap();
        assert!(back == bytes[start.min(bytes.len())..], "{start}");
    }
}

#[test]
fn a_file_of_another_profile_becomes_one_of_ours_even_when_nothing_changes() {
    for profile in Profile::ALL {
        let blocks = MemBlocks::new();
        let bytes = content(&[1, 2, 0], 3 * MIB + 1);
        let root = build(profile, &bytes, &blocks);
        let found = update_file(&blocks, &blocks, Some(&root.cid), root.size, &BTreeMap::new(), root.size);
        assert_eq!(found.unwrap(), build(Profile::V1_2025, &bytes, &blocks), "{profile}");
    }
}
