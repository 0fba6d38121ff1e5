//! What a start finds it may believe: blocks that are put again after a kill or a power cut are durable when a sync says so.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::index::IndexKind;
use remora_store::sim::SimDisk;

const PACK_BYTES: u64 = 40_000;

fn block(n: u64) -> Block {
    // Longer than a few sectors, so that a torn write keeps the header and loses bytes.
    let len = 1000 + (n as usize * 977) % 7000;
    Block::seal(
        Codec::Raw,
        Bytes::from((n + 1).to_le_bytes().iter().copied().cycle().take(len).collect::<Vec<u8>>()),
    )
}

fn open(disk: &SimDisk) -> Blocks {
    let options = BlocksOptions {
        pack_bytes: PACK_BYTES,
        is_background: false,
        ..BlocksOptions::new(IndexKind::Memory)
    };
    Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap()
}

fn put(blocks: &Blocks, n: u64) {
    let one = block(n);
    blocks.put(one.cid(), one.bytes()).unwrap();
}

/// What is wrong with the first `n` blocks of a disk, if anything is.
fn fault_of(disk: &SimDisk, n: u64) -> Option<String> {
    let blocks = open(disk);
    if !blocks.recovery().damaged.is_empty() {
        return Some(format!("taken for damage: {:?}", blocks.recovery()));
    }
    (0..n).find_map(|n| match blocks.get(block(n).cid()) {
        Ok(Some(bytes)) if bytes == *block(n).bytes() => None,
        other => {
            Some(format!("block {n} was synced: {:?}", other.map(|found| found.map(|bytes| bytes.len()))))
        }
    })
}

#[test]
fn a_full_pack_that_was_not_synced_before_a_kill_is_durable_when_a_sync_says_so() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let blocks = open(&disk);
        (0..30).for_each(|n| put(&blocks, n));
        assert!(blocks.stat().unwrap().n_packs > 2);
        let disk = disk.kill();
        let blocks = open(&disk);
        (0..30).for_each(|n| put(&blocks, n));
        blocks.sync().unwrap();
        let fault = fault_of(&disk.crash(seed), 30);
        assert_eq!(fault, None, "seed {seed}");
    }
}

#[test]
fn a_block_of_which_a_power_cut_kept_the_header_alone_is_stored_again() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let blocks = open(&disk);
        (0..30).for_each(|n| put(&blocks, n));
        let disk = disk.crash(seed);
        let blocks = open(&disk);
        (0..30).for_each(|n| put(&blocks, n));
        blocks.sync().unwrap();
        assert_eq!(fault_of(&disk, 30), None, "seed {seed}");
        assert_eq!(fault_of(&disk.crash(seed), 30), None, "seed {seed}");
    }
}

#[test]
fn a_kill_at_any_call_leaves_no_name_that_a_power_cut_takes_with_what_was_synced_later() {
    let mut n_kills = 0;
    for n in 1.. {
        let disk = SimDisk::new(n);
        disk.plan_kill(n);
        let blocks = open(&disk);
        (0..15).for_each(|n| put(&blocks, n));
        let Some(disk) = disk.crashed() else { break };
        n_kills += 1;
        let blocks = open(&disk);
        (0..15).for_each(|n| put(&blocks, n));
        blocks.sync().unwrap();
        for seed in 0..8 {
            assert_eq!(fault_of(&disk.crash(seed), 15), None, "killed at call {n}, cut {seed}");
        }
    }
    assert!(n_kills > 20, "{n_kills}");
}

/// A small generator, so that a seed alone repeats a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Several lives that put the same blocks again and again, each ended by a kill or a power cut in the middle of some call.
fn run(seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::new(seed);
    let mut n_synced = 0;
    for life in 0..5 {
        let n_calls = 1 + dice.roll(160);
        if dice.roll(2) == 0 {
            disk.plan_kill(n_calls);
        } else {
            disk.plan_crash(n_calls, seed * 7 + life);
        }
        let blocks = open(&disk);
        for n in 0..60 {
            put(&blocks, n);
            if dice.roll(12) == 0 {
                blocks.sync().unwrap();
                if disk.is_crash_planned() {
                    n_synced = n_synced.max(n + 1);
                }
            }
            if !disk.is_crash_planned() {
                break;
            }
        }
        disk = disk.crashed().unwrap_or_else(|| disk.crash(seed * 13 + life));
        if let Some(fault) = fault_of(&disk.crash(seed * 17 + life), n_synced) {
            return Err(format!("life {life}: {fault}"));
        }
    }
    Ok(())
}

#[test]
fn the_same_blocks_put_again_in_every_life_stay() {
    for seed in 1..=400 {
        run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
