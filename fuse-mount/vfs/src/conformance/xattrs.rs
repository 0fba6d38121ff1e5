//! Extended attributes.

use crate::attr::{NewNode, ROOT_INO};
use crate::conformance::scene::{Scene, at, fails, ok};
use crate::errno::Errno;
use crate::filesystem::{Filesystem, XattrMode};

pub(super) fn xattrs_are_kept(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let nodes = [scene.file("f"), scene.directory("d"), scene.make(ROOT_INO, "p", &NewNode::Fifo), ROOT_INO];
    for ino in nodes {
        fails(fs.getxattr(ino, b"user.a"), &[Errno::ENODATA]);
        assert!(ok(fs.listxattr(ino)).is_empty());
        ok(fs.setxattr(ino, b"user.b", b"2", XattrMode::Any, at(1)));
        ok(fs.setxattr(ino, b"user.a", b"", XattrMode::Any, at(1)));
        ok(fs.setxattr(ino, b"trusted.c", &[0, 255, 0], XattrMode::Any, at(1)));
        ok(fs.setxattr(ino, b"user.b", b"other", XattrMode::Any, at(1)));
        assert_eq!(ok(fs.getxattr(ino, b"user.a")), b"");
        assert_eq!(ok(fs.getxattr(ino, b"user.b")), b"other");
        assert_eq!(ok(fs.getxattr(ino, b"trusted.c")), [0, 255, 0]);
        assert_eq!(ok(fs.listxattr(ino)), [b"trusted.c".to_vec(), b"user.a".to_vec(), b"user.b".to_vec()]);
        ok(fs.removexattr(ino, b"user.a", at(2)));
        fails(fs.getxattr(ino, b"user.a"), &[Errno::ENODATA]);
        fails(fs.removexattr(ino, b"user.a", at(2)), &[Errno::ENODATA]);
    }
}

pub(super) fn xattr_modes_are_obeyed(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    fails(fs.setxattr(ino, b"user.a", b"1", XattrMode::Replace, at(1)), &[Errno::ENODATA]);
    ok(fs.setxattr(ino, b"user.a", b"1", XattrMode::Create, at(1)));
    fails(fs.setxattr(ino, b"user.a", b"2", XattrMode::Create, at(1)), &[Errno::EEXIST]);
    assert_eq!(ok(fs.getxattr(ino, b"user.a")), b"1");
    ok(fs.setxattr(ino, b"user.a", b"3", XattrMode::Replace, at(1)));
    assert_eq!(ok(fs.getxattr(ino, b"user.a")), b"3");
}

pub(super) fn xattrs_are_bounded(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    let value = vec![1; 64 * 1024];
    ok(fs.setxattr(ino, b"user.a", &value, XattrMode::Any, at(1)));
    assert_eq!(ok(fs.getxattr(ino, b"user.a")), value);
    let bounds = &[Errno::ENOSPC, Errno::E2BIG];
    fails(fs.setxattr(ino, b"user.b", &vec![1; 64 * 1024 + 1], XattrMode::Any, at(1)), bounds);
    fails(fs.setxattr(ino, b"user.b", &value, XattrMode::Any, at(1)), bounds);
    ok(fs.setxattr(ino, b"user.b", &value[..60_000], XattrMode::Any, at(1)));
    fails(fs.setxattr(ino, b"user.c", &value[..10_000], XattrMode::Any, at(1)), bounds);
    ok(fs.setxattr(ino, b"user.a", &value, XattrMode::Replace, at(1)));
    fails(fs.setxattr(ino, &[b'n'; 256], b"", XattrMode::Any, at(1)), &[Errno::ERANGE]);
    fails(fs.setxattr(ino, b"", b"", XattrMode::Any, at(1)), &[Errno::ERANGE, Errno::EINVAL]);
    assert_eq!(ok(fs.listxattr(ino)).len(), 2);
}

pub(super) fn xattrs_stamp_the_inode(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    ok(fs.setxattr(ino, b"user.a", b"1", XattrMode::Any, at(3)));
    assert_eq!((scene.attr(ino).mtime, scene.attr(ino).ctime), (at(0), at(3)));
    ok(fs.removexattr(ino, b"user.a", at(4)));
    assert_eq!((scene.attr(ino).mtime, scene.attr(ino).ctime), (at(0), at(4)));
}
