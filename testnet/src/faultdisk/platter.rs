//! What a disk holds: what is durable, what only its cache has, and what is left when the power goes.
//!
//! Bytes lie in memory files, as sparse as they were written. What always holds: `now` is `durable` with every pending write
//! done in order; a flush makes all of them durable.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rustix::fs::MemfdFlags;

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Requests a disk has served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Requests that were answered with `EIO`.
    pub failed: u64,
}

/// What happens to the writes since the last flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The cache is lost.
    None,
    /// The cache was written back just in time.
    All,
    /// The first so many are there.
    Prefix,
    /// Any of them are there, done in any order.
    Subset,
    /// As `Subset`, and of each only some of its sectors.
    Torn,
}

/// What a power cut did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// How it was decided.
    pub fate: Fate,
    /// Writes since the last flush.
    pub pending: usize,
    /// How many of them are there, at least in part.
    pub kept: usize,
    /// How many of those only in part.
    pub torn: usize,
}

struct Write {
    offset: u64,
    bytes: Vec<u8>,
}

/// A flush under way.
struct Flush {
    /// Writes that it makes durable, counted from the disk's beginning.
    upto: usize,
    /// A power cut ends it.
    n_cuts: u32,
    time: Duration,
}

struct State {
    now: File,
    durable: File,
    pending: Vec<Write>,
    /// Writes that were pending once and are durable, or gone.
    n_settled: usize,
    /// Power cuts so far.
    n_cuts: u32,
    flush_time: Duration,
    fails_writes: bool,
    fails_flushes: bool,
    fails_reads: Option<Range<u64>>,
    is_dead: bool,
    counts: Counts,
}

/// See the module.
pub struct Platter {
    bytes: u64,
    state: Mutex<State>,
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn memory_file(bytes: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("faultdisk", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

impl Platter {
    /// A disk of zeros; `bytes` is rounded down to whole sectors.
    pub fn new(bytes: u64) -> Result<Platter> {
        let bytes = bytes / SECTOR_BYTES * SECTOR_BYTES;
        let state = State {
            now: memory_file(bytes).context("memory for the disk")?,
            durable: memory_file(bytes).context("memory for the disk")?,
            pending: Vec::new(),
            n_settled: 0,
            n_cuts: 0,
            flush_time: Duration::ZERO,
            fails_writes: false,
            fails_flushes: false,
            fails_reads: None,
            is_dead: false,
            counts: Counts::default(),
        };
        Ok(Platter { bytes, state: Mutex::new(state) })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads; shorter only at the end.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut state = self.state.lock();
        let end = self.bytes.min(offset.saturating_add(len as u64));
        let bad = state.fails_reads.as_ref().is_some_and(|bad| bad.start < end && offset < bad.end);
        if state.is_dead || bad {
            state.counts.failed += 1;
            return Err(broken());
        }
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        state.now.read_exact_at(&mut bytes, offset)?;
        state.counts.reads += 1;
        Ok(bytes)
    }

    /// Writes into the cache.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.is_dead || state.fails_writes {
            state.counts.failed += 1;
            return Err(broken());
        }
        if offset.saturating_add(bytes.len() as u64) > self.bytes {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        state.now.write_all_at(bytes, offset)?;
        state.pending.push(Write { offset, bytes: bytes.to_vec() });
        state.counts.writes += 1;
        Ok(())
    }

    /// Makes everything durable that was written before. What is written meanwhile stays in the cache.
    pub fn flush(&self) -> io::Result<()> {
        let flush = self.begin_flush();
        if !flush.time.is_zero() {
            std::thread::sleep(flush.time);
        }
        self.end_flush(&flush)
    }

    fn begin_flush(&self) -> Flush {
        let state = self.state.lock();
        let upto = state.n_settled + state.pending.len();
        Flush { upto, n_cuts: state.n_cuts, time: state.flush_time }
    }

    fn end_flush(&self, flush: &Flush) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.is_dead || state.n_cuts != flush.n_cuts || state.fails_flushes {
            state.counts.failed += 1;
            return Err(broken());
        }
        // Another flush may have been quicker.
        let n = flush.upto.saturating_sub(state.n_settled);
        state.n_settled += n;
        for write in state.pending.drain(..n).collect::<Vec<_>>() {
            state.durable.write_all_at(&write.bytes, write.offset)?;
        }
        state.counts.flushes += 1;
        Ok(())
    }

    /// How long a flush takes; writes go on meanwhile, and are not part of it.
    pub fn set_flush_time(&self, flush_time: Duration) {
        self.state.lock().flush_time = flush_time;
    }

    /// See [`FaultDisk::fail_writes`](crate::faultdisk::FaultDisk::fail_writes).
    pub fn fail_writes(&self, on: bool) {
        self.state.lock().fails_writes = on;
    }

    /// See [`FaultDisk::fail_flushes`](crate::faultdisk::FaultDisk::fail_flushes).
    pub fn fail_flushes(&self, on: bool) {
        self.state.lock().fails_flushes = on;
    }

    /// See [`FaultDisk::fail_reads`](crate::faultdisk::FaultDisk::fail_reads).
    pub fn fail_reads(&self, range: Option<Range<u64>>) {
        self.state.lock().fails_reads = range;
    }

    /// Requests served so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state.lock().is_dead
    }

    /// Writes what a power cut would leave into the file `to`; the disk goes on.
    pub fn image_after_power_cut(&self, seed: u64, to: &Path) -> Result<Cut> {
        let state = self.state.lock();
        let file = File::create(to).with_context(|| format!("create {}", to.display()))?;
        file.set_len(self.bytes)?;
        let mut chunk = vec![0; COPY_BYTES];
        for offset in (0..self.bytes).step_by(COPY_BYTES) {
            let len = usize::try_from(self.bytes - offset).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            state.durable.read_exact_at(&mut chunk[..len], offset)?;
            if chunk[..len].iter().any(|byte| *byte != 0) {
                file.write_all_at(&chunk[..len], offset)?;
            }
        }
        let (cut, left) = what_is_left(seed, &state.pending);
        for write in &left {
            file.write_all_at(&write.bytes, write.offset)?;
        }
        Ok(cut)
    }

    /// Cuts the power; `seed` decides what is left. From now on every request fails, until [`Platter::power_on`].
    pub fn cut_power(&self, seed: u64) -> Result<Cut> {
        let mut state = self.state.lock();
        state.is_dead = true;
        state.n_cuts += 1;
        let pending = std::mem::take(&mut state.pending);
        state.n_settled += pending.len();
        let (cut, left) = what_is_left(seed, &pending);
        for write in &left {
            state.durable.write_all_at(&write.bytes, write.offset)?;
        }
        for write in &pending {
            let mut bytes = vec![0; write.bytes.len()];
            state.durable.read_exact_at(&mut bytes, write.offset)?;
            state.now.write_all_at(&bytes, write.offset)?;
        }
        Ok(cut)
    }

    /// Requests are served again; switches are off.
    pub fn power_on(&self) {
        let mut state = self.state.lock();
        state.is_dead = false;
        state.fails_writes = false;
        state.fails_flushes = false;
        state.fails_reads = None;
    }
}

/// Which parts of the pending writes a cut leaves, in the order in which they are to be done.
fn what_is_left(seed: u64, pending: &[Write]) -> (Cut, Vec<Write>) {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let fate = match random.random_range(0..8) {
        0 => Fate::None,
        1 => Fate::All,
        2 => Fate::Prefix,
        3 | 4 => Fate::Subset,
        _ => Fate::Torn,
    };
    let mut order: Vec<usize> = (0..pending.len()).collect();
    match fate {
        Fate::None => order.clear(),
        Fate::All => {}
        Fate::Prefix => order.truncate(random.random_range(0..=pending.len())),
        Fate::Subset | Fate::Torn => {
            let share = random.random_range(0.1..0.95);
            order.retain(|_| random.random_bool(share));
            order.shuffle(&mut random);
        }
    }
    let mut cut = Cut { fate, pending: pending.len(), kept: order.len(), torn: 0 };
    let mut left = Vec::new();
    for write in order.into_iter().map(|at| &pending[at]) {
        if fate == Fate::Torn && random.random_bool(0.5) {
            cut.torn += 1;
            left.extend(some_sectors(&mut random, write));
        } else {
            left.push(Write { offset: write.offset, bytes: write.bytes.clone() });
        }
    }
    (cut, left)
}

/// Any sectors of a write: its beginning, its end, or here and there.
fn some_sectors(random: &mut ChaCha20Rng, write: &Write) -> Vec<Write> {
    let sectors: Vec<&[u8]> = write.bytes.chunks(SECTOR_BYTES as usize).collect();
    let n = sectors.len();
    let at = random.random_range(0..=n);
    let way = random.random_range(0..3);
    let mut kept = Vec::new();
    for (index, bytes) in sectors.into_iter().enumerate() {
        let stays = match way {
            0 => index < at,
            1 => index >= at,
            _ => random.random_bool(0.5),
        };
        if stays {
            let offset = write.offset + index as u64 * SECTOR_BYTES;
            kept.push(Write { offset, bytes: bytes.to_vec() });
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BYTES: u64 = 64 << 10;

    fn with(writes: &[(u64, u8)]) -> Platter {
        let platter = Platter::new(BYTES).unwrap();
        for (offset, byte) in writes {
            platter.write(*offset, &[*byte; 4096]).unwrap();
        }
        platter
    }

    #[test]
    fn what_was_flushed_is_in_every_crash_state_and_what_was_not_is_missing_in_some() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let platter = with(&[(0, 1), (4096, 2)]);
            platter.flush().unwrap();
            platter.write(8192, &[3; 4096]).unwrap();
            platter.cut_power(seed).unwrap();
            platter.power_on();
            assert_eq!(platter.read(0, 4096).unwrap(), [1; 4096]);
            assert_eq!(platter.read(4096, 4096).unwrap(), [2; 4096]);
            let sectors = platter.read(8192, 4096).unwrap();
            for sector in sectors.chunks(512) {
                assert!(sector == [0; 512] || sector == [3; 512], "half a sector");
            }
            seen.insert(sectors.iter().filter(|byte| **byte == 3).count());
        }
        assert!(seen.contains(&0) && seen.contains(&4096), "{seen:?}");
        assert!(seen.len() > 2, "never torn: {seen:?}");
    }

    #[test]
    fn writes_since_the_flush_are_reordered() {
        let newer_alone = (0..200).any(|seed| {
            let platter = with(&[(0, 1), (8192, 2)]);
            platter.cut_power(seed).unwrap();
            platter.power_on();
            platter.read(0, 1).unwrap() == [0] && platter.read(8192, 1).unwrap() == [2]
        });
        assert!(newer_alone);
    }

    #[test]
    fn nothing_is_served_while_the_power_is_off() {
        let platter = with(&[(0, 1)]);
        platter.cut_power(1).unwrap();
        assert!(platter.read(0, 1).is_err());
        assert!(platter.write(0, &[1]).is_err());
        assert!(platter.flush().is_err());
        assert_eq!(platter.counts().failed, 3);
    }

    #[test]
    fn the_image_of_a_cut_is_what_the_same_cut_leaves() {
        let dir = tempfile::tempdir().unwrap();
        for seed in 0..20 {
            let platter = with(&[(0, 1), (4096, 2), (12288, 3), (4096, 4)]);
            let image = dir.path().join("image");
            let cut = platter.image_after_power_cut(seed, &image).unwrap();
            assert_eq!(platter.read(4096, 1).unwrap(), [4], "the disk goes on");
            assert_eq!(platter.cut_power(seed).unwrap(), cut);
            platter.power_on();
            assert!(
                platter.read(0, BYTES as usize).unwrap() == std::fs::read(&image).unwrap(),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn what_a_failed_flush_left_is_durable_after_the_next() {
        let platter = with(&[(0, 1)]);
        platter.fail_flushes(true);
        assert!(platter.flush().is_err());
        assert_eq!(platter.read(0, 1).unwrap(), [1]);
        platter.fail_flushes(false);
        platter.flush().unwrap();
        assert_eq!(platter.cut_power(0).unwrap().pending, 0);
        platter.power_on();
        assert_eq!(platter.read(0, 1).unwrap(), [1]);
    }

    #[test]
    fn what_is_written_during_a_flush_is_not_part_of_it() {
        let platter = with(&[(0, 1)]);
        let (slow, quick) = (platter.begin_flush(), platter.begin_flush());
        platter.write(4096, &[2; 4096]).unwrap();
        platter.end_flush(&quick).unwrap();
        platter.end_flush(&slow).unwrap();
        assert_eq!(platter.cut_power(0).unwrap().pending, 1);
    }

    #[test]
    fn a_flush_that_a_power_cut_overtakes_fails() {
        let platter = with(&[(0, 1)]);
        let flush = platter.begin_flush();
        platter.cut_power(0).unwrap();
        platter.power_on();
        assert!(platter.end_flush(&flush).is_err());
        platter.flush().unwrap();
    }

    #[test]
    fn reads_of_a_bad_range_fail_and_others_do_not() {
        let platter = with(&[(0, 1)]);
        platter.fail_reads(Some(4096..8192));
        assert!(platter.read(0, 4096).is_ok());
        assert!(platter.read(0, 4097).is_err());
        assert!(platter.read(8191, 1).is_err());
        assert!(platter.read(8192, 1).is_ok());
    }
}
