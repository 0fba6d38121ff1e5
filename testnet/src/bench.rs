//! `remora-testnet bench`: a volume with one keeper against the disk's own file system, on the same disk, in one run.
//!
//! A pass-through over FUSE runs beside them and shows what FUSE alone costs. Rounds are interleaved (round, test, peer) and
//! the peers take turns at being first, so that what disturbs the machine disturbs all; figures are medians over rounds
//! of the ratio within a round. The disk's flushes are counted: a durable commit without one is no commit.

mod content;
mod databases;
mod flushes;
mod memory;
mod passthrough;
mod peers;
mod plot;
mod record;
mod scale;
mod svg;
mod table;
mod trees;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bench::flushes::Flushes;
use crate::bench::peers::Peer;
use crate::bench::record::{Memory, Record, Row, Series};
use crate::bench::scale::{Scale, archive_files};
use crate::bench::table::shown;
use crate::exe;

/// The most a daemon may hold for a volume of 1 GiB with 100,000 files.
const DAEMON_MIB_MAX: u64 = 150;

/// For `--only`: the look at the daemon's memory.
const MEMORY: &str = "memory";

/// For `--only`: three keepers against one.
const QUORUM: &str = "quorum";

/// Which tests three keepers go through.
const QUORUM_TESTS: [&str; 2] = ["append", "writers"];

/// How a test's figure is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// One row.
struct Test {
    /// For `--only`.
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    /// At least this ratio to the native figure.
    goal: f64,
    /// Whether each peer must flush the disk for it.
    is_durable: bool,
    run: fn(&mut Peer, &Scale) -> Result<f64>,
}

const fn test(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    better: Better,
    goal: f64,
    run: fn(&mut Peer, &Scale) -> Result<f64>,
) -> Test {
    Test { key, title, unit, better, goal, is_durable: false, run }
}

impl Test {
    const fn durable(mut self) -> Test {
        self.is_durable = true;
        self
    }

    /// Its row, without figures.
    fn row(&self, peers: &[Peer]) -> Row {
        Row {
            title: self.title.to_owned(),
            unit: self.unit.to_owned(),
            is_more_better: self.better == Better::More,
            goal: Some(self.goal),
            is_durable: self.is_durable,
            series: peers
                .iter()
                .map(|peer| Series { name: peer.name.to_owned(), ..Series::default() })
                .collect(),
        }
    }
}

const TESTS: [Test; 13] = [
    test("overwrite", "4 KiB overwrite + fsync, p50", "us", Better::Less, 0.5, content::overwrite).durable(),
    test("append", "4 KiB append + fdatasync, p50", "us", Better::Less, 0.6, content::append).durable(),
    test("writers", "8 writers on 8 files", "commits/s", Better::More, 1.0, content::writers).durable(),
    test("write", "sequential write + fsync", "MiB/s", Better::More, 0.35, content::write_large).durable(),
    test("cold", "sequential read, cold", "MiB/s", Better::More, 0.5, content::read_cold),
    test("warm", "sequential read, warm", "MiB/s", Better::More, 0.2, content::read_warm),
    test("random", "4 KiB random read, warm", "reads/s", Better::More, 0.8, content::read_random),
    test("sqlite", "SQLite, WAL, full sync", "tx/s", Better::More, 0.7, databases::sqlite).durable(),
    test("pgbench", "pgbench -c 8", "tx/s", Better::More, 0.6, databases::pgbench).durable(),
    test("create", "create files of 4 KiB", "s", Better::Less, 0.12, trees::create),
    test("untar", "untar a source tree", "s", Better::Less, 0.10, trees::unpack),
    test("list", "ls -lR, warm", "s", Better::Less, 0.4, trees::list),
    test("remove", "rm -rf of the tree", "s", Better::Less, 0.25, trees::remove),
];

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds after the warm-up; at least 1.
    pub rounds: u32,
    /// Only these tests (`overwrite`, `append`, ..., `quorum`, `memory`); empty for all.
    pub only: Vec<String>,
    /// Smaller files, fewer of them, and no look at memory unless asked for.
    pub short: bool,
    /// Write the figures here, as JSON.
    pub record: Option<PathBuf>,
    /// Draw `speed.svg` and fill in the table of `speed.md` in this directory.
    pub out: Option<PathBuf>,
}

/// Runs the benchmark and prints the table. A goal that is missed is shown, not an error; a fsync that is none is one.
pub fn run(options: &Options) -> Result<()> {
    exe::check_fuse()?;
    let tests = chosen(&options.only)?;
    let mut record = Record::new(options.rounds, options.short)?;
    let dir = exe::scratch("bench")?;
    println!("ext4, a pass-through and a volume on one disk, {} rounds after a warm-up", options.rounds);
    let archive = trees::make_archive(dir.path(), archive_files(options.short))?;
    let scale = Scale::new(options.short, archive);
    let flushes = Flushes::below(dir.path());
    if !tests.is_empty() {
        let mut peers = Peer::all(dir.path())?;
        record.rows = measure(&tests, &mut peers, &scale, options.rounds, flushes.as_ref())?;
        for peer in &peers {
            if let Some(pid) = peer.pid() {
                println!("  the volume's daemon holds {} MiB", memory::resident_mib(pid)?);
            }
        }
    }
    if is_wanted(options, QUORUM) {
        let tests: Vec<&Test> = TESTS.iter().filter(|test| QUORUM_TESTS.contains(&test.key)).collect();
        let mut peers = Peer::one_and_three(dir.path())?;
        record.quorum = measure(&tests, &mut peers, &scale, options.rounds, flushes.as_ref())?;
        record.quorum.iter_mut().for_each(|row| row.goal = None);
    }
    if is_wanted(options, MEMORY) {
        let (written_mib, listed_mib) = memory::daemon_mib(dir.path())?;
        record.memory = Some(Memory { written_mib, listed_mib, goal_mib: DAEMON_MIB_MAX });
    }
    table::print(&record);
    if let Some(file) = &options.record {
        record.write(file)?;
    }
    if let Some(out) = &options.out {
        show(&record, out)?;
    }
    check_flushes(&record, flushes.is_some())
}

/// Draws what an earlier run recorded.
pub fn draw(recorded: &Path, out: &Path) -> Result<()> {
    show(&Record::read(recorded)?, out)
}

fn show(record: &Record, out: &Path) -> Result<()> {
    let picture = out.join("speed.svg");
    std::fs::write(&picture, plot::svg(record)).with_context(|| format!("write {}", picture.display()))?;
    table::put_into(&out.join("speed.md"), &table::markdown(record))
}

/// What is beside the tests: asked for, or part of a long run of everything.
fn is_wanted(options: &Options, key: &str) -> bool {
    options.only.iter().any(|wanted| wanted == key) || (options.only.is_empty() && !options.short)
}

/// Interleaved rounds of every test over every peer.
fn measure(
    tests: &[&Test],
    peers: &mut [Peer],
    scale: &Scale,
    rounds: u32,
    flushes: Option<&Flushes>,
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = tests.iter().map(|test| test.row(peers)).collect();
    for round in 0..=rounds {
        for (test, row) in tests.iter().zip(&mut rows) {
            for turn in 0..peers.len() {
                let who = (turn + round as usize) % peers.len();
                let before = flushes.map(Flushes::count).transpose()?;
                let figure = (test.run)(&mut peers[who], scale)?;
                let after = flushes.map(Flushes::count).transpose()?;
                // The first round warms up.
                if round > 0 {
                    let series = &mut row.series[who];
                    series.figures.push(figure);
                    series.flushes =
                        after.zip(before).map(|(after, before)| series.flushes.unwrap_or(0) + after - before);
                }
                let name = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
                println!("  {name}: {}: {} {} {}", test.title, peers[who].name, shown(figure), test.unit);
            }
        }
    }
    Ok(rows)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Test>> {
    for key in only {
        let keys: Vec<&str> = TESTS.iter().map(|test| test.key).chain([QUORUM, MEMORY]).collect();
        ensure!(keys.contains(&key.as_str()), "there is no test {key:?}; there are {}", keys.join(", "));
    }
    let mut tests: Vec<&'static Test> =
        TESTS.iter().filter(|t| only.is_empty() || only.iter().any(|key| key == t.key)).collect();
    if tests.iter().any(|test| test.key == "pgbench")
        && let Some(why) = crate::postgres::missing()
    {
        println!("  pgbench is left out: {why}");
        tests.retain(|test| test.key != "pgbench");
    }
    Ok(tests)
}

/// Whoever commits must flush the disk.
fn check_flushes(record: &Record, are_counted: bool) -> Result<()> {
    if !are_counted {
        println!("this disk does not count flushes: whether every fsync is real was not seen");
        return Ok(());
    }
    for row in record.rows.iter().chain(&record.quorum).filter(|row| row.is_durable) {
        let flushes = row.series[row.last()].flushes.unwrap_or(0);
        ensure!(flushes > 0, "{}: the volume committed without a flush of the disk", row.title);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_flushes, chosen, show};
    use crate::bench::record::tests::record;

    #[test]
    fn an_unknown_test_is_refused() {
        assert!(chosen(&["nonsense".to_owned()]).is_err());
        assert_eq!(chosen(&["append".to_owned()]).unwrap().len(), 1);
        assert!(chosen(&["memory".to_owned()]).unwrap().is_empty(), "nothing but the look at memory");
    }

    #[test]
    fn a_commit_without_a_flush_is_an_error() {
        let mut record = record("commits", 1.0);
        record.rows[0].is_durable = true;
        check_flushes(&record, true).unwrap();
        record.rows[0].series[2].flushes = Some(0);
        assert!(check_flushes(&record, true).is_err());
        check_flushes(&record, false).unwrap();
    }

    #[test]
    fn a_run_is_shown_as_a_picture_and_a_table() {
        let dir = tempfile::tempdir().unwrap();
        show(&record("commits", 1.25), dir.path()).unwrap();
        let picture = std::fs::read_to_string(dir.path().join("speed.svg")).unwrap();
        let table = std::fs::read_to_string(dir.path().join("speed.md")).unwrap();
        assert!(picture.contains("1.25") && table.contains("| 1.25 |"), "{picture}{table}");
    }
}
