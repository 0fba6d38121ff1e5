//! Any requests, checkpoints and power cuts at any call of the disk: what is found is what the in-memory file system says.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod rig;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use remora_store::sim::SimDisk;
use remora_vfs::attr::{Ino, Kind, Timestamp};
use remora_vfs::filesystem::Filesystem;
use remora_volume::volume::Volume;

use model::drawn::{content_request, name_request, target};
use model::history::History;
use model::picture::{Path, Picture, data_bytes, picture_of};
use model::request::{Request, Slots, Target};
use rig::{HandClock, fsync, options_on, store_on};

const MIB: u64 = 1 << 20;

/// What happens in a test.
#[derive(Clone, Debug)]
enum Step {
    Do(Request),
    /// A write at the end of the file.
    Append {
        file: Target,
        len: usize,
        fill: u8,
    },
    Fsync(Target),
    Flush,
    /// So many milliseconds pass, and what has become due is done.
    Tick(u64),
    Checkpoint,
    /// The host ends in good order and comes back.
    Handoff,
    /// The process is killed and comes back: what was written is still there.
    Kill,
    /// The power is cut at the n-th call of the disk from here; the next life may be cut while it begins.
    PowerCut {
        n: u64,
        seed: u64,
        again: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => name_request().prop_map(Step::Do),
        8 => content_request().prop_map(Step::Do),
        3 => (target(), select(vec![700usize, 70_000, 400_000]), any::<u8>())
            .prop_map(|(file, len, fill)| Step::Append { file, len, fill }),
        4 => target().prop_map(Step::Fsync),
        1 => Just(Step::Flush),
        2 => select(vec![1, 30, 250, 1_100, 31_000]).prop_map(Step::Tick),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Handoff),
        1 => Just(Step::Kill),
        2 => (1..40u64, any::<u64>(), proptest::option::of(1..30u64))
            .prop_map(|(n, seed, again)| Step::PowerCut { n, seed, again }),
    ]
}

/// What is wrong on purpose: the checker has to notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The disk says that it has synced, and has not.
    DiskLies,
    /// An fsync is acknowledged before anything is written.
    AckFirst,
}

/// A host, its volume, and what is known of both.
struct World {
    mistake: Mistake,
    clock: Arc<HandClock>,
    disk: SimDisk,
    volume: Volume,
    slots: Slots,
    history: History,
    /// A power cut in the begin of the next life.
    again: Option<u64>,
    seed: u64,
    /// When the inode with a number was made: no two are made at one time here.
    numbers: BTreeMap<Ino, Timestamp>,
}

fn open(disk: &SimDisk, clock: &Arc<HandClock>) -> Option<Volume> {
    let mut options = options_on(&store_on(Arc::new(disk.clone())));
    options.clock = clock.clone();
    Volume::open(options).ok()
}

impl World {
    fn new(mistake: Mistake) -> World {
        let disk = SimDisk::new(1);
        let clock = Arc::new(HandClock::default());
        let volume = open(&disk, &clock).unwrap();
        if mistake == Mistake::DiskLies {
            disk.lie_about_syncs();
        }
        World {
            mistake,
            clock,
            disk,
            volume,
            slots: Slots::default(),
            history: History::new(),
            again: None,
            seed: 1,
            numbers: BTreeMap::new(),
        }
    }

    /// Takes a step; answers whether what is found can be explained.
    fn step(&mut self, step: &Step, is_cut_planned: &mut bool) -> bool {
        match step {
            Step::Do(request) => drop(self.history.request(&self.volume, &mut self.slots, request)),
            Step::Append { file, len, fill } => {
                let offset = self.history.size_of(*file).unwrap_or(0).min(4 * MIB);
                let write = Request::Write { file: *file, offset, len: *len, fill: *fill, skip: 0 };
                self.history.request(&self.volume, &mut self.slots, &write);
            }
            Step::Fsync(target) => {
                let Ok(ino) = target.ino(&self.volume, &self.slots) else { return true };
                if self.mistake != Mistake::AckFirst {
                    fsync(&self.volume, ino).unwrap();
                }
                if self.counts(*is_cut_planned) {
                    self.history.promise(*target);
                }
            }
            Step::Flush => {
                self.volume.flush().unwrap();
                if self.counts(*is_cut_planned) {
                    self.history.promise_all();
                }
            }
            Step::Tick(millis) => {
                self.clock.pass(*millis);
                self.volume.tick();
            }
            Step::Checkpoint => drop(self.volume.checkpoint().unwrap()),
            Step::Handoff => {
                self.volume.close().unwrap();
                if self.counts(*is_cut_planned) {
                    *is_cut_planned = false;
                    self.history.promise_all();
                    return self.come_back(&self.disk.clone());
                }
            }
            Step::Kill if !*is_cut_planned => return self.come_back(&self.disk.clone()),
            Step::Kill => {}
            Step::PowerCut { n, seed, again } => {
                if !*is_cut_planned {
                    self.disk.plan_crash(*n, *seed);
                    (self.again, self.seed, *is_cut_planned) = (*again, *seed, true);
                }
            }
        }
        true
    }

    /// Whether what is acknowledged now counts: the picture of a cut has not been taken yet.
    fn counts(&self, is_cut_planned: bool) -> bool {
        !is_cut_planned || self.disk.is_crash_planned()
    }

    /// The next life on what the last one left. Answers whether that can be explained.
    fn come_back(&mut self, disk: &SimDisk) -> bool {
        let mut disk = disk.kill();
        if let Some(n) = self.again.take() {
            // Cut while it begins; what was on disk when it began is found all the same.
            disk.plan_crash(n, self.seed);
            let Some(volume) = open(&disk, &self.clock) else { return false };
            if disk.is_crash_planned() {
                volume.close().unwrap();
            }
            disk = disk.crashed().unwrap_or_else(|| disk.crash(self.seed));
        }
        let Some(volume) = open(&disk, &self.clock) else { return false };
        (self.disk, self.volume) = (disk, volume);
        if self.mistake == Mistake::DiskLies {
            self.disk.lie_about_syncs();
        }
        self.slots.lose();
        let found = picture_of(&self.volume);
        check_counters(&self.volume, &found);
        self.check_numbers(&found);
        self.history.recover(&found).is_some()
    }

    /// A number is never given to another inode, once the first one was found after a crash.
    fn check_numbers(&mut self, found: &Picture) {
        for (path, ino) in &found.names.inos {
            let made = found.names.sights[path].attr.btime;
            assert_eq!(*self.numbers.entry(*ino).or_insert(made), made, "inode number {ino} is used again");
        }
    }
}

/// The counters are what a recount gives.
///
/// Over a tree, the bytes of a sparse file that are data are a figure of its row, which shows in its blocks.
fn check_counters(volume: &Volume, found: &Picture) {
    let paths: BTreeMap<Ino, &Path> = found.names.inos.iter().map(|(path, ino)| (*ino, path)).collect();
    let is_file = |ino: &Ino| found.names.sights[paths[ino]].attr.kind == Kind::File;
    let (mut exact, mut blocks, mut n_files) = (0, 0, 0);
    for ino in paths.keys().filter(|ino| is_file(ino)) {
        let (data, attr) = (data_bytes(volume, *ino), volume.getattr(*ino).unwrap());
        let held = attr.blocks * 512;
        // Over a tree, the holes of a chunk count as data once the file is cut inside it.
        let most = if volume.status().base_seq == 0 { data } else { attr.size };
        assert!(held <= most.next_multiple_of(4096), "{held} bytes held of {data} that are no hole");
        (exact, blocks, n_files) = (exact + data, blocks + held, n_files + 1);
    }
    let status = volume.status();
    assert_eq!(status.inodes, paths.len() as u64, "inodes are a recount");
    assert!(status.bytes <= blocks && blocks < status.bytes + n_files * 4096 + 1, "bytes are a recount");
    assert!(status.base_seq > 0 || status.bytes == exact, "{} bytes counted, {exact} there", status.bytes);
}

/// Goes through the steps; answers whether everything found can be explained.
fn live(steps: &[Step], mistake: Mistake) -> bool {
    let mut world = World::new(mistake);
    let mut is_cut_planned = false;
    for step in steps {
        if !world.step(step, &mut is_cut_planned) {
            return false;
        }
        if is_cut_planned && let Some(disk) = world.disk.crashed() {
            is_cut_planned = false;
            if !world.come_back(&disk) {
                return false;
            }
        }
    }
    let disk = world.disk.crash(7);
    world.come_back(&disk)
}

/// `PROPTEST_CASES` asks for more than a short run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_after_any_power_cut_was_there_and_nothing_promised_is_missing(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        assert!(live(&steps, Mistake::None), "what was found cannot be explained");
    }
}

/// How many of `n` lives show a mistake: what is found cannot be explained, or cannot even be read.
fn n_caught(mistake: Mistake, n: usize) -> usize {
    let mut runner = TestRunner::deterministic();
    let lives = proptest::collection::vec(step(), 20..120);
    let is_caught = |steps: Vec<Step>| {
        let is_explained = catch_unwind(AssertUnwindSafe(|| live(&steps, mistake)));
        !is_explained.unwrap_or(false)
    };
    (0..n).filter(|_| is_caught(lives.new_tree(&mut runner).unwrap().current())).count()
}

#[test]
fn planted_mistakes_are_caught() {
    assert_eq!(n_caught(Mistake::None, 50), 0);
    let (lies, acks) = (n_caught(Mistake::DiskLies, 100), n_caught(Mistake::AckFirst, 100));
    eprintln!("of 100 lives, {lies} noticed a disk that does not sync, {acks} an fsync that does nothing");
    assert!(lies > 20 && acks > 3);
}
