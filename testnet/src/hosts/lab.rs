//! A switch, the hosts plugged into it, and the certainty that all of it goes away.

use std::io::{BufRead, BufReader, PipeWriter, Read};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::hosts::host::Host;
use crate::hosts::needs::{self, PATH};

/// Labs this process has made; with the process id it makes a lab's name.
static LABS: AtomicU32 = AtomicU32::new(0);

/// A network of hosts. The last of a lab and its hosts to be dropped takes everything with it.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

/// What every host of a lab needs; outlives them all.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Unique on this machine; the name of the lab's cgroup.
    pub(crate) name: String,
    /// The third byte of the lab's addresses, 0 to 255. Two labs may share it: their networks do not touch.
    pub(crate) subnet: u8,
    /// Where the hosts' disks and logs are.
    pub(crate) directory: PathBuf,
    switch: Held,
    janitor: Held,
}

impl Lab {
    /// A lab without hosts, in [`needs::directory`].
    ///
    /// # Errors
    /// If [`needs::prerequisites`] are not met, or the switch cannot be made.
    pub fn new() -> Result<Lab> {
        needs::prerequisites()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let name = format!("remora-lab-{pid}-{number}");
        let directory = TempDir::with_prefix_in(format!("{name}-"), needs::directory()?)
            .context("make the lab's directory")?;
        let janitor = start_janitor(directory.path(), &name)?;
        // From here on the janitor removes it, also if this process is killed.
        let directory = directory.keep();
        let mut switch = Command::new("unshare");
        switch.arg("--net").args(["sh", "-c", include_str!("switch_init.sh"), "switch"]);
        let switch = Held::start(&mut switch, "ready").context("start the switch")?;
        let [subnet, ..] = pid.wrapping_add(number.wrapping_mul(97)).to_le_bytes();
        Ok(Lab { shared: Arc::new(Shared { name, subnet, directory, switch, janitor }) })
    }

    /// A running host, number `number`, with an address and an empty disk.
    ///
    /// # Errors
    /// If the number is not 1 to 254, is taken in this lab, or the host does not come up.
    pub fn host(&self, number: u8) -> Result<Host> {
        Host::start(Arc::clone(&self.shared), number)
    }

    /// Where the lab keeps its hosts' disks and logs; gone with the lab.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }
}

impl Shared {
    /// The address of host `number`; the network is its first three bytes.
    pub(crate) fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, number)
    }

    /// Runs `ip` in the switch's network.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<()> {
        ip_in(self.switch.id(), args)
    }

    /// Plugs the host with this number and pid 1 into the switch.
    pub(crate) fn plug_in(&self, number: u8, pid: u32) -> Result<()> {
        let (port, pid_text) = (format!("p{number}"), pid.to_string());
        // A cable goes with its host's network, but the kernel takes its time.
        let _ = self.ip(&["link", "del", &port]);
        self.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid_text])?;
        self.ip(&["link", "set", &port, "master", "br0", "up"])?;
        ip_in(pid, &["link", "set", "lo", "up"])?;
        // A host comes back with the network card it had: its neighbours remember the address.
        let card = format!("02:00:0a:4d:{:02x}:{number:02x}", self.subnet);
        ip_in(pid, &["link", "set", "eth0", "address", &card])?;
        ip_in(pid, &["addr", "add", &format!("{}/24", self.address(number)), "dev", "eth0"])?;
        ip_in(pid, &["link", "set", "eth0", "up"])
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.switch.end();
        // The janitor works when its pipe closes, and is done when it ends.
        if !self.janitor.finish() {
            eprintln!(
                "lab {} left something in {} or a cgroup of that name",
                self.name,
                self.directory.display()
            );
        }
    }
}

fn start_janitor(directory: &Path, cgroup: &str) -> Result<Held> {
    let mut janitor = Command::new("sh");
    janitor
        .args(["-c", concat!("echo ready\n", include_str!("janitor.sh")), "janitor"])
        .arg(directory)
        .arg(cgroup);
    // Not in our process group: Ctrl-C is for us, and then for it to clean up.
    janitor.process_group(0);
    Held::start(&mut janitor, "ready").context("start the janitor")
}

fn ip_in(pid: u32, args: &[&str]) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "ip"]).args(args).env("PATH", PATH);
    let output = command.stdin(Stdio::null()).output().context("run nsenter")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A process that lives as long as we hold the other end of its stdin.
#[derive(Debug)]
pub(crate) struct Held {
    child: Child,
    pipe: Option<PipeWriter>,
    /// The lines it said before it was ready.
    pub(crate) said: Vec<String>,
}

impl Held {
    /// Starts `command` and waits until it prints the line `ready`.
    pub(crate) fn start(command: &mut Command, ready: &str) -> Result<Held> {
        let (theirs, pipe) = std::io::pipe().context("make a pipe")?;
        command.env("PATH", PATH).stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start a process")?;
        let stdout = child.stdout.take().context("its output is lost")?;
        let mut held = Held { child, pipe: Some(pipe), said: Vec::new() };
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read what it says")?;
            if line == ready {
                return Ok(held);
            }
            held.said.push(line);
        }
        held.pipe = None;
        let mut complaint = String::new();
        if let Some(mut stderr) = held.child.stderr.take() {
            let _ = stderr.read_to_string(&mut complaint);
        }
        held.end();
        bail!("it ended before it was ready: {}", complaint.trim());
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it now and waits until it is gone.
    pub(crate) fn end(&mut self) {
        self.pipe = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Closes its stdin and waits until it has ended by itself; yields whether it was content.
    pub(crate) fn finish(&mut self) -> bool {
        self.pipe = None;
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pipe = None;
    }
}
