//! Control slots, the registry, and the lock on a data directory.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use remora_store::ctl::{SLOT_BYTES, Slots, SlotsError};
use remora_store::file_header::FileKind;
use remora_store::layout::DataDir;
use remora_store::lock::{DataLock, LockError};
use remora_store::log::LogOptions;
use remora_store::registry::Registry;
use remora_store::sim::{CallKind, SimDisk};

const CTL: &str = "v/ctl";

fn slots(disk: &SimDisk) -> Result<Slots<(u32, String)>, SlotsError> {
    Slots::open(disk, Path::new(CTL))
}

fn record(n: u32) -> (u32, String) {
    (n, format!("member {n}"))
}

#[test]
fn a_record_is_durable_when_put_returns() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        Slots::create(&disk, Path::new(CTL), &record(0)).unwrap();
        let ctl = slots(&disk).unwrap();
        disk.plan_crash(1 + seed % 40, seed);
        let mut acked = 0;
        for n in 1..12 {
            ctl.put(&record(n)).unwrap();
            if disk.is_crash_planned() {
                acked = n;
            }
        }
        let after = disk.crashed().unwrap_or_else(|| disk.crash(seed));
        let found = slots(&after).unwrap().get();
        assert!(
            found.0 >= acked && found.0 <= acked + 1,
            "seed {seed}: {acked} acknowledged, {found:?} found"
        );
    }
}

#[test]
fn either_slot_alone_is_enough_and_takes_nothing_back() {
    let disk = SimDisk::new(1);
    Slots::create(&disk, Path::new(CTL), &record(0)).unwrap();
    slots(&disk).unwrap().put(&record(1)).unwrap();
    for bit in (0..64 * 8).chain((64 * 8..2 * SLOT_BYTES as u64 * 8).step_by(13)) {
        let copy = disk.kill();
        copy.flip(Path::new(CTL), bit);
        assert_eq!(slots(&copy).unwrap().get(), record(1), "bit {bit}");
        copy.flip(Path::new(CTL), (bit + SLOT_BYTES as u64 * 8) % (2 * SLOT_BYTES as u64 * 8));
        assert_eq!(slots(&copy).unwrap().get(), record(1), "bit {bit}: the other slot was not repaired");
    }
    for bit in 0..100 {
        let copy = disk.kill();
        copy.flip(Path::new(CTL), bit * 7);
        copy.flip(Path::new(CTL), SLOT_BYTES as u64 * 8 + bit * 11);
        assert!(matches!(slots(&copy), Err(SlotsError::Damaged { .. })));
    }
}

#[test]
fn a_missing_record_is_told_apart_and_a_failed_put_is_final() {
    let disk = SimDisk::new(1);
    assert!(matches!(slots(&disk), Err(SlotsError::Missing { .. })));
    let ctl = Slots::open_or_create(&disk, Path::new(CTL), || record(5)).unwrap();
    assert_eq!(slots(&disk.crash(1)).unwrap().get(), record(5));
    assert!(matches!(ctl.put(&(1, "x".repeat(5000))), Err(SlotsError::TooLarge { .. })));
    disk.fail_nth(CallKind::Sync, 1);
    assert!(ctl.put(&record(6)).is_err());
    assert!(matches!(ctl.put(&record(7)), Err(SlotsError::Failed { .. })));
    assert_eq!(ctl.get(), record(5));
}

type Entries = Vec<Vec<u8>>;

fn registry(disk: &SimDisk) -> (Registry, Entries) {
    let mut seen = Vec::new();
    let options = LogOptions {
        segment_bytes_first: 16 << 10,
        is_background: false,
        ..LogOptions::new(FileKind::Registry, [0; 16])
    };
    let (registry, _) =
        Registry::open_with(Arc::new(disk.clone()), Path::new("reg"), options, &mut |entry| {
            seen.push(entry.to_vec());
            Ok(())
        })
        .unwrap();
    (registry, seen)
}

#[test]
fn entries_are_durable_when_append_returns_and_compaction_keeps_the_snapshot() {
    let disk = SimDisk::new(1);
    let (reg, _) = registry(&disk);
    for n in 0..50_u8 {
        reg.append(&[n; 100]).unwrap();
    }
    assert_eq!(registry(&disk.crash(3)).1.len(), 50);
    reg.compact(&mut (0..5_u8).map(|n| vec![n; 9])).unwrap();
    reg.append_all(&[b"a", b"b"]).unwrap();
    let (_, seen) = registry(&disk.crash(4));
    assert_eq!(seen.len(), 7);
    assert_eq!(seen[6], b"b");
    assert!(reg.bytes() < 2000, "{}", reg.bytes());
}

#[test]
fn a_crash_in_a_compaction_leaves_the_old_entries_or_the_new() {
    for n in 1..80 {
        let disk = SimDisk::new(n);
        let (reg, _) = registry(&disk);
        reg.append_all(&[b"old 1", b"old 2"]).unwrap();
        disk.plan_crash(n, n);
        reg.compact(&mut [b"new".to_vec()].into_iter()).unwrap();
        let is_done = disk.is_crash_planned();
        let (_, seen) = registry(&disk.crashed().unwrap_or_else(|| disk.crash(n)));
        let is_new = seen == [b"new".to_vec()];
        assert!(is_new || (!is_done && seen == [b"old 1".to_vec(), b"old 2".to_vec()]), "call {n}: {seen:?}");
    }
}

#[test]
fn a_data_directory_has_one_owner_and_the_error_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path().join("data"));
    let lock = DataLock::take(&data).unwrap();
    let Err(LockError::Held { holder, .. }) = DataLock::take(&data) else { panic!("taken twice") };
    assert_eq!(holder, format!("process {}", std::process::id()));
    drop(lock);
    DataLock::take(&data).unwrap();
}
