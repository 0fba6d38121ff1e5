//! Access control lists and modes.

use crate::acl::{ACCESS, DEFAULT};
use crate::attr::{Ino, NewNode, ROOT_INO, SetAttr};
use crate::conformance::scene::{CALLER, Scene, at, fails, ok};
use crate::errno::Errno;
use crate::filesystem::{Filesystem, XattrMode};

const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list with user 7 in it: permissions of owner, that user, group, mask, others.
fn list(owner: u16, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    value(&[(OWNER, owner, !0), (USER, user, 7), (GROUP, group, !0), (MASK, mask, !0), (OTHER, other, !0)])
}

fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(tag, perm, id)| {
        [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    2u32.to_le_bytes().into_iter().chain(entries).collect()
}

fn chmod(fs: &dyn Filesystem, ino: Ino, mode: u16) {
    ok(fs.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }, at(3)));
}

#[track_caller]
fn has(fs: &dyn Filesystem, ino: Ino, mode: u16, access: Option<Vec<u8>>) {
    assert_eq!(format!("{:o}", ok(fs.getattr(ino)).mode), format!("{mode:o}"));
    match access {
        Some(access) => assert_eq!(ok(fs.getxattr(ino, ACCESS)), access),
        None => fails(fs.getxattr(ino, ACCESS), &[Errno::ENODATA]),
    }
}

pub(super) fn access_list_sets_the_mode(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    chmod(fs, ino, 0o4644);
    ok(fs.setxattr(ino, ACCESS, &list(6, 7, 5, 2, 1), XattrMode::Any, at(4)));
    has(fs, ino, 0o4621, Some(list(6, 7, 5, 2, 1)));
    assert_eq!(ok(fs.getattr(ino)).ctime, at(4));
    assert_eq!(ok(fs.listxattr(ino)), [ACCESS.to_vec()]);
    ok(fs.removexattr(ino, ACCESS, at(5)));
    has(fs, ino, 0o4621, None);
    ok(fs.removexattr(ino, ACCESS, at(6)));
    assert_eq!(ok(fs.getattr(ino)).ctime, at(5), "nothing was there to remove");
}

pub(super) fn list_that_is_a_mode_is_not_kept(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    let minimal = |owner, group, other| value(&[(OWNER, owner, !0), (GROUP, group, !0), (OTHER, other, !0)]);
    ok(fs.setxattr(ino, ACCESS, &minimal(7, 1, 0), XattrMode::Any, at(4)));
    has(fs, ino, 0o710, None);
    ok(fs.setxattr(ino, ACCESS, &list(6, 7, 5, 2, 1), XattrMode::Any, at(5)));
    ok(fs.setxattr(ino, ACCESS, &minimal(6, 4, 0), XattrMode::Any, at(6)));
    has(fs, ino, 0o640, None);
    assert!(ok(fs.listxattr(ino)).is_empty());
}

pub(super) fn chmod_changes_the_mask(fs: &dyn Filesystem) {
    let ino = Scene(fs).file("f");
    ok(fs.setxattr(ino, ACCESS, &list(6, 7, 5, 2, 1), XattrMode::Any, at(1)));
    chmod(fs, ino, 0o1704);
    has(fs, ino, 0o1704, Some(list(7, 7, 5, 0, 4)));
}

pub(super) fn default_list_is_taken_over(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let dir = scene.directory("d");
    let default = list(7, 7, 5, 7, 5);
    ok(fs.setxattr(dir, DEFAULT, &default, XattrMode::Any, at(1)));
    has(fs, dir, 0o644, None);
    let make =
        |name: &str, node: &NewNode, mode| ok(fs.make(CALLER, dir, name.as_bytes(), node, mode, at(2))).ino;
    let file = make("f", &NewNode::File, 0o4666);
    has(fs, file, 0o4664, Some(list(6, 7, 5, 6, 4)));
    fails(fs.getxattr(file, DEFAULT), &[Errno::ENODATA]);
    let below = make("b", &NewNode::Directory, 0o777);
    has(fs, below, 0o775, Some(list(7, 7, 5, 7, 5)));
    assert_eq!(ok(fs.getxattr(below, DEFAULT)), default);
    let link = make("l", &NewNode::Symlink(b"f".to_vec()), 0o777);
    assert!(ok(fs.listxattr(link)).is_empty());
    assert_eq!(ok(fs.getattr(link)).mode, 0o777);
    let minimal = value(&[(OWNER, 7, !0), (GROUP, 1, !0), (OTHER, 0, !0)]);
    ok(fs.setxattr(dir, DEFAULT, &minimal, XattrMode::Any, at(3)));
    let other = make("g", &NewNode::File, 0o666);
    has(fs, other, 0o600, None);
    assert_eq!(ok(fs.getxattr(below, DEFAULT)), default, "what was made keeps what it took");
}

pub(super) fn list_that_cannot_be_is_refused(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (file, good) = (scene.file("f"), list(6, 7, 5, 2, 1));
    let link = scene.make(ROOT_INO, "l", &NewNode::Symlink(b"f".to_vec()));
    let set = |ino, name, value: &[u8]| fs.setxattr(ino, name, value, XattrMode::Any, at(1));
    fails(set(file, ACCESS, b"rwx"), &[Errno::EINVAL]);
    fails(set(file, ACCESS, &good[..good.len() - 8]), &[Errno::EINVAL]);
    fails(set(file, DEFAULT, &good), &[Errno::EACCES]);
    fails(set(link, ACCESS, &good), &[Errno::EOPNOTSUPP]);
    has(fs, file, 0o644, None);
}
