//! Two trees in step: what a native directory answers, the volume answers, and afterwards they are equal.

mod choice;
mod op;
mod promises;
pub(super) mod stress;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::compare::{Manifest, Seen, differences, manifest};
use crate::soak::part::Part;
use crate::soak::turn::{Load, Turn};
use crate::soak::twins::op::CLOCK_BEGINS;
use crate::soak::twins::stress::{GONE, SYNCED};

/// More names or bytes than this, and one thread's directory is emptied before the next turn.
const NAMES_MAX: usize = 4000;
const BYTES_MAX: u64 = 40 << 20;

/// Between a thread's operations, in a gentle turn.
const PAUSE: Duration = Duration::from_millis(6);

/// Differences that are printed.
const SHOWN_MAX: usize = 12;

/// The load.
pub(super) struct Twins {
    native: PathBuf,
    turns: u64,
    /// Files that were synced and not touched since, when the mount was last taken away.
    synced: Vec<PathBuf>,
}

impl Twins {
    /// The native twin lies in `native`.
    pub(super) fn new(native: &Path) -> Result<Twins> {
        std::fs::create_dir_all(native).context("make the native tree")?;
        Ok(Twins { native: native.to_path_buf(), turns: 0, synced: Vec::new() })
    }

    fn volume(dir: &Path) -> PathBuf {
        dir.join("twin")
    }

    /// What was synced and not touched since must be on the volume as it was, under its name; answers how many files.
    fn demand_synced(&mut self, volume: &Path) -> Result<usize> {
        let wanted = without_clock(manifest(&self.native, &|_| ())?);
        let found = without_clock(manifest(volume, &|_| ())?);
        for path in &self.synced {
            let wanted =
                wanted.get(path).with_context(|| format!("{} is not in the native tree", path.display()))?;
            let found = found.get(path);
            ensure!(
                found.is_some_and(|found| same_file(wanted, found)),
                "{} was synced: {wanted:?} became {found:?}",
                path.display()
            );
        }
        Ok(std::mem::take(&mut self.synced).len())
    }

    /// Takes the volume's tree for the native one: after a crash it is a little older, and that is what was promised.
    fn take_over(&self, volume: &Path) -> Result<()> {
        std::fs::remove_dir_all(&self.native).context("remove the native tree")?;
        let copied = Command::new("cp")
            .args(["-a", "--sparse=auto", "-T"])
            .args([volume, &self.native])
            .output()
            .context("run cp")?;
        ensure!(copied.status.success(), "cp -a: {}", String::from_utf8_lossy(&copied.stderr));
        Ok(())
    }
}

impl Load for Twins {
    fn name(&self) -> &'static str {
        "files"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let volume = Twins::volume(dir);
        std::fs::create_dir_all(&volume).context("make the tree on the volume")?;
        let seed = turn.seed.to_string();
        let millis = turn.left().as_millis().to_string();
        let pause = turn.pause(PAUSE).as_micros().to_string();
        let args: [&OsStr; 9] = [
            "stress".as_ref(),
            self.native.as_os_str(),
            volume.as_os_str(),
            "--seed".as_ref(),
            seed.as_ref(),
            "--millis".as_ref(),
            millis.as_ref(),
            "--pause-micros".as_ref(),
            pause.as_ref(),
        ];
        let ended = Part::start(&args, 0)?.wait(turn)?;
        let first = ended.words.lines().next().unwrap_or_default().to_owned();
        let synced = ended.words.lines().filter_map(|line| line.strip_prefix(SYNCED));
        self.synced = if turn.is_killed() { synced.map(PathBuf::from).collect() } else { Vec::new() };
        if ended.status.success() || (turn.is_killed() && ended.words.contains(GONE)) {
            return Ok(first);
        }
        bail!("{}: {}", ended.status, ended.words)
    }

    fn check(&mut self, dir: &Path, was_killed: bool) -> Result<String> {
        let volume = Twins::volume(dir);
        let mut said = String::new();
        if was_killed {
            said = format!("{} synced files are there, ", self.demand_synced(&volume)?);
            self.take_over(&volume)?;
        }
        let native = without_clock(manifest(&self.native, &|_| ())?);
        let found = without_clock(manifest(&volume, &|_| ())?);
        let lines = differences(&native, &found, SHOWN_MAX);
        ensure!(lines.is_empty(), "the trees differ:\n  {}", lines.join("\n  "));
        let bytes: u64 = found.values().map(|seen| seen.size).sum();
        let _in_memory = write!(said, "{} names, {} MiB equal", found.len(), bytes >> 20);
        // Far beyond, more than one.
        for _ in 0..(found.len() / NAMES_MAX).max(usize::try_from(bytes / BYTES_MAX)?).min(4) {
            self.turns += 1;
            let top = format!("t{}", self.turns % 4);
            for root in [&self.native, &volume] {
                std::fs::remove_dir_all(root.join(&top)).with_context(|| format!("empty {top}"))?;
            }
        }
        Ok(said)
    }
}

/// Whether two trees show the same file; which of its names comes first may differ.
fn same_file(one: &Seen, other: &Seen) -> bool {
    let mut other = other.clone();
    other.first_name.clone_from(&one.first_name);
    *one == other
}

/// Times that the clock set differ between two trees; all that is asked of them is that they are the clock's.
fn without_clock(tree: Manifest) -> Manifest {
    let blunt = |(path, mut seen): (PathBuf, Seen)| {
        if seen.mtime.0 >= CLOCK_BEGINS {
            seen.mtime = (CLOCK_BEGINS, 0);
        }
        (path, seen)
    };
    tree.into_iter().map(blunt).collect::<BTreeMap<_, _>>()
}
