//! What a run has measured: kept as JSON, so that tables and pictures can be made of it later.
//!
//! It says what kind of machine it was, and nothing by which one could find it.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::report::median;

/// The shape of the file. A newer one is refused.
const FORMAT: u32 = 1;

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Day of the run, `YYYY-MM-DD`.
    pub(super) date: String,
    pub(super) machine: Machine,
    /// Whether it was the short form, whose sizes are not what the goals are about.
    pub(super) is_short: bool,
    /// Rounds after the warm-up.
    pub(super) rounds: u32,
    /// Tests; in each, the first series is what the others are compared with.
    pub(super) rows: Vec<Row>,
    /// Tests of a volume with three keepers, compared with one keeper.
    pub(super) quorum: Vec<Row>,
    pub(super) memory: Option<Memory>,
}

/// What a run says of its machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) memory_mib: u64,
    /// Version of the kernel, numbers alone.
    pub(super) kernel: String,
}

/// One test and what everybody reached in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) title: String,
    pub(super) unit: String,
    /// How its figures are to be read.
    pub(super) is_more_better: bool,
    /// At least this ratio to the first series.
    pub(super) goal: Option<f64>,
    /// Whether everybody must flush the disk for it.
    pub(super) is_durable: bool,
    pub(super) series: Vec<Series>,
}

/// What one of those who are compared reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Series {
    pub(super) name: String,
    /// One a round, in the test's unit.
    pub(super) figures: Vec<f64>,
    /// Flushes of the disk in all rounds; absent if it does not count them.
    pub(super) flushes: Option<u64>,
}

/// What the daemon holds for a volume of 1 GiB in 100,000 files, in MiB.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Memory {
    /// After everything was written.
    pub(super) written_mib: u64,
    /// After it was mounted again and listed.
    pub(super) listed_mib: u64,
    pub(super) goal_mib: u64,
}

impl Record {
    /// A record of today and of this machine, without figures.
    pub(super) fn new(rounds: u32, is_short: bool) -> Result<Record> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Record {
            format: FORMAT,
            date: now.chars().take_while(|c| *c != 'T').collect(),
            machine: Machine::here()?,
            is_short,
            rounds,
            rows: Vec::new(),
            quorum: Vec::new(),
            memory: None,
        })
    }

    /// Writes it where it can be read by people, too.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(to, text + "\n").with_context(|| format!("write {}", to.display()))
    }

    /// Reads what [`Record::write`] wrote.
    pub(super) fn read(from: &Path) -> Result<Record> {
        let text = std::fs::read_to_string(from).with_context(|| format!("read {}", from.display()))?;
        let record: Record = serde_json::from_str(&text)
            .with_context(|| format!("{} is no record of a run", from.display()))?;
        ensure!(record.format <= FORMAT, "{} was written by a newer version", from.display());
        Ok(record)
    }
}

impl Machine {
    fn here() -> Result<Machine> {
        let memory = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let release =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
        Ok(Machine {
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: total_mib(&memory).context("/proc/meminfo has no MemTotal")?,
            kernel: version(&release),
        })
    }
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Without what a distribution or an owner appends.
fn version(release: &str) -> String {
    release.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

impl Row {
    /// How much better than the first series another one was, round by round.
    pub(super) fn ratios(&self, who: usize) -> Vec<f64> {
        let (Some(first), Some(other)) = (self.series.first(), self.series.get(who)) else {
            return Vec::new();
        };
        let ratio = |(first, other): (&f64, &f64)| {
            if self.is_more_better { other / first } else { first / other }
        };
        first.figures.iter().zip(&other.figures).map(ratio).filter(|ratio| ratio.is_finite()).collect()
    }

    /// Median of [`Row::ratios`]; none if nothing was measured.
    pub(super) fn ratio(&self, who: usize) -> Option<f64> {
        let ratios = self.ratios(who);
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// Median of the figures of one of them.
    pub(super) fn figure(&self, who: usize) -> Option<f64> {
        let figures = &self.series.get(who)?.figures;
        (!figures.is_empty()).then(|| median(figures))
    }

    /// The last series: the one that has a goal.
    pub(super) fn last(&self) -> usize {
        self.series.len().saturating_sub(1)
    }

    /// Whether the goal is met; none without a goal or a figure.
    pub(super) fn is_met(&self) -> Option<bool> {
        Some(self.ratio(self.last())? >= self.goal?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Memory, Record, Row, Series, total_mib, version};

    /// A row of three whose last is `ratio` times as good as the first.
    pub(crate) fn row(title: &str, ratio: f64) -> Row {
        let series = |name: &str, figures: &[f64]| Series {
            name: name.to_owned(),
            figures: figures.to_vec(),
            flushes: Some(7),
        };
        Row {
            title: title.to_owned(),
            unit: "MiB/s".to_owned(),
            is_more_better: true,
            goal: Some(0.5),
            is_durable: false,
            series: vec![
                series("ext4", &[100.0, 200.0, 300.0]),
                series("pass-through", &[50.0, 100.0, 150.0]),
                series("volume", &[100.0 * ratio, 200.0 * ratio, 300.0 * ratio]),
            ],
        }
    }

    /// A record with such a row.
    pub(crate) fn record(title: &str, ratio: f64) -> Record {
        let mut record = Record::new(3, false).unwrap();
        record.rows.push(row(title, ratio));
        record.memory = Some(Memory { written_mib: 140, listed_mib: 90, goal_mib: 150 });
        record
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let mut row = row("commits", 2.0);
        assert!((row.ratio(2).unwrap() - 2.0).abs() < 1e-9, "twice as fast when more is better");
        row.is_more_better = false;
        assert!((row.ratio(2).unwrap() - 0.5).abs() < 1e-9, "half as fast when less is better");
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let mut row = row("commits", 2.0);
        row.series[0].figures = vec![0.0, 0.0, 0.0];
        assert_eq!(row.ratio(2), None, "nothing is a multiple of nothing");
        row.series[2].figures.clear();
        assert_eq!((row.ratio(2), row.figure(2), row.is_met()), (None, None, None));
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("record.json");
        record("writes", 1.5).write(&file).unwrap();
        let read = Record::read(&file).unwrap();
        assert_eq!(read.rows[0].series[2].figures, vec![150.0, 300.0, 450.0]);
        assert_eq!(read.memory.unwrap().written_mib, 140);
    }

    #[test]
    fn a_record_of_a_newer_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("record.json");
        let mut record = record("writes", 1.5);
        record.format += 1;
        record.write(&file).unwrap();
        assert!(Record::read(&file).unwrap_err().to_string().contains("newer"));
    }

    #[test]
    fn a_machine_is_described_without_its_name() {
        assert_eq!(version("6.1.0-44-somebodys-laptop\n"), "6.1.0");
        assert_eq!(total_mib("MemTotal:       24682448 kB\nMemFree: 1 kB\n"), Some(24103));
    }
}
