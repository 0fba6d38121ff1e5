//! Failing calls, one after the other; recoveries that are interrupted; bytes that anybody may have written; many threads.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, any, prop, proptest};
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::file_header::FileKind;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogError, LogOptions, Recovery};
use remora_store::sim::{CallKind, SimDisk};

fn block(n: u64, len: usize) -> Block {
    Block::seal(
        Codec::Raw,
        Bytes::from(n.to_le_bytes().iter().copied().cycle().take(len).collect::<Vec<u8>>()),
    )
}

fn open_blocks(disk: &SimDisk, is_background: bool) -> Result<Blocks, remora_store::blocks::BlocksError> {
    let options =
        BlocksOptions { pack_bytes: 20_000, is_background, ..BlocksOptions::new(IndexKind::Memory) };
    Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options)
}

fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes_first: 16 << 10,
        segment_bytes_max: 32 << 10,
        is_background: false,
        ..LogOptions::new(FileKind::VolumeLog, [1; 16])
    }
}

fn meta(seq: u64) -> FrameMeta {
    FrameMeta { kind: FrameKind::COMMIT, term: 1, seq, codec: 0, digest: [0; 32] }
}

/// Opens the log and returns its frames; every payload must be its sequence number over and over.
fn open_log(disk: &SimDisk) -> Result<(Log, Recovery, u64), LogError> {
    let mut n = 0;
    let (log, recovery) = Log::open(Arc::new(disk.clone()), Path::new("log"), log_options(), &mut |view| {
        n += 1;
        assert!(view.header.meta.seq == n && view.payload.iter().all(|byte| *byte == n as u8));
        Ok(())
    })?;
    Ok((log, recovery, n))
}

#[test]
fn any_one_failed_call_loses_no_synced_block() {
    for n in 1..500 {
        let disk = SimDisk::new(n);
        disk.fail_nth(CallKind::Any, n);
        let mut promised = Vec::new();
        if let Ok(blocks) = open_blocks(&disk, false) {
            let mut fresh = Vec::new();
            for i in 0..60 {
                let one = block(i, 1500);
                if blocks.put(one.cid(), one.bytes()).is_ok() {
                    fresh.push(one);
                }
                if i % 7 == 0 && blocks.sync().is_ok() {
                    promised.append(&mut fresh);
                }
            }
        }
        let was_hit = !disk.is_failure_pending();
        disk.fail_nth(CallKind::Any, 0);
        for after in [disk.crash(n), disk.crash(n + 1), disk.kill()] {
            let blocks = open_blocks(&after, false).unwrap_or_else(|error| panic!("call {n}: {error}"));
            assert_eq!(blocks.recovery().damaged, [], "call {n}");
            for one in &promised {
                assert_eq!(blocks.get(one.cid()).unwrap().as_ref(), Some(one.bytes()), "call {n}");
            }
        }
        if !was_hit {
            assert_eq!(promised.len(), 57);
            return;
        }
    }
    panic!("more calls than were tried");
}

#[test]
fn a_recovery_that_fails_or_is_cut_off_can_be_repeated() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (log, _, _) = open_log(&disk).unwrap();
        for seq in 1..=40 {
            log.append(&meta(seq), &[&[seq as u8; 1200]]).unwrap();
            if seq == 25 {
                log.sync().unwrap();
            }
        }
        let torn = disk.crash(seed);
        for n in 1..80 {
            let failing = torn.kill();
            failing.fail_nth(CallKind::Any, n);
            let is_opened = open_log(&failing).is_ok();
            failing.fail_nth(CallKind::Any, 0);
            let (_, recovery, n_frames) = open_log(&failing.crash(seed + n)).unwrap();
            assert!(n_frames >= 25, "seed {seed}, call {n}: {n_frames}");
            assert!(!matches!(recovery, Recovery::Damaged { .. }), "seed {seed}, call {n}: {recovery:?}");
            if is_opened {
                break;
            }
            let cut = torn.kill();
            cut.plan_crash(n, seed);
            open_log(&cut).unwrap();
            if let Some(cut) = cut.crashed() {
                assert!(open_log(&cut).unwrap().2 >= 25, "seed {seed}, cut at call {n}");
            }
        }
    }
}

#[test]
fn a_suffix_that_is_being_cut_is_in_the_log_or_in_the_fork_whole() {
    for n in 1..120 {
        let disk = SimDisk::new(n);
        let (log, _, _) = open_log(&disk).unwrap();
        for seq in 1..=40 {
            log.append(&meta(seq), &[&[seq as u8; 1200]]).unwrap();
        }
        log.sync().unwrap();
        disk.plan_crash(n, n * 3);
        log.truncate_after(10, Path::new("fork")).unwrap();
        let is_done = disk.is_crash_planned();
        let after = disk.crashed().unwrap_or_else(|| disk.crash(n));
        let (_, recovery, n_frames) = open_log(&after).unwrap();
        assert!(!matches!(recovery, Recovery::Damaged { .. }), "call {n}: {recovery:?}");
        assert!(n_frames >= 10, "call {n}");
        assert!(!is_done || n_frames == 10, "call {n}");
        let has_fork = after.bytes_of(Path::new("fork/1-11.seg")).is_some();
        assert!(n_frames == 40 || has_fork, "call {n}: {n_frames} frames and no fork");
        if is_done {
            return;
        }
    }
    panic!("more calls than were tried");
}

#[test]
fn a_beginning_that_could_not_be_dropped_leaves_no_gap() {
    let filled = |seed| {
        let disk = SimDisk::new(seed);
        let (log, _, _) = open_log(&disk).unwrap();
        for seq in 1..=200 {
            log.append(&meta(seq), &[&[seq as u8; 1200]]).unwrap();
        }
        log.sync().unwrap();
        (disk, log)
    };
    let begins_at = |disk: &SimDisk| {
        let mut first = None;
        let opened = Log::open(Arc::new(disk.clone()), Path::new("log"), log_options(), &mut |view| {
            first.get_or_insert(view.header.meta.seq);
            Ok(())
        });
        let (_, recovery) = opened.unwrap();
        assert!(matches!(recovery, Recovery::Clean { .. }), "{recovery:?}");
        first.unwrap()
    };
    for (kind, n) in
        [CallKind::Name, CallKind::Sync].into_iter().flat_map(|kind| (1..30).map(move |n| (kind, n)))
    {
        let (disk, log) = filled(n);
        disk.fail_nth(kind, n);
        let is_refused = log.drop_before(150).is_err();
        disk.fail_nth(kind, 0);
        let again = log.drop_before(150);
        assert!(kind == CallKind::Sync || again.is_ok(), "{again:?}");
        for seed in 0..4 {
            let first = begins_at(&disk.crash(seed));
            assert!(
                first <= 150 && (again.is_err() || first > 100),
                "{kind:?} {n} {is_refused}: from {first}"
            );
        }
        assert!(begins_at(&disk.kill()) <= 150);
    }
}

#[test]
fn a_segment_whose_file_is_gone_is_dropped_all_the_same() {
    use remora_store::disk::Disk;
    let disk = SimDisk::new(1);
    let (log, _, _) = open_log(&disk).unwrap();
    for seq in 1..=100 {
        log.append(&meta(seq), &[&[seq as u8; 1200]]).unwrap();
    }
    log.sync().unwrap();
    disk.remove(Path::new("log/0000000001.seg")).unwrap();
    log.drop_before(80).unwrap();
    assert!(log.first_seq().unwrap() > 40);
}

#[test]
fn threads_that_put_read_and_sync_at_once_see_every_block() {
    let disk = SimDisk::new(1);
    let blocks = open_blocks(&disk, true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let blocks = &blocks;
            scope.spawn(move || {
                for i in 0..1500 {
                    let mine = block(thread << 32 | i, 40);
                    let shared = block(i, 48);
                    blocks.put(mine.cid(), mine.bytes()).unwrap();
                    blocks.put(shared.cid(), shared.bytes()).unwrap();
                    assert!(blocks.has(mine.cid()).unwrap());
                    let back = block(thread << 32 | (i / 2), 40);
                    assert_eq!(blocks.get(back.cid()).unwrap().as_ref(), Some(back.bytes()));
                    if i % 100 == 0 {
                        blocks.sync().unwrap();
                    }
                }
            });
        }
    });
    blocks.sync().unwrap();
    assert_eq!(blocks.stat().unwrap().n_blocks, 6 * 1500 + 1500);
    drop(blocks);
    let blocks = open_blocks(&disk.crash(2), true).unwrap();
    assert_eq!(blocks.cids().count(), 6 * 1500 + 1500);
    assert_eq!(blocks.verify(&mut |_| true).unwrap().damaged, []);
}

/// A small log and a small pack as bytes.
fn sample() -> (SimDisk, Vec<PathBuf>) {
    let disk = SimDisk::new(4);
    let (log, _, _) = open_log(&disk).unwrap();
    for seq in 1..=4 {
        log.append(&meta(seq), &[&[seq as u8; 300]]).unwrap();
        log.sync().unwrap();
    }
    log.close().unwrap();
    let blocks = open_blocks(&disk, false).unwrap();
    for n in 0..12 {
        let one = block(n, 1800);
        blocks.put(one.cid(), one.bytes()).unwrap();
    }
    blocks.close().unwrap();
    let files = disk.files();
    (disk, files)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_is_written_over_the_files_never_panics_and_never_gives_wrong_bytes(
        changes in prop::collection::vec((any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)), 1..6),
        lens in prop::collection::vec((any::<u16>(), any::<u32>()), 0..2),
    ) {
        let (disk, files) = sample();
        for (which, at, bytes) in changes {
            let path = &files[which as usize % files.len()];
            let mut all = disk.bytes_of(path).unwrap();
            // Mostly where something lies.
            let at = at as usize % all.len().min(9000);
            let n = bytes.len().min(all.len() - at);
            all[at..at + n].copy_from_slice(&bytes[..n]);
            disk.set_bytes(path, &all);
        }
        for (which, len) in lens {
            let path = &files[which as usize % files.len()];
            let mut all = disk.bytes_of(path).unwrap();
            all.truncate(len as usize % (all.len() + 1));
            disk.set_bytes(path, &all);
        }
        // The visitor inside checks every payload.
        let _ = open_log(&disk);
        if let Ok(blocks) = open_blocks(&disk, false) {
            for n in 0..12 {
                let one = block(n, 1800);
                if let Ok(Some(bytes)) = blocks.get(one.cid()) {
                    assert_eq!(bytes, *one.bytes());
                }
                blocks.put(one.cid(), one.bytes()).unwrap();
                assert_eq!(blocks.get(one.cid()).unwrap().as_ref(), Some(one.bytes()));
            }
        }
    }
}
