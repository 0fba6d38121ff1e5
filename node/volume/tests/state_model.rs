//! The state against the in-memory file system: any sequence of requests, crashes and checkpoints shows the same files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod state_rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use remora_dag::file::FileBuilder;
use remora_dag::profile::Profile;
use remora_vfs::acl::{ACCESS, DEFAULT};
use remora_vfs::attr::{Ino, Kind, NewNode, ROOT_INO, SetAttr, Timestamp};
use remora_vfs::conformance;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Allocate, Caller, Filesystem, RenameMode, Seek, XattrMode};
use remora_vfs::memfs::MemFs;
use remora_volume::state::changes::Changes;
use state_rig::Rig;

const MIB: u64 = 1 << 20;

#[test]
fn state_conforms() {
    conformance::run(&|| Arc::new(Rig::new()));
}

/// What happens in a test; small numbers choose inodes, names and ranges.
#[derive(Clone, Debug)]
enum Step {
    Make { dir: usize, name: usize, kind: u8, mode: u16 },
    Link { node: usize, dir: usize, name: usize },
    Unlink { dir: usize, name: usize },
    Rmdir { dir: usize, name: usize },
    Rename { from: (usize, usize), to: (usize, usize), mode: u8 },
    Write { node: usize, place: (u64, u64), len: usize },
    WriteRef { node: usize, chunk: u64, fill: u8 },
    Truncate { node: usize, place: (u64, u64) },
    Chmod { node: usize, mode: u16, uid: Option<u32>, mtime: Option<i64> },
    Allocate { node: usize, how: u8, place: (u64, u64), len: u64 },
    Copy { from: (usize, u64, u64), to: (usize, u64, u64), len: u64 },
    SetXattr { node: usize, name: usize, len: usize },
    RemoveXattr { node: usize, name: usize },
    Forget { node: usize },
    Cut,
    Checkpoint,
    Rebase { n: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..24usize;
    let name = || 0..5usize;
    let place = || prop_oneof![(0..4u64, 0..9000u64), (0..4u64, Just(0u64))];
    prop_oneof![
        8 => (node(), name(), 0..9u8, 0..0o7777u16)
            .prop_map(|(dir, name, kind, mode)| Step::Make { dir, name, kind, mode }),
        2 => (node(), node(), name()).prop_map(|(node, dir, name)| Step::Link { node, dir, name }),
        3 => (node(), name()).prop_map(|(dir, name)| Step::Unlink { dir, name }),
        2 => (node(), name()).prop_map(|(dir, name)| Step::Rmdir { dir, name }),
        4 => ((node(), name()), (node(), name()), 0..6u8)
            .prop_map(|(from, to, mode)| Step::Rename { from, to, mode }),
        8 => (node(), place(), 0..6000usize)
            .prop_map(|(node, place, len)| Step::Write { node, place, len }),
        2 => (node(), 0..4u64, 0..3u8).prop_map(|(node, chunk, fill)| Step::WriteRef { node, chunk, fill }),
        3 => (node(), place()).prop_map(|(node, place)| Step::Truncate { node, place }),
        2 => (node(), 0..0o7777u16, any::<Option<u32>>(), any::<Option<i64>>())
            .prop_map(|(node, mode, uid, mtime)| Step::Chmod { node, mode, uid, mtime }),
        3 => (node(), 0..5u8, place(), 0..2 * MIB)
            .prop_map(|(node, how, place, len)| Step::Allocate { node, how, place, len }),
        2 => ((node(), 0..4u64, 0..5000u64), (node(), 0..4u64, 0..5000u64), 1..2 * MIB)
            .prop_map(|(from, to, len)| Step::Copy { from, to, len }),
        2 => (node(), 0..5usize, 0..700usize)
            .prop_map(|(node, name, len)| Step::SetXattr { node, name, len }),
        1 => (node(), 0..5usize).prop_map(|(node, name)| Step::RemoveXattr { node, name }),
        2 => node().prop_map(|node| Step::Forget { node }),
        4 => Just(Step::Cut),
        2 => Just(Step::Checkpoint),
        4 => (1..6usize).prop_map(|n| Step::Rebase { n }),
        1 => Just(Step::Reopen),
    ]
}

const NAMES: [&[u8]; 5] = [b"a", b"b", b"c.txt", b"\xff\xfe", b"long-long-long-long-long-long-long-name"];
const XATTRS: [&[u8]; 5] = [b"user.one", b"user.two", b"security.three", ACCESS, DEFAULT];

/// A value for an attribute; for a list, one that is sound more often than not.
fn xattr_value(name: usize, len: usize, now: i64) -> Vec<u8> {
    if name < 3 {
        return vec![now as u8; len];
    }
    let perm = |shift: usize| (len >> shift & 7) as u16;
    let mut entries = vec![(1u16, perm(0)), (4, perm(3)), (0x20, perm(6))];
    if !len.is_multiple_of(3) {
        entries.splice(1..1, [(2, perm(1))]);
        entries.insert(3, (0x10, perm(4)));
    }
    entries.truncate(len.max(2));
    let entries = entries.iter().flat_map(|(tag, perm)| [*tag, *perm, 7, 0].map(u16::to_le_bytes).concat());
    2u32.to_le_bytes().into_iter().chain(entries).collect()
}

/// The same request to both.
struct Pair {
    rig: Rig,
    model: MemFs,
    /// Inodes that are held in both, the root first.
    held: Vec<(Ino, Ino)>,
    now: i64,
}

fn same_error(a: Errno, b: Errno) -> bool {
    let is_gone = |e: Errno| e == Errno::ENOENT || e == Errno::ESTALE;
    a == b || is_gone(a) && is_gone(b)
}

impl Pair {
    fn new() -> Pair {
        Pair {
            rig: Rig::new(),
            model: MemFs::new(Timestamp(0)),
            held: vec![(ROOT_INO, ROOT_INO)],
            now: 1_000_000_000,
        }
    }

    fn node(&self, index: usize) -> (Ino, Ino) {
        self.held[index % self.held.len()]
    }

    /// Asks both and checks that they agree on whether it works; answers what they said.
    fn both<T>(
        &self,
        what: &Step,
        ask: impl Fn(&dyn Filesystem, usize) -> Result<T, Errno>,
    ) -> Option<(T, T)> {
        match (ask(&self.rig, 0), ask(&self.model, 1)) {
            (Ok(a), Ok(b)) => Some((a, b)),
            (Err(a), Err(b)) => {
                assert!(same_error(a, b), "{what:?}: {a} instead of {b}");
                None
            }
            (a, b) => panic!("{what:?}: {:?} instead of {:?}", a.err(), b.err()),
        }
    }

    fn step(&mut self, step: &Step) {
        self.now += 1001;
        let now = Timestamp(self.now);
        let pick = |pair: (Ino, Ino), side: usize| if side == 0 { pair.0 } else { pair.1 };
        match step {
            Step::Make { .. } | Step::Link { .. } => self.make(step, now),
            Step::Unlink { dir, name } => {
                let dir = self.node(*dir);
                self.both(step, |fs, side| fs.unlink(pick(dir, side), NAMES[*name], now));
            }
            Step::Rmdir { dir, name } => {
                let dir = self.node(*dir);
                self.both(step, |fs, side| fs.rmdir(pick(dir, side), NAMES[*name], now));
            }
            Step::Rename { from, to, mode } => {
                let (a, b) = (self.node(from.0), self.node(to.0));
                let mode = match mode {
                    0 => RenameMode::NoReplace,
                    1 => RenameMode::Exchange,
                    _ => RenameMode::Replace,
                };
                self.both(step, |fs, side| {
                    fs.rename((pick(a, side), NAMES[from.1]), (pick(b, side), NAMES[to.1]), mode, now)
                });
            }
            Step::Forget { node } => {
                let index = node % self.held.len();
                if index > 0 {
                    let (a, b) = self.held.swap_remove(index);
                    self.rig.forget(a, 1);
                    self.model.forget(b, 1);
                }
            }
            Step::Cut => self.rig.cut(),
            Step::Checkpoint => {
                self.rig.checkpoint();
            }
            Step::Rebase { n } => {
                self.rig.rebase(*n);
            }
            Step::Reopen => self.reopen(),
            _ => self.content(step, now),
        }
    }

    fn make(&mut self, step: &Step, now: Timestamp) {
        let answers = match *step {
            Step::Make { dir, name, kind, mode } => {
                let dir = self.node(dir);
                let node = match kind {
                    0..=2 => NewNode::Directory,
                    3 => NewNode::Symlink(NAMES[name].to_vec()),
                    4 => NewNode::Fifo,
                    5 => NewNode::CharDevice(259),
                    _ => NewNode::File,
                };
                let caller = Caller { uid: u32::from(mode), gid: 7 };
                self.both(step, |fs, side| {
                    fs.make(caller, if side == 0 { dir.0 } else { dir.1 }, NAMES[name], &node, mode, now)
                })
            }
            Step::Link { node, dir, name } => {
                let (node, dir) = (self.node(node), self.node(dir));
                self.both(step, |fs, side| match side {
                    0 => fs.link(node.0, dir.0, NAMES[name], now),
                    _ => fs.link(node.1, dir.1, NAMES[name], now),
                })
            }
            _ => None,
        };
        if let Some((a, b)) = answers {
            self.held.push((a.ino, b.ino));
        }
    }

    fn content(&mut self, step: &Step, now: Timestamp) {
        let at = |place: (u64, u64)| (place.0 * MIB + place.1).saturating_sub(3000);
        let side_of = |pair: (Ino, Ino), side: usize| if side == 0 { pair.0 } else { pair.1 };
        match *step {
            Step::Write { node, place, len } => {
                let node = self.node(node);
                let data: Vec<u8> = (0..len).map(|i| (i as i64 + self.now) as u8).collect();
                self.both(step, |fs, side| fs.write(side_of(node, side), at(place), &data, now));
            }
            Step::WriteRef { node, chunk, fill } => {
                let node = self.node(node);
                let data = vec![fill; MIB as usize];
                let (a, b) = (
                    self.rig.write_ref(node.0, chunk * MIB, &data, now),
                    self.model.write(node.1, chunk * MIB, &data, now),
                );
                assert_eq!(a.is_ok(), b.is_ok(), "{step:?}");
            }
            Step::Truncate { node, place } => {
                let node = self.node(node);
                let change = SetAttr { size: Some(at(place)), ..SetAttr::default() };
                self.both(step, |fs, side| fs.setattr(side_of(node, side), &change, now));
            }
            Step::Chmod { node, mode, uid, mtime } => {
                let node = self.node(node);
                let change =
                    SetAttr { mode: Some(mode), uid, mtime: mtime.map(Timestamp), ..SetAttr::default() };
                self.both(step, |fs, side| fs.setattr(side_of(node, side), &change, now));
            }
            Step::Allocate { node, how, place, len } => {
                let node = self.node(node);
                let how = [
                    Allocate::Extend,
                    Allocate::KeepSize,
                    Allocate::Punch,
                    Allocate::Zero,
                    Allocate::ZeroKeepSize,
                ][usize::from(how)];
                self.both(step, |fs, side| fs.allocate(side_of(node, side), how, at(place), len, now));
            }
            Step::Copy { from, to, len } => {
                let (a, b) = (self.node(from.0), self.node(to.0));
                let answers = self.both(step, |fs, side| {
                    let from = (side_of(a, side), at((from.1, from.2)));
                    fs.copy_range(from, (side_of(b, side), at((to.1, to.2))), len, now)
                });
                assert!(answers.is_none_or(|(a, b)| a == b), "{step:?}");
            }
            Step::SetXattr { node, name, len } => {
                let node = self.node(node);
                let value = xattr_value(name, len, self.now);
                self.both(step, |fs, side| {
                    fs.setxattr(side_of(node, side), XATTRS[name], &value, XattrMode::Any, now)
                });
            }
            Step::RemoveXattr { node, name } => {
                let node = self.node(node);
                self.both(step, |fs, side| fs.removexattr(side_of(node, side), XATTRS[name], now));
            }
            _ => {}
        }
    }

    /// A crash: nobody holds anything any more.
    fn reopen(&mut self) {
        for (_, model) in self.held.drain(1..) {
            self.model.forget(model, 1);
        }
        self.rig.reopen();
    }

    fn check(&self) {
        let (mut seen, mut todo) = (BTreeMap::new(), vec![(ROOT_INO, ROOT_INO)]);
        let mut todo_held = self.held.clone();
        todo.append(&mut todo_held);
        while let Some((a, b)) = todo.pop() {
            if let Some(known) = seen.insert(a, b) {
                assert_eq!(known, b, "hard links lead to one inode");
                continue;
            }
            todo.extend(self.check_one(a, b));
        }
        let listed = self.rig.core().state.stats().inodes;
        assert_eq!(listed as usize, self.model.n_inodes(), "the inode counter is a recount");
    }

    /// Checks one inode and answers what it leads to.
    fn check_one(&self, a: Ino, b: Ino) -> Vec<(Ino, Ino)> {
        let (mut x, mut y) = (self.rig.getattr(a).unwrap(), self.model.getattr(b).unwrap());
        // How much of a file is holes is known less exactly after a checkpoint.
        assert!(x.kind != Kind::File || x.blocks * 512 <= x.size.next_multiple_of(4096), "{x:?}");
        (x.ino, x.blocks, y.ino, y.blocks) = (0, 0, 0, 0);
        assert_eq!(x, y, "attributes of inode {a}");
        assert_eq!(self.rig.listxattr(a), self.model.listxattr(b));
        for name in self.rig.listxattr(a).unwrap() {
            assert_eq!(self.rig.getxattr(a, &name), self.model.getxattr(b, &name));
        }
        match x.kind {
            Kind::File => {
                let (p, q) = (self.rig.read(a, 0, 1 << 23).unwrap(), self.model.read(b, 0, 1 << 23).unwrap());
                assert_eq!(p.len(), q.len(), "length of inode {a}");
                assert!(p == q, "inode {a} differs at byte {:?}", p.iter().zip(&q).position(|(p, q)| p != q));
                assert_holes_are_zero(&self.rig, a, &p);
            }
            Kind::Symlink => assert_eq!(self.rig.readlink(a), self.model.readlink(b)),
            Kind::Directory => return self.check_names(a, b),
            _ => {}
        }
        Vec::new()
    }

    fn check_names(&self, a: Ino, b: Ino) -> Vec<(Ino, Ino)> {
        let list = |fs: &dyn Filesystem, ino| {
            let mut names = BTreeMap::new();
            fs.readdir(ino, 0, &mut |entry| {
                let is_new = names.insert(entry.name.clone(), entry.attr.ino).is_none();
                assert!(is_new, "{:?} is listed twice", entry.name);
                true
            })
            .unwrap();
            names
        };
        let (x, y) = (list(&self.rig, a), list(&self.model, b));
        assert_eq!(x.keys().collect::<BTreeSet<_>>(), y.keys().collect::<BTreeSet<_>>(), "names in {a}");
        for (name, ino) in &x {
            let found = self.rig.ask_lookup(a, name);
            assert_eq!(found, *ino, "lookup and listing agree");
        }
        x.iter().map(|(name, ino)| (*ino, y[name])).collect()
    }
}

fn assert_holes_are_zero(rig: &Rig, ino: Ino, bytes: &[u8]) {
    let mut at = 0u64;
    while let Ok(hole) = rig.seek(ino, Seek::Hole, at) {
        let data = rig.seek(ino, Seek::Data, hole).unwrap_or(bytes.len() as u64);
        assert!(bytes[hole as usize..data as usize].iter().all(|byte| *byte == 0), "a hole is zero");
        if data >= bytes.len() as u64 {
            break;
        }
        at = data;
    }
}

fn check_steps(steps: &[Step]) {
    let mut pair = Pair::new();
    for step in steps {
        pair.step(step);
    }
    pair.check();
    // The same over a base, half taken over, taken over, and read again from nothing.
    pair.rig.rebase(usize::MAX);
    pair.check();
    pair.rig.checkpoint();
    pair.rig.rebase(2);
    pair.check();
    pair.rig.rebase(usize::MAX);
    pair.check();
    assert_eq!(pair.rig.core().state.changes(), Changes::default(), "the base has everything");
    check_contents(&pair);
    pair.reopen();
    pair.check();
}

/// Files in the tree have the CID of their bytes.
fn check_contents(pair: &Pair) {
    let core = pair.rig.core();
    let shadow_base = core.base.clone();
    drop(core);
    let mut dirs = vec![shadow_base.root];
    while let Some(dir) = dirs.pop() {
        let nodes = remora_dag::read::BlockNodes::new(&pair.rig.blocks);
        for (_, entry) in remora_dag::list::list_after(&nodes, &dir, None, 1000).unwrap() {
            let row = entry.row.unwrap();
            match Kind::from_u8(row.kind).unwrap() {
                Kind::Directory => dirs.push(entry.cid),
                Kind::File => {
                    let bytes = pair.rig.read(row.ino, 0, 1 << 23).unwrap();
                    let mut builder = FileBuilder::new(Profile::V1_2025, &pair.rig.blocks);
                    builder.write(&bytes).unwrap();
                    assert_eq!(builder.finish().unwrap().cid, entry.cid, "content of inode {}", row.ino);
                }
                _ => {}
            }
        }
    }
}

/// `PROPTEST_CASES` asks for more than a short run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn state_replay_and_checkpoints_agree_with_the_model(steps in proptest::collection::vec(step(), 1..90)) {
        check_steps(&steps);
    }
}
