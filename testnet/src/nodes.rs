//! Daemons side by side on this machine: each has its own data directory, API socket and loopback port.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::exe;

/// How long a daemon may take to answer after its start, also after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a daemon may take to stop by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// One node. Dropped, its daemon is stopped and its mounts are gone.
pub struct Node {
    /// What the cluster calls it.
    pub name: String,
    data: PathBuf,
    child: Option<Child>,
    mounts: Vec<PathBuf>,
    /// The program, with arguments, that starts the daemon and becomes it.
    under: Vec<String>,
}

impl Node {
    /// Initialises a cluster of one in `dir/name`; the daemon does not run yet.
    pub fn init(dir: &Path, name: &str) -> Result<Node> {
        let node = Node::place(dir, name);
        node.ok(&["init", "--name", name, "--listen", "/ip4/127.0.0.1/tcp/0"])?;
        Ok(node)
    }

    /// As [`Node::init`], or as [`Node::join`] if there is a `member`, with the data directory `data`; log and mounts lie beside
    /// it. It keeps its port over restarts, so that
    /// nodes that start at the same time find one another.
    pub fn place_at(data: &Path, name: &str, member: Option<&Node>) -> Result<Node> {
        let node = Node::at(data, name);
        // Free now; nobody else is given it for a while.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr())?.port();
        let listen = format!("/ip4/127.0.0.1/tcp/{port}");
        match member {
            None => node.ok(&["init", "--name", name, "--listen", &listen])?,
            Some(member) => {
                let ticket = member.ok(&["ticket"])?;
                node.ok(&["join", ticket.trim(), "--name", name, "--listen", &listen])?
            }
        };
        Ok(node)
    }

    /// Joins the cluster of `member` (whose daemon runs); the new daemon does not run yet.
    pub fn join(dir: &Path, name: &str, member: &Node) -> Result<Node> {
        let node = Node::place(dir, name);
        let ticket = member.ok(&["ticket"])?;
        node.ok(&["join", ticket.trim(), "--name", name, "--listen", "/ip4/127.0.0.1/tcp/0"])?;
        Ok(node)
    }

    /// A node whose data directory is `dir/name`, whatever is there.
    #[must_use]
    pub fn place(dir: &Path, name: &str) -> Node {
        Node::at(&dir.join(name), name)
    }

    fn at(data: &Path, name: &str) -> Node {
        let data = data.to_path_buf();
        Node { name: name.to_owned(), data, child: None, mounts: Vec::new(), under: Vec::new() }
    }

    /// From now on the daemon is started by this program, which has to become it (`setpriv`, `nice` and the like).
    pub fn start_under(&mut self, words: &[&str]) {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where the daemon writes what it has to say.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// A `remora` command for this node.
    pub fn command(&self) -> Result<Command> {
        Ok(self.placed(exe::remora()?))
    }

    fn placed(&self, mut command: Command) -> Command {
        command.env_remove("REMORA_API").env("REMORA_DATA", &self.data).stdin(Stdio::null());
        command
    }

    /// The command that becomes the daemon.
    fn daemon(&self) -> Result<Command> {
        let Some((program, words)) = self.under.split_first() else { return self.command() };
        let mut command = Command::new(program);
        command.args(words).arg(exe::path()?).arg("remora");
        Ok(self.placed(command))
    }

    /// Runs a command and answers what it printed and how it ended.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.command()?.args(args).output().with_context(|| format!("run remora {}", args.join(" ")))
    }

    /// Runs a command that has to succeed; answers its standard output.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.run(args)?;
        ensure!(
            out.status.success(),
            "{}: remora {}: {}\n{}",
            self.name,
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs a command that prints JSON.
    pub fn json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec!["--json"];
        all.extend_from_slice(args);
        serde_json::from_str(&self.ok(&all)?)
            .with_context(|| format!("read the JSON of remora {}", args.join(" ")))
    }

    /// Starts the daemon, without a Docker plugin, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.start_with("off")
    }

    /// As [`Node::start`], with Docker's plugin socket at `docker_plugin` (or "off").
    pub fn start_with(&mut self, docker_plugin: &str) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log =
            File::options().create(true).append(true).open(self.log()).context("open the daemon's log")?;
        let child = self
            .daemon()?
            .args(["daemon", "--docker-plugin", docker_plugin])
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the daemon")?;
        self.child = Some(child);
        let began = Instant::now();
        loop {
            if self.run(&["status"])?.status.success() {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.child = None;
                bail!("{}'s daemon ended at once ({status}):\n{}", self.name, self.last_words());
            }
            if began.elapsed() > START_TIMEOUT {
                bail!("{}'s daemon does not answer:\n{}", self.name, self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn last_words(&self) -> String {
        // A test may put something without an end in its place.
        let log = Some(self.log()).filter(|log| log.is_file());
        let text = log.and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Process id of the running daemon.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`: what the process had in memory is gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the daemon")?;
            child.wait().context("wait for the daemon")?;
        }
        Ok(())
    }

    /// Asks the daemon to stop (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(child.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("stop the daemon")?;
        }
        let began = Instant::now();
        while began.elapsed() < STOP_TIMEOUT {
            if child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!("{}'s daemon did not stop in {STOP_TIMEOUT:?}:\n{}", self.name, self.last_words())
    }

    /// Mounts a volume on `DIR/NAME.mnt-VOLUME` and answers the directory.
    pub fn mount(&mut self, volume: &str) -> Result<PathBuf> {
        let dir = self.data.with_extension(format!("mnt-{volume}"));
        std::fs::create_dir_all(&dir).or_else(|e| if dir_is_dead(&e) { Ok(()) } else { Err(e) })?;
        self.ok(&["volume", "mount", volume, &dir.to_string_lossy()])?;
        if !self.mounts.contains(&dir) {
            self.mounts.push(dir.clone());
        }
        Ok(dir)
    }

    /// Unmounts a directory that [`Node::mount`] answered.
    pub fn unmount(&mut self, dir: &Path) -> Result<()> {
        self.ok(&["volume", "unmount", &dir.to_string_lossy()])?;
        self.mounts.retain(|m| m != dir);
        Ok(())
    }

    /// Waits until a question about `status --json` is answered with yes.
    pub fn wait_until(&self, what: &str, yes: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            if yes(&self.json(&["status"])?) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{}: {what} did not come about in {START_TIMEOUT:?}:\n{}", self.name, self.last_words())
    }
}

/// The mount point of a killed daemon: it is there, but answers ENOTCONN until the next daemon mounts it again.
fn dir_is_dead(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EEXIST))
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- last words of {}:\n{}", self.name, self.last_words());
        }
        let _stopped = self.stop();
        for dir in &self.mounts {
            let _gone = rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Starts `names.len()` nodes in one cluster; the first is the founder.
pub fn cluster(dir: &Path, names: &[&str]) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for name in names {
        let mut node = match nodes.first() {
            None => Node::init(dir, name)?,
            Some(founder) => Node::join(dir, name, founder)?,
        };
        node.start()?;
        nodes.push(node);
    }
    let others = u64::try_from(names.len())? - 1;
    for node in &nodes {
        node.wait_until("all members connected", |s| s["connected"].as_u64() == Some(others))?;
    }
    Ok(nodes)
}
