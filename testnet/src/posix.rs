//! `remora-testnet posix`: pjdfstest 0.2.2 on a mounted volume, and on the native file system beside it; `--probe`: feature by feature.

mod exerciser;
pub mod fsx;
pub mod probe;
mod tools;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::exe;
use crate::nodes::cluster;
use crate::posix::tools::install;
use crate::report::Report;

/// The suite; the version decides what the figures mean.
const SUITE: &str = "pjdfstest";
const VERSION: &str = "0.2.2";

/// What Linux file systems have; ext4 passes 383 and skips 15 of 398 with it.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The last line of a run.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Verdict {
    failed: u32,
    skipped: u32,
    passed: u32,
}

/// Runs the suite natively, on a volume and on one with ACLs; more than `allow` failures on a volume are an error.
pub fn run(allow: u32) -> Result<()> {
    exe::check_fuse()?;
    let program = install(SUITE, VERSION, "; it needs libacl1-dev")?;
    // Short names: the suite makes sockets, whose path may have no more than 107 bytes.
    let dir = tempfile::Builder::new().prefix("px-").tempdir_in("/var/tmp").context("work in /var/tmp")?;
    let mut report = Report::new("pjdfstest 0.2.2");
    let configuration = dir.path().join("pjdfstest.toml");
    std::fs::write(&configuration, CONFIGURATION)?;
    let native = dir.path().join("native");
    std::fs::create_dir(&native)?;
    report.step("native", 0, |_| suite(&program, &configuration, &native).map(|(v, _)| format!("{v:?}")))?;
    let mut nodes = cluster(dir.path(), &["n"])?;
    let node = nodes.first_mut().context("one name makes one node")?;
    let volumes: [(&str, &[&str]); 2] = [("v", &[]), ("w", &["--acl"])];
    let mut n_failed_most = 0;
    for (name, options) in volumes {
        node.ok(&[&["volume", "create", name], options].concat())?;
        let at = node.mount(name)?;
        let what = [&["volume"], options].concat().join(" ");
        report.step(&what, 0, |_| {
            let (v, failures) = suite(&program, &configuration, &at)?;
            for failure in &failures {
                println!("    {failure}");
            }
            n_failed_most = n_failed_most.max(v.failed);
            anyhow::Ok(format!("{v:?}"))
        })?;
    }
    report.close();
    ensure!(n_failed_most <= allow, "{n_failed_most} cases failed, {allow} are allowed");
    Ok(())
}

fn suite(program: &Path, configuration: &Path, at: &Path) -> Result<(Verdict, Vec<String>)> {
    let out = Command::new(program)
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(at)
        .current_dir(at)
        .output()
        .context("run the suite")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let failures = text.lines().filter(|l| l.trim_end().ends_with("FAILED")).map(str::to_owned).collect();
    let summary = text.lines().rev().find(|l| l.starts_with("Summary:"));
    let summary =
        summary.with_context(|| format!("no summary:\n{}", String::from_utf8_lossy(&out.stderr)))?;
    Ok((parse(summary).with_context(|| format!("read {summary:?}"))?, failures))
}

/// Reads `Summary: 0 failed, 15 skipped, 383 passed, ...`.
fn parse(summary: &str) -> Option<Verdict> {
    let count = |word: &str| -> Option<u32> {
        let part = summary.trim_start_matches("Summary:").split(',').find(|p| p.trim().ends_with(word))?;
        part.trim().split(' ').next()?.parse().ok()
    };
    Some(Verdict { failed: count(" failed")?, skipped: count(" skipped")?, passed: count(" passed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read_as_printed() {
        let line = "Summary: 2 failed, 15 skipped, 381 passed, 0 expected failures, 398 total";
        assert_eq!(parse(line), Some(Verdict { failed: 2, skipped: 15, passed: 381 }));
    }
}
