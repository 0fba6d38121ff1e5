//! `remora-testnet soak`: programs at work on volumes for hours, while volumes change hosts and daemons are killed.
//!
//! Rounds follow one another; each has its own seed. While loads work a daemon may be killed; afterwards everything is judged
//! and a volume may go to another node. What the volumes hold is compared with trees that they had no part in, and with
//! ledgers of what was acknowledged. What the daemons take is printed for each round and must stay within bounds.

mod field;
mod part;
mod plan;
mod postgres;
mod published;
mod records;
mod repository;
mod resources;
mod rows;
mod turn;
mod twins;
mod watch;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::exe;
use crate::report::median;
use crate::soak::field::Field;
use crate::soak::plan::Plan;
use crate::soak::postgres::Postgres;
use crate::soak::published::Published;
use crate::soak::records::Records;
use crate::soak::repository::Repository;
use crate::soak::resources::Taken;
use crate::soak::rows::Rows;
use crate::soak::turn::Load;
use crate::soak::twins::Twins;
use crate::soak::twins::stress::{self, Stress};
use crate::soak::watch::Watch;

/// A round that takes longer than its length and this hangs.
const STUCK_AFTER: Duration = Duration::from_secs(420);

/// Rounds from which on growth of memory is judged.
const ROUNDS_TO_JUDGE: usize = 24;

/// What to run.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How long; pauses do not count
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Everything once, in less than a minute
    #[arg(long)]
    short: bool,
    /// Decides what happens in which round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where it works and writes soak.log; a file `pause` there holds it up between rounds [default: a directory that is gone afterwards]
    #[arg(long)]
    work: Option<PathBuf>,
    /// GiB of packs that a node may have: more means that what nothing names any more is not given back
    #[arg(long, default_value_t = 10)]
    packs_gib: u64,
}

/// A process of the soak's own.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum PartCommand {
    /// Operations on two trees in step, with equal answers
    Stress(Stress),
    /// Files published by rename
    Publish {
        /// Where
        dir: PathBuf,
        /// The number of the next version
        first: u64,
        /// Milliseconds between two
        pause: u64,
    },
    /// Rows committed one by one
    Rows {
        /// The database
        path: PathBuf,
        /// The id of the next row
        first: u64,
        /// Milliseconds between two
        pause: u64,
    },
}

/// Runs a process of the soak.
pub fn part(command: &PartCommand) -> Result<()> {
    match command {
        PartCommand::Stress(what) => stress::run(what),
        PartCommand::Publish { dir, first, pause } => {
            published::publish(dir, *first, Duration::from_millis(*pause))
        }
        PartCommand::Rows { path, first, pause } => {
            rows::commit_rows(path, *first, Duration::from_millis(*pause))
        }
    }
}

/// Runs the soak. What differs, is lost, or grows beyond its bound is an error, and everything is kept for a look.
pub fn run(options: &Options) -> Result<()> {
    exe::check_fuse()?;
    let scratch = if options.work.is_none() { Some(exe::scratch("soak")?) } else { None };
    let dir = match (&options.work, &scratch) {
        (Some(dir), _) => dir.clone(),
        (None, Some(scratch)) => scratch.path().to_path_buf(),
        (None, None) => bail!("there is no directory to work in"),
    };
    let run = dir.join("run");
    std::fs::create_dir_all(&dir).context("make the directory to work in")?;
    std::fs::create_dir(&run).with_context(|| {
        format!("{} is there from a run before: look at it, then remove it", run.display())
    })?;
    let mut soak = Soak::start(options, &dir, &run)?;
    let result = soak.go_on();
    let result = match result {
        Err(e) if !soak.watch.is_interrupted() => Err(soak.failed(e)),
        _ => soak.close(),
    };
    drop(soak);
    match result {
        Ok(()) => std::fs::remove_dir_all(&run).context("remove what the run left"),
        Err(e) => {
            let kept = scratch.map_or(dir, tempfile::TempDir::keep);
            Err(e.context(format!("everything is kept in {}", kept.display())))
        }
    }
}

/// A run.
struct Soak {
    options: Options,
    dir: PathBuf,
    log: File,
    field: Field,
    watch: Watch,
    n_rounds: u64,
    /// By node: memory after each round, in MiB.
    memory: Vec<Vec<u64>>,
    worked: Duration,
}

impl Soak {
    fn start(options: &Options, dir: &Path, run: &Path) -> Result<Soak> {
        let log =
            File::options().create(true).append(true).open(dir.join("soak.log")).context("open soak.log")?;
        let watch = Watch::start()?;
        let mut field = Field::start(run, &["x", "y"])?;
        let n_commits = if options.short { 300 } else { 3000 };
        let files: Vec<Box<dyn Load>> = vec![
            Box::new(Twins::new(&run.join("native"))?),
            Box::new(Published::new()),
            Box::new(Repository::new(run, n_commits, options.seed)?),
        ];
        let mut databases: Vec<Box<dyn Load>> = vec![Box::new(Rows::new()), Box::new(Records::new())];
        match crate::postgres::missing() {
            None => databases.push(Box::new(Postgres::new(run)?)),
            Some(why) => println!("PostgreSQL is left out: {why}"),
        }
        field.add_volume("files", files)?;
        field.add_volume("databases", databases)?;
        let memory = vec![Vec::new(); field.nodes.len()];
        let dir = dir.to_path_buf();
        let options = options.clone();
        Ok(Soak { options, dir, log, field, watch, n_rounds: 0, memory, worked: Duration::ZERO })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        println!("{line}");
        writeln!(self.log, "{line}").context("write soak.log")
    }

    fn go_on(&mut self) -> Result<()> {
        let wanted = Duration::from_secs(self.options.minutes * 60);
        let n_loads: Vec<usize> = self.field.volumes.iter().map(|volume| volume.loads.len()).collect();
        self.say(&format!("soak, seed {}", self.options.seed))?;
        loop {
            self.pause();
            let number = self.n_rounds + 1;
            let is_enough = if self.options.short { number > 2 } else { self.worked >= wanted };
            if is_enough || self.watch.is_interrupted() {
                return Ok(());
            }
            let plan = if self.options.short {
                Plan::short(self.options.seed, number, &n_loads)
            } else {
                Plan::choose(self.options.seed, number, self.field.nodes.len(), &n_loads)
            };
            self.round(number, &plan)?;
        }
    }

    fn round(&mut self, number: u64, plan: &Plan) -> Result<()> {
        self.watch.expect_within(plan.length + STUCK_AFTER, self.field.pids());
        let began = Instant::now();
        let said =
            self.field.round(plan, &self.watch).with_context(|| format!("round {number}, {plan:?}"))?;
        self.worked += began.elapsed();
        self.n_rounds = number;
        let mut line = format!(
            "round {number}, {} s of {} min, seed {}: {}",
            began.elapsed().as_secs(),
            self.worked.as_secs() / 60,
            plan.seed,
            said.join("; ")
        );
        let mut passed = Ok(());
        for (at, node) in self.field.nodes.iter().enumerate() {
            let taken = Taken::by(node)?;
            line.push_str(&format!(" | {}: {taken}", node.name));
            self.memory[at].push(taken.rss_mib);
            self.field.peaks[at] = self.field.peaks[at].max(taken);
            let bounded = self.field.peaks[at].check(self.options.packs_gib << 10);
            passed = passed.and(bounded.with_context(|| format!("round {number}, {}", node.name)));
        }
        self.say(&line)?;
        passed
    }

    /// Waits while the file `pause` is there.
    fn pause(&self) {
        let file = self.dir.join("pause");
        if file.exists() {
            println!("paused until {} is gone", file.display());
        }
        while file.exists() && !self.watch.is_interrupted() {
            // Nothing can hang meanwhile.
            self.watch.expect_within(STUCK_AFTER, Vec::new());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn failed(&mut self, error: anyhow::Error) -> anyhow::Error {
        let hung = if self.watch.is_stuck() { "something hung, and the daemons were killed; " } else { "" };
        let _printed = self.say(&format!("FAILED: {hung}{error:#}"));
        for node in &self.field.nodes {
            println!("--- {} said last:\n{}", node.name, node.last_words());
        }
        error
    }

    fn close(&mut self) -> Result<()> {
        let how = if self.watch.is_interrupted() { "ended early" } else { "done" };
        self.say(&format!(
            "{how}: {} rounds in {} min, 0 differences, 0 acknowledged lost",
            self.n_rounds,
            self.worked.as_secs() / 60
        ))?;
        let lines: Vec<String> = (self.field.nodes.iter().zip(&self.field.peaks))
            .map(|(node, peak)| format!("{} took at most {peak}", node.name))
            .collect();
        for line in lines {
            self.say(&line)?;
        }
        for (node, memory) in self.field.nodes.iter().zip(&self.memory) {
            check_growth(memory).with_context(|| node.name.clone())?;
        }
        Ok(())
    }
}

/// Memory that is twice what it was, and 100 MiB more, grows: median of the last quarter of the rounds against the second.
fn check_growth(memory: &[u64]) -> Result<()> {
    if memory.len() < ROUNDS_TO_JUDGE {
        return Ok(());
    }
    let quarter = memory.len() / 4;
    let middle = |slice: &[u64]| -> f64 {
        let figures: Vec<f64> = slice.iter().filter_map(|n| u32::try_from(*n).ok()).map(f64::from).collect();
        median(&figures)
    };
    let (then, now) = (middle(&memory[quarter..2 * quarter]), middle(&memory[memory.len() - quarter..]));
    ensure!(now <= 2.0 * then || now <= then + 100.0, "memory grew from {then} to {now} MiB");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_growth;

    #[test]
    fn growth_of_memory_is_noticed_and_noise_is_not() {
        let grows: Vec<u64> = (0..40).map(|n| 50 + n * 10).collect();
        assert!(check_growth(&grows).is_err());
        let noise: Vec<u64> = (0..40).map(|n| 80 + n * 37 % 60).collect();
        check_growth(&noise).unwrap();
    }
}
