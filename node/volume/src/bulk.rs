//! Runs: sequential writes that are collected because they may fill a chunk.
//!
//! A run that fills a whole aligned chunk becomes a leaf in the block store, and the log gets a reference to it; so bulk
//! data is written once. Any other run becomes ordinary inline writes. Owns which writes are collected and until when.
//! Always holds:
//!
//! * a run is of one inode, begins at a chunk's start and does not leave the chunk; an inode has at most one;
//! * while a run is there, no op of its inode reaches the state before it: whoever touches the inode closes it first;
//! * a run that is being stored is `Storing`, and everybody else who needs the inode waits for it.
//!
//! Deliberately knows neither lock nor store.

use std::collections::BTreeMap;
use std::time::Duration;

use remora_vfs::attr::{Ino, Timestamp};

/// Bytes of a chunk: of a leaf of a file.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// A first write shorter than this does not begin a run, unless the file is being appended to chunk after chunk.
///
/// Small files begin at a chunk's start as well, and collecting them would only delay them.
const FIRST_BYTES_MIN: usize = 64 << 10;

/// The most runs at a time; each may hold a chunk's bytes in memory.
const RUNS_MAX: usize = 16;

/// A run nobody has added to for this long is closed.
pub(crate) const RUN_AGE_MAX: Duration = Duration::from_millis(100);

/// Collected bytes.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where in the file they begin.
    pub(crate) start: u64,
    /// The bytes, at most a chunk.
    pub(crate) bytes: Vec<u8>,
    /// The time of the last write.
    pub(crate) time: Timestamp,
    touched: Duration,
}

impl Run {
    /// A run that is complete from the start.
    pub(crate) fn whole(start: u64, bytes: Vec<u8>, time: Timestamp) -> Run {
        Run { start, bytes, time, touched: Duration::ZERO }
    }
}

#[derive(Debug)]
enum Slot {
    Open(Run),
    Storing,
}

/// What is to happen with the first bytes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The inode's run is being stored: wait.
    Wait,
    /// Close the inode's run first.
    Close,
    /// Add this many bytes to the run, which there may not be yet.
    Collect(usize),
    /// The first chunk of bytes is a whole chunk of the file: store it.
    Store,
    /// Log this many bytes.
    Inline(usize),
}

/// All runs of a volume.
#[derive(Debug, Default)]
pub(crate) struct Runs(BTreeMap<Ino, Slot>);

impl Runs {
    /// Whether there is none at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this inode has one, open or being stored.
    pub(crate) fn has(&self, ino: Ino) -> bool {
        self.0.contains_key(&ino)
    }

    /// How many bytes they hold, or will at most.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |slot: &Slot| match slot {
            Slot::Open(run) => run.bytes.len() as u64,
            Slot::Storing => CHUNK_BYTES as u64,
        };
        self.0.values().map(bytes).sum()
    }

    /// Every inode that has one.
    pub(crate) fn inos(&self) -> Vec<Ino> {
        self.0.keys().copied().collect()
    }

    /// Inodes whose run has not been added to since `RUN_AGE_MAX` before `now`.
    pub(crate) fn stale(&self, now: Duration) -> Vec<Ino> {
        let is_stale = |slot: &Slot| match slot {
            Slot::Open(run) => now.saturating_sub(run.touched) >= RUN_AGE_MAX,
            Slot::Storing => false,
        };
        self.0.iter().filter(|(_, slot)| is_stale(slot)).map(|(ino, _)| *ino).collect()
    }

    /// What to do with a write. `size` is the file's size without the run.
    pub(crate) fn step(&self, ino: Ino, size: u64, offset: u64, len: usize) -> Step {
        let to_end = CHUNK_BYTES - chunk_offset(offset);
        match self.0.get(&ino) {
            Some(Slot::Storing) => return Step::Wait,
            Some(Slot::Open(run)) if run.start + run.bytes.len() as u64 == offset => {
                return Step::Collect(len.min(CHUNK_BYTES - run.bytes.len()));
            }
            Some(Slot::Open(_)) => return Step::Close,
            None => {}
        }
        let is_first = chunk_offset(offset) == 0;
        if is_first && len >= CHUNK_BYTES {
            Step::Store
        } else if is_first
            && self.0.len() < RUNS_MAX
            && (len >= FIRST_BYTES_MIN || (offset > 0 && size == offset))
        {
            Step::Collect(len)
        } else if len >= 2 * FIRST_BYTES_MIN {
            Step::Inline(len.min(to_end))
        } else {
            Step::Inline(len)
        }
    }

    /// Adds bytes to the inode's run; answers the run when the chunk is full, which is then being stored.
    pub(crate) fn collect(
        &mut self,
        ino: Ino,
        offset: u64,
        bytes: &[u8],
        time: Timestamp,
        now: Duration,
    ) -> Option<Run> {
        let slot = self.0.entry(ino).or_insert_with(|| {
            let bytes = Vec::with_capacity(CHUNK_BYTES);
            Slot::Open(Run { start: offset, bytes, time, touched: now })
        });
        let Slot::Open(run) = slot else { return None };
        run.bytes.extend_from_slice(bytes);
        (run.time, run.touched) = (time, now);
        if run.bytes.len() < CHUNK_BYTES {
            return None;
        }
        match std::mem::replace(slot, Slot::Storing) {
            Slot::Open(run) => Some(run),
            Slot::Storing => None,
        }
    }

    /// Notes that a chunk of the inode is being stored.
    pub(crate) fn begin_storing(&mut self, ino: Ino) {
        self.0.insert(ino, Slot::Storing);
    }

    /// Notes that it has been.
    pub(crate) fn end_storing(&mut self, ino: Ino) {
        self.0.remove(&ino);
    }

    /// Whether the inode's run is being stored.
    pub(crate) fn is_storing(&self, ino: Ino) -> bool {
        matches!(self.0.get(&ino), Some(Slot::Storing))
    }

    /// Gives a run back that could not be logged yet; always `true`.
    pub(crate) fn put_back(&mut self, ino: Ino, run: Run) -> bool {
        self.0.insert(ino, Slot::Open(run));
        true
    }

    /// Takes the inode's open run, to log it.
    pub(crate) fn take(&mut self, ino: Ino) -> Option<Run> {
        match self.0.remove(&ino) {
            Some(Slot::Open(run)) => Some(run),
            Some(Slot::Storing) => {
                self.0.insert(ino, Slot::Storing);
                None
            }
            None => None,
        }
    }
}

/// How far into its chunk an offset is.
#[allow(clippy::cast_possible_truncation)]
fn chunk_offset(offset: u64) -> usize {
    (offset % CHUNK_BYTES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES, Duration, RUN_AGE_MAX, Runs, Step, Timestamp};

    const MIB: u64 = 1 << 20;

    fn collect(runs: &mut Runs, offset: u64, len: usize) -> Option<super::Run> {
        runs.collect(5, offset, &vec![7; len], Timestamp(1), Duration::ZERO)
    }

    #[test]
    fn a_small_first_write_is_not_collected() {
        let runs = Runs::default();
        assert_eq!(runs.step(5, 0, 0, 4096), Step::Inline(4096));
        assert_eq!(runs.step(5, 0, 0, 128 << 10), Step::Collect(128 << 10));
        assert_eq!(runs.step(5, MIB, MIB, 4096), Step::Collect(4096));
    }

    #[test]
    fn a_whole_chunk_is_stored_and_the_way_to_a_chunk_is_logged() {
        let runs = Runs::default();
        assert_eq!(runs.step(5, 0, MIB, CHUNK_BYTES + 7), Step::Store);
        assert_eq!(runs.step(5, 0, MIB - (64 << 10), CHUNK_BYTES), Step::Inline(64 << 10));
    }

    #[test]
    fn a_run_fills_its_chunk_and_never_leaves_it() {
        let mut runs = Runs::default();
        assert!(collect(&mut runs, 0, CHUNK_BYTES - 10).is_none());
        assert_eq!(runs.step(5, 0, MIB - 10, 4096), Step::Collect(10));
        assert_eq!(runs.step(5, 0, 17, 4096), Step::Close);
        let full = collect(&mut runs, MIB - 10, 10).unwrap();
        assert_eq!((full.start, full.bytes.len()), (0, CHUNK_BYTES));
        assert_eq!(runs.step(5, 0, MIB, 4096), Step::Wait);
        runs.end_storing(5);
        assert!(runs.is_empty());
    }

    #[test]
    fn a_run_left_alone_becomes_stale() {
        let mut runs = Runs::default();
        assert!(collect(&mut runs, 0, 70_000).is_none());
        assert!(runs.stale(RUN_AGE_MAX / 2).is_empty());
        assert_eq!(runs.stale(RUN_AGE_MAX), vec![5]);
        assert_eq!(runs.take(5).unwrap().bytes.len(), 70_000);
    }
}
