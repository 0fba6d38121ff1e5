//! PostgreSQL 15 as Debian installs it: its programs, run as its own user.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Where Debian puts it.
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// One of its programs as the user `postgres`, without input.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"])
        .arg(Path::new(BIN).join(program))
        .stdin(Stdio::null());
    command
}

/// Why it cannot run here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let program = Path::new(BIN).join("pgbench");
    if !program.exists() {
        return Some(format!("{} is missing: install postgresql-15", program.display()));
    }
    user_ids().is_err().then(|| "there is no user `postgres`: install postgresql-15".to_owned())
}

/// User and group of `postgres`.
pub(crate) fn user_ids() -> Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.context("there is no user `postgres`: install postgresql-15")?;
    let mut fields = line.split(':').skip(2);
    let mut number = || -> Result<u32> { Ok(fields.next().context("a short line in /etc/passwd")?.parse()?) };
    Ok((number()?, number()?))
}
