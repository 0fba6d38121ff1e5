//! Power cuts at every kind of moment, over hundreds of seeds; and the same checker catches a planted mistake.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::file_header::FileKind;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogOptions, Recovery};
use remora_store::registry::Registry;
use remora_store::sim::{CallKind, SimDisk};

/// A small generator, so that a seed alone repeats a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn log_options() -> LogOptions {
    LogOptions {
        segment_bytes_first: 16 << 10,
        segment_bytes_max: 64 << 10,
        is_background: false,
        ..LogOptions::new(FileKind::VolumeLog, [1; 16])
    }
}

/// What must be there, and what may be.
#[derive(Default)]
struct Promise {
    /// Sequence numbers up to here were synced.
    acked: u64,
    /// The byte that fills each frame; the history is a prefix of this.
    written: BTreeMap<u64, (u8, usize)>,
    /// Everything before was dropped on purpose.
    dropped_before: u64,
}

/// Opens a crashed disk and compares it with what was promised.
fn check_log(disk: &SimDisk, promise: &mut Promise) -> Result<Log, String> {
    let mut seen = Vec::new();
    let opened = Log::open(Arc::new(disk.clone()), Path::new("log"), log_options(), &mut |view| {
        let fill = view.payload.first().copied().unwrap_or(0);
        let is_even = view.payload.iter().all(|byte| *byte == fill);
        seen.push((view.header.meta.seq, fill, view.payload.len(), is_even));
        Ok(())
    });
    let (log, recovery) = opened.map_err(|error| error.to_string())?;
    if matches!(recovery, Recovery::Damaged { .. }) {
        return Err(format!("a power cut looks like damage: {recovery:?}"));
    }
    let first = seen.first().map_or(1, |first| first.0);
    if first > promise.dropped_before.max(1) {
        return Err(format!("log begins at {first}"));
    }
    for (expected, (seq, fill, len, is_even)) in (first..).zip(&seen) {
        if *seq != expected || !is_even || promise.written.get(seq) != Some(&(*fill, *len)) {
            return Err(format!("frame {seq} is not what was written"));
        }
    }
    let last = seen.last().map_or(0, |last| last.0);
    if last < promise.acked {
        return Err(format!("{} was acknowledged, {last} is there", promise.acked));
    }
    promise.written.retain(|seq, _| *seq <= last);
    promise.acked = last;
    Ok(log)
}

/// Three lives of a log on one disk, each ended by a power cut in the middle of some call.
fn run_log(seed: u64, is_lying: bool) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::new(seed);
    let mut promise = Promise::default();
    for life in 0..3 {
        if is_lying {
            disk.lie_about_syncs();
        }
        disk.plan_crash(1 + dice.roll(200), seed * 7 + life);
        if let Ok(log) = check_log(&disk, &mut promise) {
            live(&disk, &log, &mut dice, &mut promise);
        } else if disk.is_crash_planned() {
            check_log(&disk, &mut promise)?;
        }
        disk = disk.crashed().unwrap_or_else(|| disk.crash(seed * 13 + life));
    }
    check_log(&disk, &mut promise).map(|_| ())
}

fn live(disk: &SimDisk, log: &Log, dice: &mut Dice, promise: &mut Promise) {
    let mut next = log.tail().map_or(1, |tail| tail.seq + 1);
    for _ in 0..120 {
        match dice.roll(16) {
            0..=9 => {
                let (fill, len) = (dice.roll(255) as u8 + 1, 1 + dice.roll(3000) as usize);
                let meta =
                    FrameMeta { kind: FrameKind::COMMIT, term: 1, seq: next, codec: 0, digest: [0; 32] };
                promise.written.insert(next, (fill, len));
                log.append(&meta, &[&vec![fill; len]]).unwrap();
                next += 1;
            }
            10..=13 => {
                log.sync().unwrap();
                if disk.is_crash_planned() {
                    promise.acked = next - 1;
                }
            }
            14 => {
                let before = promise.acked.saturating_sub(dice.roll(10));
                promise.dropped_before = promise.dropped_before.max(before);
                log.drop_before(before).unwrap();
            }
            _ => {
                let after = promise.acked.max(next.saturating_sub(1 + dice.roll(4)));
                log.truncate_after(after, Path::new("fork")).unwrap();
                if !disk.is_crash_planned() {
                    return;
                }
                next = next.min(after + 1);
                promise.written.retain(|seq, _| *seq < next);
            }
        }
        if !disk.is_crash_planned() {
            return;
        }
    }
}

#[test]
fn a_power_cut_keeps_every_synced_frame_in_order() {
    for seed in 1..=300 {
        run_log(seed, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_skipped_sync_is_caught() {
    let n_caught = (1..=60).filter(|seed| run_log(*seed, true).is_err()).count();
    assert!(n_caught > 10, "only {n_caught} of 60 runs noticed that nothing was synced");
}

fn block(dice: &mut Dice) -> Block {
    let len = if dice.roll(8) == 0 { 70_000 + dice.roll(90_000) } else { dice.roll(3000) };
    let fill = dice.roll(1 << 30).to_le_bytes();
    let bytes: Vec<u8> = fill.iter().copied().cycle().take(len as usize).collect();
    Block::seal(Codec::Raw, Bytes::from(bytes))
}

fn block_options() -> BlocksOptions {
    BlocksOptions { pack_bytes: 300_000, is_background: false, ..BlocksOptions::new(IndexKind::Memory) }
}

fn run_blocks(seed: u64, is_lying: bool) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::new(seed);
    let mut promised: Vec<Block> = Vec::new();
    for life in 0..3 {
        if is_lying {
            disk.lie_about_syncs();
        }
        disk.plan_crash(20 + dice.roll(120), seed * 7 + life);
        if let Ok(blocks) = check_blocks(&disk, &promised) {
            let mut fresh = Vec::new();
            while disk.is_crash_planned() {
                let one = block(&mut dice);
                blocks.put(one.cid(), one.bytes()).unwrap();
                fresh.push(one);
                if dice.roll(5) == 0 {
                    blocks.sync().unwrap();
                    if disk.is_crash_planned() {
                        promised.append(&mut fresh);
                    }
                }
            }
        } else if disk.is_crash_planned() {
            check_blocks(&disk, &promised)?;
        }
        disk = disk.crashed().unwrap_or_else(|| disk.crash(seed * 13 + life));
    }
    check_blocks(&disk, &promised).map(|_| ())
}

fn check_blocks(disk: &SimDisk, promised: &[Block]) -> Result<Blocks, String> {
    let blocks = Blocks::open(Arc::new(disk.clone()), Path::new("packs"), block_options())
        .map_err(|error| error.to_string())?;
    if !blocks.recovery().damaged.is_empty() {
        return Err(format!("a power cut looks like damage: {:?}", blocks.recovery()));
    }
    for block in promised {
        match blocks.get(block.cid()) {
            Ok(Some(bytes)) if bytes == *block.bytes() => {}
            other => return Err(format!("{} was synced: {other:?}", block.cid())),
        }
    }
    Ok(blocks)
}

#[test]
fn a_power_cut_keeps_every_synced_block() {
    for seed in 1..=200 {
        run_blocks(seed, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_skipped_sync_of_packs_is_caught() {
    let n_caught = (1..=40).filter(|seed| run_blocks(*seed, true).is_err()).count();
    assert!(n_caught > 10, "only {n_caught} of 40 runs noticed that nothing was synced");
}

#[test]
fn any_one_failed_call_loses_no_acknowledged_entry() {
    let options = || LogOptions { kind: FileKind::Registry, ..log_options() };
    for n in 1..400 {
        let disk = SimDisk::new(n);
        disk.fail_nth(CallKind::Any, n);
        let mut acked = 0_u32;
        if let Ok((registry, _)) =
            Registry::open_with(Arc::new(disk.clone()), Path::new("reg"), options(), &mut |_| Ok(()))
        {
            for i in 0..40_u32 {
                let mut entry = i.to_le_bytes().to_vec();
                entry.resize(900, 1);
                if registry.append(&entry).is_err() {
                    break;
                }
                acked = i + 1;
                if i == 20 && registry.compact(&mut (0..=20_u32).map(|i| i.to_le_bytes().to_vec())).is_err() {
                    break;
                }
            }
        }
        let was_hit = !disk.is_failure_pending();
        for crash in 0..3 {
            let mut seen = Vec::new();
            let after = disk.crash(crash);
            after.fail_nth(CallKind::Any, 0);
            Registry::open_with(Arc::new(after), Path::new("reg"), options(), &mut |entry| {
                seen.push(u32::from_le_bytes(entry[..4].try_into()?));
                Ok(())
            })
            .unwrap_or_else(|error| panic!("call {n}: {error}"));
            assert!(seen.len() as u32 >= acked, "call {n}: {acked} acknowledged, {} there", seen.len());
            assert!(seen.iter().copied().eq(0..seen.len() as u32), "call {n}: {seen:?}");
        }
        if !was_hit {
            return;
        }
    }
}
