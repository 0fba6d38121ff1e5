//! Programs that are not ours: suites from the registry, and a small C program made by this machine's compiler.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::exe;

const KERNEL_C: &str = include_str!("kernel.c");

/// A program of the registry, built into the target directory unless it is there. `hint` says what it takes to build it.
pub(super) fn install(name: &str, version: &str, hint: &str) -> Result<PathBuf> {
    let target = exe::path()?
        .parent()
        .and_then(Path::parent)
        .context("the program lies in no directory")?
        .to_path_buf();
    let tools = target.join("tools");
    let program = tools.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    println!("building {name} {version} (once)");
    let status = Command::new("cargo")
        .args(["install", name, "--version", version, "--locked", "--root"])
        .arg(&tools)
        .status()
        .context("run cargo install")?;
    ensure!(status.success(), "cargo install {name}: {status}{hint}");
    Ok(program)
}

/// The C program, in `dir`.
pub(super) struct Kernel(PathBuf);

impl Kernel {
    /// Compiles it.
    pub(super) fn build(dir: &Path) -> Result<Kernel> {
        let (source, program) = (dir.join("kernel.c"), dir.join("kernel"));
        std::fs::write(&source, KERNEL_C)?;
        let out = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).output();
        let out = out.context("run cc: `apt-get install gcc libc6-dev`")?;
        ensure!(out.status.success(), "cc: {}", String::from_utf8_lossy(&out.stderr));
        Ok(Kernel(program))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Has it do something to a file; answers what it printed.
    pub(super) fn run(&self, what: &str, file: &Path, args: &[u64]) -> Result<Vec<u8>> {
        let mut command = Command::new(&self.0);
        command.arg(what).arg(file).args(args.iter().map(u64::to_string)).stdin(Stdio::null());
        let out = command.output().context("run the C program")?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(out.stdout)
    }
}
