//! Nodes whose stores lie on disks that we control, and their volume.

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

/// A log this long is made a checkpoint: a cycle writes a few of them.
const CHECKPOINT_LOG_BYTES: u64 = 1 << 20;

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

/// A node and the disk below its store.
struct Member {
    node: Node,
    disk: FaultDisk,
}

/// Nodes at work. Dropped, everything is gone.
pub(super) struct Rig {
    mount: PathBuf,
    /// The first is the writer.
    members: Vec<Member>,
}

impl Rig {
    /// `n_members` new nodes in the new directory `dir`, with an empty volume mounted on the first. Three and more keep it under
    /// the quorum rule.
    pub(super) fn new(dir: &Path, daemon: Daemon, n_members: usize) -> Result<Rig> {
        let mut members: Vec<Member> = Vec::new();
        for at in 0..n_members {
            let member = Member::new(&dir.join(at.to_string()), at, daemon, members.first())?;
            members.push(member);
        }
        let others = (n_members - 1) as u64;
        for member in &members {
            member.node.wait_until("all members connected", |s| s["connected"].as_u64() == Some(others))?;
        }
        let writer = members.first_mut().context("there is a member")?;
        writer.node.ok(&["volume", "create", VOLUME])?;
        let mount = writer.node.mount(VOLUME)?;
        if daemon == Daemon::NeverSyncs {
            for member in &members {
                // What it began with is there, so that what it acknowledges is what is lost.
                let data = std::fs::File::open(member.disk.dir()).context("open the store")?;
                rustix::fs::syncfs(&data).context("sync the store")?;
            }
        }
        Ok(Rig { mount, members })
    }

    /// Where the volume is mounted.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// What the daemons said last.
    pub(super) fn last_words(&self) -> String {
        self.members.iter().map(|member| member.node.last_words()).collect::<Vec<_>>().join("\n--\n")
    }

    /// The last line in which a daemon complains.
    fn complaint(&self) -> String {
        let words = self.last_words();
        let complains = |line: &&str| line.contains(" ERROR ") || line.contains(" WARN ");
        words.lines().rev().find(complains).unwrap_or("nobody says anything").to_owned()
    }

    /// From now on a flush of every disk takes so long.
    pub(super) fn set_flush_time(&self, flush_time: Duration) {
        self.members.iter().for_each(|member| member.disk.set_flush_time(flush_time));
    }

    /// The crash as far as disks and file systems are concerned: from now on nothing more becomes durable. Power fails on all
    /// hosts, a daemon is killed on the writer's.
    pub(super) fn strike(&mut self, crash: Crash, seed: u64) -> Result<Vec<Cut>> {
        let mut cuts = Vec::new();
        for (member, seed) in self.members.iter_mut().zip(seed..) {
            match crash {
                Crash::Kill => return member.node.kill().map(|()| cuts),
                Crash::Shutdown => shut_down(&member.disk.dir())?,
                Crash::Cut => cuts.push(member.disk.cut_power(seed)?),
            }
        }
        Ok(cuts)
    }

    /// The rest of the hosts is gone too.
    pub(super) fn end(&mut self, crash: Crash) -> Result<()> {
        let n_hit = if crash == Crash::Kill { 1 } else { self.members.len() };
        self.members.iter_mut().take(n_hit).try_for_each(|member| member.node.kill())
    }

    /// Brings the hosts back, and answers how long it took from the start of the first daemon until the volume was mounted.
    pub(super) fn come_back(&mut self, crash: Crash) -> Result<Duration> {
        let n_hit = if crash == Crash::Kill { 1 } else { self.members.len() };
        if crash != Crash::Kill {
            for member in &mut self.members {
                member.disk.power_on()?;
                member.disk.mount()?;
            }
        }
        let began = Instant::now();
        for member in self.members.iter_mut().take(n_hit) {
            member.node.start()?;
        }
        while !is_live(&self.mount) {
            ensure!(began.elapsed() < BACK_TIMEOUT, "the mount does not come back: {}", self.complaint());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(began.elapsed())
    }
}

impl Member {
    /// A node whose daemon runs, in the new directory `dir`.
    fn new(dir: &Path, at: usize, daemon: Daemon, founder: Option<&Member>) -> Result<Member> {
        let mut disk = FaultDisk::create(dir, DISK_BYTES)?;
        let data = disk.mount()?;
        let mut node = Node::place_at(&data, &format!("host{at}"), founder.map(|founder| &founder.node))?;
        set_config(&data)?;
        let dies_with_us = ["setpriv", "--pdeathsig", "KILL", "--"];
        let calls = sync_calls();
        let never_syncs = ["perl", "-e", include_str!("without_sync.pl"), "--", &calls];
        match daemon {
            Daemon::Sound => node.start_under(&dies_with_us),
            Daemon::NeverSyncs => node.start_under(&[&dies_with_us[..], &never_syncs].concat()),
        }
        node.start()?;
        Ok(Member { node, disk })
    }
}

/// Whether a FUSE mount there answers. The kernel answers much else from what it remembers of a dead one, but never this.
fn is_live(mount: &Path) -> bool {
    rustix::fs::statfs(mount).is_ok_and(|stat| stat.f_type == FUSE_MAGIC)
}

/// Little is kept free, and checkpoints are frequent, so that crashes meet them.
fn set_config(data: &Path) -> Result<()> {
    let path = data.join("config.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let ours = [("reserve_bytes", RESERVE_BYTES), ("checkpoint_log_bytes", CHECKPOINT_LOG_BYTES)];
    let mut lines: Vec<String> = ours.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let is_theirs = |line: &&str| !ours.iter().any(|(key, _)| line.starts_with(key));
    lines.extend(text.lines().filter(is_theirs).map(str::to_owned));
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
