//! `remora-testnet crash`: a database, a raw writer and rename-replace on one volume, while its host crashes again and again.
//!
//! Each cycle: three programs run, each in a process of its own, and tell a witness what they were told is safe. Then the daemon
//! is killed, or the host loses its power: the file system below the store forgets its memory, or the disk forgets writes since
//! its last flush, or parts of them, in any order. The host comes back, and everything acknowledged is demanded back. The next
//! cycle goes on with the same data.
//!
//! The same checker then has to catch planted mistakes: programs that do not sync, and a daemon whose syncs do nothing. If it
//! does not, it is blind and the command fails.

pub mod workload;
mod database;
mod planted;
mod records;
mod replace;
mod rig;
mod stamp;
mod tally;
mod verdict;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::crash::rig::{Crash, Daemon, Rig};
use crate::crash::tally::Tally;
use crate::crash::verdict::Verdict;
use crate::crash::workload::{Acknowledged, Running, Workload};
use crate::exe;
use crate::faultdisk::platter::Cut;
use crate::report::{bar, seconds};

/// Cycles on one disk; then a new one begins, so that memory stays bounded.
const CYCLES_ON_ONE_DISK: usize = 40;

/// How long a cycle may take before the run gives up on it.
const CYCLE_TIMEOUT: Duration = Duration::from_secs(150);

/// The slowest flush of a disk: slow enough that a cut often comes in the middle of one.
const FLUSH_MICROS_MAX: u64 = 1_500;

/// What to do.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// 5 kills and 6 power cuts
    #[arg(long, conflicts_with_all = ["kills", "cuts"])]
    short: bool,
    /// Times the daemon is killed
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Times the power is cut: half of them memory is forgotten, half blocks of the disk
    #[arg(long, default_value_t = 100)]
    cuts: usize,
    /// Hosts that keep the volume, each with a disk of its own; power fails on all of them at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    members: u8,
    /// Decides the moments, and what a disk forgets
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Options {
    fn counts(&self) -> (usize, usize) {
        if self.short { (5, 6) } else { (self.kills, self.cuts) }
    }
}

/// Runs all cycles and the planted mistakes; an error if anything acknowledged was lost, or a mistake was not caught.
pub fn run(options: &Options) -> Result<()> {
    exe::check_fuse()?;
    println!("crashes under a database, a raw writer and rename-replace (seed {})", options.seed);
    let scratch = exe::scratch("crash")?;
    let mut random = ChaCha20Rng::seed_from_u64(options.seed);
    let mut tally = Tally::default();
    let plan = plan(options);
    let progress = bar("crashes", plan.len() as u64);
    let mut host = None;
    for (at, crash) in plan.into_iter().enumerate() {
        if at % CYCLES_ON_ONE_DISK == 0 {
            drop(host.take());
            host =
                Some(Host::new(&scratch.path().join(format!("hosts{at}")), Daemon::Sound, options.members)?);
        }
        let host = host.as_mut().context("the first cycle makes a host")?;
        let seed = random.random();
        let cycle = guarded(|| host.cycle(crash, seed, true))
            .with_context(|| format!("cycle {at}, {crash:?}, seed {seed}"));
        let cycle = cycle.with_context(|| host.rig.last_words())?;
        for (workload, verdict) in &cycle.verdicts {
            for what in &verdict.damage {
                progress.println(format!("  cycle {at}, {}: {workload:?}: {what}", crash.name()));
            }
            if verdict.lost > 0 {
                progress.println(format!(
                    "  cycle {at}, {}: {workload:?} lost {}",
                    crash.name(),
                    verdict.lost
                ));
            }
        }
        let is_bad = cycle.is_bad();
        tally.add(crash.name(), &cycle);
        progress.inc(1);
        if is_bad {
            progress.finish_and_clear();
            tally.print();
            bail!(
                "cycle {at} ({}, seed {seed}) lost something; {:?}\n{}",
                crash.name(),
                cycle,
                host.rig.last_words()
            );
        }
    }
    progress.finish_and_clear();
    drop(host);
    let caught = planted::run(scratch.path(), &mut random, &mut tally);
    tally.print();
    caught
}

/// The kinds of crashes, mixed.
fn plan(options: &Options) -> Vec<Crash> {
    let (mut kills, mut cuts) = options.counts();
    let mut plan = Vec::new();
    while kills + cuts > 0 {
        if cuts == 0 || kills > 0 && plan.len() % 2 == 0 {
            kills -= 1;
            plan.push(Crash::Kill);
        } else {
            plan.push(if cuts % 2 == 0 { Crash::Cut } else { Crash::Shutdown });
            cuts -= 1;
        }
    }
    plan
}

/// Ends the process if `work` hangs: what it started ends with it.
fn guarded<T>(work: impl FnOnce() -> T) -> T {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if is_done.recv_timeout(CYCLE_TIMEOUT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("remora-testnet: a cycle hangs for {}", seconds(CYCLE_TIMEOUT));
            std::process::exit(1);
        }
    });
    let result = work();
    drop(done);
    result
}

/// One crash, and what was found after it.
#[derive(Debug)]
struct Cycle {
    acknowledged: u64,
    recovery: Duration,
    verdicts: Vec<(Workload, Verdict)>,
    cuts: Vec<Cut>,
}

impl Cycle {
    fn is_bad(&self) -> bool {
        self.verdicts.iter().any(|(_, verdict)| verdict.lost > 0 || !verdict.damage.is_empty())
    }
}

/// A rig with what its programs were told so far.
struct Host {
    rig: Rig,
    programs: Vec<(Workload, Acknowledged, u64)>,
}

impl Host {
    fn new(dir: &std::path::Path, daemon: Daemon, n_members: u8) -> Result<Host> {
        let programs = Workload::ALL.map(|workload| (workload, Acknowledged::default(), 0)).to_vec();
        Ok(Host { rig: Rig::new(dir, daemon, usize::from(n_members))?, programs })
    }

    /// Works, crashes, comes back and looks. With `sync` off, programs say they are safe when they are not.
    fn cycle(&mut self, crash: Crash, seed: u64, sync: bool) -> Result<Cycle> {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        self.rig.set_flush_time(Duration::from_micros(random.random_range(0..FLUSH_MICROS_MAX)));
        let before: u64 = self.programs.iter().map(|(_, so_far, _)| so_far.count).sum();
        let mut running = Vec::new();
        for (workload, so_far, first) in &self.programs {
            running.push(Running::start(*workload, self.rig.mount(), *first, so_far, sync)?);
        }
        for (program, (_, so_far, _)) in running.iter_mut().zip(&self.programs) {
            program.wait_for(so_far.count, random.random_range(1..20))?;
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..400_000)));
        let cuts = self.rig.strike(crash, random.random())?;
        // Programs and daemon may live on for a moment with a disk that is gone: nothing may be acknowledged then.
        let moment = Duration::from_micros(random.random_range(0..200_000) * random.random_range(0..=1));
        for program in &mut running {
            program.wait_end(moment)?;
        }
        self.rig.end(crash)?;
        for (program, (_, so_far, _)) in running.into_iter().zip(&mut self.programs) {
            *so_far = program.finish()?;
        }
        let recovery = self.rig.come_back(crash)?;
        let after: u64 = self.programs.iter().map(|(_, so_far, _)| so_far.count).sum();
        ensure!(after > before, "nothing was acknowledged, so nothing is shown");
        let mut verdicts = Vec::new();
        for (workload, so_far, next) in &mut self.programs {
            let verdict = workload
                .check(self.rig.mount(), so_far)
                .unwrap_or_else(|error| Verdict { damage: vec![format!("{error:#}")], ..Verdict::default() });
            *next = verdict.next;
            verdicts.push((*workload, verdict));
        }
        Ok(Cycle { acknowledged: after - before, recovery, verdicts, cuts })
    }
}
