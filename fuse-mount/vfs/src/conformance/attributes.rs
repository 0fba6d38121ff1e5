//! Attributes and figures.

use crate::attr::{NewNode, ROOT_INO, SetAttr, Timestamp};
use crate::conformance::scene::{CALLER, GONE, Scene, at, fails, ok, pattern};
use crate::errno::Errno;
use crate::filesystem::{Filesystem, RenameMode};

pub(super) fn attributes_change_as_one(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"0123456789");
    let change =
        SetAttr { mode: Some(0o4711), uid: Some(1), gid: Some(2), size: Some(4), mtime: Some(Timestamp(77)) };
    let attr = ok(fs.setattr(ino, &change, at(9)));
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o4711, 1, 2, 4));
    assert_eq!((attr.mtime, attr.ctime), (Timestamp(77), at(9)));
    assert_eq!(scene.attr(ino), attr);
    let only_uid = ok(fs.setattr(ino, &SetAttr { uid: Some(3), ..SetAttr::default() }, at(10)));
    assert_eq!(only_uid, crate::attr::Attr { uid: 3, ctime: at(10), ..attr });
    for node in [NewNode::Directory, NewNode::Fifo, NewNode::Symlink(b"x".to_vec())] {
        let ino = ok(fs.make(CALLER, ROOT_INO, b"n", &node, 0o644, at(0))).ino;
        let attr = ok(fs.setattr(ino, &SetAttr { uid: Some(u32::MAX - 1), ..SetAttr::default() }, at(1)));
        assert_eq!((attr.uid, attr.ctime, attr.mtime), (u32::MAX - 1, at(1), at(0)));
        ok(scene.rename((ROOT_INO, "n"), (ROOT_INO, &format!("n{ino}")), RenameMode::Replace));
    }
}

pub(super) fn times_are_kept(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    for time in [0, 1, -1, -1_500_000_000, 1_999_999_999, i64::MAX, i64::MIN] {
        let change = SetAttr { mtime: Some(Timestamp(time)), ..SetAttr::default() };
        assert_eq!(ok(fs.setattr(ino, &change, at(1))).mtime, Timestamp(time));
        assert_eq!(ok(fs.getattr(ino)).mtime, Timestamp(time));
    }
}

pub(super) fn mode_is_twelve_bits(fs: &dyn Filesystem) {
    let ino = ok(fs.make(CALLER, ROOT_INO, b"f", &NewNode::File, 0o177_777, at(0))).ino;
    assert_eq!(ok(fs.getattr(ino)).mode, 0o7777);
    let change = SetAttr { mode: Some(0o100_644), ..SetAttr::default() };
    assert_eq!(ok(fs.setattr(ino, &change, at(1))).mode, 0o644);
}

pub(super) fn truncate_stamps_the_file(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"0123456789");
    for (moment, size) in [(1, 4), (2, 400), (3, 400), (4, 0)] {
        let attr = ok(fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }, at(moment)));
        assert_eq!((attr.size, attr.mtime, attr.ctime), (size, at(moment), at(moment)));
    }
}

pub(super) fn only_files_are_truncated(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let fifo = scene.make(ROOT_INO, "p", &NewNode::Fifo);
    let change = SetAttr { size: Some(0), ..SetAttr::default() };
    fails(fs.setattr(ROOT_INO, &change, at(1)), &[Errno::EISDIR]);
    fails(fs.setattr(fifo, &change, at(1)), &[Errno::EINVAL]);
}

pub(super) fn blocks_count_data(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    assert_eq!(scene.attr(ino).blocks, 0);
    let len = 3 << 20;
    scene.write(ino, 0, &pattern(len, 1));
    let blocks = scene.attr(ino).blocks;
    assert!(blocks * 512 >= len as u64 && blocks * 512 <= 2 * len as u64, "{blocks} blocks for {len} bytes");
    scene.truncate(ino, 0);
    assert_eq!(scene.attr(ino).blocks, 0);
    scene.truncate(ino, 1 << 30);
    assert_eq!(scene.attr(ino).blocks, 0);
}

pub(super) fn statfs_has_room(fs: &dyn Filesystem) {
    let figures = ok(fs.statfs());
    assert!(figures.blocks > 0 && figures.files > 0);
    assert!(figures.blocks_free <= figures.blocks && figures.blocks_available <= figures.blocks_free);
    assert!(figures.files_free <= figures.files);
}

pub(super) fn gone_inode_is_an_error(fs: &dyn Filesystem) {
    const NEVER: u64 = 1 << 60;
    let scene = Scene(fs);
    scene.file("f");
    fails(fs.getattr(NEVER), GONE);
    fails(fs.setattr(NEVER, &SetAttr { mode: Some(0), ..SetAttr::default() }, at(1)), GONE);
    fails(fs.lookup(NEVER, b"x"), GONE);
    fails(fs.make(CALLER, NEVER, b"x", &NewNode::File, 0, at(1)), GONE);
    fails(fs.link(NEVER, ROOT_INO, b"x", at(1)), GONE);
    fails(scene.rename((ROOT_INO, "f"), (NEVER, "x"), RenameMode::Replace), GONE);
    fails(fs.open(NEVER), GONE);
    fails(fs.read(NEVER, 0, 1), GONE);
    fails(fs.write(NEVER, 0, b"x", at(1)), GONE);
    fails(fs.readdir(NEVER, 0, &mut |_| true), GONE);
    fails(fs.reference(NEVER), &[Errno::ENOENT]);
    fails(fs.getxattr(NEVER, b"user.x"), GONE);
    fs.release(NEVER);
    fs.forget(NEVER, 7);
}
