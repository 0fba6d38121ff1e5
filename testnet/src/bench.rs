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
mod scale;
mod trees;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::bench::flushes::Flushes;
use crate::bench::peers::Peer;
use crate::bench::scale::{Scale, archive_files};
use crate::exe;
use crate::report::median;

/// The most a daemon may hold for a volume of 1 GiB with 100,000 files.
const DAEMON_MIB_MAX: u64 = 150;

/// For `--only`: the look at the daemon's memory.
const MEMORY: &str = "memory";

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
    /// Only these tests (`overwrite`, `append`, ..., `memory`); empty for all.
    pub only: Vec<String>,
    /// Smaller files, fewer of them, and no look at memory unless asked for.
    pub short: bool,
}

/// Figures by (test, peer), one a round.
#[derive(Default)]
struct Figures {
    figures: BTreeMap<(usize, usize), Vec<f64>>,
    flushes: BTreeMap<(usize, usize), u64>,
}

/// Runs the benchmark and prints the table. A goal that is missed is shown, not an error; a fsync that is none is one.
pub fn run(options: &Options) -> Result<()> {
    exe::check_fuse()?;
    let tests = chosen(&options.only)?;
    let dir = exe::scratch("bench")?;
    println!("ext4, a pass-through and a volume on one disk, {} rounds after a warm-up", options.rounds);
    let archive = trees::make_archive(dir.path(), archive_files(options.short))?;
    let scale = Scale::new(options.short, archive);
    let mut peers = Peer::all(dir.path())?;
    let flushes = Flushes::below(dir.path());
    let mut figures = Figures::default();
    for round in 0..=options.rounds {
        for (at, test) in tests.iter().enumerate() {
            for turn in 0..peers.len() {
                let who = (turn + round as usize) % peers.len();
                let before = flushes.as_ref().map(Flushes::count).transpose()?;
                let figure = (test.run)(&mut peers[who], &scale)?;
                let after = flushes.as_ref().map(Flushes::count).transpose()?;
                // The first round warms up.
                if round > 0 {
                    figures.figures.entry((at, who)).or_default().push(figure);
                    *figures.flushes.entry((at, who)).or_default() +=
                        after.unwrap_or(0) - before.unwrap_or(0);
                }
                let name = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
                println!("  {name}: {}: {} {} {}", test.title, peers[who].name, shown(figure), test.unit);
            }
        }
    }
    for peer in &peers {
        if let Some(pid) = peer.pid() {
            println!("  the volume's daemon holds {} MiB", memory::resident_mib(pid)?);
        }
    }
    drop(peers);
    let is_asked = options.only.iter().any(|key| key == MEMORY);
    let is_weighed = is_asked || (options.only.is_empty() && !options.short);
    let holds = if is_weighed { Some(memory::daemon_mib(dir.path())?) } else { None };
    print_table(&tests, &figures, holds);
    check_flushes(&tests, &figures, flushes.is_some())
}

fn chosen(only: &[String]) -> Result<Vec<&'static Test>> {
    for key in only {
        let keys: Vec<&str> = TESTS.iter().map(|test| test.key).chain([MEMORY]).collect();
        ensure!(keys.contains(&key.as_str()), "there is no test {key:?}; there are {}", keys.join(", "));
    }
    let mut tests: Vec<&'static Test> =
        TESTS.iter().filter(|t| only.is_empty() || only.iter().any(|key| key == t.key)).collect();
    if tests.iter().any(|test| test.key == "pgbench")
        && let Some(why) = databases::postgres_missing()
    {
        println!("  pgbench is left out: {why}");
        tests.retain(|test| test.key != "pgbench");
    }
    Ok(tests)
}

impl Figures {
    /// Median over rounds of a peer's speed relative to the native one of the same round.
    fn ratio(&self, at: usize, test: &Test, who: usize) -> f64 {
        let (Some(native), Some(other)) = (self.figures.get(&(at, 0)), self.figures.get(&(at, who))) else {
            return 0.0;
        };
        let ratios: Vec<f64> = native
            .iter()
            .zip(other)
            .map(|(native, other)| if test.better == Better::More { other / native } else { native / other })
            .collect();
        median(&ratios)
    }

    fn native(&self, at: usize) -> f64 {
        self.figures.get(&(at, 0)).map_or(0.0, |figures| median(figures))
    }
}

fn print_table(tests: &[&Test], figures: &Figures, daemon_mib: Option<(u64, u64)>) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([
        "test",
        "ext4",
        "",
        "pass-through",
        "volume",
        "goal",
        "",
        "flushes: ext4",
        "pass-through",
        "volume",
    ]);
    for (at, test) in tests.iter().enumerate() {
        let volume = figures.ratio(at, test, 2);
        let flushes = |who| figures.flushes.get(&(at, who)).copied().unwrap_or(0).to_string();
        table.add_row([
            test.title.to_owned(),
            shown(figures.native(at)),
            test.unit.to_owned(),
            format!("{:.2}", figures.ratio(at, test, 1)),
            format!("{volume:.2}"),
            format!("{:.2}", test.goal),
            if volume >= test.goal { "ok" } else { "short" }.to_owned(),
            flushes(0),
            flushes(1),
            flushes(2),
        ]);
    }
    println!("\nratios to ext4, more is better, also for times");
    for line in table.to_string().lines() {
        println!("{}", line.trim_end());
    }
    if let Some((written, listed)) = daemon_mib {
        let verdict = if written.max(listed) <= DAEMON_MIB_MAX { "ok" } else { "short" };
        println!(
            "daemon, 1 GiB in 100,000 files: {written} MiB written, {listed} MiB mounted again and listed; goal {DAEMON_MIB_MAX} MiB, {verdict}"
        );
    }
}

/// Whoever commits must flush the disk.
fn check_flushes(tests: &[&Test], figures: &Figures, are_counted: bool) -> Result<()> {
    if !are_counted {
        println!("this disk does not count flushes: whether every fsync is real was not seen");
        return Ok(());
    }
    for (at, test) in tests.iter().enumerate().filter(|(_, test)| test.is_durable) {
        let flushes = figures.flushes.get(&(at, 2)).copied().unwrap_or(0);
        ensure!(flushes > 0, "{}: the volume committed without a flush of the disk", test.title);
    }
    Ok(())
}

fn shown(figure: f64) -> String {
    match figure {
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 1.0 => format!("{f:.2}"),
        f => format!("{f:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Figures, TESTS, chosen};

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        let mut figures = Figures::default();
        figures.figures.insert((0, 0), vec![100.0, 200.0, 300.0]);
        figures.figures.insert((0, 2), vec![200.0, 400.0, 600.0]);
        assert!((figures.ratio(0, &TESTS[0], 2) - 0.5).abs() < 1e-9, "half as fast when less is better");
        assert!((figures.ratio(0, &TESTS[2], 2) - 2.0).abs() < 1e-9, "twice as fast when more is better");
    }

    #[test]
    fn an_unknown_test_is_refused() {
        assert!(chosen(&["nonsense".to_owned()]).is_err());
        assert_eq!(chosen(&["append".to_owned()]).unwrap().len(), 1);
    }
}
