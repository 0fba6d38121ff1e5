//! Blocks come back as they were put, or not at all.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksError, BlocksOptions};
use remora_store::disk::RealDisk;
use remora_store::index::IndexKind;
use remora_store::sim::{CallKind, SimDisk};

fn block(n: u64, len: usize) -> Block {
    let salt = n.to_le_bytes();
    let bytes: Vec<u8> = (0..len).map(|i| (i * i * 11 + i / 251) as u8 ^ salt[i % 8]).collect();
    Block::seal(Codec::Raw, Bytes::from(bytes))
}

fn options(pack_bytes: u64) -> BlocksOptions {
    BlocksOptions { pack_bytes, is_background: false, ..BlocksOptions::new(IndexKind::Memory) }
}

fn open(disk: &SimDisk) -> Blocks {
    Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options(400_000)).unwrap()
}

fn put(blocks: &Blocks, block: &Block) {
    blocks.put(block.cid(), block.bytes()).unwrap();
}

/// Reads the block whole and in part, and compares.
fn check(blocks: &Blocks, block: &Block) {
    let bytes = block.bytes();
    assert_eq!(blocks.get(block.cid()).unwrap().as_ref(), Some(bytes));
    assert!(blocks.has(block.cid()).unwrap());
    assert_eq!(blocks.len_of(block.cid()).unwrap(), Some(bytes.len() as u64));
    for (offset, len) in [(0, 1), (5, 0), (bytes.len() / 2, 70_000), (65_530, 20), (bytes.len(), 9)] {
        let from = offset.min(bytes.len());
        let want = bytes.slice(from..(from + len).min(bytes.len()));
        assert_eq!(blocks.get_range(block.cid(), offset as u64, len).unwrap(), Some(want));
    }
}

fn some_blocks() -> Vec<Block> {
    let lens = [0, 1, 100, 65_535, 65_536, 65_537, 200_000, 1 << 20, 2 << 20];
    lens.iter().enumerate().map(|(n, len)| block(n as u64, *len)).collect()
}

#[test]
fn blocks_survive_reopening_in_active_and_sealed_packs() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    for one in &some_blocks() {
        put(&blocks, one);
        put(&blocks, one);
        check(&blocks, one);
    }
    assert!(blocks.stat().unwrap().n_packs > 2);
    assert_eq!(blocks.get(block(99, 5).cid()).unwrap(), None);
    blocks.close().unwrap();
    let blocks = open(&disk);
    assert!(blocks.recovery().damaged.is_empty());
    some_blocks().iter().for_each(|one| check(&blocks, one));
    assert_eq!(blocks.stat().unwrap().n_blocks, 9);
    let mut cids: Vec<Cid> = blocks.cids().map(Result::unwrap).collect();
    let mut want: Vec<Cid> = some_blocks().iter().map(|one| *one.cid()).collect();
    cids.sort();
    want.sort();
    assert_eq!(cids, want);
}

#[test]
fn compressed_blocks_come_back_as_they_were() {
    let disk = SimDisk::new(1);
    let options = BlocksOptions { zstd_level: Some(1), ..options(4 << 20) };
    let blocks = Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap();
    let text = Block::seal(Codec::Raw, Bytes::from(b"to be compressed ".repeat(20_000)));
    put(&blocks, &text);
    check(&blocks, &text);
    some_blocks().iter().for_each(|one| put(&blocks, one));
    some_blocks().iter().for_each(|one| check(&blocks, one));
    assert!(disk.bytes_of(Path::new("packs/0000000001.pack")).unwrap().len() < 4_000_000);
}

#[test]
fn every_flipped_bit_of_a_pack_is_found_and_never_read_as_data() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    let all = [block(1, 50), block(2, 300), block(3, 7)];
    for one in &all {
        put(&blocks, one);
        blocks.sync().unwrap();
    }
    blocks.close().unwrap();
    let path = Path::new("packs/0000000001.pack");
    let len = disk.bytes_of(path).unwrap().len() as u64;
    for bit in (0..64 * 8).chain(4096 * 8..len * 8) {
        let copy = disk.kill();
        assert!(copy.flip(path, bit));
        let before = copy.bytes_of(path).unwrap();
        let opened = Blocks::open(Arc::new(copy.clone()), Path::new("packs"), options(400_000));
        let Ok(blocks) = opened else { continue };
        let mut n_lost = 0;
        for one in &all {
            match blocks.get(one.cid()) {
                Ok(Some(bytes)) => assert_eq!(bytes, *one.bytes(), "bit {bit}"),
                Ok(None) | Err(BlocksError::Corrupt { .. }) => n_lost += 1,
                Err(error) => panic!("bit {bit}: {error}"),
            }
        }
        let is_told = !blocks.recovery().damaged.is_empty() || blocks.recovery().n_torn > 0;
        assert!(is_told, "bit {bit}: nobody was told");
        assert_eq!(n_lost, if bit < 64 * 8 { 3 } else { 1 }, "bit {bit}");
        if !blocks.recovery().damaged.is_empty() {
            assert_eq!(copy.bytes_of(path).unwrap(), before, "bit {bit}: damage must not be touched");
        }
        all.iter().for_each(|one| put(&blocks, one));
        all.iter().for_each(|one| check(&blocks, one));
    }
}

#[test]
fn every_flipped_bit_of_a_sealed_pack_is_found_when_read() {
    let disk = SimDisk::new(1);
    let blocks = Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options(5000)).unwrap();
    let all = [block(1, 50), block(2, 300), block(3, 5000)];
    all.iter().for_each(|one| put(&blocks, one));
    blocks.close().unwrap();
    let path = Path::new("packs/0000000001.pack");
    let len = disk.bytes_of(path).unwrap().len() as u64;
    for bit in 4096 * 8..len * 8 {
        let copy = disk.kill();
        copy.flip(path, bit);
        let blocks = Blocks::open(Arc::new(copy), Path::new("packs"), options(5000)).unwrap();
        for one in &all {
            match blocks.get(one.cid()) {
                Ok(Some(bytes)) => assert_eq!(bytes, *one.bytes(), "bit {bit}"),
                Ok(None) | Err(BlocksError::Corrupt { .. }) => put(&blocks, one),
                Err(error) => panic!("bit {bit}: {error}"),
            }
            check(&blocks, one);
        }
    }
}

#[test]
fn verify_names_damaged_blocks_and_a_put_heals_them() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    let all = some_blocks();
    all.iter().for_each(|one| put(&blocks, one));
    assert_eq!(blocks.verify(&mut |_| true).unwrap().n_good, 9);
    let inside = &all[6].bytes()[1000..1064];
    let find = |path: &PathBuf| disk.bytes_of(path).unwrap().windows(64).position(|window| window == inside);
    let (path, at) = disk
        .files()
        .into_iter()
        .find_map(|path| Some((find(&path)?, path)))
        .map(|(at, path)| (path, at))
        .unwrap();
    disk.flip(&path, at as u64 * 8);
    let report = blocks.verify(&mut |_| true).unwrap();
    assert_eq!((report.n_good, report.damaged), (8, vec![*all[6].cid()]));
    assert!(matches!(blocks.get(all[6].cid()), Err(BlocksError::Corrupt { .. })));
    put(&blocks, &all[6]);
    all.iter().for_each(|one| check(&blocks, one));
    assert_eq!(blocks.verify(&mut |_| true).unwrap().damaged, []);
    assert!(blocks.verify(&mut |_| false).unwrap().is_stopped);
}

#[test]
fn a_full_disk_refuses_a_block_whole_and_later_takes_it() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    put(&blocks, &block(1, 100_000));
    blocks.sync().unwrap();
    disk.set_capacity(Some(disk.used_bytes() + 5000));
    let big = block(2, 100_000);
    assert!(matches!(blocks.put(big.cid(), big.bytes()), Err(BlocksError::Full { .. })));
    assert_eq!(blocks.get(big.cid()).unwrap(), None);
    put(&blocks, &block(3, 1000));
    disk.set_capacity(None);
    put(&blocks, &big);
    blocks.sync().unwrap();
    drop(blocks);
    let blocks = open(&disk.crash(5));
    assert_eq!(blocks.recovery().n_torn, 0);
    [block(1, 100_000), big, block(3, 1000)].iter().for_each(|one| check(&blocks, one));
}

#[test]
fn a_failed_sync_is_final_for_writing_and_reads_go_on() {
    let disk = SimDisk::new(1);
    let blocks = open(&disk);
    put(&blocks, &block(1, 1000));
    disk.fail_nth(CallKind::Sync, 1);
    assert!(matches!(blocks.sync(), Err(BlocksError::Failed { .. })));
    assert!(matches!(blocks.sync(), Err(BlocksError::Failed { .. })));
    let two = block(2, 10);
    assert!(matches!(blocks.put(two.cid(), two.bytes()), Err(BlocksError::Failed { .. })));
    check(&blocks, &block(1, 1000));
}

#[test]
fn names_by_other_hashes_are_refused_and_identity_needs_no_storing() {
    let blocks = open(&SimDisk::new(1));
    let hash = cid::multihash::Multihash::<64>::wrap(0x1e, &[1; 32]).unwrap();
    let foreign = Cid::new_v1(0x55, hash);
    assert!(matches!(blocks.put(&foreign, b"x"), Err(BlocksError::Unsupported { .. })));
    assert!(matches!(blocks.get(&foreign), Err(BlocksError::Unsupported { .. })));
    let identity = Cid::new_v1(0x55, cid::multihash::Multihash::<64>::wrap(0, b"hello").unwrap());
    blocks.put(&identity, b"hello").unwrap();
    assert_eq!(blocks.get(&identity).unwrap().unwrap(), "hello");
    assert_eq!(blocks.get_range(&identity, 1, 3).unwrap().unwrap(), "ell");
}

/// A store on the real disk with its sled index.
struct OnDisk {
    dir: tempfile::TempDir,
}

impl OnDisk {
    fn filled() -> OnDisk {
        let store = OnDisk { dir: tempfile::tempdir().unwrap() };
        let blocks = store.open();
        (0..300).for_each(|n| put(&blocks, &block(n, 3000)));
        blocks.close().unwrap();
        store
    }

    fn index(&self) -> PathBuf {
        self.dir.path().join("index")
    }

    fn open(&self) -> Blocks {
        let options = BlocksOptions {
            pack_bytes: 200_000,
            is_background: true,
            ..BlocksOptions::new(IndexKind::Sled(self.index()))
        };
        Blocks::open(Arc::new(RealDisk), &self.dir.path().join("packs"), options).unwrap()
    }

    /// Everything is back, and this many blocks had to be put into the index for it.
    fn check(&self, n_indexed: u64) {
        let blocks = self.open();
        assert_eq!(blocks.recovery().n_indexed, n_indexed);
        (0..300).for_each(|n| check(&blocks, &block(n, 3000)));
        blocks.close().unwrap();
    }
}

#[test]
fn a_pack_of_many_small_blocks_is_sealed_before_its_table_of_contents_is_long() {
    let disk = SimDisk::new(3);
    let open = || {
        let options = BlocksOptions { pack_blocks_max: 10, ..options(400_000) };
        Blocks::open(Arc::new(disk.clone()), Path::new("packs"), options).unwrap()
    };
    let blocks = open();
    (0..25).for_each(|n| put(&blocks, &block(n, 100)));
    assert_eq!(blocks.stat().unwrap().n_packs, 3);
    blocks.close().unwrap();
    let blocks = open();
    (25..31).for_each(|n| put(&blocks, &block(n, 100)));
    assert_eq!(blocks.stat().unwrap().n_packs, 4, "those that were in the last pack count too");
    (0..31).for_each(|n| check(&blocks, &block(n, 100)));
}

#[test]
fn after_a_clean_stop_the_index_is_trusted() {
    OnDisk::filled().check(0);
}

#[test]
fn after_an_unclean_stop_the_tail_is_replayed() {
    let store = OnDisk::filled();
    let blocks = store.open();
    (300..310).for_each(|n| put(&blocks, &block(n, 3000)));
    drop(blocks);
    let blocks = store.open();
    assert_eq!(blocks.recovery().n_indexed, 10);
    (0..310).for_each(|n| check(&blocks, &block(n, 3000)));
}

#[test]
fn a_deleted_index_is_rebuilt() {
    let store = OnDisk::filled();
    std::fs::remove_dir_all(store.index()).unwrap();
    store.check(300);
    store.check(0);
}

#[test]
fn an_index_without_its_mark_is_rebuilt() {
    let store = OnDisk::filled();
    std::fs::remove_file(store.index().join("mark")).unwrap();
    store.check(300);
}

#[test]
fn garbage_in_the_index_brings_everything_back_or_is_not_believed() {
    for seed in 0..12_u64 {
        let store = OnDisk::filled();
        let path = store.index().join("tables/db");
        let mut bytes = std::fs::read(&path).unwrap();
        let len = bytes.len() as u64;
        for i in 0..200 {
            bytes[((seed * 7919 + i * 104_729 + i * i * 31) % len) as usize] ^= 0x55;
        }
        std::fs::write(&path, bytes).unwrap();
        let blocks = store.open();
        for n in 0..300 {
            let one = block(n, 3000);
            match blocks.get(one.cid()) {
                Ok(Some(bytes)) => assert_eq!(bytes, *one.bytes()),
                Ok(None) | Err(BlocksError::Corrupt { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        blocks.verify(&mut |_| true).unwrap();
        (0..300).for_each(|n| check(&blocks, &block(n, 3000)));
    }
}

#[test]
fn any_flipped_bit_of_a_cleanly_closed_index_has_it_rebuilt() {
    let store = OnDisk::filled();
    let path = store.index().join("tables/db");
    for step in 0..10 {
        let mut bytes = std::fs::read(&path).unwrap();
        // A rebuilt index is not as long as the one before: what sled writes at once depends on its threads.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let at = used * step / 10;
        bytes[at] ^= 1 << (step % 8);
        std::fs::write(&path, bytes).unwrap();
        store.check(300);
    }
}

#[test]
fn an_index_of_another_store_is_not_believed() {
    let (store, other) = (OnDisk::filled(), OnDisk::filled());
    std::fs::remove_dir_all(store.index()).unwrap();
    std::fs::rename(other.index(), store.index()).unwrap();
    store.check(300);
    store.check(0);
}

#[test]
fn an_index_that_leads_astray_after_an_unclean_stop_is_mended_before_an_answer_is_given() {
    let store = OnDisk::filled();
    drop(store.open());
    {
        let db = sled::Config::new().path(store.index().join("tables")).open().unwrap();
        let places = db.open_tree(b"places").unwrap();
        let all: Vec<_> = places.iter().map(|entry| entry.unwrap()).collect();
        for pair in all.chunks(2).take(40) {
            let [(one, _), (_, other_place)] = pair else { panic!("an even number") };
            places.insert(one, other_place).unwrap();
        }
        for (digest, _) in &all[200..220] {
            places.remove(digest).unwrap();
            places.insert([&digest[..31], &[0]].concat(), &[0; 24]).unwrap();
        }
        db.flush().unwrap();
    }
    let blocks = store.open();
    for n in 0..300 {
        let one = block(n, 3000);
        assert_eq!(blocks.get(one.cid()).unwrap().as_ref(), Some(one.bytes()), "block {n}");
    }
}

#[test]
fn an_index_that_cannot_be_made_costs_no_block() {
    let store = OnDisk::filled();
    let packs = store.dir.path().join("packs");
    let nowhere = packs.join("0000000001.pack/index");
    let options = BlocksOptions { pack_bytes: 200_000, ..BlocksOptions::new(IndexKind::Sled(nowhere)) };
    let blocks = Blocks::open(Arc::new(RealDisk), &packs, options).unwrap();
    assert!(blocks.index_failure().is_some());
    (0..300).for_each(|n| check(&blocks, &block(n, 3000)));
}

#[test]
fn a_file_in_the_place_of_the_index_is_no_obstacle() {
    let store = OnDisk::filled();
    std::fs::remove_dir_all(store.index()).unwrap();
    std::fs::write(store.index(), b"in the way").unwrap();
    store.check(300);
    store.check(0);
}

#[test]
fn an_index_that_is_no_directory_of_tables_is_rebuilt() {
    let store = OnDisk::filled();
    std::fs::remove_dir_all(store.index().join("tables")).unwrap();
    std::fs::write(store.index().join("tables"), b"not a directory").unwrap();
    store.check(300);
    store.check(0);
}

#[test]
fn an_index_whose_last_owner_is_still_going_is_waited_for() {
    let store = OnDisk::filled();
    // As sled takes it, and a little longer than one of its threads may.
    let held = File::options().read(true).write(true).open(store.index().join("tables/db")).unwrap();
    held.try_lock().unwrap();
    let going = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(held);
    });
    store.check(0);
    going.join().unwrap();
}
