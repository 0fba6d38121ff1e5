//! Which operation comes next.

use std::path::PathBuf;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::soak::twins::op::{Allocation, CLOCK_BEGINS, Op, Renaming, xattr_name};

/// Files a thread may hold open.
pub(super) const N_SLOTS: usize = 6;

/// Names of files in each directory, and of directories in each but the deepest.
const N_FILES: u32 = 24;
const N_DIRS: u32 = 4;

/// No file grows beyond this by a write.
const FILE_BYTES_MAX: u64 = 3 << 20;

/// The names below one directory that belongs to a thread.
pub(super) struct Names {
    pub(super) top: PathBuf,
}

impl Names {
    fn dir(&self, rng: &mut ChaCha8Rng) -> PathBuf {
        let mut path = self.top.clone();
        for _ in 0..rng.random_range(0..3) {
            path.push(format!("d{}", rng.random_range(0..N_DIRS)));
        }
        path
    }

    fn file(&self, rng: &mut ChaCha8Rng) -> PathBuf {
        self.dir(rng).join(format!("f{}", rng.random_range(0..N_FILES)))
    }

    /// A name for a directory at the first or second level: moved only within one, so that no tree grows deeper.
    fn subdir(&self, rng: &mut ChaCha8Rng, level: u32) -> PathBuf {
        let mut path = self.top.clone();
        for _ in 0..=level {
            path.push(format!("d{}", rng.random_range(0..N_DIRS)));
        }
        path
    }

    /// Mostly a file, now and then a directory.
    fn any(&self, rng: &mut ChaCha8Rng) -> PathBuf {
        match rng.random_range(0..10) {
            0 => self.dir(rng),
            1 => self.subdir(rng, 0),
            _ => self.file(rng),
        }
    }
}

/// The next operation on names of `from` and, where it takes two, of `to`.
pub(super) fn choose(rng: &mut ChaCha8Rng, from: &Names, to: &Names) -> Op {
    match rng.random_range(0..100) {
        0..=13 => create(rng, from),
        14..=39 => change_content(rng, from, to),
        40..=55 => move_names(rng, from, to),
        56..=67 => change_attributes(rng, from),
        68..=85 => use_slot(rng, from),
        _ => look(rng, from),
    }
}

fn create(rng: &mut ChaCha8Rng, names: &Names) -> Op {
    match rng.random_range(0..14) {
        0..=1 => Op::Mkdir { path: names.subdir(rng, 0), mode: 0o755 },
        2..=3 => Op::Mkdir { path: names.subdir(rng, 1), mode: 0o2775 },
        4 => Op::Mkdir { path: names.file(rng), mode: 0o700 },
        5 => {
            let name = format!("f{}", rng.random_range(0..N_FILES));
            let target =
                if rng.random_bool(0.5) { PathBuf::from(name) } else { PathBuf::from("d1").join(name) };
            Op::Symlink { target, path: names.file(rng) }
        }
        6 => Op::Fifo { path: names.file(rng) },
        n => Op::Create {
            path: names.file(rng),
            is_exclusive: n < 9,
            mode: [0o644, 0o600, 0o777, 0o4755][rng.random_range(0..4)],
        },
    }
}

/// Mostly near the start: each MiB of a file that holds anything is a block of its own after a checkpoint.
fn offset(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_range(0..100) {
        0 => 1 << 20,
        1..=2 => rng.random_range(0..FILE_BYTES_MAX),
        3..=25 => rng.random_range(0..16) * 4096,
        _ => rng.random_range(0..20 << 10),
    }
}

fn length(rng: &mut ChaCha8Rng) -> usize {
    match rng.random_range(0..200) {
        0 => 1 << 20,
        1..=5 => rng.random_range(1..300 << 10),
        6..=50 => 4096,
        _ => rng.random_range(1..8 << 10),
    }
}

fn change_content(rng: &mut ChaCha8Rng, names: &Names, others: &Names) -> Op {
    let path = names.file(rng);
    match rng.random_range(0..26) {
        0..=11 => Op::Write {
            path,
            offset: offset(rng),
            length: length(rng),
            seed: rng.random(),
            is_synced: rng.random_bool(0.1),
        },
        12..=15 => Op::Append { path, length: length(rng), seed: rng.random() },
        16..=18 => Op::Truncate { path, size: if rng.random_bool(0.3) { 0 } else { offset(rng) } },
        19..=22 => {
            let kinds = [Allocation::Plain, Allocation::KeepSize, Allocation::Punch, Allocation::Zero];
            let how = kinds[rng.random_range(0..4)];
            Op::Allocate { path, how, offset: offset(rng), length: rng.random_range(1..64 << 10) }
        }
        23..=24 => Op::CopyRange {
            from: path,
            to: others.file(rng),
            from_offset: offset(rng) / 8,
            to_offset: offset(rng),
            length: length(rng),
        },
        _ => Op::Sync { path: names.any(rng) },
    }
}

fn move_names(rng: &mut ChaCha8Rng, from: &Names, to: &Names) -> Op {
    let how = match rng.random_range(0..6) {
        0 => Renaming::Refuse,
        1 => Renaming::Exchange,
        _ => Renaming::Replace,
    };
    match rng.random_range(0..16) {
        0..=4 => Op::Rename { from: from.file(rng), to: to.file(rng), how },
        5..=6 => {
            let level = rng.random_range(0..2);
            Op::Rename { from: from.subdir(rng, level), to: to.subdir(rng, level), how }
        }
        7 => Op::Rename { from: from.subdir(rng, 1), to: to.file(rng), how: Renaming::Refuse },
        8..=10 => Op::Link { from: from.file(rng), to: to.file(rng) },
        11..=13 => Op::Unlink { path: from.file(rng) },
        14 => Op::Unlink { path: from.subdir(rng, 0) },
        _ => Op::Rmdir { path: if rng.random_bool(0.3) { from.file(rng) } else { from.subdir(rng, 1) } },
    }
}

fn change_attributes(rng: &mut ChaCha8Rng, names: &Names) -> Op {
    let path = names.any(rng);
    let name = xattr_name(rng.random_range(0..6));
    match rng.random_range(0..12) {
        0..=2 => {
            let mut value = vec![0u8; rng.random_range(0..200)];
            rng.fill(&mut value[..]);
            let is_new = if rng.random_bool(0.5) { None } else { Some(rng.random()) };
            Op::SetXattr { path, name, value, is_new }
        }
        3..=4 => Op::RemoveXattr { path, name },
        5..=7 => Op::Chmod { path, mode: rng.random_range(0..0o10000) | 0o400 },
        8..=9 => Op::Chown { path, uid: rng.random_range(0..3) * 1000, gid: rng.random_range(0..3) * 1000 },
        _ => {
            let mtime = (rng.random_range(0..CLOCK_BEGINS), rng.random_range(0..1_000_000_000));
            Op::SetTimes { path, mtime }
        }
    }
}

fn use_slot(rng: &mut ChaCha8Rng, names: &Names) -> Op {
    let slot = rng.random_range(0..N_SLOTS);
    match rng.random_range(0..14) {
        0..=2 => Op::Open { path: names.file(rng), slot },
        3..=6 => Op::WriteOpen { slot, offset: offset(rng), length: length(rng), seed: rng.random() },
        7..=8 => Op::ReadOpen { slot, offset: offset(rng) / 2 },
        9 => Op::TruncateOpen { slot, size: offset(rng) },
        10 => Op::SyncOpen { slot },
        11..=12 => Op::StatOpen { slot },
        _ => Op::Close { slot },
    }
}

fn look(rng: &mut ChaCha8Rng, names: &Names) -> Op {
    match rng.random_range(0..14) {
        0..=4 => Op::Read { path: names.file(rng), offset: offset(rng) / 2 },
        5..=8 => Op::Stat { path: names.any(rng) },
        9..=10 => Op::List { path: names.dir(rng) },
        11 => Op::Readlink { path: names.file(rng) },
        _ => Op::GetXattr { path: names.any(rng), name: xattr_name(rng.random_range(0..6)) },
    }
}
