//! Large directories over a base, quotas, and the determinism of trees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod state_rig;

use std::collections::BTreeSet;

use remora_vfs::attr::{Ino, NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Caller, Filesystem, RenameMode};
use remora_volume::op::decode_all;
use remora_volume::state::State;
use state_rig::{Log, Rig, ask};

const CALLER: Caller = Caller { uid: 0, gid: 0 };
const NOW: Timestamp = Timestamp(5);

fn make(rig: &Rig, dir: Ino, name: &str, node: &NewNode) -> Ino {
    let ino = rig.make(CALLER, dir, name.as_bytes(), node, 0o644, NOW).unwrap().ino;
    rig.forget(ino, 1);
    ino
}

fn settle(rig: &Rig) {
    rig.checkpoint();
    while !rig.rebase(100) {}
}

fn names(rig: &Rig, dir: Ino) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    rig.readdir(dir, 0, &mut |entry| {
        assert!(names.insert(entry.name.clone()), "listed twice");
        true
    })
    .unwrap();
    names
}

#[test]
fn a_large_directory_lives_over_a_base() {
    let rig = Rig::new();
    let dir = make(&rig, ROOT_INO, "dir", &NewNode::Directory);
    let name = |i: usize| format!("a-file-with-a-name-{i:05}");
    for i in 0..6000 {
        make(&rig, dir, &name(i), &NewNode::File);
    }
    settle(&rig);
    rig.reopen();
    assert_eq!(names(&rig, dir).len(), 6000);
    for i in (0..6000).step_by(2) {
        rig.unlink(dir, name(i).as_bytes(), NOW).unwrap();
    }
    make(&rig, dir, "new", &NewNode::File);
    assert_eq!(names(&rig, dir).len(), 3001);
    assert_eq!(rig.rmdir(ROOT_INO, b"dir", NOW), Err(Errno::ENOTEMPTY));
    settle(&rig);
    assert_eq!(names(&rig, dir).len(), 3001);
    rig.unlink(dir, b"new", NOW).unwrap();
    for i in (1..6000).step_by(2) {
        rig.unlink(dir, name(i).as_bytes(), NOW).unwrap();
    }
    assert!(names(&rig, dir).is_empty());
    rig.rmdir(ROOT_INO, b"dir", NOW).unwrap();
    settle(&rig);
    rig.reopen();
    assert_eq!(rig.core().state.stats().inodes, 1);
}

#[test]
fn removed_files_leave_an_empty_tree_as_it_was() {
    let rig = Rig::new();
    let before = rig.core().base.clone();
    for i in 0..700 {
        make(&rig, ROOT_INO, &format!("f{i}"), &NewNode::File);
    }
    settle(&rig);
    for i in 0..700 {
        rig.unlink(ROOT_INO, format!("f{i}").as_bytes(), NOW).unwrap();
    }
    settle(&rig);
    let after = rig.core().base.clone();
    assert_eq!((before.root, before.names, before.stats), (after.root, after.names, after.stats));
    assert!(after.next_ino > 700, "numbers are not given out twice");
}

#[test]
fn batches_do_not_show_in_a_tree() {
    let rig = Rig::new();
    for i in 0..20 {
        let dir = make(&rig, ROOT_INO, &format!("d{i}"), &NewNode::Directory);
        for j in 0..5 {
            let file = make(&rig, dir, &format!("f{j}"), &NewNode::File);
            rig.write(file, 1000 * j, &vec![7; 100_000], NOW).unwrap();
            rig.write(file, (1 << 20) - 5, b"over the edge", NOW).unwrap();
        }
        rig.link(dir + 1, ROOT_INO, format!("l{i}").as_bytes(), NOW).unwrap();
        if i % 3 == 0 {
            rig.rename(
                (ROOT_INO, format!("d{i}").as_bytes()),
                (dir.saturating_sub(6), b"moved"),
                RenameMode::Replace,
                NOW,
            )
            .unwrap_or_default();
        }
    }
    rig.cut();
    let upto = rig.core().seq - 1;
    let whole = rig.derive(&rig.replay(upto));
    assert_eq!(whole, rig.derive(&rig.replay(upto)), "the same operations give the same tree");

    // The same operations, each in a commit of its own, numbered so that the last is the same.
    let log = rig.core().log.clone();
    let base = rig.core().base.clone();
    let (mut state, mut single) = (State::open(base), Log::default());
    ask(&rig.blocks, &mut state, State::ready).unwrap();
    let mut seq = 0;
    for ops in log.0.values() {
        for (op, _) in decode_all(ops).map(Result::unwrap) {
            seq += 1;
            let at = op.encode(single.0.entry(seq).or_default());
            ask(&rig.blocks, &mut state, |state| state.apply(seq, at.data_offset, &op)).unwrap();
        }
    }
    let other = remora_volume::derive::derive(&state, &rig.blocks, &rig.blocks, &single).unwrap();
    assert!(other.tree.made_from > whole.tree.made_from);
    let facts = |tree: &remora_volume::tree::Tree| (tree.root, tree.names, tree.stats, tree.next_ino);
    assert_eq!(facts(&other.tree), facts(&whole.tree));
}

#[test]
fn a_size_limit_counts_data_and_not_holes() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "f", &NewNode::File);
    rig.core().state.set_size_limit(Some(10_000));
    let truncate = SetAttr { size: Some(1 << 40), ..SetAttr::default() };
    rig.setattr(file, &truncate, NOW).unwrap();
    rig.write(file, 1 << 30, &[1; 6000], NOW).unwrap();
    assert_eq!(rig.write(file, 0, &[1; 6000], NOW), Err(Errno::ENOSPC));
    rig.write(file, (1 << 30) + 2000, &[2; 8000], NOW).unwrap();
    assert_eq!(rig.write(file, 0, &[1], NOW), Err(Errno::ENOSPC));
    settle(&rig);
    rig.reopen();
    rig.core().state.set_size_limit(Some(10_000));
    assert_eq!(rig.core().state.stats().bytes, 10_000);
    assert_eq!(rig.write(file, 5, &[1], NOW), Err(Errno::ENOSPC), "a sparse base is counted as it is");
    rig.write(file, (1 << 30) + 100, &[3; 50], NOW).unwrap();
    rig.setattr(file, &SetAttr { size: Some(0), ..SetAttr::default() }, NOW).unwrap();
    rig.write(file, 0, &[1; 10_000], NOW).unwrap();
    assert_eq!(rig.core().state.stats().bytes, 10_000);
}

#[test]
fn copied_holes_do_not_count_against_the_limit() {
    let rig = Rig::new();
    let (from, to) = (make(&rig, ROOT_INO, "f", &NewNode::File), make(&rig, ROOT_INO, "t", &NewNode::File));
    rig.core().state.set_size_limit(Some(10_000));
    rig.setattr(from, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }, NOW).unwrap();
    rig.write(from, 1 << 30, &[1; 4000], NOW).unwrap();
    assert_eq!(rig.copy_range((from, 0), (to, 0), 1 << 40, NOW), Ok(1 << 40));
    assert_eq!(rig.core().state.stats().bytes, 8000);
    assert_eq!(rig.copy_range((from, 1 << 30), (to, 0), 4000, NOW), Err(Errno::ENOSPC));
    assert_eq!(rig.copy_range((from, 1 << 30), (to, 1 << 30), 4000, NOW), Ok(4000), "in place of as much");
}

#[test]
fn a_hole_of_a_tebibyte_costs_little_to_derive() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "f", &NewNode::File);
    rig.write(file, 0, b"start", NOW).unwrap();
    rig.setattr(file, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }, NOW).unwrap();
    rig.write(file, (1 << 40) - 3, b"end", NOW).unwrap();
    settle(&rig);
    let n_blocks = rig.blocks.len();
    assert!(n_blocks < 50, "{n_blocks} blocks");
    rig.reopen();
    assert_eq!(rig.read(file, (1 << 40) - 5, 10).unwrap(), b"\0\0end");
    assert_eq!(rig.getattr(file).unwrap().blocks, 8);
    // Cut to nothing and grown again, it is one hole.
    rig.setattr(file, &SetAttr { size: Some(0), ..SetAttr::default() }, NOW).unwrap();
    rig.setattr(file, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }, NOW).unwrap();
    settle(&rig);
    assert_eq!(rig.read(file, 0, 10).unwrap(), [0; 10]);
    assert!(rig.blocks.len() < n_blocks + 20);
}

#[test]
fn orphans_survive_a_checkpoint_and_not_a_crash() {
    let rig = Rig::new();
    let file = rig.make(CALLER, ROOT_INO, b"f", &NewNode::File, 0o600, NOW).unwrap().ino;
    rig.write(file, 0, b"still here", NOW).unwrap();
    rig.unlink(ROOT_INO, b"f", NOW).unwrap();
    settle(&rig);
    assert_eq!(rig.core().base.orphans.len(), 1);
    assert_eq!(rig.read(file, 0, 100).unwrap(), b"still here");
    let upto = rig.core().seq - 1;
    let shadow = rig.replay(upto);
    assert_eq!(shadow.orphans().collect::<Vec<_>>(), [file]);
    rig.reopen();
    assert_eq!(rig.getattr(file), Err(Errno::ESTALE));
    settle(&rig);
    assert!(rig.core().base.orphans.is_empty());
    assert_eq!(rig.core().state.stats().inodes, 1);
}
