//! Bytes from strangers: refused with an error, never a panic, never without bound.

// A test may fail where it stands.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use std::io::Read;

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks, VerifyError, check_cid, cid_of};
use remora_dag::dagpb::{Link, Node};
use remora_dag::dir_node::DirNode;
use remora_dag::directory::{Entry, build_dir};
use remora_dag::errors::{Malformed, ReadError};
use remora_dag::file::{FileBuilder, FileNode};
use remora_dag::list::{list_after, lookup};
use remora_dag::node::{UnixfsNode, resolve};
use remora_dag::posix::{Row, decode_rows, decode_xattrs, encode_rows, encode_xattrs};
use remora_dag::profile::Profile;
use remora_dag::read::{BlockNodes, FileReader, read};
use remora_dag::unixfs::{Data, NodeType, symlink_block, symlink_target};
use remora_dag::walk::{Budget, Walk, WalkError, links_of};

fn link(cid: Cid, name: &str) -> Link {
    Link { cid, name: Bytes::copy_from_slice(name.as_bytes()), tsize: 1 }
}

fn node(links: Vec<Link>, message: &Data) -> Bytes {
    Node { links, data: Some(message.to_bytes()) }.encode()
}

fn shard(fanout: u64, bits: &[u8], links: Vec<Link>) -> Bytes {
    let message = Data {
        data: Some(Bytes::copy_from_slice(bits)),
        hash_type: Some(0x22),
        fanout: Some(fanout),
        ..Data::of(NodeType::HamtShard)
    };
    node(links, &message)
}

fn file(links: &[Cid], sizes: &[u64], size: u64) -> Bytes {
    let message = Data { filesize: Some(size), blocksizes: sizes.to_vec(), ..Data::of(NodeType::File) };
    node(links.iter().map(|cid| link(*cid, "")).collect(), &message)
}

fn put(blocks: &MemBlocks, bytes: Bytes) -> Cid {
    let block = Block::seal(Codec::DagPb, bytes);
    let cid = *block.cid();
    blocks.put(block).unwrap();
    cid
}

fn leaf() -> Cid {
    cid_of(Codec::Raw, b"x")
}

#[test]
fn a_hamt_fanout_that_is_not_a_sound_power_of_two_is_refused() {
    for fanout in [0, 1, 2, 3, 4, 12, 24, 2048, 1 << 32, u64::MAX] {
        let found = DirNode::decode(&shard(fanout, &[1], vec![link(leaf(), "00a")]));
        assert_eq!(found, Err(Malformed::Fanout(fanout)));
    }
    assert!(DirNode::decode(&shard(256, &[1], vec![link(leaf(), "00a")])).is_ok());
    assert!(DirNode::decode(&shard(1024, &[1], vec![link(leaf(), "000a")])).is_ok());
    assert!(DirNode::decode(&shard(8, &[1], vec![link(leaf(), "0a")])).is_ok());
}

#[test]
fn a_hamt_bit_field_that_contradicts_the_links_is_refused() {
    let one = || vec![link(leaf(), "00a")];
    for (bits, links) in [
        (vec![], one()),
        (vec![3], one()),
        (vec![2], one()),
        (vec![0; 33], one()),
        (vec![1], vec![link(leaf(), "0a")]),
        (vec![1], vec![link(leaf(), "0")]),
        (vec![4, 0], vec![link(leaf(), "0aname")]),
        (vec![3], vec![link(leaf(), "00a"), link(leaf(), "00b")]),
    ] {
        assert_eq!(DirNode::decode(&shard(256, &bits, links)), Err(Malformed::Shard), "{bits:?}");
    }
}

#[test]
fn names_that_lead_out_of_a_directory_are_refused() {
    for bad in ["", ".", "..", "a/b", "../x", "a\0"] {
        let bytes = node(vec![link(leaf(), bad)], &Data::of(NodeType::Directory));
        assert_eq!(DirNode::decode(&bytes), Err(Malformed::Name), "{bad:?}");
    }
    let twice = node(vec![link(leaf(), "a"), link(leaf(), "a")], &Data::of(NodeType::Directory));
    assert_eq!(DirNode::decode(&twice), Err(Malformed::Duplicate));
}

#[test]
fn file_sizes_that_contradict_each_other_are_refused() {
    let decode = |bytes: &Bytes| FileNode::decode(&cid_of(Codec::DagPb, bytes), bytes);
    assert_eq!(decode(&file(&[leaf()], &[1, 2], 3)), Err(Malformed::Size));
    assert_eq!(decode(&file(&[leaf(), leaf()], &[1, 1], 3)), Err(Malformed::Size));
    assert_eq!(decode(&file(&[leaf(), leaf()], &[u64::MAX, 1], 0)), Err(Malformed::Size));
    let named = Data { filesize: Some(1), blocksizes: vec![1], ..Data::of(NodeType::File) };
    assert_eq!(decode(&node(vec![link(leaf(), "a")], &named)), Err(Malformed::Link));

    let blocks = MemBlocks::new();
    blocks.put(Block::seal(Codec::Raw, Bytes::from_static(b"x"))).unwrap();
    for lie in [0, 2, 1 << 40] {
        let root = put(&blocks, file(&[leaf(), leaf()], &[1, lie], 1 + lie));
        let found = read(&blocks, &root, 0, usize::MAX);
        assert_eq!(found.is_ok(), lie == 0, "{lie}");
    }
}

#[test]
fn a_chain_of_nodes_ends_in_an_error() {
    let blocks = MemBlocks::new();
    blocks.put(Block::seal(Codec::Raw, Bytes::from_static(b"x"))).unwrap();
    let mut cid = leaf();
    for _ in 0..100_000 {
        cid = put(&blocks, file(&[cid], &[1], 1));
    }
    assert!(matches!(read(&blocks, &cid, 0, 1), Err(ReadError::Damaged(_))));
    let mut walk = Walk::new(&[cid], Budget::default()).unwrap();
    assert_eq!(walk_all(&blocks, &mut walk), Err(WalkError::Depth(4096)));

    let mut dir = put(&blocks, shard(256, &[], vec![]));
    for _ in 0..100_000 {
        dir = put(&blocks, shard(256, &[1], vec![link(dir, "00")]));
    }
    let nodes = BlockNodes::new(&blocks);
    assert!(list_after(&nodes, &dir, None, 10).is_err());
    // Whether a name leads down the chain or beside it, the answer comes.
    for name in [&b""[..], b"hello"] {
        assert_eq!(lookup(&nodes, &dir, name).unwrap(), None);
    }
}

#[test]
fn a_dag_with_two_to_the_sixty_paths_is_walked_once() {
    let blocks = MemBlocks::new();
    blocks.put(Block::seal(Codec::Raw, Bytes::from_static(b"x"))).unwrap();
    let (mut cid, mut size) = (leaf(), 1u64);
    for _ in 0..60 {
        cid = put(&blocks, file(&[cid, cid], &[size, size], size * 2));
        size *= 2;
    }
    let mut walk = Walk::new(&[cid], Budget::default()).unwrap();
    walk_all(&blocks, &mut walk).unwrap();
    assert_eq!(walk.n_found(), 61);
    assert_eq!(read(&blocks, &cid, size - 3, 100).unwrap(), &b"xxx"[..]);
    let mut some = [0; 1000];
    FileReader::open(&blocks, &cid).unwrap().read_exact(&mut some).unwrap();
    assert_eq!(some, [b'x'; 1000]);

    let mut dir = put(&blocks, shard(256, &[1], vec![link(leaf(), "00a")]));
    for _ in 0..30 {
        let links = (0..256).map(|index| link(dir, &format!("{index:02X}"))).collect();
        dir = put(&blocks, shard(256, &[255; 32], links));
    }
    assert!(list_after(&BlockNodes::new(&blocks), &dir, None, 10).is_err());
}

fn walk_all(blocks: &MemBlocks, walk: &mut Walk) -> Result<(), WalkError> {
    while let Some(cid) = walk.next_wanted() {
        walk.supply(&cid, &blocks.get(&cid).unwrap())?;
    }
    assert!(walk.is_over());
    Ok(())
}

#[test]
fn a_walk_ends_where_its_budget_does() {
    let blocks = MemBlocks::new();
    let leaves: Vec<Cid> = (0..10u8)
        .map(|n| {
            let block = Block::seal(Codec::Raw, Bytes::from(vec![n]));
            let cid = *block.cid();
            blocks.put(block).unwrap();
            cid
        })
        .collect();
    let root = put(&blocks, file(&leaves, &[1; 10], 10));
    let check = |budget: Budget| walk_all(&blocks, &mut Walk::new(&[root], budget)?);
    assert_eq!(check(Budget { blocks: 11, ..Budget::default() }), Ok(()));
    assert_eq!(check(Budget { blocks: 10, ..Budget::default() }), Err(WalkError::Blocks(10)));
    assert_eq!(check(Budget { bytes: 100, ..Budget::default() }), Err(WalkError::Bytes(100)));
    assert_eq!(check(Budget { depth: 0, ..Budget::default() }), Err(WalkError::Depth(0)));
    let mut walk = Walk::new(&[root], Budget::default()).unwrap();
    assert_eq!(walk.supply(&root, &Bytes::new()), Err(WalkError::Unasked(root)));
}

#[test]
fn only_strong_hashes_and_short_identities_are_accepted() {
    let sha = |len: usize| Cid::new_v1(0x55, multihash::Multihash::wrap(0x12, &vec![1; len]).unwrap());
    assert!(check_cid(&sha(32)).is_ok());
    assert!(matches!(check_cid(&sha(20)), Err(VerifyError::Hash { .. })));
    let murmur = Cid::new_v1(0x55, multihash::Multihash::wrap(0x22, &[1; 8]).unwrap());
    assert!(matches!(check_cid(&murmur), Err(VerifyError::Hash { .. })));
    let identity = Cid::new_v1(0x55, multihash::Multihash::wrap(0, b"abc").unwrap());
    assert!(Block::verify(identity, Bytes::from_static(b"abc")).is_ok());
    assert!(Block::verify(identity, Bytes::from_static(b"abd")).is_err());
    assert!(matches!(Block::verify(leaf(), Bytes::from_static(b"y")), Err(VerifyError::Mismatch { .. })));
    let long = Bytes::from(vec![0; 2 * 1024 * 1024 + 1]);
    assert!(matches!(Block::verify(leaf(), long), Err(VerifyError::TooLong { .. })));
    assert!(check_cid(&Cid::new_v1(0x72, *leaf().hash())).is_err());
}

#[test]
fn dag_pb_in_any_but_its_sound_forms_is_refused() {
    let good = node(vec![link(leaf(), "a"), link(leaf(), "b")], &Data::of(NodeType::Directory));
    assert_eq!(Node::decode(&good).unwrap().encode(), good);
    let data = &good[good.len() - 4..];
    let links = &good[..good.len() - 4];
    let half = links.len() / 2;
    let join = |parts: &[&[u8]]| Node::decode(&Bytes::from(parts.concat()));
    assert!(join(&[data, links]).is_ok());
    assert!(join(&[&links[..half], data, &links[half..]]).is_err());
    assert!(join(&[links, data, data]).is_err());
    assert!(join(&[links, data, &[0x18, 0]]).is_err());
    assert!(join(&[links, &data[..3]]).is_err());
    assert!(join(&[&[0x12, 0]]).is_err());
    assert!(join(&[&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]).is_err());
}

#[test]
fn symlinks_are_read_as_they_were_written() {
    let block = symlink_block(b"../to/here");
    assert_eq!(symlink_target(block.cid(), block.bytes()).unwrap(), &b"../to/here"[..]);
    let nul = symlink_block(b"a\0b");
    assert_eq!(symlink_target(nul.cid(), nul.bytes()), Err(Malformed::Size));
    let message = Data { data: Some(Bytes::from_static(b"x")), ..Data::of(NodeType::Symlink) };
    let linked = node(vec![link(leaf(), "")], &message);
    assert_eq!(symlink_target(&cid_of(Codec::DagPb, &linked), &linked), Err(Malformed::Link));
}

#[test]
fn a_path_is_followed_name_by_name() {
    let blocks = MemBlocks::new();
    let entry = |name: &[u8], cid| Entry { name: name.to_vec(), cid, tsize: 1, row: None };
    let inner = build_dir(Profile::V1_2025, [entry(b"f", leaf())], &blocks).unwrap();
    let root = build_dir(Profile::V1_2025, [entry(b"d", inner.cid)], &blocks).unwrap();
    let go = |path: &[&'static [u8]]| resolve(&blocks, &root.cid, path.iter().copied());
    assert_eq!(go(&[]).unwrap(), None);
    assert_eq!(go(&[b"d", b"f"]).unwrap().unwrap().cid, leaf());
    assert!(matches!(go(&[b"d", b"g"]), Err(ReadError::NoEntry { name }) if name == b"g"));
    assert!(matches!(go(&[b"d", b"f", b"x"]), Err(ReadError::Damaged(_))));
}

#[test]
fn links_of_dag_cbor_are_found_and_bombs_refused() {
    let mut cbor = vec![0xa2, 0x61, b'a', 0x82, 0xd8, 42, 0x58, 37, 0];
    cbor.extend(leaf().to_bytes());
    cbor.extend([0xf6, 0x61, b'b', 0x1b, 0, 0, 0, 0, 0, 0, 0, 1]);
    let cid = cid_of(Codec::DagCbor, &cbor);
    let links = |bytes: Vec<u8>| links_of(&cid, &Bytes::from(bytes));
    assert_eq!(links(cbor.clone()).unwrap(), [leaf()]);
    assert!(links([cbor, vec![0]].concat()).is_err());
    assert!(links(vec![0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(links(vec![0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(links(vec![0x81; 100_000]).is_err());
    assert!(links(vec![0x9f, 0xff]).is_err());
}

fn rows() -> impl Strategy<Value = Vec<Option<Row>>> {
    let xattrs = prop::collection::btree_map(prop::collection::vec(1..255u8, 1..9), any::<[u8; 5]>(), 0..4);
    let ids = (any::<u64>(), 1..8u8, 0..0o10000u16, 0..3u32, any::<u32>(), any::<u64>());
    let times = (any::<i64>(), any::<i64>(), any::<i64>(), any::<bool>());
    let places = (any::<bool>(), 0..4usize);
    let row = (ids, times, 0..3u32, 0..2u32, xattrs, places).prop_map(
        |((ino, kind, mode, uid, gid, size), (mtime, ctime, btime, is_new), nlink, rdev, xattrs, places)| {
            Row {
                ino,
                kind,
                mode,
                uid,
                gid,
                size,
                mtime,
                ctime: if is_new { mtime } else { ctime },
                btime: if is_new { mtime } else { btime },
                nlink,
                rdev,
                xattrs: xattrs.into_iter().map(|(n, v)| (n, v.to_vec())).take(places.1).collect(),
                xattrs_block: places.0.then(|| Box::new(leaf())),
            }
        },
    );
    prop::collection::vec(prop::option::weighted(0.8, row), 0..20)
}

/// Everything that reads a block, on the same bytes.
fn read_as_everything(bytes: &Bytes) {
    for codec in [Codec::Raw, Codec::DagPb, Codec::DagCbor] {
        let cid = cid_of(codec, bytes);
        let _ = UnixfsNode::decode(&cid, bytes);
        let _ = FileNode::decode(&cid, bytes);
        let _ = links_of(&cid, bytes);
        let _ = symlink_target(&cid, bytes);
    }
    let _ = DirNode::decode(bytes);
    let _ = decode_xattrs(bytes);
    for n in [0, 1, 5] {
        let _ = decode_rows(bytes, n);
    }
}

fn sound_blocks() -> Vec<Bytes> {
    let blocks = MemBlocks::new();
    let row =
        |ino| Some(Row { ino, kind: 1, xattrs: vec![(b"a".to_vec(), b"b".to_vec())], ..Row::default() });
    let entries = (0..5u64).map(|n| Entry { name: vec![b'a' + n as u8], cid: leaf(), tsize: n, row: row(n) });
    build_dir(Profile::V1_2025, entries, &blocks).unwrap();
    let mut builder = FileBuilder::new(Profile::V0_2015, &blocks);
    builder.write(&[7; 300_000]).unwrap();
    let root = builder.finish().unwrap();
    blocks.put(symlink_block(b"to")).unwrap();
    put(&blocks, shard(256, &[1, 1], vec![link(leaf(), "00a"), link(root.cid, "08")]));
    blocks.cids().iter().map(|cid| blocks.get(cid).unwrap()).filter(|bytes| bytes.len() < 2000).collect()
}

proptest! {
    #[test]
    fn rows_are_read_as_they_were_written(rows in rows()) {
        let table = encode_rows(&rows.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
        match table {
            Some(table) => prop_assert_eq!(decode_rows(&table, rows.len()).unwrap(), rows),
            None => prop_assert!(rows.iter().all(Option::is_none)),
        }
    }

    #[test]
    fn a_table_of_rows_has_one_encoding(rows in rows(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let table = encode_rows(&rows.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
        if let Some(table) = table {
            let mut table = table.to_vec();
            let place = place.index(table.len());
            table[place] = byte;
            if let Ok(read) = decode_rows(&table, rows.len()) {
                let again = encode_rows(&read.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
                prop_assert_eq!(again.unwrap(), table);
            }
        }
    }

    #[test]
    fn xattrs_are_read_as_they_were_written(
        xattrs in prop::collection::btree_map(prop::collection::vec(1..255u8, 1..50), prop::collection::vec(any::<u8>(), 0..300), 1..9)
    ) {
        let xattrs: Vec<_> = xattrs.into_iter().collect();
        prop_assert_eq!(decode_xattrs(&encode_xattrs(&xattrs).unwrap()).unwrap(), xattrs);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_as_everything(&Bytes::from(bytes));
    }

    #[test]
    fn damaged_blocks_never_panic(
        block in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let blocks = sound_blocks();
        let mut bytes = blocks[block.index(blocks.len())].to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_as_everything(&Bytes::from(bytes));
    }
}
