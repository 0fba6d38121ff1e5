//! The bytes of files.

use crate::attr::{FILE_BYTES_MAX, Ino, NewNode, ROOT_INO};
use crate::conformance::scene::{GONE, Scene, at, fails, ok, pattern};
use crate::errno::Errno;
use crate::filesystem::{Allocate, Filesystem, Seek};
use std::sync::mpsc;

const MIB: usize = 1 << 20;
const TIB: u64 = 1 << 40;

pub(super) fn what_is_written_is_read(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    let mut expected = Vec::new();
    // Sizes and offsets around the borders at which implementations cut: pages, 64 KiB, 1 MiB.
    let writes = [
        (0, 10),
        (5, 4096),
        (4095, 2),
        (65_535, 3),
        (MIB - 1, 2),
        (MIB, MIB),
        (2 * MIB - 7, MIB + 100),
        (0, 3 * MIB),
        (100, 1),
    ];
    for (i, (offset, len)) in (0_u8..).zip(writes) {
        let data = pattern(len, i);
        scene.write(ino, offset as u64, &data);
        expected.resize(expected.len().max(offset + len), 0);
        expected[offset..offset + len].copy_from_slice(&data);
        assert_eq!(scene.attr(ino).size, expected.len() as u64);
        assert!(scene.read(ino, 0, expected.len()) == expected, "after write {i}");
    }
    for (offset, len) in [(4000, 200), (65_000, 1000), (MIB - 3, 6), (3 * MIB + 50, 43)] {
        assert!(scene.read(ino, offset as u64, len) == expected[offset..offset + len]);
    }
}

pub(super) fn read_ends_with_the_file(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"0123456789");
    assert_eq!(scene.read(ino, 4, 100), b"456789");
    assert_eq!(scene.read(ino, 10, 100), b"");
    assert_eq!(scene.read(ino, u64::MAX, 100), b"");
    assert_eq!(scene.read(ino, 0, 0), b"");
}

pub(super) fn gap_reads_as_zeros(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"abc");
    scene.write(ino, 10_000, b"xyz");
    let bytes = scene.read(ino, 0, 20_000);
    assert_eq!(bytes.len(), 10_003);
    assert!(bytes.starts_with(b"abc") && bytes.ends_with(b"xyz"));
    assert!(bytes[3..10_000].iter().all(|b| *b == 0));
}

pub(super) fn cut_file_does_not_show_its_past(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    for (size, cut) in [(100, 50), (10_000, 4097), (3 * MIB, MIB), (3 * MIB, MIB + 1), (MIB, 0)] {
        let data = pattern(size, 9);
        scene.truncate(ino, 0);
        scene.write(ino, 0, &data);
        scene.truncate(ino, cut as u64);
        assert!(scene.read(ino, 0, size) == data[..cut]);
        scene.truncate(ino, size as u64);
        let bytes = scene.read(ino, 0, size);
        assert!(bytes[..cut] == data[..cut] && bytes[cut..].iter().all(|b| *b == 0), "{size} cut to {cut}");
        scene.truncate(ino, cut as u64);
        scene.write(ino, size as u64, b"!");
        let bytes = scene.read(ino, 0, size + 1);
        assert!(bytes[..cut] == data[..cut] && bytes[cut..size].iter().all(|b| *b == 0));
    }
}

pub(super) fn write_stamps_the_file(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    ok(fs.write(ino, 0, b"x", at(4)));
    let attr = scene.attr(ino);
    assert_eq!((attr.mtime, attr.ctime, attr.btime), (at(4), at(4), at(0)));
    ok(fs.write(ino, 100, b"", at(5)));
    let attr = scene.attr(ino);
    assert_eq!((attr.mtime, attr.size), (at(4), 1), "an empty write does nothing");
}

pub(super) fn file_too_large_is_refused(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"x");
    fails(fs.write(ino, FILE_BYTES_MAX, b"x", at(1)), &[Errno::EFBIG]);
    fails(fs.write(ino, u64::MAX, b"xy", at(1)), &[Errno::EFBIG]);
    let size = Some(FILE_BYTES_MAX + 1);
    fails(fs.setattr(ino, &crate::attr::SetAttr { size, ..Default::default() }, at(1)), &[Errno::EFBIG]);
    fails(fs.allocate(ino, Allocate::Extend, FILE_BYTES_MAX, 1, at(1)), &[Errno::EFBIG]);
    fails(fs.allocate(ino, Allocate::Zero, u64::MAX, 2, at(1)), &[Errno::EFBIG]);
    assert_eq!(scene.attr(ino).size, 1);
    scene.truncate(ino, FILE_BYTES_MAX);
    assert_eq!(scene.attr(ino).size, FILE_BYTES_MAX);
    assert_eq!(scene.read(ino, FILE_BYTES_MAX - 2, 10), [0, 0]);
}

pub(super) fn only_files_hold_bytes(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let fifo = scene.make(ROOT_INO, "p", &NewNode::Fifo);
    for (ino, errnos) in [(ROOT_INO, &[Errno::EISDIR][..]), (fifo, &[Errno::EINVAL, Errno::ENODEV][..])] {
        fails(fs.read(ino, 0, 1), errnos);
        fails(fs.write(ino, 0, b"x", at(1)), errnos);
        fails(fs.seek(ino, Seek::Data, 0), errnos);
        fails(fs.allocate(ino, Allocate::Extend, 0, 1, at(1)), errnos);
    }
}

/// All data of a file, found by walking from data to hole; what lies between must read as zeros (looked at near its
/// ends only).
#[track_caller]
fn data_ranges(scene: Scene<'_>, ino: Ino) -> Vec<(u64, u64)> {
    let (mut ranges, mut position) = (Vec::new(), 0);
    loop {
        let data = match scene.0.seek(ino, Seek::Data, position) {
            Ok(data) => data,
            Err(errno) => {
                assert_eq!(errno, Errno::ENXIO);
                return ranges;
            }
        };
        assert!(data >= position);
        let hole = ok(scene.0.seek(ino, Seek::Hole, data));
        assert!(hole > data && hole <= scene.attr(ino).size);
        ranges.push((data, hole));
        if hole == scene.attr(ino).size {
            return ranges;
        }
        assert!(scene.read(ino, hole, 64).iter().all(|b| *b == 0));
        position = hole;
        assert!(ranges.len() < 1000, "the walk does not end");
    }
}

pub(super) fn hole_of_a_tebibyte(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"head");
    scene.write(ino, TIB, b"tail");
    assert_eq!(scene.attr(ino).size, TIB + 4);
    assert!(scene.attr(ino).blocks * 512 <= 4 * MIB as u64);
    assert_eq!(scene.read(ino, TIB, 10), b"tail");
    assert_eq!(scene.read(ino, TIB / 2, 4), [0; 4]);
    let ranges = data_ranges(scene, ino);
    assert_eq!(ranges.len(), 2);
    assert!(ranges[0].0 == 0 && ranges[1].1 == TIB + 4, "{ranges:?}");
    scene.truncate(ino, TIB / 2);
    assert_eq!(data_ranges(scene, ino).len(), 1);
}

pub(super) fn seek_finds_data_and_holes(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file("f");
    fails(fs.seek(ino, Seek::Data, 0), &[Errno::ENXIO]);
    fails(fs.seek(ino, Seek::Hole, 0), &[Errno::ENXIO]);
    scene.truncate(ino, 100 * MIB as u64);
    fails(fs.seek(ino, Seek::Data, 0), &[Errno::ENXIO]);
    assert_eq!(ok(fs.seek(ino, Seek::Hole, 0)), 0);
    scene.write(ino, 50 * MIB as u64, &pattern(2 * MIB, 1));
    assert_eq!(data_ranges(scene, ino), [(50 * MIB as u64, 52 * MIB as u64)]);
    let inside = 51 * MIB as u64 + 17;
    assert_eq!(ok(fs.seek(ino, Seek::Data, inside)), inside);
    assert_eq!(ok(fs.seek(ino, Seek::Hole, inside)), 52 * MIB as u64);
    assert_eq!(ok(fs.seek(ino, Seek::Hole, 60 * MIB as u64 + 3)), 60 * MIB as u64 + 3);
    fails(fs.seek(ino, Seek::Hole, 100 * MIB as u64), &[Errno::ENXIO]);
    fails(fs.seek(ino, Seek::Data, u64::MAX), &[Errno::ENXIO]);
    let full = scene.file_of("full", b"abc");
    assert_eq!(ok(fs.seek(full, Seek::Hole, 0)), 3, "the end of a file is a hole");
}

pub(super) fn allocate_extends(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"abc");
    ok(fs.allocate(ino, Allocate::KeepSize, 0, 10_000, at(3)));
    assert_eq!(scene.attr(ino).size, 3);
    ok(fs.allocate(ino, Allocate::Extend, 1000, 9000, at(4)));
    let attr = scene.attr(ino);
    assert_eq!((attr.size, attr.mtime, attr.ctime), (10_000, at(4), at(4)));
    ok(fs.allocate(ino, Allocate::Extend, 0, 5, at(5)));
    assert_eq!(scene.attr(ino).size, 10_000);
    let bytes = scene.read(ino, 0, 20_000);
    assert!(bytes.starts_with(b"abc") && bytes[3..].iter().all(|b| *b == 0));
    fails(fs.allocate(ino, Allocate::Extend, 0, 0, at(6)), &[Errno::EINVAL]);
}

pub(super) fn punch_zeroes_and_frees(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let data = pattern(4 * MIB, 3);
    let ino = scene.file_of("f", &data);
    let blocks = scene.attr(ino).blocks;
    let (start, len) = (MIB - 100, 2 * MIB + 1000);
    ok(fs.allocate(ino, Allocate::Punch, start as u64, len as u64, at(3)));
    let bytes = scene.read(ino, 0, 4 * MIB);
    assert!(bytes[..start] == data[..start] && bytes[start + len..] == data[start + len..]);
    assert!(bytes[start..start + len].iter().all(|b| *b == 0));
    let attr = scene.attr(ino);
    assert!(attr.blocks < blocks, "{} of {blocks} blocks are left", attr.blocks);
    assert_eq!((attr.size, attr.mtime, attr.ctime), (4 * MIB as u64, at(3), at(3)));
    ok(fs.allocate(ino, Allocate::Punch, 4 * MIB as u64 - 5, 1000, at(4)));
    assert_eq!(scene.attr(ino).size, 4 * MIB as u64, "a punch past the end does not grow the file");
    assert_eq!(scene.read(ino, 4 * MIB as u64 - 5, 10), [0; 5]);
}

pub(super) fn zero_range_zeroes(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", &pattern(10_000, 1));
    ok(fs.allocate(ino, Allocate::ZeroKeepSize, 9_000, 5_000, at(3)));
    assert_eq!(scene.attr(ino).size, 10_000);
    assert!(scene.read(ino, 9_000, 5_000) == [0; 1000]);
    ok(fs.allocate(ino, Allocate::Zero, 5_000, 15_000, at(4)));
    let attr = scene.attr(ino);
    assert_eq!((attr.size, attr.mtime), (20_000, at(4)));
    assert!(scene.read(ino, 0, 5_000) == pattern(10_000, 1)[..5_000]);
    assert!(scene.read(ino, 5_000, 15_000) == [0; 15_000]);
}

pub(super) fn copy_range_copies(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let data = pattern(3 * MIB, 5);
    let (from, to) = (scene.file_of("a", &data), scene.file_of("b", &[7; 100]));
    for (source, target, len) in [(0, 0, 3 * MIB), (10, 50, 5000), (MIB, 3 * MIB, MIB), (1, 2, MIB + 1)] {
        let mut expected = scene.read(to, 0, 10 * MIB);
        expected.resize(expected.len().max(target + len), 0);
        expected[target..target + len].copy_from_slice(&data[source..source + len]);
        let n = ok(fs.copy_range((from, source as u64), (to, target as u64), len as u64, at(6)));
        assert_eq!(n, len as u64);
        assert!(scene.read(to, 0, 10 * MIB) == expected, "{len} bytes from {source} to {target}");
    }
    assert!(scene.read(from, 0, 4 * MIB) == data, "the source stays");
    assert_eq!(scene.attr(to).mtime, at(6));
    let copy = scene.read(to, 0, 10 * MIB);
    scene.write(from, 0, &pattern(3 * MIB, 99));
    assert!(scene.read(to, 0, 10 * MIB) == copy, "a copy does not follow its source");
}

pub(super) fn copy_range_ends_with_the_source(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let from = scene.file_of("a", &pattern(5000, 1));
    scene.write(from, TIB, b"end");
    let to = scene.file("b");
    assert_eq!(ok(fs.copy_range((from, TIB + 1), (to, 0), 100, at(1))), 2);
    assert_eq!(scene.read(to, 0, 10), b"nd");
    assert_eq!(ok(fs.copy_range((from, TIB + 3), (to, 0), 100, at(1))), 0);
    assert_eq!(scene.attr(to).size, 2);
    let n = ok(fs.copy_range((from, 0), (to, 0), TIB + 3, at(2)));
    assert_eq!(n, TIB + 3);
    assert!(scene.read(to, 0, 5000) == pattern(5000, 1));
    assert_eq!(scene.read(to, TIB, 10), b"end");
    assert!(scene.attr(to).blocks * 512 <= 4 * MIB as u64, "holes stay holes");
}

pub(super) fn copy_range_refuses_an_overlap(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let data = pattern(10_000, 2);
    let ino = scene.file_of("f", &data);
    fails(fs.copy_range((ino, 0), (ino, 4999), 5000, at(1)), &[Errno::EINVAL]);
    fails(fs.copy_range((ino, 4999), (ino, 0), 5000, at(1)), &[Errno::EINVAL]);
    fails(fs.copy_range((ino, 0), (ino, 0), 1, at(1)), &[Errno::EINVAL]);
    assert!(scene.read(ino, 0, 10_000) == data);
    assert_eq!(ok(fs.copy_range((ino, 0), (ino, 5000), 5000, at(1))), 5000);
    assert!(scene.read(ino, 5000, 5000) == data[..5000]);
}

pub(super) fn fsync_answers(fs: &dyn Filesystem) {
    let scene = Scene(fs);
    let ino = scene.file_of("f", b"x");
    let fsync = |ino| {
        let (sender, receiver) = mpsc::channel();
        fs.fsync(
            ino,
            false,
            Box::new(move |reply| {
                // The receiver waits right below; if it is gone the check has failed already.
                let _ = sender.send(reply);
            }),
        );
        match receiver.recv() {
            Ok(reply) => reply,
            Err(_) => panic!("fsync dropped its answer"),
        }
    };
    ok(fsync(ino));
    ok(fsync(ROOT_INO));
    ok(fsync(ino));
    ok(scene.unlink(ROOT_INO, "f"));
    fs.forget(ino, 1);
    fails(fsync(ino), GONE);
}
