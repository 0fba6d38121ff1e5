//! The keeper protocol under every fault we can think of: many hosts, one volume, one seed, no real time.
//!
//! Runs the very state machines of `remora-cluster` that the daemon runs, over simulated disks and a simulated network. What
//! always holds: the same seed gives the same run, event by event; the digest of the report proves it. A rule that is
//! left out on purpose ([`Mistake`]) must be noticed, or the simulation itself is at fault.

mod check;
mod host;
mod shell;
mod world;

use std::fmt;
use std::ops::Range;

use crate::simulate::world::World;

/// A planted mistake must be noticed within so many seeds.
pub const MISTAKE_SEEDS_MAX: u64 = 3_000;

/// A rule to leave out, to see that the checks would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Promises are told before they are on disk.
    ReplyBeforePersist,
    /// Keepers add commits whatever their term.
    IgnoreTermOnAppend,
    /// The longest chain goes on instead of the one with the highest term.
    LongestInsteadOfHighestTerm,
    /// Keepers acknowledge before their disk has it.
    AckBeforeSync,
    /// Hosts use terms again, and keepers promise a term twice. (Either rule alone makes good for the other.)
    ReusedTerm,
    /// The writer serves before START is on a majority.
    ServeBeforeStart,
    /// The last writer goes on alone although the other keepers are a majority.
    AloneOfMany,
}

/// All of them.
pub const MISTAKES: [Mistake; 7] = [
    Mistake::ReplyBeforePersist,
    Mistake::IgnoreTermOnAppend,
    Mistake::LongestInsteadOfHighestTerm,
    Mistake::AckBeforeSync,
    Mistake::ReusedTerm,
    Mistake::ServeBeforeStart,
    Mistake::AloneOfMany,
];

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Mistake::ReplyBeforePersist => "promise told before it is on disk",
            Mistake::IgnoreTermOnAppend => "commits added whatever their term",
            Mistake::LongestInsteadOfHighestTerm => "longest chain instead of highest term",
            Mistake::AckBeforeSync => "acknowledged before sync",
            Mistake::ReusedTerm => "a term used and promised twice",
            Mistake::ServeBeforeStart => "served before START is on a majority",
            Mistake::AloneOfMany => "last writer goes on alone of many",
        })
    }
}

/// What was counted in one run or many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events handled.
    pub events: u64,
    /// Virtual time, in milliseconds.
    pub virtual_ms: u64,
    /// Hosts that lost power.
    pub crashes: u64,
    /// Times the network was cut.
    pub partitions: u64,
    /// Messages lost.
    pub lost: u64,
    /// Times a host became the writer.
    pub won: u64,
    /// Of these, times the one before had not released.
    pub takeovers: u64,
    /// Of these, times the last writer went on alone.
    pub alone: u64,
    /// Times the volume was refused.
    pub refused: u64,
    /// Commits acknowledged to applications.
    pub acked: u64,
    /// Suffixes saved as forks.
    pub forks: u64,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.events += other.events;
        self.virtual_ms += other.virtual_ms;
        self.crashes += other.crashes;
        self.partitions += other.partitions;
        self.lost += other.lost;
        self.won += other.won;
        self.takeovers += other.takeovers;
        self.alone += other.alone;
        self.refused += other.refused;
        self.acked += other.acked;
        self.forks += other.forks;
    }
}

/// What a range of seeds gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// Summed over the seeds.
    pub counts: Counts,
    /// Seed and rule of each run that broke one; at most the first 20.
    pub violations: Vec<(u64, String)>,
    /// Over every event of every seed, in order.
    pub digest: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            formatter,
            "{} seeds, {:.1} cluster hours, {} events, {} crashes, {} partitions, {} messages lost",
            self.seeds,
            counts.virtual_ms as f64 / 3.6e6,
            counts.events,
            counts.crashes,
            counts.partitions,
            counts.lost
        )?;
        writeln!(
            formatter,
            "{} writers, {} by takeover, {} alone, {} refused, {} commits acknowledged, {} forks saved",
            counts.won, counts.takeovers, counts.alone, counts.refused, counts.acked, counts.forks
        )?;
        write!(formatter, "{} violations, digest {:016x}", self.violations.len(), self.digest)?;
        for (seed, rule) in &self.violations {
            write!(formatter, "\n  seed {seed}: {rule}")?;
        }
        Ok(())
    }
}

/// Runs every seed; with a mistake, stops at the first one that notices it.
pub fn run(seeds: Range<u64>, mistake: Option<Mistake>) -> Report {
    let mut report = Report::default();
    for seed in seeds {
        let outcome = World::new(seed, mistake).run();
        report.seeds += 1;
        report.counts.add(&outcome.counts);
        report.digest = report.digest.rotate_left(5) ^ outcome.digest;
        if let Some(rule) = outcome.violation {
            if report.violations.len() < 20 {
                report.violations.push((seed, rule));
            }
            if mistake.is_some() {
                break;
            }
        }
    }
    report
}

/// The command: the seeds without a mistake, then each mistake until it is noticed.
///
/// # Errors
/// A seed broke a rule, or a mistake was not noticed.
pub fn command(first_seed: u64, seeds: u64) -> anyhow::Result<()> {
    let report = run(first_seed..first_seed.saturating_add(seeds), None);
    println!("{report}");
    anyhow::ensure!(report.violations.is_empty(), "the keeper protocol broke a rule");
    for mistake in MISTAKES {
        let report = run(0..MISTAKE_SEEDS_MAX, Some(mistake));
        match report.violations.first() {
            Some((seed, rule)) => println!("planted: {mistake}: noticed at seed {seed}: {rule}"),
            None => anyhow::bail!("planted: {mistake}: not noticed in {MISTAKE_SEEDS_MAX} seeds"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MISTAKE_SEEDS_MAX, MISTAKES, run};

    #[test]
    fn no_seed_breaks_a_rule() {
        let report = run(0..150, None);
        assert!(report.violations.is_empty(), "{report}");
        assert!(
            report.counts.acked > 1_000
                && report.counts.takeovers > 20
                && report.counts.alone > 1
                && report.counts.forks > 5,
            "{report}"
        );
    }

    #[test]
    fn the_same_seeds_give_the_same_run() {
        assert_eq!(run(7..17, None), run(7..17, None));
    }

    #[test]
    fn every_planted_mistake_is_noticed() {
        for mistake in MISTAKES {
            let report = run(0..MISTAKE_SEEDS_MAX, Some(mistake));
            assert!(!report.violations.is_empty(), "{mistake}: not noticed in {report}");
        }
    }
}
