//! Every sequence of one and of two operations on a few names, each followed by an fsync of each thing it touched and a
//! power cut: the workloads that ACE found bugs of file systems with (Mohan et al., OSDI 2018).
//!
//! In one test the same sequences catch a log that is not synced and an fsync that does nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use remora_store::sim::SimDisk;
use remora_vfs::attr::NewNode;
use remora_vfs::filesystem::{Allocate, RenameMode};
use remora_volume::volume::Volume;

use model::history::History;
use model::picture::picture_of;
use model::request::{Request, Slots, Target};
use rig::{fsync, options_on, store_on};

/// Files that may be there: `foo` and `A/foo` are, to begin with.
const FILES: [&str; 5] = ["foo", "bar", "A/foo", "A/bar", "B/foo"];

/// Directories that may be there: `A` and `B` are, to begin with.
const DIRS: [&str; 3] = ["A", "B", "A/C"];

/// What is wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    LogIsNotSynced,
    FsyncDoesNothing,
}

/// One operation of a sequence.
#[derive(Clone, PartialEq, Debug)]
enum Act {
    Do(Request),
    Fsync(&'static str),
}

fn file(at: &'static str) -> Request {
    Request::Make { at, node: NewNode::File, mode: 0o644 }
}

fn dir(at: &'static str) -> Request {
    Request::Make { at, node: NewNode::Directory, mode: 0o755 }
}

fn write(at: &'static str, offset: u64, len: usize) -> Request {
    Request::Write { file: Target::At(at), offset, len, fill: offset as u8 ^ len as u8, skip: 0 }
}

/// What there is before a sequence.
fn beginning() -> Vec<Request> {
    vec![dir("A"), dir("B"), file("foo"), file("A/foo"), write("foo", 0, 6000), write("A/foo", 0, 3000)]
}

/// Operations on the content of a file.
fn content_acts(at: &'static str) -> Vec<Request> {
    let file = Target::At(at);
    let allocate = |how, offset, len| Request::Allocate { file, how, offset, len };
    vec![
        write(at, 0, 1000),
        write(at, 6000, 2000),
        write(at, 20_000, 500),
        Request::Truncate { file, size: 0 },
        Request::Truncate { file, size: 2500 },
        Request::Truncate { file, size: 9000 },
        allocate(Allocate::Extend, 5000, 5000),
        allocate(Allocate::KeepSize, 5000, 5000),
        allocate(Allocate::Punch, 1000, 1500),
        allocate(Allocate::Zero, 2000, 8000),
        allocate(Allocate::ZeroKeepSize, 2000, 8000),
        Request::SetXattr { file, name: "user.x", len: 40, fill: 3 },
        Request::Attributes { file, mode: Some(0o600), uid: None, mtime: None },
    ]
}

/// Operations on names.
fn name_acts() -> Vec<Request> {
    let mut acts: Vec<Request> = FILES.iter().chain(&DIRS[2..]).map(|at| dir(at)).collect();
    for at in FILES {
        acts.extend([file(at), Request::Unlink { at }]);
        acts.push(Request::Make { at, node: NewNode::Symlink(b"foo".to_vec()), mode: 0o777 });
        for to in FILES.into_iter().filter(|to| *to != at) {
            acts.push(Request::Link { from: Target::At(at), to });
            acts.push(Request::Rename { from: at, to, mode: RenameMode::Replace });
        }
    }
    for (i, from) in FILES.into_iter().enumerate() {
        let others = FILES[i + 1..].iter();
        acts.extend(others.map(|to| Request::Rename { from, to, mode: RenameMode::Exchange }));
    }
    for (from, to) in [("foo", "A"), ("A/foo", "B"), ("A", "B"), ("A/C", "foo")] {
        acts.push(Request::Rename { from, to, mode: RenameMode::Exchange });
    }
    for at in DIRS {
        acts.push(Request::Rmdir { at });
        let others = DIRS.into_iter().filter(|to| *to != at);
        acts.extend(others.map(|to| Request::Rename { from: at, to, mode: RenameMode::Replace }));
    }
    for (from, to) in [("A/foo", "bar"), ("foo", "A/foo"), ("A", "A/C")] {
        acts.push(Request::Rename { from, to, mode: RenameMode::NoReplace });
    }
    acts.push(Request::RemoveXattr { file: Target::At("foo"), name: "user.x" });
    acts.push(Request::Copy { from: (Target::At("foo"), 1000), to: (Target::At("A/foo"), 500), len: 3000 });
    acts
}

/// Everything that may be persisted: every name there ever is.
fn places() -> Vec<&'static str> {
    let mut places = vec![""];
    places.extend(FILES);
    places.extend(DIRS);
    places
}

fn acts() -> Vec<Act> {
    let requests = name_acts().into_iter().chain(content_acts("foo")).chain(content_acts("A/foo"));
    let mut acts: Vec<Act> = requests.map(Act::Do).collect();
    acts.extend(["foo", "A/foo", "A", ""].map(Act::Fsync));
    acts
}

/// A disk with a volume on it that a sequence begins with.
struct Beginning(SimDisk);

impl Beginning {
    fn new() -> Beginning {
        let disk = SimDisk::new(11);
        let volume = open(&disk).unwrap();
        let (mut history, mut slots) = (History::new(), Slots::default());
        for request in beginning() {
            assert!(history.request(&volume, &mut slots, &request));
        }
        volume.close().unwrap();
        Beginning(disk.crash(0))
    }
}

fn open(disk: &SimDisk) -> Option<Volume> {
    Volume::open(options_on(&store_on(Arc::new(disk.clone())))).ok()
}

/// A sequence under way.
struct Run {
    disk: SimDisk,
    volume: Volume,
    history: History,
    slots: Slots,
    mistake: Mistake,
}

impl Run {
    fn new(beginning: &Beginning, mistake: Mistake) -> Run {
        let disk = beginning.0.kill();
        let volume = open(&disk).unwrap();
        if mistake == Mistake::LogIsNotSynced {
            disk.lie_about_syncs();
        }
        let (mut history, mut slots) = (History::new(), Slots::default());
        for request in self::beginning() {
            history.assume(&request);
        }
        history.promise_all();
        slots.lose();
        Run { disk, volume, history, slots, mistake }
    }

    /// Answers whether it could be done.
    fn act(&mut self, act: &Act) -> bool {
        match act {
            Act::Do(request) => self.history.request(&self.volume, &mut self.slots, request),
            Act::Fsync(at) => {
                let Ok(ino) = Target::At(at).ino(&self.volume, &self.slots) else { return false };
                if self.mistake != Mistake::FsyncDoesNothing {
                    fsync(&self.volume, ino).unwrap();
                }
                self.history.promise(Target::At(at));
                true
            }
        }
    }

    /// Cuts the power and looks. Answers whether what is found can be explained.
    fn cut(mut self, seed: u64) -> bool {
        let Some(volume) = open(&self.disk.crash(seed)) else { return false };
        self.history.recover(&picture_of(&volume)).is_some()
    }
}

/// Runs sequences that begin with these acts, each with every fsync there is at its end. Answers how many ended as they
/// should, and how many not; tells of the first of those.
fn run(beginning: &Beginning, acts: &[&Act], mistake: Mistake) -> (usize, usize) {
    let (mut n_good, mut n_bad) = (0, 0);
    for (i, place) in places().into_iter().enumerate() {
        let mut run = Run::new(beginning, mistake);
        if !acts.iter().all(|act| run.act(act)) {
            return (n_good, n_bad);
        }
        if !run.act(&Act::Fsync(place)) {
            continue;
        }
        if run.cut(i as u64 * 7919 + acts.len() as u64) {
            n_good += 1;
        } else {
            if n_bad == 0 && mistake == Mistake::None {
                eprintln!("{acts:?}, fsync of {place:?}: cannot be explained");
            }
            n_bad += 1;
        }
    }
    (n_good, n_bad)
}

/// Runs all sequences that begin with each of these, on two threads.
fn run_all(sequences: &[Vec<&Act>], mistake: Mistake) -> (usize, usize) {
    let beginning = Beginning::new();
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut n_good, mut n_bad) = (0, 0);
        while let Some(acts) = sequences.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (good, bad) = run(&beginning, acts, mistake);
            (n_good, n_bad) = (n_good + good, n_bad + bad);
        }
        (n_good, n_bad)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let (good, bad) = work();
        let (more_good, more_bad) = other.join().unwrap();
        (good + more_good, bad + more_bad)
    })
}

#[test]
fn every_sequence_of_one_operation_keeps_what_was_promised() {
    let acts = acts();
    let sequences: Vec<_> = acts.iter().map(|act| vec![act]).collect();
    let (n_good, n_bad) = run_all(&sequences, Mistake::None);
    eprintln!("{} operations, {n_good} power cuts", acts.len());
    assert_eq!(n_bad, 0);
    assert!(n_good > 2 * acts.len());
    let (_, unsynced) = run_all(&sequences, Mistake::LogIsNotSynced);
    let (_, undone) = run_all(&sequences, Mistake::FsyncDoesNothing);
    eprintln!("caught: {unsynced} logs that were not synced, {undone} fsyncs that did nothing");
    assert!(unsynced > 20 && undone > 20);
}

#[test]
fn every_sequence_of_two_operations_keeps_what_was_promised() {
    let acts = acts();
    let sequences: Vec<_> = acts.iter().flat_map(|one| acts.iter().map(move |two| vec![one, two])).collect();
    let (n_good, n_bad) = run_all(&sequences, Mistake::None);
    eprintln!("{} sequences, {n_good} power cuts", sequences.len());
    assert_eq!(n_bad, 0);
}
