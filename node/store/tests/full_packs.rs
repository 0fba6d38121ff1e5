//! A full pack that cannot be sealed yet: nothing stops for it, and it is sealed and swept as soon as there is space.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::sweep::{SweepOptions, Swept};
use remora_store::blocks::touches::Live;
use remora_store::blocks::{Blocks, BlocksError, BlocksOptions};
use remora_store::disk::Disk;
use remora_store::index::IndexKind;
use remora_store::sim::SimDisk;

const PACK_BYTES: u64 = 64 << 10;

fn block(n: u64) -> Block {
    let mut bytes = vec![n as u8; 5000];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Block::seal(Codec::Raw, Bytes::from(bytes))
}

fn open(disk: &SimDisk, index: IndexKind) -> Blocks {
    let options = BlocksOptions { pack_bytes: PACK_BYTES, is_background: false, ..BlocksOptions::new(index) };
    Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap()
}

/// Puts and syncs blocks, the first of them `n`, until one does not fit; answers which.
fn fill(blocks: &Blocks, mut n: u64) -> u64 {
    loop {
        let one = block(n);
        match blocks.put(one.cid(), one.bytes()) {
            Ok(()) => {
                blocks.sync().unwrap();
                n += 1;
            }
            Err(BlocksError::Full { .. }) => return n,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A store whose disk has room for the next pack's first page and `more` bytes, but for no block; and how many blocks it has.
fn full_after_a_roll(disk: &SimDisk, index: IndexKind, more: u64) -> (Blocks, u64) {
    let blocks = open(disk, index);
    let mut n = 0;
    while disk.list(Path::new("packs")).unwrap().len() < 2 {
        let one = block(n);
        blocks.put(one.cid(), one.bytes()).unwrap();
        n += 1;
    }
    blocks.sync().unwrap();
    // The second pack is filled as far as it goes.
    let left = disk.bytes_of(Path::new("packs/0000000002.pack")).unwrap().len() as u64;
    let frame = 5000 + 96 + 8;
    disk.set_capacity(Some(disk.used_bytes() + (PACK_BYTES - left) / frame * frame + 4096 + more));
    let n = fill(&blocks, n);
    assert!(disk.bytes_of(Path::new("packs/0000000003.pack")).is_some(), "the pack was full before the disk");
    (blocks, n)
}

fn sweep_all(blocks: &Blocks) -> Swept {
    let options = SweepOptions { waste_percent: 1, reserve_bytes: 0 };
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    begun.run(&Live::default(), options, &mut || true).unwrap()
}

#[test]
fn the_index_goes_on_when_a_new_pack_took_the_last_space_before_its_first_block() {
    let disk = SimDisk::new(1);
    let (blocks, n) = full_after_a_roll(&disk, IndexKind::Memory, 2000);
    blocks.sync().unwrap();
    blocks.mark_clean().unwrap();
    sweep_all(&blocks);
    blocks.close().unwrap();
    disk.set_capacity(None);
    let blocks = open(&disk.crash(1), IndexKind::Memory);
    assert!(blocks.recovery().damaged.is_empty());
    assert_eq!(blocks.get(block(n).cid()).unwrap(), None);
}

#[test]
fn a_pack_whose_seal_found_no_space_is_sealed_and_swept_when_there_is_some() {
    let disk = SimDisk::new(1);
    let (blocks, n) = full_after_a_roll(&disk, IndexKind::Memory, 100);
    blocks.sync().unwrap();
    disk.set_capacity(None);
    (n..n + 20).for_each(|n| blocks.put(block(n).cid(), block(n).bytes()).unwrap());
    let swept = sweep_all(&blocks);
    assert!(swept.n_packs_removed >= 3, "{swept:?}");
    assert!(!has_old_packs(&disk));
}

/// Whether the pack that could not be sealed is there, or the one behind it.
fn has_old_packs(disk: &SimDisk) -> bool {
    let names = disk.list(Path::new("packs")).unwrap();
    names.iter().any(|name| name == "0000000002.pack" || name == "0000000003.pack")
}

#[test]
fn a_pack_whose_seal_found_no_space_is_sealed_and_swept_after_a_start() {
    for is_clean in [true, false] {
        let index = tempfile::tempdir().unwrap();
        let index = IndexKind::Sled(index.path().join("index"));
        let disk = SimDisk::new(1);
        let (blocks, n) = full_after_a_roll(&disk, index.clone(), 100);
        blocks.mark_clean().unwrap();
        drop(blocks);
        let disk = disk.kill();
        // Still full: it opens nevertheless.
        let blocks = open(&disk, index.clone());
        assert!(blocks.get(block(n - 1).cid()).unwrap().is_some());
        if is_clean {
            blocks.close().unwrap();
        } else {
            drop(blocks);
        }
        disk.set_capacity(None);
        let disk_of_start = disk.kill();
        let blocks = open(&disk_of_start, index);
        assert!(blocks.recovery().damaged.is_empty(), "{:?}", blocks.recovery());
        (n..n + 20).for_each(|n| blocks.put(block(n).cid(), block(n).bytes()).unwrap());
        sweep_all(&blocks);
        assert!(!has_old_packs(&disk_of_start), "clean: {is_clean}");
    }
}
