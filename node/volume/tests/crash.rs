//! Power cuts: what was promised is there, and what was not is a prefix of what was done.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use remora_store::sim::SimDisk;
use remora_vfs::attr::{NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::filesystem::{Caller, Filesystem, RenameMode};
use remora_volume::volume::Volume;

use rig::{content, file, fresh, fsync, names, open_on, options_on, store_on};

const CALLER: Caller = Caller { uid: 0, gid: 0 };
const NOW: Timestamp = Timestamp(9);

/// What the root directory holds.
type Picture = BTreeMap<Vec<u8>, Vec<u8>>;

fn picture(volume: &Volume) -> Picture {
    names(volume).into_iter().map(|name| (name.clone(), content(volume, &name).unwrap())).collect()
}

/// A step of a workload on few names.
fn step(volume: &Volume, random: &mut ChaCha8Rng) {
    let name = [b'a' + random.random_range(0..5u8)];
    let other = [b'a' + random.random_range(0..5u8)];
    let found = volume.lookup(ROOT_INO, &name).ok();
    match (random.random_range(0..10), found) {
        (0..5, Some(attr)) => {
            let offset = random.random_range(0..6000);
            let bytes = vec![random.random::<u8>(); random.random_range(1..5000)];
            volume.write(attr.ino, offset, &bytes, NOW).unwrap();
        }
        (5, Some(attr)) => {
            let size = Some(random.random_range(0..8000));
            volume.setattr(attr.ino, &SetAttr { size, ..SetAttr::default() }, NOW).unwrap();
        }
        (6, Some(_)) => volume.unlink(ROOT_INO, &name, NOW).unwrap(),
        (7 | 8, Some(_)) => {
            volume.rename((ROOT_INO, &name), (ROOT_INO, &other), RenameMode::Replace, NOW).unwrap();
        }
        (9, Some(attr)) if random.random_bool(0.3) => {
            let chunk = vec![random.random::<u8>(); 1 << 20];
            volume.write(attr.ino, 0, &chunk, NOW).unwrap();
        }
        (_, Some(_)) => {}
        (_, None) => {
            let attr = volume.make(CALLER, ROOT_INO, &name, &NewNode::File, 0o644, NOW).unwrap();
            volume.forget(attr.ino, 1);
        }
    }
    if let Some(attr) = found {
        volume.forget(attr.ino, 1);
    }
}

/// Runs a workload and cuts the power at some call of the disk. Answers whether the checker is content.
fn cut_and_check(seed: u64, is_lying: bool) -> bool {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (disk, volume) = fresh(seed);
    if is_lying {
        disk.lie_about_syncs();
    }
    let mut pictures = vec![picture(&volume)];
    let mut promised = 0;
    disk.plan_crash(random.random_range(1..60), seed);
    for i in 1..200 {
        step(&volume, &mut random);
        pictures.push(picture(&volume));
        match random.random_range(0..12) {
            0 => {
                volume.flush().unwrap();
                if disk.is_crash_planned() {
                    promised = i;
                }
            }
            1 => volume.checkpoint().map(drop).unwrap(),
            2 => volume.tick(),
            _ => {}
        }
        if !disk.is_crash_planned() {
            break;
        }
    }
    let disk = disk.crashed().unwrap_or_else(|| disk.crash(seed));
    let Some(volume) = try_open(&disk) else { return false };
    let found = picture(&volume);
    let is_known = pictures[promised..].contains(&found);
    // The next writer can go on, and the one after it.
    volume.make(CALLER, ROOT_INO, b"new", &NewNode::File, 0o644, NOW).unwrap();
    volume.close().unwrap();
    let again = open_on(&disk);
    is_known && picture(&again).contains_key(b"new".as_slice())
}

fn try_open(disk: &SimDisk) -> Option<Volume> {
    let disk = Arc::new(disk.clone());
    Volume::open(options_on(&store_on(disk))).ok()
}

#[test]
fn what_was_promised_survives_a_power_cut_and_the_rest_is_a_prefix() {
    for seed in 0..300 {
        assert!(cut_and_check(seed, false), "seed {seed}");
    }
}

#[test]
fn a_disk_that_lies_is_found_out() {
    let caught = (0..40).find(|seed| !cut_and_check(*seed, true));
    assert!(caught.is_some(), "the checker must see lost promises");
}

#[test]
fn a_file_never_grows_without_its_data() {
    for seed in 0..100 {
        let (disk, volume) = fresh(seed);
        let attr = file(&volume, b"log");
        for i in 0..40u64 {
            volume.write(attr.ino, i * 1000, &[i as u8 + 1; 1000], NOW).unwrap();
            if i % 7 == seed % 7 {
                volume.tick();
                fsync(&volume, ROOT_INO).unwrap();
            }
        }
        let volume = open_on(&disk.crash(seed));
        let bytes = content(&volume, b"log").unwrap_or_default();
        assert_eq!(bytes.len() % 1000, 0);
        for (i, part) in bytes.chunks(1000).enumerate() {
            assert_eq!(part, [i as u8 + 1; 1000], "seed {seed}");
        }
    }
}

#[test]
fn rename_without_fsync_never_shows_an_empty_file() {
    for seed in 0..100 {
        let (disk, volume) = fresh(seed);
        let first = file(&volume, b"conf");
        volume.write(first.ino, 0, b"version 0", NOW).unwrap();
        fsync(&volume, first.ino).unwrap();
        disk.plan_crash(1 + seed % 30, seed);
        for i in 1..20 {
            let new = file(&volume, b"conf.new");
            volume.write(new.ino, 0, format!("version {i}").as_bytes(), NOW).unwrap();
            volume.rename((ROOT_INO, b"conf.new"), (ROOT_INO, b"conf"), RenameMode::Replace, NOW).unwrap();
            if i % 3 == 0 {
                volume.flush().unwrap();
            }
        }
        let disk = disk.crashed().unwrap_or_else(|| disk.crash(seed));
        let bytes = content(&open_on(&disk), b"conf").unwrap();
        assert!(bytes.starts_with(b"version "), "seed {seed}");
    }
}

#[test]
fn a_checkpoint_can_be_cut_anywhere() {
    for n in 1..400 {
        let (disk, volume) = fresh(n);
        let mut random = ChaCha8Rng::seed_from_u64(n % 7);
        (0..60).for_each(|_| step(&volume, &mut random));
        volume.checkpoint().unwrap();
        (0..60).for_each(|_| step(&volume, &mut random));
        volume.flush().unwrap();
        let before = picture(&volume);
        disk.plan_crash(n, n);
        volume.checkpoint().unwrap();
        assert_eq!(picture(&volume), before, "a checkpoint changes nothing one can see");
        let Some(crashed) = disk.crashed() else { return };
        let volume = open_on(&crashed);
        assert_eq!(picture(&volume), before, "cut at call {n}");
    }
}

#[test]
fn eight_writers_lose_nothing_they_were_promised() {
    for seed in 0..6 {
        let disk = SimDisk::new(seed);
        let mut options = options_on(&store_on(Arc::new(disk.clone())));
        options.background = true;
        let volume = Arc::new(Volume::open(options).unwrap());
        let promised: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
        let crashed = Arc::new(Mutex::new(None));
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let (volume, promised) = (volume.clone(), promised.clone());
                let (disk, crashed) = (disk.clone(), crashed.clone());
                scope.spawn(move || {
                    let attr = file(&volume, &[b'a' + writer]);
                    for i in 0..50u64 {
                        volume.write(attr.ino, i * 8, &(i + 1).to_le_bytes(), NOW).unwrap();
                        fsync(&*volume, attr.ino).unwrap();
                        promised[usize::from(writer)].store(i + 1, Ordering::SeqCst);
                        if writer == 3 && i == 20 + seed {
                            let at: Vec<u64> = promised.iter().map(|n| n.load(Ordering::SeqCst)).collect();
                            *crashed.lock() = Some((at, disk.crash(seed)));
                        }
                    }
                });
            }
        });
        let (at, disk) = crashed.lock().take().unwrap();
        let volume = open_on(&disk);
        for (writer, promised) in at.into_iter().enumerate() {
            let bytes = content(&volume, &[b'a' + writer as u8]).unwrap_or_default();
            let n = (bytes.len() / 8) as u64;
            assert!(n >= promised, "writer {writer}: {n} of {promised} records");
            for (i, record) in bytes.chunks(8).enumerate() {
                assert_eq!(record, (i as u64 + 1).to_le_bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_replay_gives_what_was_live(seed in 0u64..1_000_000) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (disk, volume) = fresh(seed);
        for _ in 0..150 {
            step(&volume, &mut random);
            match random.random_range(0..20) {
                0 => volume.checkpoint().map(drop).unwrap(),
                1 => drop(volume.flush().unwrap()),
                _ => {}
            }
        }
        let live = picture(&volume);
        let status = volume.status();
        volume.close().unwrap();
        let again = open_on(&disk.kill());
        prop_assert_eq!(&picture(&again), &live);
        prop_assert_eq!((again.status().inodes, again.status().bytes), (status.inodes, status.bytes));
    }
}
