//! `remora-testnet`: the commands that prove Remora on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use remora_testnet::crash::workload::Workload;
use remora_testnet::{
    bench, crash, demo, hostile, ledger, moving, posix, restart, scale, simulate, sizes, soak,
};
use remora_testnet::{corruption, faults};

/// Proves Remora on this machine: hosts, faults, simulation, benchmarks, the demo.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The main job: a volume is filled, handed to another node, compared; a daemon is killed, nothing is lost
    Demo,
    /// The disk is full, or fails, in the middle of work: an error, nothing acknowledged lost, and on it goes
    Faults {
        /// The store fills up under pgbench and under an untar
        #[arg(long)]
        full_disk: bool,
        /// Writes and flushes of the disk fail
        #[arg(long)]
        failed_fsync: bool,
        /// Smaller loads
        #[arg(long)]
        short: bool,
    },
    /// Bits turned over, files cut short, indexes gone: found, healed or told, never wrong bytes
    Corruption {
        /// Small files and few rounds: a minute
        #[arg(long)]
        short: bool,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Two hosts with a Docker engine each: databases and 5,000 files follow their containers
    Move {
        /// Smaller loads: a minute
        #[arg(long)]
        short: bool,
    },
    /// kill -9 of the daemon under a writer that fsyncs numbered records
    Restart {
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
    /// The time of a hand-off for volumes of these sizes
    Sizes {
        /// Mebibytes, smallest first
        #[arg(long, value_delimiter = ',', default_values_t = [10u64, 1024, 8192])]
        mib: Vec<u64>,
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Names, tickets, strangers, full disks and corrupt files: a clear error, nothing lost, the daemon alive
    Hostile,
    /// pjdfstest 0.2.2 on a mounted volume, or what it can do feature by feature
    Posix {
        /// Fail when more than this many cases fail
        #[arg(long, default_value_t = 0)]
        allow: u32,
        /// Probe feature by feature instead, on ext4 and on a volume
        #[arg(long)]
        probe: bool,
    },
    /// fsx 0.3.2 and an exerciser of files that live on, on one host and from host to host
    Fsx {
        /// 3 seeds of 2,000 operations in place of 20 of 10,000
        #[arg(long)]
        short: bool,
    },
    /// ext4, a pass-through over FUSE and a volume on one disk, interleaved: medians of ratios, against the goals
    Bench {
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Only these tests, by name
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Smaller and quicker
        #[arg(long)]
        short: bool,
        /// Write the figures to this file, as JSON
        #[arg(long)]
        record: Option<PathBuf>,
        /// Run nothing; draw what this file recorded
        #[arg(long, requires = "out", conflicts_with_all = ["rounds", "only", "short", "record"])]
        plot: Option<PathBuf>,
        /// Where the picture `speed.svg` and the table in `speed.md` go
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// 1,000,000 files, in directories of 1,000 and in one: figures and memory; how long a volume takes to open
    Scale {
        /// Fewer files and a shorter log: under a minute
        #[arg(long)]
        short: bool,
        /// As many files as this
        #[arg(long)]
        files: Option<u64>,
    },
    /// kill -9 and power cuts under SQLite, a raw writer and rename-replace: nothing acknowledged is lost
    Crash(crash::Options),
    /// The keeper protocol in virtual time, with crashes, loss and partitions, and planted mistakes that must be found
    Simulate {
        #[arg(long, default_value_t = 0)]
        first_seed: u64,
        #[arg(long, default_value_t = 2000)]
        seeds: u64,
    },
    /// Programs at work on volumes for hours, while volumes change hosts and daemons are killed
    Soak(soak::Options),
    /// (for soak) One of its processes
    #[command(hide = true, subcommand)]
    SoakPart(soak::PartCommand),
    /// (for rigs) Append and fsync numbered records, printing each acknowledged number
    #[command(hide = true)]
    WriteRecords { path: PathBuf, first: u64 },
    /// (for rigs) Work in a directory from a number on, printing each acknowledged number
    #[command(hide = true)]
    CrashWork {
        workload: Workload,
        dir: PathBuf,
        first: u64,
        /// Say so without having synced
        #[arg(long)]
        no_sync: bool,
    },
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // The program under test is this program: see `exe`.
    if args.nth(1).is_some_and(|word| word == "remora") {
        return remora::cli::main(std::env::args_os().skip(1));
    }
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("remora-testnet: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo => demo::run(),
        Command::Faults { full_disk, failed_fsync, short } => {
            faults::run(faults::Options { full_disk, failed_fsync, is_short: short })
        }
        Command::Corruption { short, seed } => corruption::run(short, seed),
        Command::Move { short } => moving::run(short),
        Command::Restart { rounds } => restart::run(rounds).map(drop),
        Command::Sizes { mib, rounds } => sizes::run(&mib, rounds),
        Command::Hostile => hostile::run(),
        Command::Posix { probe: true, .. } => posix::probe::run(),
        Command::Posix { allow, .. } => posix::run(allow),
        Command::Fsx { short } => posix::fsx::run(short),
        Command::Bench { plot: Some(plot), out: Some(out), .. } => bench::draw(&plot, &out),
        Command::Bench { rounds, only, short, record, out, .. } => {
            bench::run(&bench::Options { rounds, only, short, record, out })
        }
        Command::Scale { short, files } => scale::run(&scale::Options::new(short, files)),
        Command::Crash(options) => crash::run(&options),
        Command::Simulate { first_seed, seeds } => simulate::command(first_seed, seeds),
        Command::Soak(options) => soak::run(&options),
        Command::SoakPart(command) => soak::part(&command),
        Command::WriteRecords { path, first } => ledger::write_records(&path, first),
        Command::CrashWork { workload, dir, first, no_sync } => workload.run(&dir, first, !no_sync),
    }
}
