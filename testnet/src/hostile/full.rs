//! A full disk: writers are told, nothing that was acknowledged is lost, and freed space is used without a restart.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::hostile::{Cases, check_alive};
use crate::ledger::{Writer, read_records};
use crate::nodes::Node;
use crate::workload::noise_file;

/// Bytes by which the content of one file is turned against that of the one before: no two share a block.
const TURN_BYTES: u64 = 4096 + 64;

/// Bytes of the disk, of what is deleted to make room, and of each file that is written.
const DISK_BYTES: u64 = 600 << 20;
const BALLAST_BYTES: u64 = 150 << 20;
const FILE_BYTES: u64 = 8 << 20;

/// How long freed space may take to be used.
const FREED_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let base = dir.join("base");
    noise_file(&base, FILE_BYTES, 7, &|_| {})?;
    let noise = Noise(std::fs::read(&base)?);
    for (what, reserve) in [("32 MiB kept free", 32 << 20), ("nothing kept free", 0)] {
        let disk = LoopDisk::make(dir, &format!("disk{reserve}"), DISK_BYTES)?;
        let mut node = Node::init(&disk.at, "full")?;
        let outcome =
            fill_and_free(cases, &format!("full disk, {what}"), &mut node, (&disk.at, &noise), reserve);
        outcome.with_context(|| format!("full disk, {what}:\n{}", node.last_words()))?;
        drop(node);
    }
    Ok(())
}

/// An ext4 file system of its own in a file; gone when dropped.
pub(crate) struct LoopDisk {
    /// Where it is mounted.
    pub(crate) at: PathBuf,
    image: PathBuf,
}

impl LoopDisk {
    /// An empty one of `bytes`, mounted on `dir/name`.
    pub(crate) fn make(dir: &Path, name: &str, bytes: u64) -> Result<LoopDisk> {
        let disk = LoopDisk { at: dir.join(name), image: dir.join(format!("{name}.img")) };
        File::create(&disk.image)?.set_len(bytes)?;
        std::fs::create_dir(&disk.at)?;
        tool(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&disk.image))?;
        // The loop device goes with the mount.
        tool(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(&disk.at))?;
        Ok(disk)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let _removed = std::fs::remove_file(&self.image);
    }
}

fn tool(command: &mut Command) -> Result<Output> {
    let out = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out)
}

/// The content of all files, each turned by another amount.
struct Noise(Vec<u8>);

impl Noise {
    fn parts(&self, number: u64) -> (&[u8], &[u8]) {
        let (end, begin) = self.0.split_at((number * TURN_BYTES % FILE_BYTES) as usize);
        (begin, end)
    }

    /// Writes file `number`, durable on return.
    fn write(&self, file: &mut File, number: u64) -> std::io::Result<()> {
        let (begin, end) = self.parts(number);
        file.write_all(begin)?;
        file.write_all(end)?;
        file.sync_all()
    }

    fn is(&self, found: &[u8], number: u64) -> bool {
        let (begin, end) = self.parts(number);
        found.len() == self.0.len() && found.starts_with(begin) && found.ends_with(end)
    }
}

/// What was acknowledged: files by number, and records.
struct Ledger<'a> {
    noise: &'a Noise,
    files: Vec<u64>,
    records: u64,
}

impl Ledger<'_> {
    fn check(&self, mount: &Path) -> Result<()> {
        for number in &self.files {
            let found =
                std::fs::read(file_at(mount, *number)).with_context(|| format!("read file {number}"))?;
            ensure!(self.noise.is(&found, *number), "acknowledged file {number} is another one now");
        }
        let found = read_records(&mount.join("records"))?;
        ensure!(found >= self.records, "{} records were acknowledged, {found} are there", self.records);
        Ok(())
    }
}

fn file_at(mount: &Path, number: u64) -> PathBuf {
    mount.join(format!("file{number}"))
}

/// Sets `reserve_bytes` in the config of a node that does not run.
pub(crate) fn set_reserve(node: &Node, reserve: u64) -> Result<()> {
    let config = node.data().join("config.toml");
    let text = std::fs::read_to_string(&config)?;
    let lines = text.lines().map(|line| {
        if line.starts_with("reserve_bytes") { format!("reserve_bytes = {reserve}") } else { line.to_owned() }
    });
    std::fs::write(&config, lines.collect::<Vec<_>>().join("\n")).context("write the config")
}

fn fill_and_free(
    cases: &mut Cases,
    what: &str,
    node: &mut Node,
    (disk, noise): (&Path, &Noise),
    reserve: u64,
) -> Result<()> {
    set_reserve(node, reserve)?;
    let ballast = disk.join("ballast");
    let held = File::create(&ballast)?;
    rustix::fs::fallocate(&held, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES)?;
    drop(held);
    node.start()?;
    let pid = node.pid();
    node.ok(&["volume", "create", "v"])?;
    let mount = node.mount("v")?;
    let mut ledger = Ledger { noise, files: Vec::new(), records: 0 };
    write_records(&mount, &mut ledger, 100)?;
    fill(&mount, &mut ledger)?;
    cases.row(&format!("{what}: written until"), &format!("ENOSPC after {} files", ledger.files.len()));
    refused_meanwhile(cases, what, node, (disk, noise))?;
    ledger.check(&mount).context("while the disk is full")?;
    let gone = ledger.files.remove(0);
    std::fs::remove_file(file_at(&mount, gone)).context("unlink on a full disk")?;
    ensure!(!file_at(&mount, gone).exists(), "an unlinked file is still there");
    check_alive(node, pid)?;
    cases.row(&format!("{what}: unlink, daemon, what was acknowledged"), "works, alive, all there");
    std::fs::remove_file(&ballast)?;
    let waited = write_again(&mount, &mut ledger)?;
    write_records(&mount, &mut ledger, 100)?;
    ledger.check(&mount).context("after space was freed")?;
    check_alive(node, pid)?;
    cases.row(
        &format!("{what}: space freed"),
        &format!("goes on after {} ms without a restart", waited.as_millis()),
    );
    node.kill()?;
    node.start()?;
    let mount = node.mount("v")?;
    ledger.check(&mount).context("after kill -9 and restart")?;
    node.unmount(&mount)?;
    node.stop()?;
    let kept = format!("{} files and {} records there", ledger.files.len(), ledger.records);
    cases.row(&format!("{what}: kill -9, restart"), &kept);
    Ok(())
}

/// Appends at least `more` records, each fsynced.
fn write_records(mount: &Path, ledger: &mut Ledger, more: u64) -> Result<()> {
    let writer = Writer::start(&mount.join("records"), ledger.records)?;
    let began = Instant::now();
    while writer.acknowledged() < ledger.records + more {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "the record writer is stuck at {}",
            writer.acknowledged()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    ledger.records = writer.finish()?;
    Ok(())
}

/// Writes fsynced files until there is no space; each that was acknowledged is in the ledger.
fn fill(mount: &Path, ledger: &mut Ledger) -> Result<()> {
    let first = ledger.files.last().map_or(1000, |last| last + 1);
    for number in first..first + DISK_BYTES / FILE_BYTES {
        match File::create(file_at(mount, number)).and_then(|mut f| ledger.noise.write(&mut f, number)) {
            Ok(()) => ledger.files.push(number),
            Err(e) if is_full(&e) => return Ok(()),
            Err(e) => return Err(e).context("a full disk has to be told as ENOSPC"),
        }
    }
    bail!("{DISK_BYTES} bytes were written and the disk is not full")
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

/// Writes one more file as soon as that is possible; answers how long it took.
fn write_again(mount: &Path, ledger: &mut Ledger) -> Result<Duration> {
    let began = Instant::now();
    let number = ledger.files.last().map_or(5000, |last| last + 5000);
    loop {
        match File::create(file_at(mount, number)).and_then(|mut f| ledger.noise.write(&mut f, number)) {
            Ok(()) => break,
            Err(e) if is_full(&e) && began.elapsed() < FREED_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => return Err(e).context("space was freed and cannot be used"),
        }
    }
    ledger.files.push(number);
    Ok(began.elapsed())
}

/// What else is asked of a node on a full disk is refused in words, or done.
fn refused_meanwhile(
    cases: &mut Cases,
    what: &str,
    node: &Node,
    (disk, noise): (&Path, &Noise),
) -> Result<()> {
    // On the disk that holds the image: what is added lies elsewhere.
    let near = disk.with_extension("add");
    let mut file = File::create(&near)?;
    for number in 900..900 + 2 * BALLAST_BYTES / FILE_BYTES {
        noise.write(&mut file, number)?;
    }
    let out = node.run(&["add", "-q", &near.display().to_string()])?;
    std::fs::remove_file(&near)?;
    cases.refused(&format!("{what}: add"), &out, 1, &["space"])?;
    node.ok(&["status"]).map(drop)
}
