//! Files of a tebibyte: what is derived costs what changed, not what the file could hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod state_rig;

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, BlockSink, BlockSource, MemBlocks, SinkError, SourceError};
use remora_vfs::attr::{Ino, NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::filesystem::{Allocate, Caller, Filesystem, Seek};
use remora_volume::derive::derive;
use state_rig::Rig;

const CALLER: Caller = Caller { uid: 0, gid: 0 };
const NOW: Timestamp = Timestamp(5);
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Counts the blocks that pass.
struct Counted<'a> {
    blocks: &'a MemBlocks,
    n: AtomicUsize,
}

impl BlockSource for Counted<'_> {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.blocks.get(cid)
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.blocks.get_range(cid, offset, len)
    }
}

impl BlockSink for Counted<'_> {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.n.fetch_add(1, Ordering::Relaxed);
        self.blocks.put(block)
    }
}

fn make(rig: &Rig, name: &str) -> Ino {
    let ino = rig.make(CALLER, ROOT_INO, name.as_bytes(), &NewNode::File, 0o644, NOW).unwrap().ino;
    rig.forget(ino, 1);
    ino
}

/// How many blocks pass when what was done since the last tree becomes one.
fn n_derived(rig: &Rig) -> usize {
    rig.cut();
    let upto = rig.core().seq - 1;
    let shadow = rig.replay(upto);
    let log = rig.core().log.clone();
    let counted = Counted { blocks: &rig.blocks, n: AtomicUsize::new(0) };
    derive(&shadow, &counted, &counted, &log).unwrap();
    assert!(rig.checkpoint());
    while !rig.rebase(100) {}
    counted.n.into_inner()
}

/// A file of a tebibyte with a little data near its start, in its middle and at its end.
fn sparse(rig: &Rig) -> (Ino, Vec<u64>) {
    let ino = make(rig, "sparse");
    rig.allocate(ino, Allocate::Extend, 0, TIB, NOW).unwrap();
    let data = vec![5000, 300 * GIB + 77, 700 * GIB, TIB - 9];
    for at in &data {
        rig.write(ino, *at, b"DATA", NOW).unwrap();
    }
    (ino, data)
}

#[test]
fn deriving_a_sparse_file_of_a_tebibyte_costs_what_was_written() {
    let rig = Rig::new();
    let (ino, data) = sparse(&rig);
    assert!(n_derived(&rig) < 60);
    for at in data {
        assert_eq!(rig.read(ino, at, 4).unwrap(), b"DATA");
        assert_eq!(rig.read(ino, at - 4, 4).unwrap(), [0; 4]);
    }
}

#[test]
fn deriving_copies_of_a_tebibyte_costs_their_ends_and_their_data() {
    let rig = Rig::new();
    let (ino, data) = sparse(&rig);
    n_derived(&rig);
    // As it is, further by whole chunks, further by bytes.
    for (name, shift) in [("same", 0), ("chunks", 5 << 20), ("bytes", 12_345)] {
        let copy = make(&rig, name);
        let mut done = 0;
        while done < TIB {
            done += rig.copy_range((ino, done), (copy, done + shift), TIB - done, NOW).unwrap();
        }
        let n = n_derived(&rig);
        assert!(n < 150, "{name}: {n}");
        for at in &data {
            assert_eq!(rig.read(copy, at + shift, 4).unwrap(), b"DATA", "{name}");
            assert_eq!(rig.read(copy, at + shift - 4, 4).unwrap(), [0; 4], "{name}");
        }
    }
}

#[test]
fn deriving_a_hole_or_a_cut_of_half_a_tebibyte_costs_its_ends() {
    let rig = Rig::new();
    let (ino, _) = sparse(&rig);
    n_derived(&rig);
    rig.allocate(ino, Allocate::Punch, 7777, TIB / 2, NOW).unwrap();
    let n = n_derived(&rig);
    assert!(n < 60, "{n}");
    assert_eq!(rig.read(ino, 5000, 4).unwrap(), b"DATA");
    assert_eq!(rig.read(ino, 300 * GIB + 77, 4).unwrap(), [0; 4]);
    assert_eq!(rig.read(ino, 700 * GIB, 4).unwrap(), b"DATA");
    rig.setattr(ino, &SetAttr { size: Some(6000), ..SetAttr::default() }, NOW).unwrap();
    rig.setattr(ino, &SetAttr { size: Some(TIB), ..SetAttr::default() }, NOW).unwrap();
    let n = n_derived(&rig);
    assert!(n < 60, "{n}");
    assert_eq!(rig.read(ino, 5000, 4).unwrap(), b"DATA");
    assert_eq!(rig.read(ino, 700 * GIB, 4).unwrap(), [0; 4]);
}

/// A file of a tebibyte with a chunk in each gibibyte, never at the same place in it: no two nodes are the same.
fn dotted(rig: &Rig) -> Ino {
    let ino = make(rig, "dotted");
    for i in 0..TIB / GIB {
        rig.write_ref(ino, i * GIB + (i << 20), &[7; 1 << 20], NOW).unwrap();
    }
    rig.allocate(ino, Allocate::Extend, 0, TIB, NOW).unwrap();
    n_derived(rig);
    ino
}

#[test]
fn cutting_a_sparse_file_in_its_middle_takes_each_node_once() {
    let rig = Rig::new();
    let ino = dotted(&rig);
    assert_eq!(rig.core().state.stats().bytes, 1 << 30);
    rig.reopen();
    let before = rig.n_supplied();
    rig.allocate(ino, Allocate::Punch, GIB, 400 * GIB, NOW).unwrap();
    let n_read = rig.n_supplied() - before;
    assert!((400..450).contains(&n_read), "{n_read} nodes for 400 gibibytes");
    assert_eq!(rig.core().state.stats().bytes, (1024 - 400) << 20);
    rig.setattr(ino, &SetAttr { size: Some(520 * GIB), ..SetAttr::default() }, NOW).unwrap();
    assert_eq!(rig.core().state.stats().bytes, (520 - 400) << 20);
    let before = rig.n_supplied();
    rig.reopen();
    let n_read = rig.n_supplied() - before;
    assert!(n_read < 1100, "{n_read} nodes for a replay of both");
    assert_eq!(rig.core().state.stats().bytes, (520 - 400) << 20);
}

#[test]
fn data_far_apart_and_data_close_by_is_sought_in_bounded_steps() {
    let rig = Rig::new();
    let ino = dotted(&rig);
    for i in [0, 1, 500, 1023] {
        let data = i * GIB + (i << 20);
        assert_eq!(rig.seek(ino, Seek::Data, i * GIB).unwrap(), data);
        assert_eq!(rig.seek(ino, Seek::Hole, data).unwrap(), data + (1 << 20));
    }
    let file = make(&rig, "close");
    for i in 0..1000 {
        rig.write(file, i * 8192, &[1; 4096], NOW).unwrap();
    }
    let mut at = 0;
    for i in 0..1000 {
        at = rig.seek(file, Seek::Data, at).unwrap();
        assert_eq!(at, i * 8192);
        at = rig.seek(file, Seek::Hole, at).unwrap();
        assert_eq!(at, i * 8192 + 4096);
    }
}
