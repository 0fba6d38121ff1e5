//! `remora-testnet sizes`: a hand-off takes the same time for a small and a large volume.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::exe;
use crate::nodes::{Node, cluster};
use crate::report::{Report, seconds};
use crate::workload;

/// The slowest hand-off that passes.
const MOVE_TIME_MAX: Duration = Duration::from_secs(1);

/// How many times the smallest volume's time the largest may take.
const RATIO_MAX: f64 = 2.0;

/// Below this the clock and the scheduler decide, not the volume: the ratio is taken against at least this.
const FLOOR: Duration = Duration::from_millis(50);

/// Moves volumes of `mebibytes` each, several times to and fro, and compares the medians.
pub fn run(mebibytes: &[u64], rounds: u32) -> Result<()> {
    exe::check_fuse()?;
    let dir = exe::scratch("sizes")?;
    let mut report = Report::new("unmount on X to first byte on Y");
    let mut nodes = cluster(dir.path(), &["x", "y"])?;
    let [x, y] = nodes.as_mut_slice() else { unreachable!("two names make two nodes") };
    let mut medians = Vec::new();
    for mib in mebibytes {
        let name = format!("size-{mib}");
        x.ok(&["volume", "create", &name])?;
        let at = x.mount(&name)?;
        report.step(&format!("{mib} MiB written on x"), mib << 20, |bar| {
            workload::noise_file(&at.join("data"), mib << 20, *mib, &|n| bar.inc(n)).map(|()| "fsynced")
        })?;
        let first = move_once(x, y, &name)?;
        let mut times = vec![first.as_secs_f64()];
        for round in 1..rounds {
            let (from, to) = if round % 2 == 1 { (&mut *y, &mut *x) } else { (&mut *x, &mut *y) };
            times.push(move_once(from, to, &name)?.as_secs_f64());
        }
        let median = Duration::from_secs_f64(crate::report::median(&times));
        report.fact(
            &format!("{mib} MiB moved {rounds} times"),
            format!("first {}, median {}", seconds(first), seconds(median)),
        );
        ensure!(
            first < MOVE_TIME_MAX,
            "{mib} MiB took {} at first: {MOVE_TIME_MAX:?} is the limit",
            seconds(first)
        );
        medians.push((median, *mib));
        let holder = if rounds % 2 == 1 { &mut *y } else { &mut *x };
        let at = holder.data().with_extension(format!("mnt-{name}"));
        holder.unmount(&at)?;
    }
    verdict(&mut report, &medians)?;
    report.close();
    Ok(())
}

/// Time from the unmount call on one host until a byte in the middle of the file is read on the other.
fn move_once(from: &mut Node, to: &mut Node, volume: &str) -> Result<Duration> {
    let at = from.data().with_extension(format!("mnt-{volume}"));
    let began = Instant::now();
    from.unmount(&at)?;
    let at = to.mount(volume)?;
    let file = File::open(at.join("data")).context("open the data on the other host")?;
    let mut byte = [0u8; 1];
    file.read_exact_at(&mut byte, file.metadata()?.len() / 2).context("read a byte on the other host")?;
    Ok(began.elapsed())
}

fn verdict(report: &mut Report, times: &[(Duration, u64)]) -> Result<()> {
    for (took, mib) in times {
        ensure!(*took < MOVE_TIME_MAX, "{mib} MiB took {}: {MOVE_TIME_MAX:?} is the limit", seconds(*took));
    }
    let (small, large) = (times.first().context("no sizes")?, times.last().context("no sizes")?);
    let ratio = large.0.as_secs_f64() / small.0.max(FLOOR).as_secs_f64();
    report.fact("largest to smallest", format!("{ratio:.2}"));
    ensure!(ratio <= RATIO_MAX, "the largest took {ratio:.2} times the smallest: {RATIO_MAX} is the limit");
    Ok(())
}
