//! Requests as they are drawn at random: few names, so that they meet; sizes around those that matter.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use remora_vfs::attr::NewNode;
use remora_vfs::filesystem::{Allocate, RenameMode};

use super::request::{Request, SLOTS, Target};

const MIB: u64 = 1 << 20;

const PATHS: [&str; 10] = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/a"];

const XATTRS: [&str; 2] = ["user.one", "security.two"];

/// A path.
pub fn path() -> impl Strategy<Value = &'static str> {
    select(&PATHS[..])
}

/// An inode: mostly by its path.
pub fn target() -> impl Strategy<Value = Target> {
    prop_oneof![5 => path().prop_map(Target::At), 1 => (0..SLOTS).prop_map(Target::Slot)]
}

/// A place in a file: mostly near its start, or around the ends of chunks.
pub fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0..9000u64,
        1 => select(vec![0, 4096, MIB - 2000, MIB, MIB + 5, 2 * MIB]),
        1 => (0..3u64, 0..9000u64).prop_map(|(chunk, at)| (chunk * MIB + at).saturating_sub(4000)),
    ]
}

/// A request that changes names.
pub fn name_request() -> impl Strategy<Value = Request> {
    let node = prop_oneof![
        4 => Just(NewNode::File),
        3 => Just(NewNode::Directory),
        1 => Just(NewNode::Symlink(b"some/where".to_vec())),
        1 => Just(NewNode::Fifo),
        1 => Just(NewNode::CharDevice(259)),
    ];
    let mode =
        select(vec![RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
    prop_oneof![
        6 => (path(), node, 0..0o7777u16).prop_map(|(at, node, mode)| Request::Make { at, node, mode }),
        2 => (target(), path()).prop_map(|(from, to)| Request::Link { from, to }),
        2 => path().prop_map(|at| Request::Unlink { at }),
        1 => path().prop_map(|at| Request::Rmdir { at }),
        4 => (path(), path(), mode).prop_map(|(from, to, mode)| Request::Rename { from, to, mode }),
        1 => (path(), 0..SLOTS).prop_map(|(at, slot)| Request::Open { at, slot }),
        1 => (0..SLOTS).prop_map(|slot| Request::Close { slot }),
    ]
}

/// A request that changes a file.
pub fn content_request() -> impl Strategy<Value = Request> {
    let how = select(vec![
        Allocate::Extend,
        Allocate::KeepSize,
        Allocate::Punch,
        Allocate::Zero,
        Allocate::ZeroKeepSize,
    ]);
    let len = prop_oneof![6 => 1..6000usize, 1 => 60_000..300_000usize, 1 => Just(MIB as usize), 1 => Just(1_200_000usize)];
    let write = |file, offset, len, fill| Request::Write { file, offset, len, fill, skip: 0 };
    prop_oneof![
        6 => (target(), offset(), len, any::<u8>())
            .prop_map(move |(file, offset, len, fill)| write(file, offset, len, fill)),
        2 => (target(), offset()).prop_map(|(file, size)| Request::Truncate { file, size }),
        1 => (target(), 0..0o7777u16, any::<Option<u32>>(), any::<Option<i64>>())
            .prop_map(|(file, mode, uid, mtime)| Request::Attributes { file, mode: Some(mode), uid, mtime }),
        2 => (target(), how, offset(), 1..2 * MIB)
            .prop_map(|(file, how, offset, len)| Request::Allocate { file, how, offset, len }),
        2 => ((target(), offset()), (target(), offset()), 1..2 * MIB)
            .prop_map(|(from, to, len)| Request::Copy { from, to, len }),
        1 => (target(), select(&XATTRS[..]), 0..700usize, any::<u8>())
            .prop_map(|(file, name, len, fill)| Request::SetXattr { file, name, len, fill }),
        1 => (target(), select(&XATTRS[..])).prop_map(|(file, name)| Request::RemoveXattr { file, name }),
    ]
}
