//! The store fills up in the middle of an untar. Space comes back from outside the store first, then from inside the
//! volume, also when not one byte is free.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::compare::{Manifest, Seen, differences, manifest};
use crate::exe;
use crate::hostile::full::{LoopDisk, set_reserve};
use crate::nodes::Node;
use crate::report::Report;
use crate::workload::{noise_file, source_tree};

/// Kept free by the node on its disk.
pub(super) const RESERVE_BYTES: u64 = 80 << 20;

/// How long freed space may take to be used.
const FREED_TIMEOUT: Duration = Duration::from_secs(60);

/// A volume that is left alone has made a checkpoint by then.
const FOLDED_TIMEOUT: Duration = Duration::from_secs(60);

/// A file is stored in pieces of this many bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// Trees that the node may have space for when the foreign file has taken the rest.
const TREES_MAX: u64 = 8;

/// A node on a disk of its own that somebody else can fill.
pub(super) struct Store {
    pub(super) node: Node,
    disk: LoopDisk,
}

impl Store {
    pub(super) fn make(dir: &Path, bytes: u64) -> Result<Store> {
        let disk = LoopDisk::make(dir, "disk", bytes)?;
        let node = Node::init(&disk.at, "node")?;
        // What the node has to say must have somewhere to go.
        std::os::unix::fs::symlink(dir.join("node.log"), node.log()).context("lead the log elsewhere")?;
        set_reserve(&node, RESERVE_BYTES)?;
        Ok(Store { node, disk })
    }

    /// Starts the node and mounts its volume `v`.
    pub(super) fn start(&mut self) -> Result<PathBuf> {
        self.node.start()?;
        self.node.ok(&["volume", "create", "v"])?;
        self.node.mount("v")
    }

    fn ballast(&self) -> PathBuf {
        self.disk.at.join("ballast")
    }

    /// Bytes free on the disk.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.disk.at)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// A foreign file takes everything but `left` bytes above the reserve, besides what it has already.
    pub(super) fn take_space(&self, left: u64) -> Result<()> {
        let file = File::options().append(true).create(true).open(self.ballast())?;
        let aside = self.node.data().join("reserve").metadata().map_or(0, |file| file.len());
        let take = (self.free_bytes()? + aside).saturating_sub(RESERVE_BYTES + left);
        if take == 0 {
            return Ok(());
        }
        let has = file.metadata()?.len();
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), has, take) {
            // The node was faster.
            Err(rustix::io::Errno::NOSPC) => Ok(()),
            other => other.context("take the space"),
        }
    }

    /// A foreign file takes every byte that anybody can have.
    fn take_everything(&self) -> Result<()> {
        let file = File::create(self.ballast())?;
        let (mut bytes, mut piece) = (0, 64 << 20);
        while piece >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), bytes, piece) {
                Ok(()) => bytes += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("take all the space"),
            }
        }
        Ok(())
    }

    /// The foreign file goes.
    pub(super) fn free_ballast(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("remove the foreign file")
    }
}

pub(super) fn run(report: &mut Report, is_short: bool) -> Result<()> {
    let dir = exe::scratch("full-tar")?;
    let mut store = Store::make(dir.path(), 600 << 20)?;
    let outcome = under_untar(report, dir.path(), &mut store, is_short);
    outcome.with_context(|| store.node.last_words())
}

/// A tree, and the archive of it.
struct Archive {
    tree: PathBuf,
    path: PathBuf,
    files: Manifest,
    n_varied: u64,
}

impl Archive {
    fn make(dir: &Path, n_files: u64) -> Result<Archive> {
        let (tree, path) = (dir.join("tree"), dir.join("tree.tar"));
        source_tree(&tree, n_files, &|_| {})?;
        // Larger ones, too, that do not go into the log.
        for number in 0..6 {
            noise_file(&tree.join(format!("zz-noise{number}")), 3 << 20, number, &|_| {})?;
        }
        pack(&tree, &path)?;
        let files = manifest(&tree, &|_| {})?;
        Ok(Archive { tree, path, files, n_varied: 0 })
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|seen| seen.size).sum()
    }

    fn unpack(&self, into: &Path) -> Result<Output> {
        unpack(&self.path, into)
    }

    /// Unpacks the same names with contents that nobody has seen: what is there twice is stored once, and to remove it frees nothing.
    fn unpack_varied(&mut self, into: &Path) -> Result<Output> {
        self.n_varied += 1;
        let (tree, path) = (self.tree.with_extension("varied"), self.path.with_extension("varied.tar"));
        for name in self.files.iter().filter(|(_, seen)| seen.sha256.is_some()).map(|(name, _)| name) {
            let to = tree.join(name);
            std::fs::create_dir_all(to.parent().context("a file in no directory")?)?;
            let content = std::fs::read(self.tree.join(name))?;
            // As long as a chunk with what is put before it, so that no chunk is as it was.
            let pieces = content.chunks(CHUNK_BYTES - 8);
            let salt = self.n_varied.to_le_bytes();
            let varied: Vec<u8> = pieces.flat_map(|piece| salt.iter().chain(piece)).copied().collect();
            std::fs::write(to, varied)?;
        }
        pack(&tree, &path)?;
        std::fs::remove_dir_all(&tree)?;
        unpack(&path, into)
    }
}

fn pack(tree: &Path, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "-cf"]).arg(into).arg("-C").arg(tree).arg(".");
    let done = tar.status().context("run tar")?;
    ensure!(done.success(), "tar ended with {done}");
    Ok(())
}

fn unpack(archive: &Path, into: &Path) -> Result<Output> {
    let mut tar = Command::new("tar");
    tar.env("LC_ALL", "C").arg("-xf").arg(archive).arg("-C").arg(into).output().context("run tar")
}

fn under_untar(report: &mut Report, dir: &Path, store: &mut Store, is_short: bool) -> Result<()> {
    let mut archive = Archive::make(dir, if is_short { 1500 } else { 6000 })?;
    let mount = store.start()?;
    let pid = store.node.pid();
    let into = mount.join("into");
    std::fs::create_dir(&into)?;
    let mut kept = BTreeSet::new();
    report.step("untar: the disk fills up", 0, |_| {
        // Half of it fits.
        store.take_space(archive.bytes() / 2)?;
        let out = archive.unpack(&into)?;
        check_told(&out)?;
        kept = sync_what_is_whole(&into, &archive.files)?;
        anyhow::Ok(format!(
            "ENOSPC and nothing else; {} of {} files whole and synced",
            kept.len(),
            archive.files.len()
        ))
    })?;
    report.step("untar: space is freed from outside, again", 0, |_| {
        check_kept(&into, &archive.files, &kept).context("on the full disk")?;
        store.free_ballast()?;
        let waited = unpack_again(&archive, &into)?;
        let changed = differences(&archive.files, &manifest(&into, &|_| {})?, 5);
        ensure!(changed.is_empty(), "the tree is another one:\n{}", changed.join("\n"));
        ensure!(store.node.pid() == pid && pid.is_some(), "the daemon is another one");
        anyhow::Ok(format!("whole after {waited:.1?}, without a restart"))
    })?;
    let mut mount = mount;
    for case in CASES.iter().filter(|case| case.is_in_short || !is_short) {
        report.step(&format!("untar: the disk is full{}", case.what), 0, |_| {
            let said = from_inside(store, &mut mount, &mut archive, case)?;
            let changed = differences(&archive.files, &manifest(&mount.join("into"), &|_| {})?, 5);
            ensure!(changed.is_empty(), "another tree was harmed by it:\n{}", changed.join("\n"));
            store.node.ok(&["store", "verify"])?;
            anyhow::Ok(said)
        })?;
    }
    report.step("untar: kill -9, restart", 0, |_| {
        store.node.kill()?;
        store.node.start()?;
        let into = store.node.mount("v")?.join("into");
        let found = manifest(&into, &|_| {})?;
        let changed = differences(&archive.files, &found, 5);
        ensure!(changed.is_empty(), "the tree is another one:\n{}", changed.join("\n"));
        anyhow::Ok(format!("{} names as they were", found.len()))
    })?;
    store.node.unmount(&mount)?;
    store.node.stop()
}

/// tar says of each file that it has no space, and nothing else.
fn check_told(out: &Output) -> Result<()> {
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success(), "everything fits: the disk is not full");
    ensure!(said.contains("No space left on device"), "tar was not told ENOSPC: {said}");
    ensure!(!said.contains("Input/output error"), "tar was told EIO: {said}");
    Ok(())
}

/// Fsyncs every file that is whole; from here on it has to stay.
fn sync_what_is_whole(into: &Path, wanted: &Manifest) -> Result<BTreeSet<PathBuf>> {
    let mut kept = BTreeSet::new();
    for (path, seen) in manifest(into, &|_| {})? {
        if seen.sha256.is_some() && wanted.get(&path).is_some_and(|w: &Seen| w.sha256 == seen.sha256) {
            File::open(into.join(&path))?.sync_all().with_context(|| format!("fsync {}", path.display()))?;
            kept.insert(path);
        }
    }
    ensure!(!kept.is_empty(), "not one file is whole");
    Ok(kept)
}

fn check_kept(into: &Path, wanted: &Manifest, kept: &BTreeSet<PathBuf>) -> Result<()> {
    let found = manifest(into, &|_| {})?;
    for path in kept {
        let is_right = found.get(path).map(|seen| seen.sha256) == wanted.get(path).map(|seen| seen.sha256);
        ensure!(is_right, "{} was synced and is another one now", path.display());
    }
    Ok(())
}

/// One tree beside the other, until the disk is full: some go where the node has allocated space already.
fn unpack_until_told(archive: &mut Archive, into: &Path) -> Result<()> {
    for number in 0..TREES_MAX {
        let tree = into.join(number.to_string());
        match std::fs::create_dir(&tree) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull && number > 0 => return Ok(()),
            made => made.with_context(|| format!("make {}", tree.display()))?,
        }
        let out = archive.unpack_varied(&tree)?;
        if !out.status.success() {
            return check_told(&out);
        }
    }
    bail!("{TREES_MAX} trees fit: the disk is not full")
}

fn unpack_again(archive: &Archive, into: &Path) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let out = archive.unpack(into)?;
        if out.status.success() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > FREED_TIMEOUT {
            bail!("space was freed and cannot be used: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How much of the disk a foreign file takes before files are removed inside the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Foreign {
    /// All but what the node keeps free, and a little: the volume fills up by itself.
    AboveTheReserve,
    /// Everything there is.
    Everything,
}

/// The volume is left alone until it makes a checkpoint by itself.
fn wait_until_folded(node: &Node) -> Result<()> {
    let n_made =
        || anyhow::Ok(std::fs::read_to_string(node.log())?.matches("checkpoint: checkpoint tree=").count());
    let (before, began) = (n_made()?, Instant::now());
    while n_made()? == before {
        ensure!(began.elapsed() < FOLDED_TIMEOUT, "the volume was left alone and is not folded");
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// What is removed on a full disk, and how.
struct Case {
    what: &'static str,
    foreign: Foreign,
    /// What is removed is in a tree already: only the store can give it back.
    is_folded: bool,
    is_killed: bool,
    is_in_short: bool,
}

const CASES: [Case; 4] = [
    Case {
        what: ", files are removed inside",
        foreign: Foreign::AboveTheReserve,
        is_folded: false,
        is_killed: false,
        is_in_short: false,
    },
    Case {
        what: " to the last byte, files are removed inside",
        foreign: Foreign::Everything,
        is_folded: false,
        is_killed: false,
        is_in_short: true,
    },
    Case {
        what: " to the last byte, files are removed inside, kill -9",
        foreign: Foreign::Everything,
        is_folded: false,
        is_killed: true,
        is_in_short: true,
    },
    Case {
        what: " to the last byte, old files are removed inside, kill -9",
        foreign: Foreign::Everything,
        is_folded: true,
        is_killed: true,
        is_in_short: false,
    },
];

/// Files are removed on the full disk, and without help from outside there is room again.
fn from_inside(store: &mut Store, mount: &mut PathBuf, archive: &mut Archive, case: &Case) -> Result<String> {
    let second = mount.join("second");
    std::fs::create_dir(&second)?;
    match case.foreign {
        Foreign::AboveTheReserve => {
            store.take_space(archive.bytes() / 3)?;
            unpack_until_told(archive, &second)?;
        }
        Foreign::Everything => {
            ensure!(archive.unpack_varied(&second)?.status.success(), "the second tree does not fit");
            if case.is_folded {
                wait_until_folded(&store.node)?;
            }
            store.take_everything()?;
            // A look at the disk is good for a few files.
            let refused = mount.join("refused");
            let is_told = (0..40).any(|_| noise_file(&refused, 2 << 20, 98, &|_| {}).is_err());
            ensure!(is_told, "a full disk takes one file after the other");
            std::fs::remove_file(&refused)?;
        }
    }
    let (full, began) = (store.free_bytes()?, Instant::now());
    std::fs::remove_dir_all(&second).context("remove a tree on a full disk")?;
    File::open(&*mount)?.sync_all().context("fsync of a directory on a full disk")?;
    if case.is_killed {
        // Into the middle of whatever gives the space back.
        std::thread::sleep(Duration::from_millis(2500));
        store.node.kill()?;
        store.node.start()?;
        *mount = store.node.mount("v")?;
        ensure!(!mount.join("second").exists(), "what was removed, durably, is there again");
    }
    let probe = mount.join("probe");
    while let Err(error) = noise_file(&probe, 2 << 20, 99, &|_| {}) {
        ensure!(
            began.elapsed() < FREED_TIMEOUT,
            "nothing can be written {FREED_TIMEOUT:?} after files were removed; {} MiB free, before {} MiB: {error:#}",
            store.free_bytes()? >> 20,
            full >> 20
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = began.elapsed().as_secs_f64();
    let gained = store.free_bytes()?.saturating_sub(full) >> 20;
    std::fs::remove_file(&probe)?;
    store.free_ballast()?;
    Ok(format!("{} MiB free; writes again after {took:.1} s, {gained} MiB more", full >> 20))
}
