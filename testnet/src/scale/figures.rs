//! What a run measures: times beside those of the disk's own file system, and the memory of daemon and kernel.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{self, field};
use crate::report::seconds;

/// The rows of a run, printed as they come and once more at the end.
pub(super) struct Figures {
    rows: Vec<[String; 7]>,
    missed: Vec<String>,
}

/// How long one step took, and on how many things.
#[derive(Clone, Copy)]
pub(super) struct Took {
    /// Things done.
    pub(super) n: u64,
    /// On the volume.
    pub(super) volume: Duration,
    /// On the disk's own file system, if it was done there.
    pub(super) native: Option<Duration>,
}

impl Figures {
    pub(super) fn new() -> Figures {
        Figures { rows: Vec::new(), missed: Vec::new() }
    }

    /// A step, with the memory of the daemon that served it.
    pub(super) fn row(&mut self, what: &str, took: Took, pid: Option<u32>) -> Result<()> {
        let each = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6 / took.n.max(1) as f64);
        let ratio = |native: Duration| {
            format!("{:.2}", native.as_secs_f64() / took.volume.as_secs_f64().max(f64::MIN_POSITIVE))
        };
        let memory = pid.map(memory).transpose()?;
        let mib = |kib: u64| format!("{} MiB", kib / 1024);
        self.push([
            what.to_owned(),
            seconds(took.volume),
            each(took.volume),
            took.native.map_or_else(String::new, each),
            took.native.map_or_else(String::new, ratio),
            memory.map_or_else(String::new, |memory| mib(memory.resident_kib)),
            memory.map_or_else(String::new, |memory| mib(memory.peak_kib)),
        ]);
        Ok(())
    }

    /// Something worth a row that took no time.
    pub(super) fn fact(&mut self, what: &str, fact: &str) {
        println!("  {what}: {fact}");
        let empty = || String::new();
        self.rows.push([what.to_owned(), fact.to_owned(), empty(), empty(), empty(), empty(), empty()]);
    }

    /// A time that must stay under a goal.
    pub(super) fn against(
        &mut self,
        what: &str,
        took: Duration,
        goal: Duration,
        pid: Option<u32>,
    ) -> Result<()> {
        let verdict = if took <= goal { "kept" } else { "MISSED" };
        if took > goal {
            self.missed.push(format!("{what} took {}, the goal is {}", seconds(took), seconds(goal)));
        }
        let what = format!("{what} (goal {}: {verdict})", seconds(goal));
        self.row(&what, Took { n: 1, volume: took, native: None }, pid)
    }

    fn push(&mut self, row: [String; 7]) {
        let [what, took, each, native, ratio, resident, peak] = &row;
        let beside =
            if native.is_empty() { String::new() } else { format!(", ext4 {native}, ratio {ratio}") };
        println!("  {what}: {took} ({each} us each{beside}) daemon {resident}, at most {peak}");
        self.rows.push(row);
    }

    /// Prints the closing table.
    ///
    /// *Errors*: a goal was missed.
    pub(super) fn close(self) -> Result<()> {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.add_row(["", "TOOK", "US EACH", "EXT4", "RATIO", "DAEMON", "AT MOST"]);
        for row in &self.rows {
            table.add_row(row);
        }
        println!("\n{}", table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
        anyhow::ensure!(self.missed.is_empty(), "missed: {}", self.missed.join("; "));
        Ok(())
    }
}

/// Does something and says how long it took.
pub(super) fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// What a process holds, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    resident_kib: u64,
    /// Since [`forget_peak`].
    peak_kib: u64,
}

fn memory(pid: u32) -> Result<Memory> {
    let status = process::status(pid)?;
    let field = |name| field(&status, name).with_context(|| format!("the daemon's status has no {name}"));
    Ok(Memory { resident_kib: field("VmRSS:")?, peak_kib: field("VmHWM:")? })
}

/// The highest memory of a process is counted anew from here.
pub(super) fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("count the peak memory anew")
}

/// The kernel forgets names and attributes that it can ask for again.
pub(super) fn drop_kernel_names() -> Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "2").context("drop the kernel's names")
}

/// Inodes of FUSE that the kernel holds, on the whole machine; `None` where it does not say.
pub(super) fn kernel_inodes() -> Option<u64> {
    let slabs = std::fs::read_to_string(Path::new("/proc/slabinfo")).ok()?;
    in_slabs(&slabs)
}

fn in_slabs(slabs: &str) -> Option<u64> {
    let line = slabs.lines().find(|line| line.starts_with("fuse_inode "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Duration, Figures, field, in_slabs};

    #[test]
    fn memory_and_kernel_inodes_are_read_as_printed() {
        assert_eq!(field("Name:\tx\nVmHWM:\t  204800 kB\n", "VmHWM:"), Some(204_800));
        assert_eq!(field("Name:\tx\n", "VmRSS:"), None);
        assert_eq!(in_slabs("# name\nfuse_inode   1000042  1000100  832\nx 1 2\n"), Some(1_000_042));
    }

    #[test]
    fn a_missed_goal_is_an_error_at_the_end() {
        let goal = Duration::from_secs(1);
        let mut figures = Figures::new();
        figures.against("quick", goal, goal, None).unwrap();
        assert!(figures.close().is_ok());
        let mut figures = Figures::new();
        figures.against("slow", goal * 2, goal, None).unwrap();
        assert!(figures.close().unwrap_err().to_string().contains("slow"));
    }
}
