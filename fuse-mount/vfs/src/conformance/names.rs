//! Making, finding and removing.

use crate::attr::{Kind, NAME_BYTES_MAX, NewNode, ROOT_INO, SYMLINK_BYTES_MAX, SetAttr};
use crate::conformance::scene::{CALLER, GONE, Scene, at, fails, ok};
use crate::errno::Errno;
use crate::filesystem::{Caller, Filesystem};

pub(super) fn make_gives_what_was_asked(fs: &dyn Filesystem) {
    let kinds = [
        (NewNode::File, Kind::File, 0),
        (NewNode::Directory, Kind::Directory, 0),
        (NewNode::Symlink(b"to".to_vec()), Kind::Symlink, 0),
        (NewNode::CharDevice(0x103), Kind::CharDevice, 0x103),
        (NewNode::BlockDevice(0x801), Kind::BlockDevice, 0x801),
        (NewNode::Fifo, Kind::Fifo, 0),
        (NewNode::Socket, Kind::Socket, 0),
    ];
    for (i, (node, kind, rdev)) in kinds.into_iter().enumerate() {
        let name = format!("n{i}").into_bytes();
        let attr = ok(fs.make(CALLER, ROOT_INO, &name, &node, 0o4751, at(3)));
        assert_eq!((attr.kind, attr.rdev, attr.mode), (kind, rdev, 0o4751));
        assert_eq!((attr.uid, attr.gid), (CALLER.uid, CALLER.gid));
        assert_eq!(attr.nlink, if kind == Kind::Directory { 2 } else { 1 });
        assert_eq!((attr.mtime, attr.ctime, attr.btime), (at(3), at(3), at(3)));
        let size = match kind {
            Kind::Directory => 4096,
            Kind::Symlink => 2,
            _ => 0,
        };
        assert_eq!(attr.size, size);
        assert_eq!(ok(fs.lookup(ROOT_INO, &name)), attr);
        assert_eq!(ok(fs.getattr(attr.ino)), attr);
    }
}

pub(super) fn name_is_taken_once(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("a");
    for node in [NewNode::File, NewNode::Directory, NewNode::Symlink(b"x".to_vec())] {
        fails(fs.make(CALLER, ROOT_INO, b"a", &node, 0o644, at(1)), &[Errno::EEXIST]);
    }
    fails(fs.link(ino, ROOT_INO, b"a", at(1)), &[Errno::EEXIST]);
    fails(fs.lookup(ROOT_INO, b"b"), &[Errno::ENOENT]);
    assert_eq!(scene.list(ROOT_INO), ["a"]);
}

pub(super) fn bad_names_are_refused(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("a");
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0b"] {
        fails(fs.make(CALLER, ROOT_INO, name, &NewNode::File, 0o644, at(1)), &[Errno::EINVAL]);
        fails(fs.link(ino, ROOT_INO, name, at(1)), &[Errno::EINVAL]);
        fails(fs.rename((ROOT_INO, b"a"), (ROOT_INO, name), Default::default(), at(1)), &[Errno::EINVAL]);
        fails(fs.lookup(ROOT_INO, name), &[Errno::EINVAL, Errno::ENOENT]);
    }
    let long = vec![b'n'; NAME_BYTES_MAX + 1];
    fails(fs.make(CALLER, ROOT_INO, &long, &NewNode::File, 0o644, at(1)), &[Errno::ENAMETOOLONG]);
    fails(fs.lookup(ROOT_INO, &long), &[Errno::ENAMETOOLONG]);
    fails(fs.link(ino, ROOT_INO, &long, at(1)), &[Errno::ENAMETOOLONG]);
    fails(fs.rename((ROOT_INO, b"a"), (ROOT_INO, &long), Default::default(), at(1)), &[Errno::ENAMETOOLONG]);
    assert_eq!(scene.list(ROOT_INO), ["a"]);
}

pub(super) fn longest_name_works(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let name = "n".repeat(NAME_BYTES_MAX);
    let ino = scene.file(&name);
    assert_eq!(scene.find(ROOT_INO, &name), Some(ino));
    assert_eq!(scene.list(ROOT_INO).concat(), name);
    ok(scene.unlink(ROOT_INO, &name));
    assert_eq!(scene.find(ROOT_INO, &name), None);
}

pub(super) fn names_are_bytes(fs: &dyn Filesystem) {
    let names: [&[u8]; 6] = [b"\xff\xfe", b"\x01", b"A", b"a", b" ", "\u{e9}".as_bytes()];
    for name in names {
        ok(fs.make(CALLER, ROOT_INO, name, &NewNode::File, 0o644, at(0)));
    }
    for name in names {
        ok(fs.lookup(ROOT_INO, name));
    }
    let mut listed = Vec::new();
    ok(fs.readdir(ROOT_INO, 0, &mut |entry| {
        listed.push(entry.name.clone());
        true
    }));
    listed.sort();
    let mut expected: Vec<_> = names.iter().map(|name| name.to_vec()).collect();
    expected.sort();
    assert_eq!(listed, expected);
}

pub(super) fn setgid_directory_gives_its_group(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let directory = scene.directory("d");
    let change = SetAttr { mode: Some(0o2775), gid: Some(77), ..SetAttr::default() };
    ok(fs.setattr(directory, &change, at(1)));
    let other = Caller { uid: 5, gid: 6 };
    let file = ok(fs.make(other, directory, b"f", &NewNode::File, 0o644, at(2)));
    assert_eq!((file.uid, file.gid, file.mode), (5, 77, 0o644));
    let below = ok(fs.make(other, directory, b"d", &NewNode::Directory, 0o755, at(2)));
    assert_eq!((below.uid, below.gid, below.mode), (5, 77, 0o2755));
}

pub(super) fn symlink_keeps_its_target(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let target = vec![b't'; SYMLINK_BYTES_MAX];
    let attr = ok(fs.make(CALLER, ROOT_INO, b"l", &NewNode::Symlink(target.clone()), 0o777, at(0)));
    assert_eq!(attr.size, SYMLINK_BYTES_MAX as u64);
    assert_eq!(ok(fs.readlink(attr.ino)), target);
    fails(fs.readlink(scene.file("f")), &[Errno::EINVAL]);
    fails(fs.readlink(ROOT_INO), &[Errno::EINVAL]);
    for bad in [vec![], vec![b't'; SYMLINK_BYTES_MAX + 1], b"a\0b".to_vec()] {
        let reply = fs.make(CALLER, ROOT_INO, b"bad", &NewNode::Symlink(bad), 0o777, at(0));
        fails(reply, &[Errno::EINVAL, Errno::ENAMETOOLONG, Errno::ENOENT]);
    }
    assert_eq!(scene.find(ROOT_INO, "bad"), None);
}

pub(super) fn hard_link_is_the_same_inode(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let directory = scene.directory("d");
    let ino = scene.file_of("a", b"data");
    let attr = ok(fs.link(ino, directory, b"b", at(5)));
    assert_eq!((attr.ino, attr.nlink, attr.ctime, attr.mtime), (ino, 2, at(5), at(0)));
    assert_eq!(scene.find(directory, "b"), Some(ino));
    ok(fs.unlink(ROOT_INO, b"a", at(6)));
    let attr = scene.attr(ino);
    assert_eq!((attr.nlink, attr.ctime), (1, at(6)));
    assert_eq!(scene.read(ino, 0, 10), b"data");
    let link = scene.make(ROOT_INO, "l", &NewNode::Symlink(b"x".to_vec()));
    assert_eq!(ok(fs.link(link, ROOT_INO, b"m", at(7))).nlink, 2);
}

pub(super) fn directory_has_one_name(fs: &dyn Filesystem) {
    let directory = Scene(fs).directory("d");
    fails(fs.link(directory, ROOT_INO, b"e", at(1)), &[Errno::EPERM]);
}

pub(super) fn removal_knows_its_kind(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let directory = scene.directory("d");
    scene.file("f");
    scene.make(directory, "in", &NewNode::File);
    fails(scene.unlink(ROOT_INO, "d"), &[Errno::EISDIR]);
    fails(scene.rmdir(ROOT_INO, "f"), &[Errno::ENOTDIR]);
    fails(scene.rmdir(ROOT_INO, "d"), &[Errno::ENOTEMPTY]);
    fails(scene.unlink(ROOT_INO, "none"), &[Errno::ENOENT]);
    fails(scene.rmdir(ROOT_INO, "none"), &[Errno::ENOENT]);
    ok(scene.unlink(directory, "in"));
    ok(scene.rmdir(ROOT_INO, "d"));
    ok(scene.unlink(ROOT_INO, "f"));
    assert!(scene.list(ROOT_INO).is_empty());
}

pub(super) fn orphan_lives_until_close(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("a", b"still here");
    ok(fs.open(ino));
    ok(fs.open(ino));
    ok(scene.unlink(ROOT_INO, "a"));
    fs.forget(ino, 1);
    fs.release(ino);
    let attr = scene.attr(ino);
    assert_eq!(attr.nlink, 0);
    assert_eq!(scene.read(ino, 0, 100), b"still here");
    scene.write(ino, 10, b", and grows");
    scene.truncate(ino, 15);
    assert_eq!(scene.read(ino, 0, 100), b"still here, and");
    fails(fs.link(ino, ROOT_INO, b"back", at(2)), &[Errno::ENOENT]);
    fs.release(ino);
    fails(fs.getattr(ino), GONE);
    fails(fs.read(ino, 0, 1), GONE);
}

pub(super) fn orphan_lives_until_forget(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("a", b"x");
    ok(fs.lookup(ROOT_INO, b"a"));
    ok(fs.reference(ino));
    ok(scene.unlink(ROOT_INO, "a"));
    fs.forget(ino, 2);
    assert_eq!(scene.attr(ino).nlink, 0);
    fs.forget(ino, 1);
    fails(fs.getattr(ino), GONE);
    fails(fs.reference(ino), GONE);
}

pub(super) fn removed_directory_takes_no_names(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let directory = scene.directory("d");
    let file = scene.file("f");
    ok(fs.open(directory));
    ok(scene.rmdir(ROOT_INO, "d"));
    assert_eq!(scene.attr(directory).nlink, 0);
    fails(fs.make(CALLER, directory, b"x", &NewNode::File, 0o644, at(1)), &[Errno::ENOENT]);
    fails(fs.link(file, directory, b"x", at(1)), &[Errno::ENOENT]);
    fails(scene.rename((ROOT_INO, "f"), (directory, "x"), Default::default()), &[Errno::ENOENT]);
    fails(fs.lookup(directory, b"x"), &[Errno::ENOENT]);
    assert!(scene.list(directory).is_empty());
    fs.forget(directory, 1);
    fs.release(directory);
    fails(fs.getattr(directory), GONE);
}

pub(super) fn inode_numbers_are_not_reused(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let mut seen = vec![ROOT_INO];
    for _ in 0..20 {
        let ino = scene.file("a");
        assert!(!seen.contains(&ino));
        seen.push(ino);
        ok(scene.unlink(ROOT_INO, "a"));
        fs.forget(ino, 1);
    }
}

pub(super) fn change_of_names_stamps_the_directory(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let directory = scene.directory("d");
    let stamped = |n| {
        let attr = scene.attr(directory);
        assert_eq!((attr.mtime, attr.ctime), (at(n), at(n)));
    };
    let file = ok(fs.make(CALLER, directory, b"f", &NewNode::File, 0o644, at(11))).ino;
    stamped(11);
    ok(fs.link(file, directory, b"g", at(12)));
    stamped(12);
    ok(fs.unlink(directory, b"f", at(13)));
    stamped(13);
    ok(fs.make(CALLER, directory, b"e", &NewNode::Directory, 0o755, at(14)));
    stamped(14);
    ok(fs.rmdir(directory, b"e", at(15)));
    stamped(15);
    scene.write(file, 0, b"not the directory's business");
    stamped(15);
}
