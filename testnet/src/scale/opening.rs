//! How long a volume takes to open: from the start of the daemon to the first bytes read through the mount.
//!
//! The log that is replayed is a real one: small overwrites, synced now and then, over a volume so large that its writer does
//! not think of a checkpoint. What was overwritten is kept in memory here and compared with after each opening.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::nodes::{Node, cluster};
use crate::scale::figures::{Figures, Took};
use crate::workload::noise_file;

/// The longest a volume may take to open after its daemon was stopped.
pub(super) const CLEAN_MAX: Duration = Duration::from_secs(1);

/// The longest a volume may take to open after its daemon was killed.
pub(super) const KILLED_MAX: Duration = Duration::from_secs(3);

/// How long it is waited for.
const GIVE_UP: Duration = Duration::from_secs(120);

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A log is replaced by a tree when it is this part of the volume.
const TAIL_FRACTION: u64 = 8;

/// Bytes of the file that is cloned until the volume is large.
const BULK_BYTES: u64 = 64 << 20;

/// Files that are overwritten.
const N_FILES: usize = 8;

/// Bytes of each.
const FILE_BYTES: usize = 16 << 20;

const PAGE: usize = 4096;

/// Starts the daemon of `node`. Answers how long it took until `file`, on a volume that was mounted before, could be read.
pub(super) fn open_again(node: &mut Node, file: &Path, content: &[u8]) -> Result<Duration> {
    let began = Instant::now();
    thread::scope(|scope| {
        let looking = scope.spawn(|| first_read(file, content, began));
        node.start()?;
        looking.join().map_err(|_| anyhow::anyhow!("the look at {} panicked", file.display()))?
    })
}

fn first_read(file: &Path, content: &[u8], began: Instant) -> Result<Duration> {
    let mut bytes = vec![0; content.len()];
    loop {
        // What the kernel has of the mount of a daemon that is dead says nothing: only a direct read asks the daemon.
        let opened = File::options().read(true).custom_flags(libc::O_DIRECT).open(file);
        let read = opened.and_then(|file| file.read_exact_at(&mut bytes, 0));
        match read {
            Ok(()) if bytes == content => return Ok(began.elapsed()),
            Ok(()) => bail!("{} is not what was written", file.display()),
            Err(error) if began.elapsed() > GIVE_UP => {
                return Err(error).with_context(|| format!("{} was not to be read", file.display()));
            }
            // Not mounted yet, or still the mount of the daemon that is dead.
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

/// Opens a volume with a log of `tail` bytes, after `kill -9` and after a stop.
pub(super) fn measure(scratch: &Path, tail: u64, figures: &mut Figures) -> Result<()> {
    let mut node = cluster(scratch, &["tail"])?.pop().context("one name makes one node")?;
    node.ok(&["volume", "create", "tail"])?;
    let dir = node.mount("tail")?;
    let began = Instant::now();
    enlarge(&dir, tail * TAIL_FRACTION + (1 << 30))?;
    let mut written = Written::begin(&dir)?;
    let n = written.overwrite(&dir, tail)?;
    figures.row(
        "overwrites that make the log",
        Took { n, volume: began.elapsed(), native: None },
        node.pid(),
    )?;
    let log = log_bytes(node.data())?;
    ensure!(log >= tail, "the log has only {log} bytes: it was replaced by a tree meanwhile");
    figures.fact("log to be replayed", &format!("{} MiB", log >> 20));
    let (file, content) = written.first(&dir);
    node.kill()?;
    let took = open_again(&mut node, &file, &content)?;
    written.compare(&dir)?;
    figures.against("opened after kill -9, with that log", took, KILLED_MAX, node.pid())?;
    node.stop()?;
    let took = open_again(&mut node, &file, &content)?;
    written.compare(&dir)?;
    figures.against("opened after a stop, with that log", took, CLEAN_MAX, node.pid())
}

/// Makes the volume hold `bytes`: one file of noise, and copies that cost no space.
fn enlarge(dir: &Path, bytes: u64) -> Result<()> {
    let bulk = dir.join("bulk");
    noise_file(&bulk, BULK_BYTES, 5, &|_| ())?;
    let from = File::open(&bulk)?;
    for n in 0..bytes.div_ceil(BULK_BYTES) {
        let to = File::create_new(dir.join(format!("copy-{n}")))?;
        let (mut read_at, mut written_at) = (0, 0);
        while read_at < BULK_BYTES {
            let left = usize::try_from(BULK_BYTES - read_at)?;
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut read_at), &to, Some(&mut written_at), left)
                    .context("copy inside the volume")?;
            ensure!(copied > 0, "a copy inside the volume ended early");
        }
    }
    Ok(())
}

/// Bytes of the segments of all logs below a data directory.
fn log_bytes(data: &Path) -> Result<u64> {
    let mut bytes = 0;
    for volume in std::fs::read_dir(data.join("volumes"))? {
        let log = volume?.path().join("log");
        if log.is_dir() {
            for segment in std::fs::read_dir(log)? {
                bytes += segment?.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

/// What the files that are overwritten must hold.
struct Written {
    files: Vec<Vec<u8>>,
    noise: Vec<u8>,
    rng: ChaCha8Rng,
}

impl Written {
    /// Makes the files.
    fn begin(dir: &Path) -> Result<Written> {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut noise = vec![0; 4 << 20];
        rng.fill_bytes(&mut noise);
        let files: Vec<Vec<u8>> = (0..N_FILES).map(|_| noise.repeat(FILE_BYTES / noise.len())).collect();
        for (n, content) in files.iter().enumerate() {
            std::fs::write(path(dir, n), content)?;
        }
        Ok(Written { files, noise, rng })
    }

    /// Overwrites until `bytes` were written: a quarter as a database does, 4 KiB and an fsync, the rest in pieces of 4 to 64 KiB
    /// with an fsync now and then. All of it is synced at the end. Answers how many writes there were.
    fn overwrite(&mut self, dir: &Path, bytes: u64) -> Result<u64> {
        let mut files = Vec::new();
        for n in 0..N_FILES {
            files.push(File::options().write(true).open(path(dir, n))?);
        }
        let (mut done, mut n) = (0, 0u64);
        while done < bytes {
            let is_commit = done < bytes / 4;
            let pages = if is_commit { 1 } else { 1 + self.below(16) };
            let (which, at) = (self.below(N_FILES), PAGE * self.below(FILE_BYTES / PAGE - pages));
            let from = self.below(self.noise.len() - pages * PAGE);
            let content = &self.noise[from..from + pages * PAGE];
            files[which].write_all_at(content, at as u64).context("overwrite")?;
            self.files[which][at..at + content.len()].copy_from_slice(content);
            if is_commit || n.is_multiple_of(8) {
                files[which].sync_data().context("fsync")?;
            }
            done += content.len() as u64;
            n += 1;
        }
        for file in &files {
            file.sync_all().context("fsync")?;
        }
        Ok(n)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.rng.next_u64() % limit as u64).unwrap_or(0)
    }

    /// The beginning of one of the files.
    fn first(&self, dir: &Path) -> (PathBuf, Vec<u8>) {
        (path(dir, 0), self.files[0][..PAGE].to_vec())
    }

    fn compare(&self, dir: &Path) -> Result<()> {
        for (n, content) in self.files.iter().enumerate() {
            let path = path(dir, n);
            let is_equal =
                std::fs::read(&path).with_context(|| format!("read {}", path.display()))? == *content;
            ensure!(is_equal, "{} is not what was written and synced", path.display());
        }
        Ok(())
    }
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("overwritten-{n}"))
}
