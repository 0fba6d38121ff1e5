//! A sweep gives back space and never takes a block that something refers to.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::sweep::{SweepOptions, Swept};
use remora_store::blocks::touches::Live;
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::RealDisk;
use remora_store::index::IndexKind;
use remora_store::reserve::Reserve;
use remora_store::sim::{CallKind, SimDisk};

const PACK_BYTES: u64 = 64 << 10;

fn block(n: u64) -> Block {
    let mut bytes = vec![n as u8; 5000];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    Block::seal(Codec::Raw, Bytes::from(bytes))
}

fn open(disk: &SimDisk) -> Blocks {
    open_with(disk, None)
}

fn open_with(disk: &SimDisk, reserve: Option<Arc<Reserve>>) -> Blocks {
    let options = BlocksOptions {
        reserve,
        pack_bytes: PACK_BYTES,
        is_background: false,
        ..BlocksOptions::new(IndexKind::Memory)
    };
    Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap()
}

fn put(blocks: &Blocks, n: u64) {
    let block = block(n);
    blocks.put(block.cid(), block.bytes()).unwrap();
}

fn has(blocks: &Blocks, n: u64) -> bool {
    let block = block(n);
    match blocks.get(block.cid()).unwrap() {
        Some(bytes) => {
            assert_eq!(&bytes, block.bytes());
            true
        }
        None => false,
    }
}

fn live(numbers: impl IntoIterator<Item = u64>) -> Live {
    let mut live = Live::default();
    for n in numbers {
        live.add(&digest(block(n).cid()));
    }
    live
}

fn digest(cid: &Cid) -> [u8; 32] {
    cid.hash().digest().try_into().unwrap()
}

const ALL: SweepOptions = SweepOptions { waste_percent: 1, reserve_bytes: 0 };

/// A sweep with no grace; what `live` lacks goes.
fn sweep(blocks: &Blocks, live: &Live) -> Swept {
    blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap().run(live, ALL, &mut || true).unwrap()
}

#[test]
fn dead_blocks_of_old_packs_go_and_live_ones_stay_also_after_reopening() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..100).for_each(|n| put(&blocks, n));
    blocks.sync().unwrap();
    let before = blocks.stat().unwrap();
    let kept: Vec<u64> = (0..100).filter(|n| n % 10 == 0).collect();
    let swept = sweep(&blocks, &live(kept.iter().copied()));
    assert!(swept.n_packs_removed >= 6 && !swept.is_stopped, "{swept:?}");
    let after = blocks.stat().unwrap();
    assert!(after.pack_bytes < before.pack_bytes / 3, "{before:?} {after:?}");
    assert!(kept.iter().all(|n| has(&blocks, *n)));
    assert!(!has(&blocks, 1));
    put(&blocks, 1);
    assert!(has(&blocks, 1), "what went can be put again");
    blocks.close().unwrap();
    let blocks = open(&disk);
    assert!(blocks.recovery().damaged.is_empty());
    assert!(kept.iter().all(|n| has(&blocks, *n)));
    assert!(has(&blocks, 1));
    assert!(!has(&blocks, 2));
}

#[test]
fn a_pack_that_is_mostly_live_is_left_alone() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..50).for_each(|n| put(&blocks, n));
    let options = SweepOptions { waste_percent: 50, reserve_bytes: 0 };
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    let swept = begun.run(&live((0..50).filter(|n| n % 4 != 0)), options, &mut || true).unwrap();
    assert_eq!(swept.n_packs_removed, 0);
    assert!(swept.bytes_dead_left > 0 && !swept.is_stopped);
    assert!((0..50).all(|n| has(&blocks, n)));
}

#[test]
fn what_was_put_again_or_kept_after_the_marking_stays() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..60).for_each(|n| put(&blocks, n));
    // The marking knew none of them: it happens before anything below.
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    put(&blocks, 3);
    assert!(blocks.keep(block(4).cid()).unwrap());
    let swept = begun.run(&Live::default(), ALL, &mut || true).unwrap();
    assert!(swept.n_packs_removed > 3);
    assert!(has(&blocks, 3) && has(&blocks, 4));
    assert!(!has(&blocks, 5));
}

#[test]
fn what_is_younger_than_the_grace_is_left_alone() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..60).for_each(|n| put(&blocks, n));
    let grace = Duration::from_secs(600);
    let at = |secs| blocks.begin_sweep(Duration::from_secs(secs), grace).unwrap();
    let nothing = Live::default();
    assert_eq!(at(300).run(&nothing, ALL, &mut || true).unwrap().n_packs_removed, 0);
    assert_eq!(at(899).run(&nothing, ALL, &mut || true).unwrap().n_packs_removed, 0);
    assert!(at(900).run(&nothing, ALL, &mut || true).unwrap().n_packs_removed > 3);
}

#[test]
fn the_newest_pack_is_swept_once_it_was_sealed_early() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..5).for_each(|n| put(&blocks, n));
    assert_eq!(sweep(&blocks, &live([1])).n_packs_removed, 0);
    assert!(!blocks.seal_newest(PACK_BYTES).unwrap(), "it is not that long");
    assert!(blocks.seal_newest(1).unwrap());
    assert!(!blocks.seal_newest(1).unwrap(), "there is nothing in the new one");
    assert_eq!(sweep(&blocks, &live([1])).n_packs_removed, 1);
    assert!(has(&blocks, 1) && !has(&blocks, 2));
    drop(blocks);
    let blocks = open(&disk.crash(5));
    assert!(blocks.recovery().damaged.is_empty());
    assert!(has(&blocks, 1) && !has(&blocks, 2));
}

#[test]
fn without_a_free_byte_live_blocks_are_moved_into_what_was_set_aside() {
    let disk = SimDisk::new(1);
    let reserve = Arc::new(Reserve::open(Arc::new(disk.clone()), Path::new("packs/reserve"), 8 << 20));
    let blocks = open_with(&disk, Some(reserve.clone()));
    (0..60).for_each(|n| put(&blocks, n));
    blocks.sync().unwrap();
    let kept: Vec<u64> = (0..60).filter(|n| n % 2 == 0).collect();
    reserve.fill(0);
    assert_eq!(reserve.bytes(), 8 << 20);
    disk.set_capacity(Some(disk.used_bytes()));
    assert!(blocks.seal_newest(1).unwrap());
    let swept = sweep(&blocks, &live(kept.iter().copied()));
    assert!(swept.n_packs_removed >= 5 && !swept.is_stopped, "{swept:?}");
    assert!(reserve.bytes() < 8 << 20);
    assert!(kept.iter().all(|n| has(&blocks, *n)));
    drop(blocks);
    let blocks = open(&disk.crash(3));
    assert!(kept.iter().all(|n| has(&blocks, *n)) && !has(&blocks, 1));
}

#[test]
fn a_protection_holds_off_the_sweep_as_long_as_it_lives() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    let protection = blocks.protect();
    (0..60).for_each(|n| put(&blocks, n));
    for _ in 0..3 {
        assert_eq!(sweep(&blocks, &Live::default()).n_packs_removed, 0);
    }
    drop(protection);
    assert!(sweep(&blocks, &Live::default()).n_packs_removed > 3);
}

#[test]
fn no_second_sweep_begins_and_one_that_is_stopped_says_so() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..60).for_each(|n| put(&blocks, n));
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    assert!(blocks.begin_sweep(Duration::from_secs(2), Duration::ZERO).is_none());
    let swept = begun.run(&Live::default(), ALL, &mut || false).unwrap();
    assert!(swept.is_stopped);
    assert_eq!(swept.n_packs_removed, 0);
    assert!(has(&blocks, 0));
}

#[test]
fn a_damaged_live_block_keeps_its_pack() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    (0..60).for_each(|n| put(&blocks, n));
    blocks.sync().unwrap();
    let pack = Path::new("packs").join("0000000001.pack");
    assert!(disk.flip(&pack, 8 * 9000 + 3));
    let swept = sweep(&blocks, &live(0..2));
    assert!(disk_has(&disk, "0000000001.pack"), "{swept:?}");
    assert!(!disk_has(&disk, "0000000002.pack"));
}

fn disk_has(disk: &SimDisk, name: &str) -> bool {
    use remora_store::disk::Disk;
    disk.list(Path::new("packs")).unwrap().iter().any(|n| n == name)
}

/// Cuts the power at the `n_call`th call of a sweep, if it has that many; answers which live blocks are missing then.
fn missing_after_cut(n_call: u64, is_lying: bool) -> Option<Vec<u64>> {
    let kept: Vec<u64> = (0..80).filter(|n| n % 7 == 0).collect();
    let disk = SimDisk::new(n_call);
    let blocks = open(&disk);
    (0..80).for_each(|n| put(&blocks, n));
    blocks.sync().unwrap();
    if is_lying {
        disk.lie_about_syncs();
    }
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    disk.plan_crash(n_call, n_call);
    begun.run(&live(kept.iter().copied()), ALL, &mut || true).unwrap();
    let after = disk.crashed()?;
    let blocks = open(&after);
    assert!(is_lying || blocks.recovery().damaged.is_empty(), "call {n_call}: {:?}", blocks.recovery());
    let is_there = |n: &u64| matches!(blocks.get(block(*n).cid()), Ok(Some(_)));
    Some(kept.into_iter().filter(|n| !is_there(n)).collect())
}

#[test]
fn a_power_cut_at_every_call_of_a_sweep_loses_nothing_live() {
    let mut n_cuts = 0;
    while let Some(missing) = missing_after_cut(n_cuts + 1, false) {
        n_cuts += 1;
        assert_eq!(missing, [], "cut at call {n_cuts}");
    }
    assert!(n_cuts > 20, "{n_cuts}");
    // The same look finds a disk that only says that it syncs.
    let is_caught =
        (1..=n_cuts).any(|n_call| missing_after_cut(n_call, true).is_some_and(|lost| !lost.is_empty()));
    assert!(is_caught, "the checker is blind");
}

/// Writers put again what a sweep is taking away; whatever a put answered for is there.
#[test]
fn a_put_during_a_sweep_is_never_lost() {
    let dir = tempfile::tempdir().unwrap();
    let options = BlocksOptions {
        pack_bytes: PACK_BYTES,
        ..BlocksOptions::new(IndexKind::Sled(dir.path().join("index")))
    };
    let blocks = Blocks::open(Arc::new(RealDisk), &dir.path().join("packs"), options).unwrap();
    let mut round: BTreeMap<u64, ()> = BTreeMap::new();
    for turn in 0..6u64 {
        (0..200).for_each(|n| put(&blocks, n));
        (1000 * (turn + 1)..1000 * (turn + 1) + 30).for_each(|n| put(&blocks, n));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let begun = blocks.begin_sweep(Duration::from_secs(turn + 1), Duration::ZERO).unwrap();
            let (blocks, is_over) = (&blocks, &is_over);
            let writer = scope.spawn(move || {
                let mut again = Vec::new();
                let mut n = turn;
                while !is_over.load(Ordering::Acquire) || again.len() < 100 {
                    n = (n * 31 + 17) % 200;
                    put(blocks, n);
                    assert!(has(blocks, n), "a block vanished after its put");
                    again.push(n);
                }
                again
            });
            let swept = begun.run(&Live::default(), ALL, &mut || true).unwrap();
            is_over.store(true, Ordering::Release);
            assert!(swept.n_packs_old > 0);
            for n in writer.join().unwrap() {
                assert!(has(blocks, n));
                round.insert(n, ());
            }
        });
    }
    assert!(!round.is_empty());
}

#[test]
fn a_real_index_is_believed_after_a_sweep_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let options = BlocksOptions {
            pack_bytes: PACK_BYTES,
            ..BlocksOptions::new(IndexKind::Sled(dir.path().join("index")))
        };
        Blocks::open(Arc::new(RealDisk), &dir.path().join("packs"), options).unwrap()
    };
    let blocks = open();
    (0..100).for_each(|n| put(&blocks, n));
    blocks.close().unwrap();
    let blocks = open();
    let swept = sweep(&blocks, &live(0..10));
    assert!(swept.n_blocks_removed > 50, "{swept:?}");
    // As killed: no clean end.
    drop(blocks);
    let blocks = open();
    assert!(blocks.recovery().n_indexed < 50, "the index was rebuilt: {:?}", blocks.recovery());
    assert!((0..10).all(|n| has(&blocks, n)));
}

#[test]
fn a_sweep_that_is_cut_off_does_not_cost_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let open = || {
        let options = BlocksOptions {
            pack_bytes: PACK_BYTES,
            is_background: false,
            ..BlocksOptions::new(IndexKind::Sled(dir.path().join("index")))
        };
        Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap()
    };
    let blocks = open();
    (0..5).for_each(|n| put(&blocks, n));
    // The index covers some of the first pack, and that goes.
    blocks.mark_clean().unwrap();
    (5..60).for_each(|n| put(&blocks, n));
    let begun = blocks.begin_sweep(Duration::from_secs(1), Duration::ZERO).unwrap();
    let mut n_asked = 0;
    let mut go_on = || {
        n_asked += 1;
        if n_asked == 2 {
            disk.fail_nth(CallKind::Name, 1);
        }
        true
    };
    assert!(begun.run(&live(50..60), ALL, &mut go_on).is_err());
    assert!(!disk_has(&disk, "0000000001.pack") && disk_has(&disk, "0000000002.pack"));
    drop(blocks);
    let blocks = open();
    assert!(blocks.recovery().n_indexed < 30, "the index was rebuilt: {:?}", blocks.recovery());
    assert!((50..60).all(|n| has(&blocks, n)));
}
