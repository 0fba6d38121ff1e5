//! `remora-testnet hostile`: what strangers, accidents and typing mistakes can do to a node, and what it says to them.
//!
//! Every case is a row of the report: what was done, how the command ended, the first line it printed. A case fails the run
//! when the exit code or the words are others, when a file changed that must not, or when the daemon did not survive.

mod damage;
pub(crate) mod disk;
pub(crate) mod full;
mod names;
mod papers;
mod socket;
mod stranger;
mod tickets;
mod twice;

use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};

use crate::exe;
use crate::nodes::Node;
use crate::report::Report;

/// Characters of a message that fit a row.
const MESSAGE_CHARS: usize = 96;

/// Runs every case; leaves nothing behind. The first case that fails ends the run.
pub fn run() -> Result<()> {
    exe::check_fuse()?;
    let dir = exe::scratch("hostile")?;
    let mut cases = Cases { report: Report::new("Bad input"), hidden: dir.path().display().to_string() };
    names::run(&mut cases, &area(dir.path(), "names")?)?;
    socket::run(&mut cases, &area(dir.path(), "socket")?)?;
    tickets::run(&mut cases, &area(dir.path(), "tickets")?)?;
    stranger::run(&mut cases, &area(dir.path(), "stranger")?)?;
    twice::run(&mut cases, &area(dir.path(), "twice")?)?;
    papers::run(&mut cases, &area(dir.path(), "papers")?)?;
    damage::run(&mut cases, &area(dir.path(), "damage")?)?;
    full::run(&mut cases, &area(dir.path(), "full")?)?;
    cases.report.close();
    Ok(())
}

fn area(dir: &Path, name: &str) -> Result<std::path::PathBuf> {
    let area = dir.join(name);
    std::fs::create_dir(&area)?;
    Ok(area)
}

/// The rows of the report.
struct Cases {
    report: Report,
    /// The scratch directory: no news in a row.
    hidden: String,
}

impl Cases {
    /// A command that must end with `code` and say all of `words`.
    fn refused(&mut self, what: &str, out: &Output, code: i32, words: &[&str]) -> Result<()> {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        ensure!(
            out.status.code() == Some(code),
            "{what}: ended with {} and not with exit code {code}: {said}",
            out.status
        );
        for word in words {
            ensure!(said.contains(word), "{what}: the message does not say {word:?}: {said}");
        }
        let first = said.lines().next().unwrap_or_default().replace(&self.hidden, "...");
        self.row(what, &format!("exit {code}: {first}"));
        Ok(())
    }

    /// A row about something else than a command.
    fn row(&mut self, what: &str, fact: &str) {
        let mut fact = fact.replace(&self.hidden, "...");
        if let Some((end, _)) = fact.char_indices().nth(MESSAGE_CHARS) {
            fact.truncate(end);
            fact.push('\u{2026}');
        }
        self.report.fact(what, fact);
    }
}

/// The daemon is the one that was started, and answers.
fn check_alive(node: &Node, pid: Option<u32>) -> Result<()> {
    ensure!(pid.is_some() && node.pid() == pid, "{} runs another daemon", node.name);
    let status = node.json(&["status"])?;
    ensure!(
        status["pid"].as_u64() == pid.map(u64::from),
        "another process answers for {}: {status}",
        node.name
    );
    Ok(())
}
