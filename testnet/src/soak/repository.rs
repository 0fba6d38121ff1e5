//! git: a large repository is cloned, committed to, packed and checked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::soak::turn::{Load, Turn};

/// Commits that a clone gets before it makes way for a new one.
const COMMITS_MAX: usize = 400;

/// Between commits, in a gentle turn.
const PAUSE: Duration = Duration::from_millis(200);

/// Files of the repository.
const N_FILES: u64 = 500;

/// The load.
pub(super) struct Repository {
    /// The bare repository on the machine's own disk.
    origin: PathBuf,
    home: PathBuf,
    /// Commits that git reported, newest last, since the clone.
    reported: Vec<String>,
}

impl Repository {
    /// Makes the origin with so many commits.
    pub(super) fn new(dir: &Path, n_commits: u64, seed: u64) -> Result<Repository> {
        let load =
            Repository { origin: dir.join("origin.git"), home: dir.to_path_buf(), reported: Vec::new() };
        load.git(dir, &["init", "-q", "--bare", "-b", "main", "origin.git"])?;
        let mut child = load
            .command(&load.origin)
            .args(["fast-import", "--quiet"])
            .stdin(Stdio::piped())
            .spawn()
            .context("start git fast-import")?;
        let mut input = child.stdin.take().context("git has no input")?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for number in 0..n_commits {
            input.write_all(commit(&mut rng, number).as_bytes()).context("feed git fast-import")?;
        }
        drop(input);
        ensure!(child.wait().context("wait for git fast-import")?.success(), "git fast-import failed");
        load.git(&load.origin, &["gc", "-q"])?;
        Ok(load)
    }

    fn command(&self, at: &Path) -> Command {
        let mut command = Command::new("git");
        // After a crash every commit that git reported is demanded back: it has to sync what it writes.
        let settings = [
            "user.name=Soak",
            "user.email=soak@example.org",
            "core.fsync=all",
            "core.fsyncMethod=fsync",
            "gc.auto=0",
            "safe.directory=*",
            "advice.detachedHead=false",
        ];
        for setting in settings {
            command.args(["-c", setting]);
        }
        command.current_dir(at).env("HOME", &self.home).env("GIT_CONFIG_NOSYSTEM", "1").stdin(Stdio::null());
        command
    }

    fn git(&self, at: &Path, args: &[&str]) -> Result<String> {
        let out: Output = self.command(at).args(args).output().context("run git")?;
        if !out.status.success() {
            bail!("git {}: {}\n{}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn clone_anew(&mut self, clone: &Path) -> Result<()> {
        if clone.exists() {
            std::fs::remove_dir_all(clone).context("remove the old clone")?;
        }
        self.reported.clear();
        let above = clone.parent().context("the clone lies in a directory")?;
        let origin = format!("file://{}", self.origin.display());
        self.git(above, &["clone", "-q", &origin, "clone"])?;
        self.report_head(clone)
    }

    fn commit_some(&mut self, clone: &Path, rng: &mut ChaCha8Rng) -> Result<()> {
        for _ in 0..rng.random_range(1..6) {
            let path = clone.join(file_name(rng.random_range(0..N_FILES)));
            if rng.random_bool(0.2) {
                let _absent = std::fs::remove_file(&path);
            } else {
                std::fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
                std::fs::write(&path, lines(rng)).context("change a file")?;
            }
        }
        self.git(clone, &["add", "-A"])?;
        self.git(clone, &["commit", "-q", "--allow-empty", "-m", "a change"])?;
        self.report_head(clone)
    }

    /// Notes what `main` is now. git syncs what it writes, but not the directory in which it puts the new name of a branch last of
    /// all: whoever wants the name to be there after a crash has to do that.
    fn report_head(&mut self, clone: &Path) -> Result<()> {
        std::fs::File::open(clone.join(".git/refs/heads"))
            .and_then(|dir| dir.sync_all())
            .context("sync the directory of the branches")?;
        let head = self.git(clone, &["rev-parse", "HEAD"])?;
        self.reported.push(head);
        Ok(())
    }

    fn go_on(&mut self, dir: &Path, turn: &Turn, did: &mut String) -> Result<()> {
        let clone = dir.join("clone");
        let mut rng = ChaCha8Rng::seed_from_u64(turn.seed);
        if self.reported.is_empty() || self.reported.len() > COMMITS_MAX {
            self.clone_anew(&clone)?;
            did.push_str("clone, ");
        }
        let before = self.reported.len();
        let packs_at = rng.random_bool(0.6).then(|| rng.random_range(2..25));
        while !turn.is_over() {
            self.commit_some(&clone, &mut rng)?;
            std::thread::sleep(turn.pause(PAUSE));
            // Once a turn at most: it writes all there is anew.
            if packs_at == Some(self.reported.len() - before) && !turn.is_over() {
                self.git(&clone, &["gc", "-q", "--prune=now"])?;
                did.push_str("gc, ");
            }
            if rng.random_ratio(1, 40) && !turn.is_over() {
                self.git(&clone, &["checkout", "-q", "HEAD~20"])?;
                self.git(&clone, &["checkout", "-q", "main"])?;
                did.push_str("checkout, ");
            }
        }
        let _in_memory = write!(did, "{} commits", self.reported.len() - before);
        Ok(())
    }
}

impl Load for Repository {
    fn name(&self) -> &'static str {
        "git"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let dir = dir.join("git");
        std::fs::create_dir_all(&dir).context("make the directory of the clone")?;
        let mut did = String::new();
        match self.go_on(&dir, turn, &mut did) {
            Err(e) if !turn.is_killed() => Err(e),
            _ => Ok(did),
        }
    }

    fn check(&mut self, dir: &Path, was_killed: bool) -> Result<String> {
        let clone = dir.join("git").join("clone");
        let Some(last) = self.reported.last().cloned() else {
            return Ok("no clone yet".to_owned());
        };
        if was_killed {
            for lock in
                [".git/index.lock", ".git/HEAD.lock", ".git/refs/heads/main.lock", ".git/packed-refs.lock"]
            {
                let _absent = std::fs::remove_file(clone.join(lock));
            }
            let _absent = std::fs::remove_file(clone.join(".git/gc.pid"));
            self.git(&clone, &["checkout", "-q", "-f", "main"])?;
        }
        let said = self.git(&clone, &["fsck", "--full", "--strict"])?;
        ensure!(!said.contains("missing") && !said.contains("error"), "git fsck says: {said}");
        self.git(&clone, &["merge-base", "--is-ancestor", &last, "main"])
            .with_context(|| format!("{last} was reported and is not on main"))?;
        if was_killed {
            self.git(&clone, &["reset", "-q", "--hard"])?;
            self.git(&clone, &["clean", "-q", "-f", "-d"])?;
            self.reported.push(self.git(&clone, &["rev-parse", "HEAD"])?);
        }
        let status = self.git(&clone, &["status", "--porcelain"])?;
        ensure!(status.is_empty(), "git status is not clean:\n{status}");
        let n_commits = self.git(&clone, &["rev-list", "--count", "main"])?;
        Ok(format!("fsck ok, {n_commits} commits"))
    }
}

fn file_name(number: u64) -> String {
    format!("part-{}/group-{}/file-{number}.txt", number % 7, number % 23)
}

/// A few lines of words: what packs well, as sources do.
fn lines(rng: &mut ChaCha8Rng) -> String {
    const WORDS: [&str; 12] = [
        "volume", "writes", "a", "block", "that", "nobody", "reads", "until", "the", "next", "host", "mounts",
    ];
    let mut text = String::new();
    for _ in 0..rng.random_range(5..150) {
        for _ in 0..rng.random_range(3..9) {
            let _in_memory = write!(text, "{} ", WORDS[rng.random_range(0..WORDS.len())]);
        }
        let _in_memory = writeln!(text, "{}", rng.random::<u32>());
    }
    text
}

/// One commit in the language of `git fast-import`.
fn commit(rng: &mut ChaCha8Rng, number: u64) -> String {
    let seconds = 1_500_000_000 + number * 600;
    let message = format!("change {number}\n");
    let mut text = format!(
        "commit refs/heads/main\ncommitter Soak <soak@example.org> {seconds} +0000\ndata {}\n{message}",
        message.len()
    );
    for _ in 0..rng.random_range(1..4) {
        let content = lines(rng);
        let name = file_name(rng.random_range(0..N_FILES));
        let _in_memory = write!(text, "M 100644 inline {name}\ndata {}\n{content}", content.len());
    }
    text.push('\n');
    text
}
