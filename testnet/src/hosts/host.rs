//! One host: namespaces around a pid 1, a disk, a cable.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::lab::{Held, Shared};
use crate::hosts::needs::PATH;
use crate::hosts::running::Running;

/// Seconds after which a command on a host is killed, as `timeout` takes them.
const EXEC_TIMEOUT: &str = "300";

/// A host of a lab. Dropping it is a power failure, and its place in the lab stays taken.
#[derive(Debug)]
pub struct Host {
    shared: Arc<Shared>,
    number: u8,
    directory: PathBuf,
    /// The machine as long as it has power.
    power: Option<Power>,
    /// Its engine, if one was started.
    pub(crate) dockerd: Option<Running>,
}

#[derive(Debug)]
struct Power {
    /// Made the namespaces and waits for pid 1.
    unshare: Held,
    /// The host's pid 1, as the machine counts.
    pid: u32,
}

impl Host {
    pub(crate) fn start(shared: Arc<Shared>, number: u8) -> Result<Host> {
        if !(1..=254).contains(&number) {
            bail!("a host's number is 1 to 254, not {number}");
        }
        let directory = shared.directory.join(format!("h{number}"));
        fs::create_dir(&directory)
            .with_context(|| format!("make the disk of host {number}; is the number taken?"))?;
        for part in ["docker", "remora", "log"] {
            fs::create_dir(directory.join(part)).context("make the host's disk")?;
        }
        let mut host = Host { shared, number, directory, power: None, dockerd: None };
        host.power_on()?;
        Ok(host)
    }

    /// Its number in the lab.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// What `hostname` says on it.
    pub fn name(&self) -> String {
        format!("h{}", self.number)
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        self.shared.address(self.number)
    }

    /// Its disk and logs, as the machine sees them; the same path on the host.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its engine's `/var/lib/docker`, as the machine sees it.
    pub fn docker_data(&self) -> PathBuf {
        self.directory.join("docker")
    }

    /// The log that [`Host::spawn`] writes under `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    /// The cgroup its containers are in, below the engine's root.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}/h{}", self.shared.name, self.number)
    }

    /// Its pid 1, as the machine counts.
    ///
    /// # Errors
    /// If it is off.
    pub fn pid(&self) -> Result<u32> {
        self.power.as_ref().map(|power| power.pid).with_context(|| format!("host {} is off", self.number))
    }

    /// Its root directory as the machine can reach it; its sockets can be connected to through it.
    ///
    /// # Errors
    /// If it is off.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root", self.pid()?)))
    }

    /// A command that will run on the host, with the host's root, in `/`.
    ///
    /// # Errors
    /// If it is off.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid()?.to_string(), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"])
            .arg(program);
        command
            .env("PATH", PATH)
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("DOCKER_CONFIG", "/run/docker-config");
        Ok(command)
    }

    /// Runs a command to its end (300 s at most) and yields what it said, whatever it was.
    ///
    /// # Errors
    /// If it could not be run.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.command("timeout")?;
        command.args(["--kill-after=5", EXEC_TIMEOUT]).args(words).stdin(Stdio::null());
        command.output().with_context(|| format!("run {} on host {}", words.join(" "), self.number))
    }

    /// Runs a command to its end and yields its output without the last line's end.
    ///
    /// # Errors
    /// If it fails; the text holds what it complained of.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        if !output.status.success() {
            let (said, complained) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let told = format!("{}\n{}", said.trim(), complained.trim());
            bail!("{} on host {}: {}: {}", words.join(" "), self.number, output.status, told.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Starts a command in the background, appending its output to [`Host::log`]`(log)`.
    ///
    /// # Errors
    /// If it could not be started.
    pub fn spawn(&self, words: &[&str], log: &str) -> Result<Running> {
        let [program, args @ ..] = words else { bail!("no command") };
        let mut command = self.command(program)?;
        command.args(args);
        self.spawn_command(command, log)
    }

    /// As [`Host::spawn`], for a command made by [`Host::command`].
    ///
    /// # Errors
    /// If it could not be started.
    pub fn spawn_command(&self, mut command: Command, log: &str) -> Result<Running> {
        let path = self.log(log);
        let file = File::options().create(true).append(true).open(&path).context("open a log")?;
        let copy = file.try_clone().context("open a log")?;
        let child =
            command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn().context("start a process")?;
        Running::adopt(child, path).with_context(|| format!("start {log} on host {}", self.number))
    }

    /// Gives it power: new namespaces over the old disk. Nothing is started on it.
    ///
    /// # Errors
    /// If it is on already, or does not come up.
    pub fn power_on(&mut self) -> Result<()> {
        if self.power.is_some() {
            bail!("host {} is on", self.number);
        }
        let mut command = Command::new("unshare");
        command.args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--propagation",
            "private",
        ]);
        command
            .args(["sh", "-c", include_str!("host_init.sh"), "host"])
            .arg(&self.directory)
            .arg(self.name());
        let unshare =
            Held::start(&mut command, "ready").with_context(|| format!("start host {}", self.number))?;
        let told =
            unshare.said.iter().find_map(|line| line.strip_prefix("pid ")).and_then(|text| text.parse().ok());
        let pid: u32 = told.context("the host did not tell its pid")?;
        self.power = Some(Power { unshare, pid });
        self.shared.plug_in(self.number, pid).with_context(|| format!("plug in host {}", self.number))
    }

    /// Takes its power: every process on it ends at once, without a word. Its disk stays. Nothing if it is off.
    pub fn power_off(&mut self) {
        if let Some(mut power) = self.power.take() {
            let pid = i32::try_from(power.pid).ok().and_then(Pid::from_raw);
            let killed = pid.map(|pid| kill_process(pid, Signal::KILL));
            if killed.is_none_or(|killed| killed.is_err()) {
                eprintln!("host {}: its pid 1 could not be killed", self.number);
            }
            // It waits for pid 1, which ends after all others.
            power.unshare.finish();
        }
        self.dockerd = None;
    }

    /// Unplugs its cable at the switch.
    ///
    /// # Errors
    /// If it is off.
    pub fn cut(&self) -> Result<()> {
        self.shared.ip(&["link", "set", &format!("p{}", self.number), "down"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// If it is off.
    pub fn heal(&self) -> Result<()> {
        self.shared.ip(&["link", "set", &format!("p{}", self.number), "up"])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_off();
    }
}
