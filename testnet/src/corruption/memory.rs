//! Every bit and every length, in memory: files of a real daemon are opened by the store once for each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;
use remora_store::blocks::{Blocks, BlocksError, BlocksOptions};
use remora_store::file_header::FileKind;
use remora_store::index::IndexKind;
use remora_store::layout::parse_volume_name;
use remora_store::log::{Log, LogError, LogOptions, Recovery};
use remora_store::sim::SimDisk;

use crate::corruption::Scale;
use crate::corruption::scene::{self, body};
use crate::nodes::Node;
use crate::report::Report;

/// Bytes kept of the zeros behind the frames.
const BEHIND_BYTES: usize = 4096;

/// The first file of each kind, as the store names it.
const SEGMENT: &str = "log/0000000001.seg";
const PACK: &str = "packs/0000000001.pack";

/// Bytes of a file's own header; the rest of its page is not used.
const HEAD_BYTES: u64 = 64;
const PAGE_BYTES: u64 = 4096;

pub(super) fn run(report: &mut Report, dir: &Path, scale: Scale) -> Result<()> {
    let (segment, pack) = files_of_a_daemon(dir, scale)?;
    let bits = |file: &Sample| file.bytes.len() as u64 * 8;
    report.step("log segment, every bit turned", bits(&segment), |bar| {
        flips(&segment, &open_log, &|| bar.inc(1))
    })?;
    report.step("log segment, cut at every byte", segment.bytes.len() as u64, |bar| {
        cuts(&segment, &open_log, &|| bar.inc(1))
    })?;
    report.step("pack, every bit turned", bits(&pack), |bar| flips(&pack, &open_pack, &|| bar.inc(1)))?;
    report.step("pack, cut at every byte", pack.bytes.len() as u64, |bar| {
        cuts(&pack, &open_pack, &|| bar.inc(1))
    })
}

/// A file in memory, and what is in it.
struct Sample {
    path: &'static Path,
    bytes: Vec<u8>,
    volume: [u8; 16],
    /// Payloads of a log by number, or blocks by CID; in the order in which they lie.
    items: Vec<Item>,
}

/// One frame's payload.
struct Item {
    name: Name,
    payload: Bytes,
    /// Offset behind it.
    end: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Name {
    Commit(u64),
    Block(Cid),
}

/// A daemon writes a volume and adds files, and stops.
fn files_of_a_daemon(dir: &Path, scale: Scale) -> Result<(Sample, Sample)> {
    let mut node = Node::init(dir, "made")?;
    node.start()?;
    node.ok(&["volume", "create", "v"])?;
    let mount = node.mount("v")?;
    for file in 0..scale.log_files {
        scene::write_synced(&mount.join(format!("f{file}")), &body(file, 300 + 211 * (file as usize % 9)))?;
    }
    node.unmount(&mount)?;
    for block in 0..scale.blocks {
        let path = dir.join("content");
        std::fs::write(&path, body(1000 + block, 200 + 331 * (block as usize % 7)))?;
        node.ok(&["add", "-q", &path.display().to_string()])?;
    }
    node.stop()?;
    let volume = scene::only_volume(&node)?;
    let name = volume.file_name().and_then(|name| name.to_str()).and_then(parse_volume_name);
    let id = name.context("a volume's directory is not named by its id")?;
    let segment = Sample::load(&volume.join(SEGMENT), Path::new(SEGMENT), id)?;
    let pack = Sample::load(&node.data().join(PACK), Path::new(PACK), id)?;
    Ok((segment, pack))
}

impl Sample {
    fn load(from: &Path, path: &'static Path, volume: [u8; 16]) -> Result<Sample> {
        let mut bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
        let used = bytes.iter().rposition(|byte| *byte != 0).context("the file is empty")? + 1;
        if path == Path::new(SEGMENT) {
            bytes.truncate((used + BEHIND_BYTES).next_multiple_of(4096));
        }
        let mut sample = Sample { path, bytes, volume, items: Vec::new() };
        sample.items = if sample.is_log() { sample.commits()? } else { sample.blocks()? };
        ensure!(sample.items.len() > 3, "{} holds {} frames", from.display(), sample.items.len());
        Ok(sample)
    }

    fn commits(&self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let disk = self.disk(&self.bytes);
        let opened = Log::open(Arc::new(disk), Path::new("log"), log_options(self.volume), &mut |view| {
            let payload = Bytes::copy_from_slice(view.payload);
            items.push(Item { name: Name::Commit(view.header.meta.seq), payload, end: view.header.end() });
            Ok(())
        });
        opened.context("open the undamaged log")?;
        Ok(items)
    }

    fn blocks(&self) -> Result<Vec<Item>> {
        let blocks = Blocks::open(Arc::new(self.disk(&self.bytes)), Path::new("packs"), pack_options())?;
        let mut items = Vec::new();
        for cid in blocks.cids() {
            let cid = cid?;
            let payload = blocks.get(&cid)?.context("a listed block is not there")?;
            let found = self.bytes.windows(payload.len()).position(|window| window == payload);
            let at = found.context("a block is not in its pack")?;
            items.push(Item { name: Name::Block(cid), end: (at + payload.len()) as u64, payload });
        }
        items.sort_by_key(|item| item.end);
        Ok(items)
    }

    fn is_log(&self) -> bool {
        self.path == Path::new(SEGMENT)
    }

    fn disk(&self, bytes: &[u8]) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.set_bytes(self.path, bytes);
        disk
    }
}

fn log_options(id: [u8; 16]) -> LogOptions {
    LogOptions { is_background: false, ..LogOptions::new(FileKind::VolumeLog, id) }
}

fn pack_options() -> BlocksOptions {
    BlocksOptions { is_background: false, ..BlocksOptions::new(IndexKind::Memory) }
}

/// What the store said of a file, and what it showed of it.
struct Shown {
    told: Told,
    items: BTreeMap<Name, Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    /// Nothing.
    Nothing,
    /// It refused, or reported damage.
    Damage,
    /// It cut a torn tail.
    TornTail,
}

type Open<'a> = &'a (dyn Fn(&Sample, &[u8]) -> Result<Shown> + Sync);

fn open_log(sample: &Sample, bytes: &[u8]) -> Result<Shown> {
    let mut items = BTreeMap::new();
    let disk = sample.disk(bytes);
    let opened =
        Log::open(Arc::new(disk.clone()), Path::new("log"), log_options(sample.volume), &mut |view| {
            items.insert(Name::Commit(view.header.meta.seq), Bytes::copy_from_slice(view.payload));
            Ok(())
        });
    let told = match opened {
        Err(LogError::Corrupt { .. } | LogError::Newer { .. } | LogError::Foreign { .. }) => Told::Damage,
        Err(error) => return Err(error).context("open a damaged log"),
        Ok((_, Recovery::Clean { .. })) => Told::Nothing,
        Ok((_, Recovery::TornTail { .. })) => Told::TornTail,
        Ok((log, Recovery::Damaged { .. })) => {
            ensure!(log.is_read_only(), "a damaged log can be written");
            Told::Damage
        }
    };
    if told == Told::Damage {
        ensure!(disk.bytes_of(sample.path).as_deref() == Some(bytes), "a damaged log was changed");
    }
    Ok(Shown { told, items })
}

fn open_pack(sample: &Sample, bytes: &[u8]) -> Result<Shown> {
    let mut items = BTreeMap::new();
    let blocks = match Blocks::open(Arc::new(sample.disk(bytes)), Path::new("packs"), pack_options()) {
        Ok(blocks) => blocks,
        Err(BlocksError::Newer { .. }) => return Ok(Shown { told: Told::Damage, items }),
        Err(error) => return Err(error).context("open a damaged pack"),
    };
    let mut is_corrupt = !blocks.recovery().damaged.is_empty();
    for item in &sample.items {
        let Name::Block(cid) = item.name else { bail!("a commit in a pack") };
        match blocks.get(&cid) {
            Ok(Some(bytes)) => drop(items.insert(item.name, bytes)),
            Ok(None) => {}
            Err(BlocksError::Corrupt { .. }) => is_corrupt = true,
            Err(error) => return Err(error).context("read a block of a damaged pack"),
        }
    }
    let told = match (is_corrupt, blocks.recovery().n_torn > 0) {
        (true, _) => Told::Damage,
        (false, true) => Told::TornTail,
        (false, false) => Told::Nothing,
    };
    Ok(Shown { told, items })
}

/// How the turned bits were taken.
#[derive(Default)]
struct Counts {
    damage: AtomicU64,
    torn: AtomicU64,
    unused: AtomicU64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} detected, {} healed as a torn tail, {} where nothing lies, 0 wrong",
            get(&self.damage),
            get(&self.torn),
            get(&self.unused)
        )
    }
}

/// Turns every bit over, one at a time, on all processors.
fn flips(sample: &Sample, open: Open<'_>, progress: &(dyn Fn() + Sync)) -> Result<Counts> {
    let counts = Counts::default();
    let used_end = sample.items.iter().map(|item| item.end).max().unwrap_or(0);
    on_all_processors(sample.bytes.len() as u64 * 8, progress, &|bit| {
        let mut bytes = sample.bytes.clone();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        let shown = open(sample, &bytes)?;
        check_right(sample, &shown)?;
        let is_whole = shown.items.len() == sample.items.len();
        let at = bit / 8;
        let is_used = at < HEAD_BYTES || (PAGE_BYTES..used_end).contains(&at);
        match shown.told {
            Told::Damage => counts.damage.fetch_add(1, Ordering::Relaxed),
            // Behind the last frame there are zeros and, in a log, the mark of the clean stop.
            Told::TornTail | Told::Nothing if is_whole && !is_used => {
                counts.unused.fetch_add(1, Ordering::Relaxed)
            }
            // Nothing behind the last block says that it was whole; a log has its mark for that.
            Told::TornTail if !sample.is_log() && at >= last_start(sample) => {
                counts.torn.fetch_add(1, Ordering::Relaxed)
            }
            told => bail!(
                "bit {bit}: {told:?} was told, {} of {} are there",
                shown.items.len(),
                sample.items.len()
            ),
        };
        Ok(())
    })?;
    Ok(counts)
}

/// Where the last frame begins at the earliest.
fn last_start(sample: &Sample) -> u64 {
    sample.items.iter().rev().nth(1).map_or(0, |item| item.end)
}

/// Nothing that is shown is other than it was.
fn check_right(sample: &Sample, shown: &Shown) -> Result<()> {
    let mut n_right = 0;
    for item in &sample.items {
        if let Some(bytes) = shown.items.get(&item.name) {
            ensure!(*bytes == item.payload, "{:?} shows WRONG BYTES", item.name);
            n_right += 1;
        }
    }
    ensure!(n_right == shown.items.len(), "something is shown that was never written");
    Ok(())
}

/// Ends the file at every byte, in turn: what lies whole before the cut is there, all of it and nothing else.
fn cuts(sample: &Sample, open: Open<'_>, progress: &(dyn Fn() + Sync)) -> Result<String> {
    let n_frames = AtomicU64::new(0);
    on_all_processors(sample.bytes.len() as u64 - PAGE_BYTES, progress, &|n| {
        let cut = (PAGE_BYTES + n) as usize;
        let shown = open(sample, &sample.bytes[..cut])?;
        check_right(sample, &shown)?;
        let wanted = sample.items.iter().filter(|item| item.end <= cut as u64).count();
        let found = shown.items.len();
        // The last frame's padding is part of it.
        let is_in_padding = sample.items.get(found).is_some_and(|item| item.end + 8 > cut as u64);
        ensure!(
            found == wanted || (found + 1 == wanted && is_in_padding),
            "cut at {cut}: {found} of {wanted} are there"
        );
        n_frames.fetch_add(found as u64, Ordering::Relaxed);
        Ok(())
    })?;
    let n_cuts = sample.bytes.len() as u64 - PAGE_BYTES;
    Ok(format!("{n_cuts} lengths, the longest whole prefix of {} each time", sample.items.len()))
}

/// Does `work` for every number below `n`; answers the first failure.
fn on_all_processors(
    n: u64,
    progress: &(dyn Fn() + Sync),
    work: &(dyn Fn(u64) -> Result<()> + Sync),
) -> Result<()> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= n || failed.lock().is_some() {
                        return;
                    }
                    if let Err(error) = work(number) {
                        failed.lock().get_or_insert(error);
                        return;
                    }
                    progress();
                }
            });
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}
