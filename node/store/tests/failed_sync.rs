//! A sync that failed leaves bytes that can be read and are not on the disk. Whatever a later start believes is made durable by it.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksError, BlocksOptions};
use remora_store::ctl::{Slots, SlotsError};
use remora_store::file_header::FileKind;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogError, LogOptions, Recovery};
use remora_store::registry::Registry;
use remora_store::sim::{CallKind, SimDisk};

fn log_options(kind: FileKind) -> LogOptions {
    LogOptions {
        segment_bytes_first: 16 << 10,
        segment_bytes_max: 32 << 10,
        is_background: false,
        ..LogOptions::new(kind, [1; 16])
    }
}

/// Opens the log; answers with how many frames it has, numbered from one.
fn open_log(disk: &SimDisk) -> Result<(Log, u64), LogError> {
    let mut n = 0;
    let options = log_options(FileKind::VolumeLog);
    let (log, recovery) = Log::open(Arc::new(disk.clone()), Path::new("log"), options, &mut |view| {
        n += 1;
        assert_eq!(view.header.meta.seq, n);
        Ok(())
    })?;
    assert!(!matches!(recovery, Recovery::Damaged { .. }), "{recovery:?}");
    Ok((log, n))
}

fn append(log: &Log, seq: u64) {
    let meta = FrameMeta { kind: FrameKind::COMMIT, term: 1, seq, codec: 0, digest: [0; 32] };
    log.append(&meta, &[&[seq as u8; 1500]]).unwrap();
}

#[test]
fn a_log_that_a_start_has_read_is_on_the_disk_also_after_a_sync_that_failed() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (log, _) = open_log(&disk).unwrap();
        (1..=20).for_each(|seq| append(&log, seq));
        log.sync().unwrap();
        // Over the end of a segment.
        (21..=40).for_each(|seq| append(&log, seq));
        disk.fail_nth(CallKind::Sync, 1 + seed % 2);
        assert!(matches!(log.sync(), Err(LogError::Failed { .. })));
        assert!(log.close().is_err(), "a stop after a failed sync is not a clean one");
        drop(log);
        // A start whose own sync fails opens nothing, and the next one starts from there.
        disk.fail_nth(CallKind::Sync, 1 + seed % 5);
        let first = open_log(&disk);
        disk.fail_nth(CallKind::Sync, 0);
        let (log, n) = first.or_else(|_| open_log(&disk)).unwrap();
        assert!(n >= 20);
        log.sync().unwrap();
        assert_eq!(open_log(&disk.crash(seed)).unwrap().1, n, "seed {seed}");
        append(&log, n + 1);
        log.sync().unwrap();
        assert_eq!(open_log(&disk.crash(seed)).unwrap().1, n + 1, "seed {seed}");
    }
}

#[test]
fn a_mark_that_a_failed_sync_lost_does_not_take_what_follows_with_it() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (log, _) = open_log(&disk).unwrap();
        append(&log, 1);
        log.sync().unwrap();
        disk.fail_nth(CallKind::Sync, 1);
        assert!(log.close().is_err());
        drop(log);
        let (log, _) = open_log(&disk).unwrap();
        append(&log, 2);
        log.sync().unwrap();
        assert_eq!(open_log(&disk.crash(seed)).unwrap().1, 2, "seed {seed}");
    }
}

#[test]
fn a_registry_that_a_start_has_read_is_on_the_disk_also_after_a_sync_that_failed() {
    let open = |disk: &SimDisk| {
        let mut n = 0;
        let options = log_options(FileKind::Registry);
        let opened = Registry::open_with(Arc::new(disk.clone()), Path::new("registry"), options, &mut |_| {
            n += 1;
            Ok(())
        });
        (opened.unwrap().0, n)
    };
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let (registry, _) = open(&disk);
        (0..10).for_each(|n| registry.append(&[n; 900]).unwrap());
        disk.fail_nth(CallKind::Sync, 1);
        assert!(registry.append(&[10; 900]).is_err());
        drop(registry);
        let n = open(&disk).1;
        assert_eq!(open(&disk.crash(seed)).1, n, "seed {seed}");
    }
}

fn block(n: u64) -> Block {
    let len = 1000 + (n as usize * 977) % 7000;
    Block::seal(Codec::Raw, Bytes::from((n + 1).to_le_bytes().repeat(len / 8)))
}

fn open_blocks(disk: &SimDisk) -> Result<Blocks, BlocksError> {
    let options =
        BlocksOptions { pack_bytes: 40_000, is_background: false, ..BlocksOptions::new(IndexKind::Memory) };
    let blocks = Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options)?;
    assert_eq!(blocks.recovery().damaged, []);
    Ok(blocks)
}

fn put_all(blocks: &Blocks) {
    (0..40).for_each(|n| blocks.put(block(n).cid(), block(n).bytes()).unwrap());
}

#[test]
fn blocks_that_a_start_has_found_are_on_the_disk_also_after_a_sync_that_failed() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let blocks = open_blocks(&disk).unwrap();
        (0..3).for_each(|n| blocks.put(block(n).cid(), block(n).bytes()).unwrap());
        blocks.sync().unwrap();
        put_all(&blocks);
        disk.fail_nth(CallKind::Sync, 1 + seed % 12);
        if blocks.sync().is_err() {
            assert!(blocks.mark_clean().is_err(), "a stop after a failed sync is not a clean one");
        }
        drop(blocks);
        disk.fail_nth(CallKind::Sync, 1 + seed % 7);
        let first = open_blocks(&disk);
        disk.fail_nth(CallKind::Sync, 0);
        let blocks = first.or_else(|_| open_blocks(&disk)).unwrap();
        put_all(&blocks);
        blocks.sync().unwrap();
        let blocks = open_blocks(&disk.crash(seed)).unwrap();
        for n in 0..40 {
            let found = blocks.get(block(n).cid());
            assert!(matches!(&found, Ok(Some(bytes)) if bytes == block(n).bytes()), "seed {seed}: {found:?}");
        }
    }
}

#[test]
fn a_record_that_a_start_has_read_is_on_the_disk_also_after_a_sync_that_failed() {
    let path = Path::new("volume/ctl");
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let slots = Slots::create(&disk, path, &1_u64).unwrap();
        slots.put(&2).unwrap();
        disk.fail_nth(CallKind::Sync, 1 + seed % 2);
        assert!(slots.put(&3).is_err());
        drop(slots);
        disk.fail_nth(CallKind::Sync, 1 + seed % 3);
        let first: Result<Slots<u64>, SlotsError> = Slots::open(&disk, path);
        disk.fail_nth(CallKind::Sync, 0);
        let slots = first.or_else(|_| Slots::open(&disk, path)).unwrap();
        let found: Slots<u64> = Slots::open(&disk.crash(seed), path).unwrap();
        assert_eq!(found.get(), slots.get(), "seed {seed}");
    }
}
