//! `remora-testnet fsx`: random operations on a file against what the file should hold, on ext4 and on a volume, on one host and from
//! host to host.
//!
//! fsx 0.3.2 keeps its own model; what it left on the volume is compared with what it left on ext4 with the same seed each time
//! another host has taken over. It writes its file anew at each start, so files that live on through hand-offs are left to
//! `exerciser`. Both are shown to find a difference when there is one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use crate::exe;
use crate::nodes::{Node, cluster};
use crate::posix::exerciser::Exerciser;
use crate::posix::tools::{Kernel, install};
use crate::report::Report;

/// All operations it has but one; on Linux none of them may be refused.
const PIECES: &str = "\
[weights]
close_open = 2
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 6
fsync = 1
fdatasync = 1
posix_fallocate = 4
punch_hole = 6
sendfile = 4
posix_fadvise = 1
";

/// The one that fsx 0.3.2 does for real where it should only count it in, so not for runs in pieces: it fails on ext4 too.
const WHOLE: &str = "copy_file_range = 6\n";

/// Operations between two hand-offs.
const OPERATIONS_A_HOST: u64 = 1000;

/// Steps that are left out in turn, on purpose: some change nothing that is ever read.
const PLANTED_STEPS: std::ops::Range<u64> = 20..30;

/// The two hosts.
const NAMES: [&str; 2] = ["a", "b"];

/// Seeds 1 to `seeds`, `operations` each.
#[derive(Clone, Copy)]
struct Scale {
    seeds: u64,
    operations: u64,
}

/// Runs everything; `short` is 3 seeds of 2,000 operations in place of 20 of 10,000.
///
/// # Errors
/// The first difference, with its seed; or what this machine lacks.
pub fn run(short: bool) -> Result<()> {
    exe::check_fuse()?;
    let scale = match short {
        true => Scale { seeds: 3, operations: 2000 },
        false => Scale { seeds: 20, operations: 10_000 },
    };
    let program = install("fsx", "0.3.2", "")?;
    let dir = exe::scratch("fx")?;
    let kernel = Kernel::build(dir.path())?;
    let native = dir.path().join("ext4");
    std::fs::create_dir(&native)?;
    let fsx = Fsx { program, dir: dir.path().to_path_buf() };
    std::fs::write(fsx.configuration(true), PIECES)?;
    std::fs::write(fsx.configuration(false), format!("{PIECES}{WHOLE}"))?;
    let mut report = Report::new("Remora fsx: random operations, compared byte by byte");
    report.step("fsx on ext4", scale.seeds, |bar| fsx.seeds(&native, scale, bar))?;
    report.step("fsx finds a step left out, on ext4", 0, |_| fsx.finds_planted(&native))?;
    let mut nodes = cluster(dir.path(), &NAMES)?;
    for volume in ["still", "moved", "lives"] {
        nodes[0].ok(&["volume", "create", volume])?;
    }
    let still = nodes[0].mount("still")?;
    report.step("fsx on a volume", scale.seeds, |bar| fsx.seeds(&still, scale, bar))?;
    report.step("fsx finds a step left out, on a volume", 0, |_| fsx.finds_planted(&still))?;
    nodes[0].unmount(&still)?;
    report.step("fsx, another host every 1,000 operations", scale.seeds, |bar| {
        moved(&fsx, &mut nodes, &native, scale, bar)
    })?;
    report.step("the exerciser finds a flipped byte, on ext4", 0, |_| planted_flip(&native, &kernel))?;
    report.step("files that live on, another host every 1,000 operations", scale.seeds, |bar| {
        lives(&mut nodes, &kernel, scale, bar)
    })?;
    for node in &mut nodes {
        node.stop()?;
    }
    report.close();
    Ok(())
}

/// How fsx is called.
struct Fsx {
    program: PathBuf,
    /// For its configurations, and for what it leaves when it fails.
    dir: PathBuf,
}

impl Fsx {
    fn configuration(&self, in_pieces: bool) -> PathBuf {
        self.dir.join(if in_pieces { "pieces.toml" } else { "whole.toml" })
    }

    /// Does `whole` operations, or those of a piece: after its first number, up to its second; those before are only counted in.
    /// Answers what it said if it failed.
    fn operations(
        &self,
        file: &Path,
        seed: u64,
        piece: Option<(u64, u64)>,
        whole: u64,
        inject: Option<u64>,
    ) -> Result<Option<String>> {
        let (from, to) = piece.unwrap_or((0, whole));
        let mut command = Command::new(&self.program);
        command.arg("-f").arg(self.configuration(piece.is_some())).arg("-P").arg(&self.dir);
        command.args(["-S", &seed.to_string(), "-b", &(from + 1).to_string(), "-N", &to.to_string()]);
        if let Some(step) = inject {
            command.args(["--inject", &step.to_string()]);
        }
        let out = command.arg(file).output().context("run fsx")?;
        if out.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        // What it says of the failure comes first, then a long list of operations of which the last one failed.
        let lines: Vec<&str> = text.lines().collect();
        let (first, rest) = lines.split_at(lines.len().min(3));
        let last = &rest[rest.len().saturating_sub(9)..];
        Ok(Some(format!("{}: {}\n{}\n{}", file.display(), out.status, first.join("\n"), last.join("\n"))))
    }

    /// All seeds, one after the other, on one file system.
    fn seeds(&self, at: &Path, scale: Scale, bar: &ProgressBar) -> Result<String> {
        for seed in 1..=scale.seeds {
            let file = at.join(format!("fsx-{seed}"));
            let failed = self.operations(&file, seed, None, scale.operations, None)?;
            ensure!(failed.is_none(), "seed {seed}: {}", failed.unwrap_or_default());
            std::fs::remove_file(&file)?;
            bar.inc(1);
        }
        Ok(format!("{} seeds x {} operations, 0 differences", scale.seeds, scale.operations))
    }

    /// Whether fsx can do a seed at all: with some, in pieces, it sooner or later asks for the allocation of no bytes, which every
    /// file system must refuse, and gives up.
    fn is_usable(&self, native: &Path, seed: u64, operations: u64) -> Result<bool> {
        Ok(self.operations(&native.join("beside"), seed, Some((0, operations)), operations, None)?.is_none())
    }

    /// A step that fsx believes it has done and has not must show.
    fn finds_planted(&self, at: &Path) -> Result<String> {
        let mut n_found = 0;
        for step in PLANTED_STEPS {
            let file = at.join("planted");
            n_found += u64::from(self.operations(&file, 1, None, 500, Some(step))?.is_some());
            std::fs::remove_file(&file)?;
        }
        ensure!(n_found > 0, "steps were left out, and fsx found nothing");
        Ok(format!("{n_found} of {} found (the others changed nothing)", PLANTED_STEPS.count()))
    }
}

/// fsx in pieces on the volume `moved`, each on the other host, beside the same pieces on ext4.
fn moved(fsx: &Fsx, nodes: &mut [Node], native: &Path, scale: Scale, bar: &ProgressBar) -> Result<String> {
    let mut holder = 0;
    let mut at = nodes[holder].mount("moved")?;
    let mut n_moves = 0;
    let mut seeds = 1..;
    let mut n_unusable = 0;
    for _ in 0..scale.seeds {
        let seed = loop {
            let seed = seeds.next().context("no seed is left")?;
            if fsx.is_usable(native, seed, scale.operations)? {
                break seed;
            }
            n_unusable += 1;
        };
        let (name, beside) = (format!("fsx-{seed}"), native.join("beside"));
        for from in (0..scale.operations).step_by(OPERATIONS_A_HOST as usize) {
            let piece = (from, from + OPERATIONS_A_HOST);
            for file in [&at.join(&name), &beside] {
                let failed = fsx.operations(file, seed, Some(piece), piece.1, None)?;
                ensure!(failed.is_none(), "seed {seed}, {piece:?}: {}", failed.unwrap_or_default());
            }
            at = hand_off(nodes, &mut holder, "moved", &at)?;
            n_moves += 1;
            let (found, wanted) = (std::fs::read(at.join(&name))?, std::fs::read(&beside)?);
            ensure!(
                found == wanted,
                "seed {seed}: after operation {} the next host sees other bytes",
                piece.1
            );
        }
        bar.inc(1);
    }
    nodes[holder].unmount(&at)?;
    let passed_over = match n_unusable {
        0 => String::new(),
        n => format!("; {n} more that fsx cannot do on ext4 either"),
    };
    Ok(format!(
        "{} seeds x {} operations, {n_moves} hand-offs, 0 differences{passed_over}",
        scale.seeds, scale.operations
    ))
}

/// Our own exerciser on the volume `lives`: its files are never written anew.
fn lives(nodes: &mut [Node], kernel: &Kernel, scale: Scale, bar: &ProgressBar) -> Result<String> {
    let mut holder = 0;
    let mut at = nodes[holder].mount("lives")?;
    let mut n_moves = 0;
    for seed in 1..=scale.seeds {
        let context = || format!("exerciser, seed {seed}");
        let mut exerciser = Exerciser::new(seed, kernel);
        for _ in 0..scale.operations / OPERATIONS_A_HOST {
            exerciser.run(&at, OPERATIONS_A_HOST).with_context(context)?;
            at = hand_off(nodes, &mut holder, "lives", &at)?;
            n_moves += 1;
            exerciser.verify(&at).with_context(context)?;
        }
        bar.inc(1);
    }
    nodes[holder].unmount(&at)?;
    Ok(format!("{} seeds x {} operations, {n_moves} hand-offs, 0 differences", scale.seeds, scale.operations))
}

/// A byte that changes behind the exerciser's back must show.
fn planted_flip(native: &Path, kernel: &Kernel) -> Result<String> {
    use std::os::unix::fs::FileExt;
    let mut exerciser = Exerciser::new(1, kernel);
    exerciser.run(native, 200)?;
    exerciser.verify(native)?;
    let file = exerciser.file(native, 0)?;
    let (last, mut byte) = (file.metadata()?.len().saturating_sub(1), [0]);
    file.read_exact_at(&mut byte, last)?;
    file.write_all_at(&[byte[0] ^ 1], last)?;
    let verdict = exerciser.verify(native);
    ensure!(verdict.is_err(), "a byte was flipped, and the exerciser found nothing");
    Ok(format!("found: {:#}", verdict.err().context("there is a verdict")?))
}

/// The other host takes the volume over.
fn hand_off(nodes: &mut [Node], holder: &mut usize, volume: &str, at: &Path) -> Result<PathBuf> {
    nodes[*holder].unmount(at)?;
    *holder = 1 - *holder;
    nodes[*holder].mount(volume)
}
