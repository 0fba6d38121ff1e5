//! The part that works on two trees in step: every operation on the native one, then on the volume, and equal answers.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::io::Errno;

use crate::soak::twins::choice::{N_SLOTS, Names, choose};
use crate::soak::twins::op::{Op, Shown, Slots};
use crate::soak::twins::promises::Promises;

/// Operations that are remembered, and how many at most are shown when two answers differ: those on the same file.
const HISTORY: usize = 6000;
const SHOWN: usize = 40;

/// Locks for inodes.
const N_LOCKS: usize = 64;

/// Of so many operations one takes names of two threads.
const CROSS_ONE_IN: u32 = 40;

/// What the part says when the volume was taken away under it.
pub(super) const GONE: &str = "the mount is gone";

/// Begins a line that names a file which was synced and not touched since.
pub(super) const SYNCED: &str = "synced ";

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Stress {
    /// The native directory
    pub native: PathBuf,
    /// The directory on the volume
    pub volume: PathBuf,
    /// Decides every operation
    #[arg(long)]
    pub seed: u64,
    /// How long
    #[arg(long)]
    pub millis: u64,
    /// Between a thread's operations
    #[arg(long, default_value_t = 0)]
    pub pause_micros: u64,
    /// Each works in a directory of its own and, now and then, in another's
    #[arg(long, default_value_t = 4)]
    pub threads: u32,
}

/// What the threads share.
struct Shared<'a> {
    what: &'a Stress,
    until: Instant,
    is_over: AtomicBool,
    n_ops: AtomicU64,
    n_done: AtomicU64,
    promises: Promises,
    /// Held for reading by operations within a thread's own directory, for writing by those across two.
    crossing: RwLock<()>,
    /// Links across directories make two threads share a file. Who works on an inode holds its lock, by number; names do not
    /// change meanwhile, for only their own thread and operations across two change them.
    inodes: [Mutex<()>; N_LOCKS],
}

/// Works until the time is over, printing the count at the end.
///
/// # Errors
/// The first difference, or [`GONE`].
pub(crate) fn run(what: &Stress) -> Result<()> {
    let shared = Shared {
        what,
        until: Instant::now() + Duration::from_millis(what.millis),
        is_over: AtomicBool::new(false),
        n_ops: AtomicU64::new(0),
        n_done: AtomicU64::new(0),
        promises: Promises::default(),
        crossing: RwLock::new(()),
        inodes: std::array::from_fn(|_| Mutex::new(())),
    };
    for thread in 0..what.threads {
        for root in [&what.native, &what.volume] {
            std::fs::create_dir_all(root.join(format!("t{thread}"))).context("make a thread's directory")?;
        }
    }
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let shared = &shared;
        let threads: Vec<_> =
            (0..what.threads).map(|number| scope.spawn(move || Thread::new(shared, number).run())).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))).collect()
    });
    println!(
        "{} operations, {} of them succeeded",
        shared.n_ops.load(Ordering::Relaxed),
        shared.n_done.load(Ordering::Relaxed)
    );
    // A difference says more than the others' end.
    let mut errors: Vec<anyhow::Error> = results.into_iter().filter_map(Result::err).collect();
    errors.sort_by_key(|e| e.to_string() == GONE);
    match errors.into_iter().next() {
        None => Ok(()),
        Some(error) => {
            println!("{error:#}");
            for path in shared.promises.paths() {
                println!("{SYNCED}{}", path.display());
            }
            Err(error)
        }
    }
}

/// An operation that succeeded.
struct Done {
    op: Op,
    /// Inode numbers in the native tree.
    inodes: Vec<u64>,
}

struct Thread<'a> {
    shared: &'a Shared<'a>,
    number: u32,
    rng: ChaCha8Rng,
    native: Slots,
    volume: Slots,
    history: VecDeque<Done>,
}

impl Thread<'_> {
    fn new<'a>(shared: &'a Shared<'a>, number: u32) -> Thread<'a> {
        let mut rng = ChaCha8Rng::seed_from_u64(shared.what.seed);
        rng.set_stream(u64::from(number));
        let none = || (0..N_SLOTS).map(|_| None).collect();
        Thread { shared, number, rng, native: none(), volume: none(), history: VecDeque::new() }
    }

    fn run(mut self) -> Result<()> {
        let names = |number: u32| Names { top: PathBuf::from(format!("t{number}")) };
        let own = names(self.number);
        while Instant::now() < self.shared.until && !self.shared.is_over.load(Ordering::Relaxed) {
            let other = (self.number + self.rng.random_range(1..4)) % self.shared.what.threads;
            let result = if other != self.number && self.rng.random_ratio(1, CROSS_ONE_IN) {
                let op = choose(&mut self.rng, &own, &names(other));
                let _alone = self.shared.crossing.write();
                self.both(&op)
            } else {
                let op = choose(&mut self.rng, &own, &own);
                let _beside_others = self.shared.crossing.read();
                self.both(&op)
            };
            std::thread::sleep(Duration::from_micros(self.shared.what.pause_micros));
            if result.is_err() {
                self.shared.is_over.store(true, Ordering::Relaxed);
                return result;
            }
        }
        Ok(())
    }

    fn both(&mut self, op: &Op) -> Result<()> {
        let (native_root, volume_root) = (&self.shared.what.native, &self.shared.what.volume);
        let inodes = op.inodes(native_root, &self.native);
        let locks: BTreeSet<usize> = inodes.iter().map(|inode| *inode as usize % N_LOCKS).collect();
        let _alone: Vec<_> = locks.iter().map(|at| self.shared.inodes[*at].lock()).collect();
        self.shared.promises.release(op, &inodes);
        let native = op.perform(native_root, &mut self.native);
        let volume = op.perform(volume_root, &mut self.volume);
        self.shared.n_ops.fetch_add(1, Ordering::Relaxed);
        if native == volume {
            if native.is_ok() {
                self.shared.promises.note(op, native_root);
                self.shared.n_done.fetch_add(1, Ordering::Relaxed);
                if self.history.len() == HISTORY {
                    self.history.pop_front();
                }
                self.history.push_back(Done { op: op.clone(), inodes });
            }
            return Ok(());
        }
        if is_gone(volume_root) {
            bail!(GONE);
        }
        let again = (op.look_again(native_root, &self.native), op.look_again(volume_root, &self.volume));
        let story: Vec<String> = (self.history.iter().rev())
            .filter(|done| done.inodes.iter().any(|inode| inodes.contains(inode)))
            .take(SHOWN)
            .map(|done| format!("{:?}", done.op))
            .collect();
        bail!(
            "thread {} of seed {}: {op:?}: the native tree says {}, the volume {}; {}; on the same file before, newest first:\n  {}",
            self.number,
            self.shared.what.seed,
            shown(&native),
            shown(&volume),
            differing(&again.0, &again.1),
            story.join("\n  ")
        )
    }
}

/// Where two contents differ.
fn differing(native: &[u8], volume: &[u8]) -> String {
    let at: Vec<usize> =
        (0..native.len().min(volume.len())).filter(|at| native[*at] != volume[*at]).collect();
    match (at.first(), at.last()) {
        (Some(first), Some(last)) => format!(
            "of {} and {} bytes {} differ, from {first} ({:x} and {:x}) to {last}",
            native.len(),
            volume.len(),
            at.len(),
            native[*first],
            volume[*first]
        ),
        _ => format!(
            "looked at again, {} and {} bytes are equal as far as they go",
            native.len(),
            volume.len()
        ),
    }
}

fn shown(answer: &Result<Shown, Errno>) -> String {
    match answer {
        Ok(digest) => format!("ok ({digest:x})"),
        Err(errno) => format!("{errno:?}"),
    }
}

/// Whether no daemon serves the directory any more; a name that never was makes the kernel ask.
fn is_gone(dir: &Path) -> bool {
    let answer = dir.join("a name that never was").symlink_metadata();
    answer.is_err_and(|e| {
        matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::EIO))
    })
}
