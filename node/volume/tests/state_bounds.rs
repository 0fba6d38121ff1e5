//! What a state holds in memory, and what one step of it takes, is bounded.
#![allow(clippy::unwrap_used)]

mod state_rig;

use remora_vfs::attr::{Ino, NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::filesystem::{Caller, Filesystem, RenameMode};
use remora_volume::state::CLEAN_INODES_MAX;
use remora_volume::state::changes::Changes;
use state_rig::Rig;

const NOW: Timestamp = Timestamp(5);

fn make(rig: &Rig, parent: Ino, name: &str, node: &NewNode) -> Ino {
    rig.make(Caller::default(), parent, name.as_bytes(), node, 0o755, NOW).unwrap().ino
}

fn changes(rig: &Rig) -> Changes {
    rig.core().state.changes()
}

/// Takes over a tree in steps of `max` and checks that no step does more, and that `sees` holds after each.
fn check_steps(rig: &Rig, max: usize, sees: impl Fn()) {
    rig.checkpoint();
    loop {
        let before = changes(rig);
        let is_done = rig.rebase(max);
        let after = changes(rig);
        assert!(before.inodes - after.inodes <= max && before.ranges - after.ranges <= max);
        // The last step lets go of the numbers of dropped inodes, all at once: that takes no time.
        assert!(before.names - after.names <= max || is_done);
        sees();
        if is_done {
            break;
        }
    }
    assert_eq!(changes(rig), Changes::default(), "the base has everything");
}

#[test]
fn a_directory_with_many_changed_names_is_rebased_in_bounded_steps() {
    let rig = Rig::new();
    let dir = make(&rig, ROOT_INO, "d", &NewNode::Directory);
    let inos: Vec<Ino> = (0..1000).map(|i| make(&rig, dir, &i.to_string(), &NewNode::Fifo)).collect();
    assert_eq!(changes(&rig), Changes { inodes: 1002, names: 1001, ranges: 0 });
    check_steps(&rig, 100, || {
        for i in (0..1000).step_by(37) {
            assert_eq!(rig.ask_lookup(dir, i.to_string().as_bytes()), inos[i]);
        }
    });
    for (i, ino) in inos.iter().enumerate() {
        rig.unlink(dir, i.to_string().as_bytes(), NOW).unwrap();
        rig.forget(*ino, 1);
    }
    assert_eq!(
        changes(&rig),
        Changes { inodes: 1, names: 2000, ranges: 0 },
        "names and inodes that are gone"
    );
    check_steps(&rig, 100, || {
        rig.readdir(dir, 0, &mut |_| panic!("the directory is empty")).unwrap();
    });
}

#[test]
fn the_tree_that_inodes_still_read_from_is_referred_to_until_the_last_has_moved() {
    let rig = Rig::new();
    for i in 0..50 {
        make(&rig, ROOT_INO, &i.to_string(), &NewNode::Fifo);
    }
    let before = *rig.core().state.base_cid();
    rig.checkpoint();
    let trees = || rig.core().state.base_trees();
    assert_eq!(trees(), [before]);
    assert!(!rig.rebase(10));
    let after = *rig.core().state.base_cid();
    assert_ne!(before, after);
    assert_eq!(trees(), [before, after]);
    while !rig.rebase(10) {}
    assert_eq!(trees(), [after]);
}

#[test]
fn names_that_change_while_their_directory_is_rebased_keep_the_change() {
    let rig = Rig::new();
    let name = |i: usize| i.to_string().into_bytes();
    for i in 0..300 {
        make(&rig, ROOT_INO, &i.to_string(), &NewNode::Fifo);
    }
    rig.checkpoint();
    let (mut n_gone, mut is_done) = (0, false);
    while !is_done {
        is_done = rig.rebase(10);
        rig.unlink(ROOT_INO, &name(n_gone), NOW).unwrap();
        make(&rig, ROOT_INO, &format!("new-{n_gone}"), &NewNode::Fifo);
        n_gone += 1;
    }
    assert!(n_gone > 30, "there was time in between");
    for i in 0..300 {
        assert_eq!(rig.lookup(ROOT_INO, &name(i)).is_ok(), i >= n_gone, "name {i}");
    }
    check_steps(&rig, 7, || ());
    let mut n_listed = 0;
    rig.readdir(ROOT_INO, 0, &mut |_| {
        n_listed += 1;
        true
    })
    .unwrap();
    assert_eq!(n_listed, 300);
}

#[test]
fn a_file_with_many_changed_ranges_is_rebased_in_bounded_steps() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "f", &NewNode::File);
    for i in 0..500u64 {
        rig.write(file, (i * 7 % 500) * 100, &[(i % 200) as u8 + 1; 60], NOW).unwrap();
    }
    assert_eq!(changes(&rig).ranges, 500);
    let all = rig.read(file, 0, 1 << 20).unwrap();
    check_steps(&rig, 64, || assert_eq!(rig.read(file, 0, 1 << 20).unwrap(), all));
}

#[test]
fn a_file_that_is_dropped_takes_its_ranges_along() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "f", &NewNode::File);
    (0..50u64).for_each(|i| rig.write(file, i * 100, &[1; 60], NOW).unwrap());
    rig.unlink(ROOT_INO, b"f", NOW).unwrap();
    rig.forget(file, 1);
    assert_eq!(changes(&rig), Changes { inodes: 1, names: 0, ranges: 0 }, "the root's times are left");
}

#[test]
fn inodes_that_are_as_in_the_base_leave_memory() {
    let rig = Rig::new();
    let n_dirs = 20;
    let n = CLEAN_INODES_MAX / 16;
    let check = |what: &str| {
        let state = &rig.core().state;
        let n_clean = state.n_loaded() - state.changes().inodes;
        // What was used lately gets a second chance.
        assert!(n_clean <= CLEAN_INODES_MAX * 3 / 2, "{n_clean} clean inodes after {what}");
    };
    for d in 0..n_dirs {
        let dir = make(&rig, ROOT_INO, &format!("d{d}"), &NewNode::Directory);
        for i in 0..n {
            make(&rig, dir, &i.to_string(), &NewNode::Fifo);
        }
        rig.checkpoint();
        while !rig.rebase(256) {}
        check("they were made");
    }
    for d in 0..n_dirs {
        let dir = rig.ask_lookup(ROOT_INO, format!("d{d}").as_bytes());
        let mut n_listed = 0;
        rig.readdir(dir, 0, &mut |_| {
            n_listed += 1;
            true
        })
        .unwrap();
        assert_eq!(n_listed, n);
        check("they were listed");
    }
}

/// Enough changed inodes that those taken over first would be evicted while the others are.
const N_OTHERS: usize = CLEAN_INODES_MAX + 8_000;

#[test]
fn an_inode_that_is_taken_over_stays_while_its_directory_is_not() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "a", &NewNode::File);
    rig.write(file, 0, &[1; 10], NOW).unwrap();
    let others: Vec<Ino> =
        (0..N_OTHERS).map(|i| make(&rig, ROOT_INO, &i.to_string(), &NewNode::Fifo)).collect();
    let dir = make(&rig, ROOT_INO, "p", &NewNode::Directory);
    rig.rename((ROOT_INO, b"a"), (dir, b"a"), RenameMode::Replace, NOW).unwrap();
    rig.checkpoint();
    while !rig.rebase(4096) {}
    // A directory above all of it that is taken over last, and leads to what its file was.
    rig.write(file, 10, &[2; 10], NOW).unwrap();
    let touched = SetAttr { mtime: Some(Timestamp(6)), ..SetAttr::default() };
    for ino in others {
        rig.setattr(ino, &touched, NOW).unwrap();
    }
    make(&rig, dir, "new", &NewNode::Fifo);
    rig.checkpoint();
    let mut is_done = false;
    for n_steps in 0.. {
        is_done = is_done || rig.rebase(256);
        // A look counts as use and keeps it for a round: only the last steps are looked at.
        if n_steps * 256 > CLEAN_INODES_MAX + 1024 {
            assert_eq!(rig.getattr(file).unwrap().size, 20, "after {n_steps} steps");
        }
        if is_done && n_steps * 256 > N_OTHERS + 1024 {
            break;
        }
    }
    assert_eq!(rig.read(file, 0, 100).unwrap(), [[1; 10], [2; 10]].concat());
}

#[test]
fn emptying_a_sparse_file_takes_no_look_at_its_tree() {
    let rig = Rig::new();
    let file = make(&rig, ROOT_INO, "f", &NewNode::File);
    for i in 0..64u64 {
        rig.write(file, i << 34, &[i as u8 + 1; 5000], NOW).unwrap();
    }
    check_steps(&rig, 64, || ());
    rig.reopen();
    let inode = rig.ask_lookup(ROOT_INO, b"f");
    let n_read = rig.n_supplied();
    rig.setattr(inode, &SetAttr { size: Some(0), ..SetAttr::default() }, NOW).unwrap();
    assert_eq!(rig.n_supplied(), n_read);
    assert_eq!(rig.core().state.stats().bytes, 0);
    assert_eq!(rig.getattr(inode).unwrap().blocks, 0);
}

#[test]
fn what_was_made_in_a_large_directory_is_replayed_without_a_look_at_its_names() {
    let rig = Rig::new();
    let dir = make(&rig, ROOT_INO, "d", &NewNode::Directory);
    for i in 0..12_000 {
        make(&rig, dir, &format!("a-file-of-the-base-{i}"), &NewNode::Fifo);
    }
    check_steps(&rig, 4096, || ());
    for i in 0..300 {
        make(&rig, dir, &format!("new-{i}"), &NewNode::Fifo);
    }
    let moved = make(&rig, ROOT_INO, "moved", &NewNode::Fifo);
    rig.rename((ROOT_INO, b"moved"), (dir, b"moved"), RenameMode::Replace, NOW).unwrap();
    rig.link(moved, dir, b"linked", NOW).unwrap();
    let before = rig.n_supplied();
    rig.reopen();
    let n_read = rig.n_supplied() - before;
    assert!(n_read <= 4, "{n_read} blocks: more than the way to the directory");
    for name in ["new-0", "new-299", "moved", "linked", "a-file-of-the-base-11999"] {
        rig.ask_lookup(dir, name.as_bytes());
    }
    check_steps(&rig, 4096, || ());
    let mut n_listed = 0;
    rig.readdir(dir, 0, &mut |_| {
        n_listed += 1;
        true
    })
    .unwrap();
    assert_eq!(n_listed, 12_302);
}
