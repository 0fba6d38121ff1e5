//! A tree by itself: what a host that has nothing but the blocks of a tree sees, and what any IPFS client sees in it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cid::Cid;

use remora_dag::block::{Block, BlockSink, BlockSource, Codec};
use remora_dag::list::list_after;
use remora_dag::read::BlockNodes;
use remora_dag::walk::links_of;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{Ino, Kind, NewNode};
use remora_volume::journal::blocks::BlockStore;
use remora_volume::tree::Tree;
use remora_volume::volume::Volume;

use model::history::History;
use model::picture::{Picture, picture_of};
use model::request::{Request, Slots, Target};
use rig::{fresh, options_on, store_on};

fn make(at: &'static str, node: NewNode) -> Request {
    Request::Make { at, node, mode: 0o4751 }
}

fn write(at: &'static str, offset: u64, len: usize) -> Request {
    Request::Write { file: Target::At(at), offset, len, fill: len as u8, skip: 0 }
}

fn xattr(at: &'static str, name: &'static str, len: usize) -> Request {
    Request::SetXattr { file: Target::At(at), name, len, fill: 9 }
}

/// One of everything there is in a tree.
fn everything() -> Vec<Request> {
    vec![
        make("d", NewNode::Directory),
        make("d/e", NewNode::Directory),
        make("empty", NewNode::Directory),
        make("f", NewNode::File),
        make("d/e/sparse", NewNode::File),
        make("nothing", NewNode::File),
        make("d/link", NewNode::Symlink(b"e/sparse".to_vec())),
        make("d/pipe", NewNode::Fifo),
        make("d/socket", NewNode::Socket),
        make("disk", NewNode::BlockDevice(0x1234)),
        write("f", 0, 3_000_000),
        write("d/e/sparse", 5_000_000, 3),
        write("d/e/sparse", 77, 1000),
        Request::Link { from: Target::At("f"), to: "d/f too" },
        Request::Link { from: Target::At("d/pipe"), to: "pipe" },
        Request::Link { from: Target::At("f"), to: "d/e/and here" },
        xattr("f", "user.short", 5),
        xattr("d/e/sparse", "user.long", 4000),
        xattr("d", "user.of a directory", 300),
        xattr("", "user.of the root", 300),
        Request::Attributes { file: Target::At("disk"), mode: Some(0o1600), uid: Some(77), mtime: Some(-5) },
    ]
}

/// A volume with everything in it and a tree of that.
fn snapshot() -> (Volume, Arc<dyn BlockStore>, Cid, Picture) {
    let (disk, volume) = fresh(1);
    let (mut history, mut slots) = (History::new(), Slots::default());
    for request in everything() {
        assert!(history.request(&volume, &mut slots, &request), "{request:?}");
    }
    let (tree, _) = volume.snapshot_tree().unwrap();
    let picture = picture_of(&volume);
    (volume, store_on(Arc::new(disk.kill())).blocks, tree, picture)
}

/// Every block of a tree, found by its links alone.
fn blocks_of(source: &dyn BlockSource, tree: Cid) -> BTreeMap<Cid, Block> {
    let (mut blocks, mut todo) = (BTreeMap::new(), vec![tree]);
    while let Some(cid) = todo.pop() {
        if blocks.contains_key(&cid) {
            continue;
        }
        let bytes = source.get(&cid).unwrap();
        todo.extend(links_of(&cid, &bytes).unwrap());
        if cid == tree {
            todo.extend(Tree::decode(&cid, &bytes).unwrap().root_row.xattrs_block.map(|cid| *cid));
        }
        let block = Block::seal(Codec::of(&cid).unwrap(), bytes);
        assert_eq!(*block.cid(), cid);
        blocks.insert(cid, block);
    }
    blocks
}

#[test]
fn a_tree_is_the_same_on_a_host_that_has_only_its_blocks() {
    let (_volume, source, tree, picture) = snapshot();
    let empty = store_on(Arc::new(SimDisk::new(2)));
    for block in blocks_of(&*source, tree).into_values() {
        BlockSink::put(&*empty.blocks, block).unwrap();
    }
    let mut options = options_on(&empty);
    options.base.tree = tree;
    let there = Volume::open(options).unwrap();
    // Names, bytes and all metadata, the numbers of inodes included.
    assert_eq!(picture_of(&there), picture);
    // And the same tree comes out of it.
    assert_eq!(there.snapshot_tree().unwrap().0, tree);
}

#[test]
fn hard_links_are_one_file_in_the_mount_and_in_the_plain_tree() {
    let (_volume, source, tree, picture) = snapshot();
    let root = Tree::load(&tree, &*source).unwrap().root;
    let mut seen: BTreeMap<Ino, BTreeSet<Cid>> = BTreeMap::new();
    let (mut n_names, mut todo) = (0, vec![root]);
    while let Some(dir) = todo.pop() {
        for (_, entry) in list_after(&BlockNodes::new(&*source), &dir, None, 1000).unwrap() {
            let row = entry.row.unwrap();
            n_names += 1;
            seen.entry(row.ino).or_default().insert(entry.cid);
            if row.kind == Kind::Directory as u8 {
                todo.push(entry.cid);
            }
        }
    }
    assert_eq!(n_names + 1, picture.names.inos.len(), "every name is in the plain tree");
    assert_eq!(seen.len() + 1, picture.held.len());
    assert!(seen.values().all(|cids| cids.len() == 1), "all names of an inode lead to the same content");
}

#[test]
fn the_counters_of_a_tree_are_a_recount_of_its_rows() {
    let (volume, source, tree, picture) = snapshot();
    let stats = Tree::load(&tree, &*source).unwrap().stats;
    assert_eq!(stats.inodes, picture.held.len() as u64);
    assert_eq!(stats.bytes, 3_000_000 + 1003, "holes are not counted, and a hard link once");
    assert_eq!((volume.status().inodes, volume.status().bytes), (stats.inodes, stats.bytes));
}

#[test]
fn a_sparse_file_with_many_attributes_gives_back_what_it_took() {
    let (disk, volume) = fresh(3);
    let (mut history, mut slots) = (History::new(), Slots::default());
    let mut ask = |volume: &Volume, request: Request| {
        assert!(history.request(volume, &mut slots, &request), "{request:?}");
    };
    ask(&volume, make("other", NewNode::File));
    ask(&volume, write("other", 0, 50_000));
    ask(&volume, make("sparse", NewNode::File));
    ask(&volume, write("sparse", 70_000, 10));
    ask(&volume, xattr("sparse", "user.long", 4000));
    volume.checkpoint().unwrap();
    volume.close().unwrap();
    let volume = Volume::open(options_on(&store_on(Arc::new(disk.kill())))).unwrap();
    assert_eq!(volume.status().bytes, 50_010);
    ask(&volume, Request::Truncate { file: Target::At("sparse"), size: 0 });
    assert_eq!(volume.status().bytes, 50_000, "what was never counted is not given back");
}
