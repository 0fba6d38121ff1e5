//! Rename in its three modes.

use crate::attr::{NewNode, ROOT_INO};
use crate::conformance::scene::{GONE, Scene, at, fails, ok};
use crate::errno::Errno;
use crate::filesystem::{Filesystem, RenameMode};

const REPLACE: RenameMode = RenameMode::Replace;

pub(super) fn rename_moves(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (from, to) = (scene.directory("from"), scene.directory("to"));
    let ino = scene.make(from, "a", &NewNode::File);
    ok(scene.rename((from, "a"), (to, "b"), REPLACE));
    assert_eq!((scene.find(from, "a"), scene.find(to, "b")), (None, Some(ino)));
    assert_eq!(scene.attr(ino).nlink, 1);
    fails(scene.rename((from, "a"), (to, "c"), REPLACE), &[Errno::ENOENT]);
}

pub(super) fn rename_replaces_a_file(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.file("a"), scene.file("b"));
    ok(fs.link(b, ROOT_INO, b"c", at(1)));
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), REPLACE));
    assert_eq!((scene.find(ROOT_INO, "a"), scene.find(ROOT_INO, "b")), (None, Some(a)));
    let replaced = scene.attr(b);
    assert_eq!((replaced.nlink, replaced.ctime), (1, at(2)));
}

pub(super) fn rename_replaces_an_empty_directory(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.directory("a"), scene.directory("b"));
    scene.make(b, "in", &NewNode::File);
    fails(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), REPLACE), &[Errno::ENOTEMPTY]);
    ok(scene.unlink(b, "in"));
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), REPLACE));
    assert_eq!(scene.find(ROOT_INO, "b"), Some(a));
    assert_eq!(scene.attr(ROOT_INO).nlink, 3);
    assert_eq!(scene.attr(b).nlink, 0);
}

pub(super) fn rename_keeps_kinds_apart(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    scene.directory("d");
    scene.file("f");
    fails(scene.rename((ROOT_INO, "f"), (ROOT_INO, "d"), REPLACE), &[Errno::EISDIR]);
    fails(scene.rename((ROOT_INO, "d"), (ROOT_INO, "f"), REPLACE), &[Errno::ENOTDIR]);
}

pub(super) fn rename_of_one_inode_does_nothing(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("a");
    ok(fs.link(ino, ROOT_INO, b"b", at(1)));
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), REPLACE));
    assert_eq!((scene.find(ROOT_INO, "a"), scene.find(ROOT_INO, "b")), (Some(ino), Some(ino)));
    assert_eq!(scene.attr(ino).nlink, 2);
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "a"), REPLACE));
    fails(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), RenameMode::NoReplace), &[Errno::EEXIST]);
}

pub(super) fn rename_without_replacing(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.file("a"), scene.file("b"));
    fails(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), RenameMode::NoReplace), &[Errno::EEXIST]);
    assert_eq!((scene.find(ROOT_INO, "a"), scene.find(ROOT_INO, "b")), (Some(a), Some(b)));
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "c"), RenameMode::NoReplace));
    assert_eq!(scene.find(ROOT_INO, "c"), Some(a));
}

pub(super) fn exchange_swaps(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.file("a"), scene.directory("b"));
    fails(scene.rename((ROOT_INO, "a"), (ROOT_INO, "none"), RenameMode::Exchange), &[Errno::ENOENT]);
    scene.make(b, "in", &NewNode::File);
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), RenameMode::Exchange));
    assert_eq!((scene.find(ROOT_INO, "a"), scene.find(ROOT_INO, "b")), (Some(b), Some(a)));
    assert_eq!((scene.attr(a).ctime, scene.attr(b).ctime), (at(2), at(2)));
}

pub(super) fn exchange_moves_a_directory_link(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (x, y) = (scene.directory("x"), scene.directory("y"));
    let below = scene.directory_in(x, "d");
    scene.make(y, "f", &NewNode::File);
    ok(scene.rename((x, "d"), (y, "f"), RenameMode::Exchange));
    assert_eq!((scene.attr(x).nlink, scene.attr(y).nlink), (2, 3));
    assert_eq!(ok(fs.parent(below)), y);
}

pub(super) fn directory_does_not_go_below_itself(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let a = scene.directory("a");
    let b = scene.directory_in(a, "b");
    let c = scene.directory_in(b, "c");
    for parent in [a, b, c] {
        fails(scene.rename((ROOT_INO, "a"), (parent, "x"), REPLACE), &[Errno::EINVAL]);
    }
    fails(scene.rename((ROOT_INO, "a"), (b, "c"), RenameMode::Exchange), &[Errno::EINVAL]);
    fails(scene.rename((b, "c"), (ROOT_INO, "a"), RenameMode::Exchange), &[Errno::EINVAL]);
    fails(scene.rename((b, "c"), (ROOT_INO, "a"), REPLACE), &[Errno::ENOTEMPTY]);
    ok(scene.rename((b, "c"), (ROOT_INO, "c"), REPLACE));
    ok(scene.rename((ROOT_INO, "a"), (c, "a"), REPLACE));
    assert_eq!(scene.list(ROOT_INO), ["c"]);
}

pub(super) fn rename_keeps_a_replaced_open_file(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    scene.file("a");
    let b = scene.file_of("b", b"old");
    ok(fs.open(b));
    ok(scene.rename((ROOT_INO, "a"), (ROOT_INO, "b"), REPLACE));
    fs.forget(b, 1);
    assert_eq!(scene.read(b, 0, 10), b"old");
    assert_eq!(scene.attr(b).nlink, 0);
    fs.release(b);
    fails(fs.getattr(b), GONE);
}

pub(super) fn rename_stamps_what_it_touches(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (from, to) = (scene.directory("from"), scene.directory("to"));
    let ino = scene.make(from, "a", &NewNode::File);
    ok(scene.rename((from, "a"), (to, "a"), REPLACE));
    for directory in [from, to] {
        let attr = scene.attr(directory);
        assert_eq!((attr.mtime, attr.ctime), (at(2), at(2)));
    }
    let attr = scene.attr(ino);
    assert_eq!((attr.mtime, attr.ctime), (at(0), at(2)));
}
