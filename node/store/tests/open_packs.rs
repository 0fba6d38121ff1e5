//! However many packs there are, few of their files are open; and blocks are counted without being looked for.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::sweep::SweepOptions;
use remora_store::blocks::touches::Live;
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::RealDisk;
use remora_store::index::IndexKind;
use remora_store::layout::INDEX_TABLES;

const OPEN_MAX: usize = 4;
const N_BLOCKS: u64 = 200;

fn block(n: u64) -> Block {
    let mut bytes = vec![n as u8; 5000];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Block::seal(Codec::Raw, Bytes::from(bytes))
}

fn open(dir: &Path) -> Blocks {
    let options = BlocksOptions {
        pack_bytes: 16 << 10,
        open_packs_max: OPEN_MAX,
        is_background: false,
        ..BlocksOptions::new(IndexKind::Sled(dir.join("index")))
    };
    Blocks::open(Arc::new(RealDisk), &dir.join("packs"), options).unwrap()
}

/// Packs of `dir` that this process has open.
fn n_open(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|link| std::fs::read_link(link.unwrap().path()).ok())
        .filter(|path| path.starts_with(dir.join("packs")) && path.is_file())
        .count()
}

fn read_all(blocks: &Blocks, dir: &Path) {
    for n in (0..N_BLOCKS).chain((0..N_BLOCKS).rev()) {
        let block = block(n);
        assert_eq!(blocks.get(block.cid()).unwrap().as_ref(), Some(block.bytes()));
        assert!(n_open(dir) <= OPEN_MAX + 1, "{} packs are open", n_open(dir));
    }
}

#[test]
fn few_packs_are_open_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = open(dir.path());
    for n in 0..N_BLOCKS {
        let block = block(n);
        blocks.put(block.cid(), block.bytes()).unwrap();
    }
    blocks.sync().unwrap();
    assert!(blocks.stat().unwrap().n_packs > 10 * OPEN_MAX as u64);
    read_all(&blocks, dir.path());
    drop(blocks);
    let blocks = open(dir.path());
    assert!(n_open(dir.path()) <= OPEN_MAX + 1);
    read_all(&blocks, dir.path());
    let bytes = blocks.stat().unwrap().pack_bytes;
    assert!(bytes > N_BLOCKS * 5000);
    assert_eq!(blocks.stat().unwrap().pack_bytes, bytes);
}

#[test]
fn blocks_are_counted_through_puts_sweeps_and_openings() {
    let dir = tempfile::tempdir().unwrap();
    let count = |blocks: &Blocks| blocks.stat().unwrap().n_blocks;
    let blocks = open(dir.path());
    for n in (0..N_BLOCKS).chain(0..N_BLOCKS / 2) {
        let block = block(n);
        blocks.put(block.cid(), block.bytes()).unwrap();
    }
    assert_eq!(count(&blocks), N_BLOCKS);
    // Unclean: what was drained is counted, what was not is found in the packs.
    drop(blocks);
    let blocks = open(dir.path());
    assert_eq!(count(&blocks), N_BLOCKS);
    blocks.close().unwrap();
    let blocks = open(dir.path());
    assert_eq!(count(&blocks), N_BLOCKS);
    let sweep = |seconds| {
        let sweep = blocks.begin_sweep(Duration::from_secs(seconds), Duration::from_secs(1)).unwrap();
        let options = SweepOptions { waste_percent: 10, reserve_bytes: 0 };
        sweep.run(&Live::default(), options, &mut || true).unwrap()
    };
    let swept = sweep(10).n_blocks_removed + sweep(20).n_blocks_removed + sweep(30).n_blocks_removed;
    assert!(swept > N_BLOCKS / 2);
    assert_eq!(count(&blocks), N_BLOCKS - swept);
}

#[test]
fn a_block_that_the_index_has_lost_is_not_swept() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = open(dir.path());
    let put = |blocks: &Blocks, n| blocks.put(block(n).cid(), block(n).bytes()).unwrap();
    (0..N_BLOCKS).for_each(|n| put(&blocks, n));
    blocks.close().unwrap();
    // As many places are found after the crash as before it, and yet one is lost.
    let blocks = open(dir.path());
    put(&blocks, N_BLOCKS);
    blocks.verify(&mut |_| true).unwrap();
    drop(blocks);
    let lost = block(0);
    let tables = sled::open(dir.path().join("index").join(INDEX_TABLES)).unwrap();
    assert!(tables.open_tree("places").unwrap().remove(lost.cid().hash().digest()).unwrap().is_some());
    tables.flush().unwrap();
    drop(tables);
    let blocks = open(dir.path());
    let mut live = Live::default();
    live.add(&lost.cid().hash().digest().try_into().unwrap());
    for seconds in [10, 20, 30] {
        let sweep = blocks.begin_sweep(Duration::from_secs(seconds), Duration::from_secs(1)).unwrap();
        let options = SweepOptions { waste_percent: 10, reserve_bytes: 0 };
        sweep.run(&live, options, &mut || true).unwrap();
    }
    assert_eq!(blocks.get(lost.cid()).unwrap().as_ref(), Some(lost.bytes()));
    assert_eq!(blocks.get(block(1).cid()).unwrap(), None);
}
