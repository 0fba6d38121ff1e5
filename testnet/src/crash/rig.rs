//! One node whose store lies on a disk that we control, and its volume.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::faultdisk::FaultDisk;
use crate::faultdisk::platter::Cut;
use crate::nodes::Node;

/// Size of the disk. Only what is written takes memory.
const DISK_BYTES: u64 = 3 << 30;

/// What the node keeps free of it: little, the disk is small.
const RESERVE_BYTES: u64 = 64 << 20;

/// Name of the volume.
const VOLUME: &str = "v";

/// What `statfs` says of a file system over FUSE.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// How long the mount may take to come back.
const BACK_TIMEOUT: Duration = Duration::from_secs(15);

/// How the crash comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Crash {
    /// The daemon is killed.
    Kill,
    /// The file system below the store forgets what it had in memory; the disk keeps its cache.
    Shutdown,
    /// The disk loses its power.
    Cut,
}

impl Crash {
    /// For tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Crash::Kill => "kill -9",
            Crash::Shutdown => "power cut, memory lost",
            Crash::Cut => "power cut, blocks lost",
        }
    }
}

/// What is wrong with the daemon on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Daemon {
    /// Nothing.
    Sound,
    /// Its syncs do nothing: it acknowledges before they are done.
    NeverSyncs,
}

/// A node at work. Dropped, everything is gone.
pub(super) struct Rig {
    node: Node,
    mount: PathBuf,
    disk: FaultDisk,
}

impl Rig {
    /// A new node in the new directory `dir`, with an empty volume mounted.
    pub(super) fn new(dir: &Path, daemon: Daemon) -> Result<Rig> {
        let mut disk = FaultDisk::create(dir, DISK_BYTES)?;
        let data = disk.mount()?;
        let mut node = Node::init_at(&data, "solo")?;
        set_reserve(&data)?;
        let dies_with_us = ["setpriv", "--pdeathsig", "KILL", "--"];
        let calls = sync_calls();
        let never_syncs = ["perl", "-e", include_str!("without_sync.pl"), "--", &calls];
        match daemon {
            Daemon::Sound => node.start_under(&dies_with_us),
            Daemon::NeverSyncs => node.start_under(&[&dies_with_us[..], &never_syncs].concat()),
        }
        node.start()?;
        node.ok(&["volume", "create", VOLUME])?;
        let mount = node.mount(VOLUME)?;
        if daemon == Daemon::NeverSyncs {
            // What it began with is there, so that what it acknowledges is what is lost.
            let data = std::fs::File::open(&data).context("open the store")?;
            rustix::fs::syncfs(&data).context("sync the store")?;
        }
        Ok(Rig { node, mount, disk })
    }

    /// Where the volume is mounted.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// What the daemon said last.
    pub(super) fn last_words(&self) -> String {
        self.node.last_words()
    }

    /// The last line in which the daemon complains.
    fn complaint(&self) -> String {
        let words = self.last_words();
        let complains = |line: &&str| line.contains(" ERROR ") || line.contains(" WARN ");
        words.lines().rev().find(complains).unwrap_or("it says nothing").to_owned()
    }

    /// The crash as far as the disk or the file system is concerned: from now on nothing more becomes durable.
    pub(super) fn strike(&mut self, crash: Crash, seed: u64) -> Result<Option<Cut>> {
        match crash {
            Crash::Kill => self.node.kill().map(|()| None),
            Crash::Shutdown => shut_down(&self.disk.dir()).map(|()| None),
            Crash::Cut => self.disk.cut_power(seed).map(Some),
        }
    }

    /// The rest of the host is gone too.
    pub(super) fn end(&mut self) -> Result<()> {
        self.node.kill()
    }

    /// Brings the host back, and answers how long the daemon took from its start until the volume was mounted.
    pub(super) fn come_back(&mut self, crash: Crash) -> Result<Duration> {
        if crash != Crash::Kill {
            self.disk.power_on()?;
            self.disk.mount()?;
        }
        let began = Instant::now();
        self.node.start()?;
        while !is_live(&self.mount) {
            ensure!(began.elapsed() < BACK_TIMEOUT, "the mount does not come back: {}", self.complaint());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(began.elapsed())
    }
}

/// Whether a FUSE mount there answers. The kernel answers much else from what it remembers of a dead one, but never this.
fn is_live(mount: &Path) -> bool {
    rustix::fs::statfs(mount).is_ok_and(|stat| stat.f_type as i64 == FUSE_MAGIC)
}

fn set_reserve(data: &Path) -> Result<()> {
    let path = data.join("config.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("reserve_bytes")).collect();
    let reserve = format!("reserve_bytes = {RESERVE_BYTES}");
    lines.insert(0, &reserve);
    std::fs::write(&path, lines.join("\n")).with_context(|| format!("write {}", path.display()))
}

/// For `without_sync.pl`: how this machine numbers the calls.
fn sync_calls() -> String {
    let calls = [
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_syncfs,
        libc::SYS_sync,
        libc::SYS_msync,
    ];
    calls.map(|call| call.to_string()).join(",")
}

fn shut_down(dir: &Path) -> Result<()> {
    let mut command = Command::new("perl");
    command.args(["-e", include_str!("shutdown.pl"), "--"]).arg(dir).stdin(Stdio::null());
    let out = command.output().context("run perl")?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
