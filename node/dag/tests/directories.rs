//! A directory's CID depends on its entries alone, and finding and listing see each of them once.

// A test may fail where it stands.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::Config;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks, SinkError};
use remora_dag::dir_node::DirNode;
use remora_dag::directory::{DirRoot, Entry, build_dir, read_dir_node, update_dir};
use remora_dag::errors::{Damaged, WriteError};
use remora_dag::hamt::name_hash;
use remora_dag::list::{Listing, NodeSource, Position, list_after, lookup};
use remora_dag::posix::{Row, decode_xattrs};
use remora_dag::profile::Profile;
use remora_dag::read::BlockNodes;
use remora_dag::walk::{Budget, Walk};

fn entry(name: &[u8], version: u64) -> Entry {
    let row = (version % 2 == 1).then(|| Row { ino: version, kind: 1, nlink: 1, ..Row::default() });
    let block = Block::seal(Codec::Raw, Bytes::from(version.to_le_bytes().to_vec()));
    Entry { name: name.to_vec(), cid: *block.cid(), tsize: 8 + (version % 300), row }
}

fn name(number: u32, len: usize) -> Vec<u8> {
    format!("{number:0len$}").into_bytes()
}

fn build(profile: Profile, set: &BTreeMap<Vec<u8>, Entry>, blocks: &MemBlocks) -> DirRoot {
    build_dir(profile, set.values().rev().cloned(), blocks).unwrap()
}

fn listed(blocks: &MemBlocks, root: &Cid, page: usize) -> Vec<Entry> {
    let nodes = BlockNodes::new(blocks);
    let mut all = Vec::new();
    let mut after: Option<Position> = None;
    loop {
        let entries = list_after(&nodes, root, after.as_ref(), page).unwrap();
        let Some((hash, last)) = entries.last() else { return all };
        after = Some(Position { hash: *hash, name: last.name.clone() });
        all.extend(entries.into_iter().map(|(_, entry)| entry));
    }
}

fn check_is(blocks: &MemBlocks, root: &DirRoot, set: &BTreeMap<Vec<u8>, Entry>) {
    let mut wanted: Vec<&Entry> = set.values().collect();
    wanted.sort_by_key(|entry| (name_hash(&entry.name), entry.name.clone()));
    assert!(listed(blocks, &root.cid, 997).iter().eq(wanted.iter().copied()));
    let nodes = BlockNodes::new(blocks);
    for (name, entry) in set.iter().step_by(set.len() / 50 + 1) {
        assert_eq!(lookup(&nodes, &root.cid, name).unwrap().as_ref(), Some(entry));
    }
    assert_eq!(lookup(&nodes, &root.cid, b"no such name").unwrap(), None);
}

/// Ranges of numbered names to set or to remove.
fn steps() -> impl Strategy<Value = Vec<(bool, u32, u32, u64)>> {
    prop::collection::vec((any::<bool>(), 0..1500u32, 0..1500u32, 0..1000u64), 1..5)
}

proptest! {
    #![proptest_config(Config::with_cases(24))]

    #[test]
    fn updating_gives_what_building_anew_gives(
        steps in steps(), profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        // Names of 200 bytes: about 1,050 of them are the border between one block and a HAMT.
        let blocks = MemBlocks::new();
        let mut set: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        let mut root: Option<Cid> = None;
        for (is_set, from, n, version) in steps {
            let names = (from..(from + n).min(1500)).map(|number| name(number, 200));
            let changes: BTreeMap<Vec<u8>, Option<Entry>> = names
                .map(|name| { let entry = is_set.then(|| entry(&name, version)); (name, entry) })
                .collect();
            for (name, change) in &changes {
                match change {
                    Some(entry) => set.insert(name.clone(), entry.clone()),
                    None => set.remove(name),
                };
            }
            let updated = update_dir(&blocks, &blocks, root.as_ref(), &changes, profile).unwrap();
            prop_assert_eq!(updated, build(profile, &set, &blocks));
            root = Some(updated.cid);
        }
        check_is(&blocks, &build(profile, &set, &blocks), &set);
    }

    #[test]
    fn a_listing_shows_lasting_entries_once_while_others_come_and_go(
        page in 1..400usize, changes in prop::collection::btree_set(0..3000u32, 0..1500),
    ) {
        let blocks = MemBlocks::new();
        let lasting: BTreeMap<Vec<u8>, Entry> =
            (0..1200).map(|number| { let name = name(number * 2, 180); (name.clone(), entry(&name, 2)) }).collect();
        let mut root = build(Profile::V1_2025, &lasting, &blocks);
        let mut changes: Vec<u32> = changes.into_iter().filter(|number| number % 2 == 1).collect();
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let entries = list_after(&BlockNodes::new(&blocks), &root.cid, after.as_ref(), page).unwrap();
            let Some((_, last)) = entries.last() else { break };
            after = Some(Position::of(&last.name));
            seen.extend(entries.into_iter().map(|(_, entry)| entry.name));
            let some = changes.split_off(changes.len() / 2);
            let some = some.into_iter().map(|number| {
                let name = name(number, 180);
                (name.clone(), Some(entry(&name, 3)))
            });
            root = update_dir(&blocks, &blocks, Some(&root.cid), &some.collect(), Profile::V1_2025).unwrap();
        }
        let unique: BTreeSet<&Vec<u8>> = seen.iter().collect();
        prop_assert_eq!(unique.len(), seen.len());
        prop_assert!(lasting.keys().all(|name| unique.contains(name)));
    }

    #[test]
    fn plain_and_posix_trees_have_one_shape(n in 900..1200u32) {
        let blocks = MemBlocks::new();
        let row = |ino| Some(Row { ino, kind: 1, mode: 0o644, uid: 33, nlink: 2, ..Row::default() });
        let plain: BTreeMap<Vec<u8>, Entry> =
            (0..n).map(|number| { let name = name(number, 200); (name.clone(), entry(&name, 2)) }).collect();
        let posix: BTreeMap<Vec<u8>, Entry> = plain
            .iter().zip(2..)
            .map(|((name, entry), ino)| (name.clone(), Entry { row: row(ino), ..entry.clone() }))
            .collect();
        let (a, b) = (build(Profile::V1_2025, &plain, &blocks), build(Profile::V1_2025, &posix, &blocks));
        prop_assert_eq!(a.tsize, b.tsize);
        let kind = |root: &DirRoot| matches!(read_dir_node(&blocks, &root.cid), Ok(DirNode::Basic(_)));
        prop_assert_eq!(kind(&a), kind(&b));
        check_is(&blocks, &b, &posix);
    }
}

#[test]
fn a_large_directory_goes_both_ways() {
    let blocks = MemBlocks::new();
    let profile = Profile::V1_2025;
    let set: BTreeMap<Vec<u8>, Entry> = (0..20_000)
        .map(|number| {
            let name = name(number, 9);
            (name.clone(), entry(&name, 1))
        })
        .collect();
    let big = build(profile, &set, &blocks);
    check_is(&blocks, &big, &set);
    let small: BTreeMap<Vec<u8>, Entry> = set.iter().take(3).map(|(n, e)| (n.clone(), e.clone())).collect();
    let remove = set.keys().skip(3).map(|name| (name.clone(), None)).collect();
    let shrunk = update_dir(&blocks, &blocks, Some(&big.cid), &remove, profile).unwrap();
    assert_eq!(shrunk, build(profile, &small, &blocks));
    let add = set.iter().skip(3).map(|(name, entry)| (name.clone(), Some(entry.clone()))).collect();
    assert_eq!(update_dir(&blocks, &blocks, Some(&shrunk.cid), &add, profile).unwrap(), big);
}

/// Counts new blocks.
struct Counted<'a>(&'a MemBlocks, AtomicUsize);

impl BlockSink for Counted<'_> {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.put(block)
    }
}

#[test]
fn one_change_in_a_large_directory_writes_one_path() {
    let blocks = MemBlocks::new();
    let set: BTreeMap<Vec<u8>, Entry> = (0..20_000)
        .map(|number| {
            let name = name(number, 9);
            (name.clone(), entry(&name, 1))
        })
        .collect();
    let root = build(Profile::V1_2025, &set, &blocks);
    let counted = Counted(&blocks, AtomicUsize::new(0));
    for change in [Some(entry(b"", 3)), None] {
        counted.1.store(0, Ordering::Relaxed);
        let changes = [(name(77, 9), change)].into();
        let new = update_dir(&blocks, &counted, Some(&root.cid), &changes, Profile::V1_2025).unwrap();
        assert_ne!(new.cid, root.cid);
        assert!(counted.1.load(Ordering::Relaxed) <= 3);
    }
    let nothing = [(b"absent".to_vec(), None)].into();
    let same = update_dir(&blocks, &blocks, Some(&root.cid), &nothing, Profile::V1_2025).unwrap();
    assert_eq!(same, root);
}

/// Two names with the same murmur3 hash: 16-byte blocks whose differences cancel.
fn colliding_names(n: usize) -> Vec<Vec<u8>> {
    let inverse = |odd: u64| (0..6).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))));
    let (c1, c2) = (0x87c3_7b91_1142_53d5u64, 0x4cf5_ad43_2745_937fu64);
    let unmix1 = |k: u64| k.wrapping_mul(inverse(c2)).rotate_right(31).wrapping_mul(inverse(c1));
    let unmix2 = |k: u64| k.wrapping_mul(inverse(c1)).rotate_right(33).wrapping_mul(inverse(c2));
    let mut names = Vec::new();
    for number in 0u64.. {
        if names.len() == n {
            break;
        }
        // After the first block the state is (h1, h2); the second block is chosen to bring it to a constant.
        let (k1, k2) = (
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            number.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ 0x94d0_49bb_1331_11eb,
        );
        let mix1 = k1.wrapping_mul(c1).rotate_left(31).wrapping_mul(c2);
        let mix2 = k2.wrapping_mul(c2).rotate_left(33).wrapping_mul(c1);
        let h1 = mix1.rotate_left(27).wrapping_mul(5).wrapping_add(0x52dc_e729);
        let h2 = mix2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
        let h1_wanted = 0x1234_5678u64;
        // h1' = (rotl27(h1 ^ m1) + h2) * 5 + c = wanted; h2' = (rotl31(h2 ^ m2) + h1') * 5 + c = wanted.
        let fifth = inverse(5);
        let m1 =
            h1_wanted.wrapping_sub(0x52dc_e729).wrapping_mul(fifth).wrapping_sub(h2).rotate_right(27) ^ h1;
        let m2 =
            h1_wanted.wrapping_sub(0x3849_5ab5).wrapping_mul(fifth).wrapping_sub(h1_wanted).rotate_right(31)
                ^ h2;
        let mut name = Vec::new();
        for k in [k1, k2, unmix1(m1), unmix2(m2)] {
            name.extend_from_slice(&k.to_le_bytes());
        }
        if !name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            names.push(name);
        }
    }
    names
}

#[test]
fn names_made_to_collide_cost_depth_and_nothing_else() {
    let blocks = MemBlocks::new();
    let colliding = colliding_names(300);
    assert!(colliding.iter().all(|name| name_hash(name) == name_hash(&colliding[0])));
    let mut set: BTreeMap<Vec<u8>, Entry> = (0..1500)
        .map(|number| {
            let name = name(number, 200);
            (name.clone(), entry(&name, 1))
        })
        .collect();
    let plain = build(Profile::V1_2025, &set, &blocks);
    set.extend(colliding.iter().map(|name| (name.clone(), entry(name, 1))));
    let full = build(Profile::V1_2025, &set, &blocks);
    check_is(&blocks, &full, &set);
    let nodes = BlockNodes::new(&blocks);
    assert!(colliding.iter().all(|name| lookup(&nodes, &full.cid, name).unwrap().is_some()));
    for page in [1, 7, 64] {
        assert_eq!(listed(&blocks, &full.cid, page).len(), set.len());
    }
    let remove = colliding.iter().map(|name| (name.clone(), None)).collect();
    assert_eq!(update_dir(&blocks, &blocks, Some(&full.cid), &remove, Profile::V1_2025).unwrap(), plain);
}

#[test]
fn hashes_of_known_names() {
    // Values of the reference implementation: MurmurHash3_x64_128, seed 0, first half.
    assert_eq!(name_hash(b""), 0);
    assert_eq!(name_hash(b"hello"), 0xcbd8_a7b3_41bd_9b02);
    assert_eq!(name_hash(b"The quick brown fox jumps over the lazy dog"), 0xe34b_bc7b_bc07_1b6c);
}

#[test]
fn names_a_directory_may_not_hold_are_refused() {
    let blocks = MemBlocks::new();
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b"] {
        let result = build_dir(Profile::V1_2025, [entry(bad, 0)], &blocks);
        assert!(matches!(result, Err(WriteError::Name { .. })), "{}", bad.escape_ascii());
    }
    let twice = build_dir(Profile::V1_2025, [entry(b"a", 0), entry(b"a", 1)], &blocks);
    assert!(matches!(twice, Err(WriteError::Duplicate { .. })));
}

#[test]
fn long_xattrs_move_into_a_block_that_a_walk_finds() {
    let blocks = MemBlocks::new();
    let xattrs = vec![(b"user.big".to_vec(), vec![7; 5000])];
    let row = Row { ino: 2, kind: 1, nlink: 1, xattrs: xattrs.clone(), ..Row::default() };
    let root = build_dir(Profile::V1_2025, [Entry { row: Some(row), ..entry(b"a", 0) }], &blocks).unwrap();
    let found = lookup(&BlockNodes::new(&blocks), &root.cid, b"a").unwrap().unwrap();
    let block = found.row.unwrap().xattrs_block.unwrap();
    assert_eq!(decode_xattrs(&blocks.get(&block).unwrap()).unwrap(), xattrs);
    let mut walk = Walk::new(&[root.cid], Budget::default()).unwrap();
    let mut seen = Vec::new();
    while let Some(cid) = walk.next_wanted() {
        seen.push(cid);
        match blocks.get(&cid) {
            Ok(bytes) => walk.supply(&cid, &bytes).unwrap(),
            Err(_) => assert!(walk.skip(&cid)),
        }
    }
    assert!(walk.is_over() && seen.contains(&block));
}

#[test]
fn the_largest_directory_of_one_block_has_room_for_its_rows() {
    let blocks = MemBlocks::new();
    let xattrs = vec![(b"user.attribute".to_vec(), vec![7; 174])];
    let entries = (0..5698u64).map(|i| {
        let name: Vec<u8> = i.to_le_bytes()[..2]
            .iter()
            .map(|byte| if matches!(byte, 0 | b'/') { 200 } else { *byte })
            .collect();
        let row = Row {
            ino: i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            kind: 1,
            mode: 0o7777,
            uid: u32::MAX - i as u32,
            gid: u32::MAX,
            size: u64::MAX,
            mtime: if i % 2 == 0 { i64::MIN } else { i64::MAX },
            ctime: 0,
            btime: if i % 2 == 0 { i64::MAX } else { i64::MIN },
            nlink: u32::MAX,
            rdev: u32::MAX,
            xattrs: xattrs.clone(),
            xattrs_block: None,
        };
        Entry { row: Some(row), ..Entry { name, ..entry(b"", 0) } }
    });
    let set: BTreeMap<Vec<u8>, Entry> = entries.map(|entry| (entry.name.clone(), entry)).collect();
    let root = build_dir(Profile::V1_2025, set.values().cloned(), &blocks).unwrap();
    check_is(&blocks, &root, &set);
}

#[test]
fn a_node_source_can_answer_not_yet() {
    struct Partial<'a>(&'a MemBlocks, BTreeSet<Cid>);
    #[derive(Debug)]
    enum Stop {
        Need(Cid),
        Damaged,
    }
    impl From<Damaged> for Stop {
        fn from(_: Damaged) -> Stop {
            Stop::Damaged
        }
    }
    impl NodeSource for Partial<'_> {
        type Error = Stop;
        fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, Stop> {
            if !self.1.contains(cid) {
                return Err(Stop::Need(*cid));
            }
            read_dir_node(self.0, cid).map(Arc::new).map_err(|_| Stop::Damaged)
        }
    }
    let blocks = MemBlocks::new();
    let set: BTreeMap<Vec<u8>, Entry> = (0..6000)
        .map(|number| {
            let name = name(number, 30);
            (name.clone(), entry(&name, 1))
        })
        .collect();
    let root = build(Profile::V1_2025, &set, &blocks);
    let mut nodes = Partial(&blocks, BTreeSet::new());
    let mut n_needed = 0;
    let found = loop {
        match lookup(&nodes, &root.cid, &name(4711, 30)) {
            Ok(found) => break found,
            Err(Stop::Need(cid)) => assert!(nodes.1.insert(cid)),
            Err(Stop::Damaged) => panic!("a sound tree"),
        }
        n_needed += 1;
    };
    assert_eq!(found, set.get(&name(4711, 30)).cloned());
    assert!((1..=3).contains(&n_needed));
}

#[test]
fn a_listing_goes_on_where_it_lacked_a_node() {
    /// Nodes that come one at a time, and how often one was asked for.
    struct Arriving<'a>(&'a MemBlocks, BTreeSet<Cid>, Cell<usize>);
    struct Need(Cid);
    impl From<Damaged> for Need {
        fn from(damaged: Damaged) -> Need {
            panic!("{damaged}")
        }
    }
    impl NodeSource for Arriving<'_> {
        type Error = Need;
        fn node(&self, cid: &Cid) -> Result<Arc<DirNode>, Need> {
            self.2.set(self.2.get() + 1);
            if !self.1.contains(cid) {
                return Err(Need(*cid));
            }
            Ok(read_dir_node(self.0, cid).map(Arc::new).unwrap())
        }
    }
    let blocks = MemBlocks::new();
    let set: BTreeMap<Vec<u8>, Entry> = (0..30_000)
        .map(|number| {
            let name = name(number, 30);
            (name.clone(), entry(&name, 1))
        })
        .collect();
    let root = build(Profile::V1_2025, &set, &blocks);
    let mut nodes = Arriving(&blocks, BTreeSet::new(), Cell::new(0));
    let mut listing = Listing::new(&root.cid, None);
    while let Err(Need(cid)) = listing.run(&nodes, usize::MAX) {
        assert!(nodes.1.insert(cid), "asked for what is there");
    }
    let found = listing.found();
    assert_eq!(found.len(), set.len());
    assert!(found.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    assert!(nodes.1.len() > 200, "a directory of many nodes");
    assert_eq!(
        nodes.2.get(),
        2 * nodes.1.len(),
        "each is asked for once when it lacks and once when it is there"
    );
}

#[test]
fn a_decoded_node_takes_little_more_memory_than_its_block() {
    let blocks = MemBlocks::new();
    for (n, times) in [(2_000, 3), (30_000, 1)] {
        let set: BTreeMap<Vec<u8>, Entry> = (0..n)
            .map(|number| {
                let name = name(number, 30);
                (name.clone(), entry(&name, 1))
            })
            .collect();
        let root = build(Profile::V1_2025, &set, &blocks);
        let block = blocks.get(&root.cid).unwrap();
        let node = DirNode::decode(&block).unwrap();
        assert_eq!(matches!(node, DirNode::Basic(_)), n == 2_000);
        let bytes = node.table_bytes();
        assert!(bytes <= times * block.len(), "{bytes} bytes for a block of {}", block.len());
    }
}
