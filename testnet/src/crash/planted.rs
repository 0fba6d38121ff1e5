//! Mistakes planted on purpose, so that a checker that sees nothing is known to see.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::crash::rig::{Crash, Daemon};
use crate::crash::tally::Tally;
use crate::crash::{Host, guarded};

/// Crashes in which a mistake has to show.
const CYCLES_MAX: u32 = 6;

struct Mistake {
    name: &'static str,
    daemon: Daemon,
    programs_sync: bool,
    crashes: &'static [Crash],
}

/// A kill alone does not show that a daemon does not sync: the kernel keeps what it wrote.
const MISTAKES: [Mistake; 2] = [
    Mistake {
        name: "planted: programs do not sync",
        daemon: Daemon::Sound,
        programs_sync: false,
        crashes: &[Crash::Cut, Crash::Kill, Crash::Shutdown],
    },
    Mistake {
        name: "planted: the daemon does not sync",
        daemon: Daemon::NeverSyncs,
        programs_sync: true,
        crashes: &[Crash::Cut, Crash::Shutdown],
    },
];

/// Every mistake has to be caught in what every program was told; otherwise the checker is blind, which is the error.
pub(super) fn run(scratch: &Path, random: &mut ChaCha20Rng, tally: &mut Tally) -> Result<()> {
    for (at, mistake) in MISTAKES.iter().enumerate() {
        catch(mistake, &scratch.join(format!("planted{at}")), random, tally)?;
    }
    Ok(())
}

fn catch(mistake: &Mistake, dir: &Path, random: &mut ChaCha20Rng, tally: &mut Tally) -> Result<()> {
    let mut caught = BTreeSet::new();
    let mut unreadable = 0;
    for (cycle, crash) in (0..CYCLES_MAX).zip(mistake.crashes.iter().cycle()) {
        // A host that has lost something is no host to go on with.
        let mut host = Host::new(&dir.join(format!("host{cycle}")), mistake.daemon, 1)?;
        match guarded(|| host.cycle(*crash, random.random(), mistake.programs_sync)) {
            Ok(cycle) => {
                let bad = cycle.verdicts.iter().filter(|(_, v)| v.lost > 0 || !v.damage.is_empty());
                caught.extend(bad.map(|(workload, _)| *workload));
                tally.add(mistake.name, &cycle);
            }
            // The store is worse than incomplete, which is caught too, but says nothing about the programs.
            Err(error) => {
                unreadable += 1;
                println!("  {}: the host does not come back: {}", mistake.name, first_line(&error));
            }
        }
        if caught.len() == crate::crash::workload::Workload::ALL.len() {
            println!("  {}: caught in every program within {} crashes", mistake.name, cycle + 1);
            return Ok(());
        }
    }
    ensure!(
        unreadable == CYCLES_MAX,
        "the checker is blind: {} was caught only in {caught:?} within {CYCLES_MAX} crashes",
        mistake.name
    );
    Ok(())
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}
