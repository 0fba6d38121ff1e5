//! A log keeps what it promised, through torn tails, damage, cuts and failures.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use remora_store::disk::Disk;
use remora_store::file_header::FileKind;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::log::{Log, LogError, LogOptions, Position, Recovery, VisitError};
use remora_store::sim::{CallKind, SimDisk};

const ID: [u8; 16] = [7; 16];

fn options() -> LogOptions {
    LogOptions {
        segment_bytes_first: 32 << 10,
        segment_bytes_max: 128 << 10,
        is_background: false,
        ..LogOptions::new(FileKind::VolumeLog, ID)
    }
}

fn meta(seq: u64) -> FrameMeta {
    FrameMeta { kind: FrameKind::COMMIT, term: 3, seq, codec: 0x71, digest: [seq as u8; 32] }
}

fn payload(seq: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seq as usize * 31 + i * 7) as u8 | 1).collect()
}

type Seen = Vec<(u64, Vec<u8>)>;

fn open(disk: &SimDisk) -> Result<(Log, Recovery, Seen), LogError> {
    let mut seen = Vec::new();
    let (log, recovery) = Log::open(
        Arc::new(disk.clone()),
        Path::new("log"),
        options(),
        &mut |view| -> Result<(), VisitError> {
            seen.push((view.header.meta.seq, view.payload.to_vec()));
            Ok(())
        },
    )?;
    Ok((log, recovery, seen))
}

fn expected(lens: &[usize]) -> Seen {
    lens.iter().enumerate().map(|(i, len)| (i as u64 + 1, payload(i as u64 + 1, *len))).collect()
}

fn fill(log: &Log, lens: &[usize]) -> Vec<Position> {
    let first = log.tail().map_or(1, |tail| tail.seq + 1);
    lens.iter()
        .zip(first..)
        .map(|(len, seq)| {
            let bytes = payload(seq, *len);
            let (left, right) = bytes.split_at(len / 3);
            log.append(&meta(seq), &[left, right]).unwrap()
        })
        .collect()
}

#[test]
fn what_was_appended_is_read_back_and_shown_again() {
    let lens = [0, 1, 7, 8, 4096, 65_535, 65_536, 70_000, 100_000, 12];
    let disk = SimDisk::new(1);
    let (log, recovery, _) = open(&disk).unwrap();
    assert_eq!(recovery, Recovery::Clean { n_frames: 0 });
    let positions = fill(&log, &lens);
    log.sync().unwrap();
    for ((seq, bytes), position) in expected(&lens).iter().zip(&positions) {
        assert_eq!(log.frame(*position).unwrap().payload, bytes);
        assert_eq!(log.position_of(*seq), Some(*position));
        for range in [0..0, 0..1, 3..bytes.len(), bytes.len() / 2..bytes.len() + 9, 65_530..65_540] {
            let want = bytes.get(range.start.min(bytes.len())..range.end.min(bytes.len())).unwrap();
            assert_eq!(log.read(*position, range).unwrap(), want);
        }
    }
    let read: Seen =
        log.iter_from(1).map(|f| f.map(|f| (f.header.meta.seq, f.payload.to_vec())).unwrap()).collect();
    assert_eq!(read, expected(&lens));
    assert_eq!(log.iter_from(9).count(), 2);
    log.close().unwrap();
    drop(log);
    let (log, recovery, seen) = open(&disk).unwrap();
    assert_eq!(recovery, Recovery::Clean { n_frames: lens.len() as u64 });
    assert_eq!(seen, expected(&lens));
    assert_eq!(log.tail().map(|tail| (tail.term, tail.seq)), Some((3, lens.len() as u64)));
}

#[test]
fn sequence_numbers_grow_and_frames_are_bounded() {
    let disk = SimDisk::new(1);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &[10, 10]);
    assert!(matches!(log.append(&meta(2), &[b"x"]), Err(LogError::Order { last: 2, given: 2 })));
    assert!(matches!(log.append(&meta(3), &[&[0; 140 << 10]]), Err(LogError::TooLarge { .. })));
    assert!(matches!(log.append(&meta(3), &[&vec![0; 3 << 20]]), Err(LogError::TooLarge { .. })));
    log.append(&meta(3), &[b"x"]).unwrap();
}

#[test]
fn a_stopped_writer_adds_nothing_and_others_do() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    let is_stopped = AtomicBool::new(false);
    log.append_unless(&is_stopped, &meta(1), &[b"x"]).unwrap();
    is_stopped.store(true, Ordering::Release);
    assert!(matches!(log.append_unless(&is_stopped, &meta(2), &[b"late"]), Err(LogError::Stopped)));
    assert_eq!(log.tail().map(|tail| tail.seq), Some(1));
    log.append(&meta(2), &[b"of another"]).unwrap();
    log.sync().unwrap();
}

#[test]
fn another_logs_segments_are_refused() {
    let disk = SimDisk::new(1);
    drop(open(&disk).unwrap());
    let foreign = LogOptions { id: [8; 16], ..options() };
    let result = Log::open(Arc::new(disk), Path::new("log"), foreign, &mut |_| Ok(()));
    assert!(matches!(result.err(), Some(LogError::Foreign { .. })));
}

#[test]
fn a_newer_file_version_is_refused_clearly() {
    let disk = SimDisk::new(1);
    drop(open(&disk).unwrap());
    let path = Path::new("log/0000000001.seg");
    let mut bytes = disk.bytes_of(path).unwrap();
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.set_bytes(path, &bytes);
    let error = open(&disk).err().unwrap();
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn truncation_at_every_byte_of_the_tail_recovers_the_longest_prefix() {
    let lens = [40, 200, 9];
    let disk = SimDisk::new(5);
    let (log, _, _) = open(&disk).unwrap();
    let positions = fill(&log, &lens);
    log.sync().unwrap();
    drop(log);
    let path = Path::new("log/0000000001.seg");
    let whole = disk.bytes_of(path).unwrap();
    let ends: Vec<usize> =
        positions.iter().zip(lens).map(|(position, len)| position.offset as usize + len).collect();
    for cut in 4096..ends[2] + 8 {
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        let copy = disk.kill();
        copy.set_bytes(path, &bytes);
        let (log, recovery, seen) = open(&copy).unwrap();
        let n = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(seen, expected(&lens[..n]), "cut at {cut}");
        assert!(!matches!(recovery, Recovery::Damaged { .. }), "cut at {cut}");
        fill(&log, &[33]);
        log.sync().unwrap();
        drop(log);
        let (_, recovery, seen) = open(&copy).unwrap();
        assert_eq!(recovery, Recovery::Clean { n_frames: n as u64 + 1 }, "cut at {cut}");
        assert_eq!(seen.len(), n + 1);
    }
}

#[test]
fn every_flipped_bit_of_a_segment_is_found_and_nothing_is_cut_from_the_middle() {
    let lens = [40, 200, 9];
    let disk = SimDisk::new(5);
    let (log, _, _) = open(&disk).unwrap();
    for len in lens {
        fill(&log, &[len]);
        log.sync().unwrap();
    }
    log.close().unwrap();
    drop(log);
    let path = Path::new("log/0000000001.seg");
    let frames = 4096..disk.bytes_of(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mark_at = frames.end as u64 - 100;
    let header_bits = 0..64 * 8;
    for bit in header_bits.chain(frames.start as u64 * 8..mark_at * 8) {
        let copy = disk.kill();
        assert!(copy.flip(path, bit));
        let before = copy.bytes_of(path).unwrap();
        match open(&copy) {
            Ok((log, recovery, seen)) => {
                assert!(matches!(recovery, Recovery::Damaged { .. }), "bit {bit}: {recovery:?}");
                assert!(expected(&lens).starts_with(&seen), "bit {bit}");
                assert!(matches!(log.append(&meta(9), &[b"x"]), Err(LogError::ReadOnly { .. })));
            }
            Err(error) => assert!(matches!(error, LogError::Corrupt { .. }), "bit {bit}: {error}"),
        }
        assert_eq!(copy.bytes_of(path).unwrap(), before, "bit {bit}: damage must not be touched");
    }
}

#[test]
fn a_damaged_log_is_healed_with_what_leads_to_its_end_and_is_the_one_it_was() {
    let disk = SimDisk::new(5);
    let (log, _, _) = open(&disk).unwrap();
    let lens = [40, 200, 9, 300, 70];
    fill(&log, &lens);
    log.close().unwrap();
    let at = log.position_of(2).unwrap();
    drop(log);
    assert!(disk.flip(Path::new("log/0000000001.seg"), at.offset * 8));
    let (log, recovery, seen) = open(&disk).unwrap();
    assert!(matches!(recovery, Recovery::Damaged { n_frames: 1, .. }), "{recovery:?}");
    assert_eq!(seen, expected(&lens[..1]));
    let behind = log.behind_damage().unwrap();
    assert_eq!(behind.keys().copied().collect::<Vec<u64>>(), [3, 4, 5]);
    let rest: Vec<(FrameMeta, Vec<u8>)> =
        (2..=5).map(|seq| (meta(seq), payload(seq, lens[seq as usize - 1]))).collect();
    for call in 1.. {
        let copy = disk.kill();
        let (log, _, _) = open(&copy).unwrap();
        copy.plan_crash(call, call);
        log.heal(&mut rest.iter().cloned()).unwrap();
        let is_done = copy.is_crash_planned();
        let (_, recovery, seen) = open(&copy.crashed().unwrap_or_else(|| copy.crash(call))).unwrap();
        let is_healed = recovery == Recovery::Clean { n_frames: 5 } && seen == expected(&lens);
        assert!(is_healed || matches!(recovery, Recovery::Damaged { .. }), "call {call}: {recovery:?}");
        if is_done {
            assert!(is_healed);
            break;
        }
    }
    log.heal(&mut rest.into_iter()).unwrap();
    drop(log);
    let (log, recovery, seen) = open(&disk).unwrap();
    assert_eq!((recovery, seen), (Recovery::Clean { n_frames: 5 }, expected(&lens)));
    log.append(&meta(6), &[b"on it goes"]).unwrap();
    log.sync().unwrap();
}

#[test]
fn a_bit_flipped_under_an_open_log_is_never_read_as_data() {
    let disk = SimDisk::new(5);
    let (log, _, _) = open(&disk).unwrap();
    let positions = fill(&log, &[40, 70_000]);
    let path = Path::new("log/0000000002.seg");
    let start = positions[1].offset - 4096;
    for bit in (start * 8..(positions[1].offset + 70_000) * 8).step_by(1009) {
        disk.flip(path, bit);
        match log.frame(positions[1]) {
            Ok(frame) => assert_eq!(frame.payload, payload(2, 70_000)),
            Err(error) => assert!(matches!(error, LogError::Corrupt { .. })),
        }
        match log.read(positions[1], 65_000..66_000) {
            Ok(bytes) => assert_eq!(bytes, &payload(2, 70_000)[65_000..66_000]),
            Err(error) => assert!(matches!(error, LogError::Corrupt { .. })),
        }
        disk.flip(path, bit);
    }
}

#[test]
fn a_failed_sync_is_final() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &[100]);
    log.sync().unwrap();
    fill(&log, &[100]);
    disk.fail_nth(CallKind::Sync, 1);
    assert!(matches!(log.sync(), Err(LogError::Failed { .. })));
    assert!(matches!(log.sync(), Err(LogError::Failed { .. })));
    assert!(matches!(log.append(&meta(3), &[b"x"]), Err(LogError::Failed { .. })));
    assert_eq!(log.iter_from(1).count(), 2, "reads go on");
    let (_, recovery, seen) = open(&disk.crash(9)).unwrap();
    assert!(!matches!(recovery, Recovery::Damaged { .. }));
    assert!(!seen.is_empty() && expected(&[100, 100]).starts_with(&seen));
}

#[test]
fn segments_stay_small_on_a_nearly_full_disk_and_none_is_kept_as_a_spare() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &[20_000; 40]);
    let n_large = |disk: &SimDisk| {
        let segments = disk.files().into_iter().filter(|path| path.starts_with("log"));
        segments.filter(|path| disk.bytes_of(path).is_some_and(|bytes| bytes.len() > 64 << 10)).count()
    };
    let before = n_large(&disk);
    assert!(before > 2, "the test is about segments that grow");
    disk.set_capacity(Some(disk.used_bytes() + (300 << 10)));
    fill(&log, &[20_000; 8]);
    assert_eq!(n_large(&disk), before);
    log.sync().unwrap();
    log.drop_before(48).unwrap();
    assert_eq!(disk.files().iter().filter(|path| path.starts_with("log")).count(), 1);
    drop(log);
    assert_eq!(open(&disk.crash(1)).unwrap().2.last(), expected(&[20_000; 48]).last());
}

#[test]
fn a_full_disk_refuses_the_next_segment_and_later_takes_it() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &[20_000]);
    disk.set_capacity(Some(disk.used_bytes() + 1000));
    let big = payload(2, 20_000);
    assert!(matches!(log.append(&meta(2), &[&big]), Err(LogError::Full(_))));
    log.append(&meta(2), &[b"small goes in"]).unwrap();
    log.sync().unwrap();
    disk.set_capacity(None);
    log.append(&meta(3), &[&big]).unwrap();
    log.sync().unwrap();
    drop(log);
    let (_, recovery, seen) = open(&disk.crash(1)).unwrap();
    assert_eq!(recovery, Recovery::Clean { n_frames: 3 });
    assert_eq!(seen.len(), 3);
}

#[test]
fn a_sync_inside_a_preallocated_segment_changes_neither_length_nor_names() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    let before = (disk.bytes_of(Path::new("log/0000000001.seg")).unwrap().len(), disk.files());
    let n_syncs = disk.n_syncs();
    fill(&log, &[4096, 100, 4096]);
    log.sync().unwrap();
    assert_eq!((disk.bytes_of(Path::new("log/0000000001.seg")).unwrap().len(), disk.files()), before);
    assert_eq!(disk.n_syncs() - n_syncs, 1);
}

#[test]
fn a_suffix_is_saved_before_it_is_cut_and_the_log_goes_on() {
    let lens = [20_000, 20_000, 20_000, 20_000, 300];
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &lens);
    log.sync().unwrap();
    let fork = log.truncate_after(2, Path::new("fork")).unwrap().unwrap();
    assert_eq!(fork, Path::new("fork/3-3.seg"));
    assert_eq!(log.truncate_after(2, Path::new("fork")).unwrap(), None);
    assert_eq!(log.tail().map(|tail| tail.seq), Some(2));
    fill(&log, &[50_000, 1]);
    log.sync().unwrap();
    drop(log);
    let (log, recovery, seen) = open(&disk.crash(4)).unwrap();
    assert_eq!(recovery, Recovery::Clean { n_frames: 4 });
    assert_eq!(seen, expected(&[20_000, 20_000, 50_000, 1]));
    assert!(log.truncate_after(0, Path::new("fork")).unwrap().is_some());
    assert_eq!(log.tail(), None);
    fill(&log, &[5]);
    log.sync().unwrap();
    assert_eq!(open(&disk.crash(4)).unwrap().2.len(), 4, "the older disk is as it was");
}

#[test]
fn dropping_takes_whole_segments_and_never_the_newest() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    fill(&log, &[20_000; 40]);
    log.sync().unwrap();
    let before = log.bytes();
    log.drop_before(20).unwrap();
    assert!(log.bytes() < before);
    let first = log.first_seq().unwrap();
    assert!(first > 1 && first <= 20);
    log.drop_before(u64::MAX).unwrap();
    assert_eq!(log.tail().map(|tail| tail.seq), Some(40));
    fill(&log, &[20_000; 40]);
    log.sync().unwrap();
    drop(log);
    let (log, recovery, seen) = open(&disk.crash(4)).unwrap();
    assert!(matches!(recovery, Recovery::Clean { .. }), "{recovery:?}");
    assert_eq!(seen.last().map(|(seq, _)| *seq), Some(80));
    assert_eq!(seen.len() as u64, 81 - log.first_seq().unwrap());
}

#[test]
fn many_threads_share_syncs_and_lose_nothing() {
    let disk = SimDisk::new(3);
    let (log, _, _) = open(&disk).unwrap();
    let next = parking_lot::Mutex::new(1);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    {
                        let mut next = next.lock();
                        log.append(&meta(*next), &[&payload(*next, 500)]).unwrap();
                        *next += 1;
                    }
                    log.sync().unwrap();
                }
            });
        }
    });
    let (_, recovery, seen) = open(&disk.crash(11)).unwrap();
    assert_eq!(seen, expected(&[500; 400]));
    assert!(matches!(recovery, Recovery::Clean { .. }));
}

#[test]
fn a_log_on_the_real_disk_prepares_segments_and_recycles_them() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(remora_store::disk::RealDisk);
    let options = LogOptions { is_background: true, ..options() };
    let (log, _) =
        Log::open(disk.clone(), &dir.path().join("log"), options.clone(), &mut |_| Ok(())).unwrap();
    for round in 0..6 {
        fill(&log, &[20_000; 10]);
        log.sync().unwrap();
        log.drop_before(round * 10).unwrap();
    }
    log.close().unwrap();
    drop(log);
    let mut seen = Vec::new();
    let (_, recovery) = Log::open(disk, &dir.path().join("log"), options, &mut |view| {
        seen.push((view.header.meta.seq, view.payload == payload(view.header.meta.seq, 20_000)));
        Ok(())
    })
    .unwrap();
    assert!(matches!(recovery, Recovery::Clean { .. }), "{recovery:?}");
    assert_eq!(seen.last(), Some(&(60, true)));
    assert!(seen.iter().all(|(_, is_right)| *is_right));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_behind_valid_frames_is_a_torn_tail(
        lens in prop::collection::vec(0_usize..3000, 1..6),
        garbage in prop::collection::vec(any::<u8>(), 1..5000),
    ) {
        let disk = SimDisk::new(5);
        let (log, _, _) = open(&disk).unwrap();
        let positions = fill(&log, &lens);
        log.sync().unwrap();
        drop(log);
        let path = Path::new("log/0000000001.seg");
        let mut bytes = disk.bytes_of(path).unwrap();
        let end = (positions[lens.len() - 1].offset as usize + lens[lens.len() - 1]).next_multiple_of(8);
        bytes[end..end + garbage.len()].copy_from_slice(&garbage);
        disk.set_bytes(path, &bytes);
        let (_, _, seen) = open(&disk).unwrap();
        assert_eq!(seen, expected(&lens));
        let (_, recovery, seen) = open(&disk.crash(1)).unwrap();
        assert_eq!(seen, expected(&lens));
        assert_eq!(recovery, Recovery::Clean { n_frames: lens.len() as u64 });
    }
}
