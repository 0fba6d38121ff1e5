//! Directories: links, parents and listings.

use crate::attr::{Kind, NewNode, ROOT_INO};
use crate::conformance::scene::{CALLER, GONE, Scene, at, fails, ok};
use crate::errno::Errno;
use crate::filesystem::{Filesystem, RenameMode};
use std::collections::BTreeMap;

pub(super) fn root_is_its_own_parent(fs: &dyn Filesystem) {
    let attr = ok(fs.getattr(ROOT_INO));
    assert_eq!((attr.ino, attr.kind, attr.nlink, attr.size), (ROOT_INO, Kind::Directory, 2, 4096));
    assert_eq!(ok(fs.parent(ROOT_INO)), ROOT_INO);
    assert!(Scene(fs).list(ROOT_INO).is_empty());
    fs.forget(ROOT_INO, 100);
    ok(fs.open(ROOT_INO));
    fs.release(ROOT_INO);
    ok(fs.getattr(ROOT_INO));
}

pub(super) fn links_count_subdirectories(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.directory("a"), scene.directory("b"));
    assert_eq!(scene.attr(ROOT_INO).nlink, 4);
    scene.directory_in(a, "x");
    scene.make(a, "f", &NewNode::File);
    assert_eq!(scene.attr(a).nlink, 3);
    ok(scene.rename((a, "x"), (b, "x"), RenameMode::Replace));
    assert_eq!((scene.attr(a).nlink, scene.attr(b).nlink), (2, 3));
    ok(scene.rmdir(b, "x"));
    assert_eq!(scene.attr(b).nlink, 2);
}

pub(super) fn parent_follows_a_rename(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let (a, b) = (scene.directory("a"), scene.directory("b"));
    let below = scene.directory_in(a, "x");
    assert_eq!(ok(fs.parent(below)), a);
    ok(scene.rename((a, "x"), (b, "y"), RenameMode::Replace));
    assert_eq!(ok(fs.parent(below)), b);
    fails(fs.parent(scene.file("f")), &[Errno::ENOTDIR]);
}

pub(super) fn listing_is_complete(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let mut expected = BTreeMap::new();
    for i in 0..1500 {
        let name = format!("file-{i}");
        expected.insert(name.clone(), scene.file(&name));
    }
    let mut cookies = std::collections::BTreeSet::new();
    ok(fs.readdir(ROOT_INO, 0, &mut |entry| {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        assert_eq!(expected.remove(&name), Some(entry.attr.ino), "{name} is listed as it is");
        assert!(entry.cookie != 0 && cookies.insert(entry.cookie));
        true
    }));
    assert!(expected.is_empty(), "not listed: {expected:?}");
}

pub(super) fn listing_goes_on_after_any_cookie(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    for i in 0..30 {
        scene.file(&format!("{i}"));
    }
    let all = scene.list(ROOT_INO);
    for n_first in 1..30 {
        let (mut names, mut cookie) = (Vec::new(), 0);
        ok(fs.readdir(ROOT_INO, 0, &mut |entry| {
            if names.len() == n_first {
                return false;
            }
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
            cookie = entry.cookie;
            true
        }));
        ok(fs.readdir(ROOT_INO, cookie, &mut |entry| {
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
            true
        }));
        assert_eq!(names, all);
    }
}

/// Walks in steps of three while names come, go and are replaced between the steps.
pub(super) fn entry_that_stays_is_listed_once(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    for i in 0..60 {
        scene.file(&format!("stays-{i}"));
        scene.file(&format!("goes-{i}"));
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let (mut cookie, mut step) = (0, 0);
    loop {
        let mut n = 0;
        ok(fs.readdir(ROOT_INO, cookie, &mut |entry| {
            if n == 3 {
                return false;
            }
            n += 1;
            *seen.entry(String::from_utf8_lossy(&entry.name).into_owned()).or_default() += 1;
            cookie = entry.cookie;
            true
        }));
        if n == 0 {
            break;
        }
        if step < 60 {
            ok(scene.unlink(ROOT_INO, &format!("goes-{step}")));
            scene.file(&format!("new-{step}"));
            scene.file("temporary");
            let replaced = format!("stays-{}", 59 - step);
            ok(scene.rename((ROOT_INO, "temporary"), (ROOT_INO, &replaced), RenameMode::Replace));
        }
        step += 1;
        assert!(step < 1000, "the walk does not end");
    }
    for i in 0..60 {
        assert_eq!(seen.get(&format!("stays-{i}")), Some(&1), "stays-{i}");
    }
    assert!(seen.values().all(|n| *n == 1), "listed twice: {seen:?}");
}

pub(super) fn listing_takes_no_reference(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("a");
    scene.list(ROOT_INO);
    ok(scene.unlink(ROOT_INO, "a"));
    fs.forget(ino, 1);
    fails(fs.getattr(ino), GONE);
}

pub(super) fn file_is_no_directory(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    fails(fs.lookup(ino, b"x"), &[Errno::ENOTDIR]);
    fails(fs.make(CALLER, ino, b"x", &NewNode::File, 0o644, at(1)), &[Errno::ENOTDIR]);
    fails(fs.link(ino, ino, b"x", at(1)), &[Errno::ENOTDIR]);
    fails(scene.unlink(ino, "x"), &[Errno::ENOTDIR]);
    fails(scene.rmdir(ino, "x"), &[Errno::ENOTDIR]);
    fails(scene.rename((ROOT_INO, "f"), (ino, "x"), RenameMode::Replace), &[Errno::ENOTDIR]);
    fails(scene.rename((ino, "x"), (ROOT_INO, "g"), RenameMode::Replace), &[Errno::ENOTDIR]);
    fails(fs.readdir(ino, 0, &mut |_| true), &[Errno::ENOTDIR]);
}
