//! Reading, writing and making durable what is in files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bench::peers::Peer;
use crate::bench::scale::Scale;

/// What a commit writes, and a random read reads.
const PAGE_BYTES: usize = 4096;

/// What a sequential call reads or writes.
const CALL_BYTES: usize = 1 << 20;

/// Pages of the file that is overwritten.
const N_PAGES: u64 = 4096;

/// Files that are appended to at once.
const N_WRITERS: u64 = 8;

fn page() -> [u8; PAGE_BYTES] {
    [0x5a; PAGE_BYTES]
}

/// Median of the time to overwrite a page and fsync, in microseconds.
pub(super) fn overwrite(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let path = peer.dir.join("overwritten");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    for _ in 0..N_PAGES / 256 {
        std::io::Write::write_all(&mut &file, &vec![1; CALL_BYTES])?;
    }
    file.sync_all()?;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut times = Vec::new();
    for _ in 0..scale.commits {
        let offset = random.random_range(0..N_PAGES) * PAGE_BYTES as u64;
        let began = Instant::now();
        file.write_all_at(&page(), offset)?;
        file.sync_all()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(&path)?;
    Ok(crate::report::median(&times))
}

/// Median of the time to append a page and fdatasync, in microseconds.
pub(super) fn append(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let path = peer.dir.join("appended");
    let mut times = Vec::new();
    append_to(&path, scale.commits, &mut |time| times.push(time))?;
    std::fs::remove_file(&path)?;
    Ok(crate::report::median(&times))
}

fn append_to(path: &Path, n: u64, each: &mut dyn FnMut(f64)) -> Result<()> {
    let file = File::create(path)?;
    file.sync_all()?;
    for i in 0..n {
        let began = Instant::now();
        file.write_all_at(&page(), i * PAGE_BYTES as u64)?;
        file.sync_data()?;
        each(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Commits a second when eight threads append to a file each.
pub(super) fn writers(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let paths: Vec<PathBuf> = (0..N_WRITERS).map(|i| peer.dir.join(format!("writer-{i}"))).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            paths.iter().map(|path| scope.spawn(|| append_to(path, scale.commits, &mut |_| ()))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a writer panicked")))
    })?;
    let took = began.elapsed();
    for path in &paths {
        std::fs::remove_file(path)?;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok((N_WRITERS * scale.commits) as f64 / took.as_secs_f64())
}

fn large(peer: &Peer) -> PathBuf {
    peer.dir.join("large")
}

/// MiB a second when a large file is written and fsynced.
pub(super) fn write_large(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    let path = large(peer);
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    // Noise, and no call like another: nobody shall win by noticing.
    let mut bytes = vec![0u8; CALL_BYTES];
    ChaCha8Rng::seed_from_u64(7).fill_bytes(&mut bytes);
    let began = Instant::now();
    let file = File::create(&path)?;
    for i in 0..scale.large_mib {
        bytes[..8].copy_from_slice(&i.to_le_bytes());
        file.write_all_at(&bytes, i << 20)?;
    }
    file.sync_all()?;
    Ok(per_second(scale.large_mib, began))
}

/// MiB a second when nothing of the file is in memory.
pub(super) fn read_cold(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    prepare_large(peer, scale)?;
    peer.go_cold()?;
    read_through(&large(peer), scale)
}

/// MiB a second when the kernel has the file.
pub(super) fn read_warm(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    prepare_large(peer, scale)?;
    read_through(&large(peer), scale)?;
    read_through(&large(peer), scale)
}

/// Pages read a second, at random, when the kernel has the file.
pub(super) fn read_random(peer: &mut Peer, scale: &Scale) -> Result<f64> {
    prepare_large(peer, scale)?;
    read_through(&large(peer), scale)?;
    let file = File::open(large(peer))?;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut bytes = page();
    let n_pages = (scale.large_mib << 20) / PAGE_BYTES as u64;
    let began = Instant::now();
    for _ in 0..scale.random_reads {
        file.read_exact_at(&mut bytes, random.random_range(0..n_pages) * PAGE_BYTES as u64)?;
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(scale.random_reads as f64 / began.elapsed().as_secs_f64())
}

fn prepare_large(peer: &mut Peer, scale: &Scale) -> Result<()> {
    let is_there = std::fs::metadata(large(peer)).is_ok_and(|m| m.len() == scale.large_mib << 20);
    if !is_there {
        write_large(peer, scale)?;
    }
    Ok(())
}

fn read_through(path: &Path, scale: &Scale) -> Result<f64> {
    let mut bytes = vec![0u8; CALL_BYTES];
    let began = Instant::now();
    let file = File::open(path).context("open the large file")?;
    for i in 0..scale.large_mib {
        file.read_exact_at(&mut bytes, i << 20)?;
        ensure!(bytes[..8] == i.to_le_bytes(), "{} holds something else at {i} MiB", path.display());
    }
    Ok(per_second(scale.large_mib, began))
}

#[allow(clippy::cast_precision_loss)]
fn per_second(mib: u64, began: Instant) -> f64 {
    mib as f64 / began.elapsed().as_secs_f64()
}
