//! Two hosts of one cluster, each with a daemon and a Docker engine of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::compare::{Manifest, manifest};
use crate::exe;
use crate::hosts::host::Host;
use crate::hosts::images::Image;
use crate::hosts::lab::Lab;
use crate::hosts::running::{POLL, Running};

/// What the cluster calls the hosts.
pub(super) const X: &str = "larboard";
pub(super) const Y: &str = "starboard";

/// The images' names in their engines.
pub(super) const BUSYBOX: &str = "localhost/busybox:1";
pub(super) const DEBIAN: &str = "localhost/debian:1";

/// The name of the volume driver.
pub(super) const DRIVER: &str = "remora";

const PORT: u16 = 4717;

/// How long daemons may take to answer, to find each other, and to hear news.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a daemon may take to stop by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// One host with what runs on it.
pub(super) struct Side {
    /// What the cluster calls it.
    pub(super) name: &'static str,
    host: Host,
    daemon: Option<Running>,
}

/// The two hosts. Dropped, everything on them ends and nothing of them is left.
pub(super) struct Pair {
    pub(super) x: Side,
    pub(super) y: Side,
    lab: Lab,
}

impl Pair {
    /// Two hosts that know each other, with engines that have the images. Calls `progress` for each.
    pub(super) fn start(images: &[Image], progress: &dyn Fn()) -> Result<Pair> {
        let lab = Lab::new()?;
        let mut x = Side { name: X, host: lab.host(1)?, daemon: None };
        let mut y = Side { name: Y, host: lab.host(2)?, daemon: None };
        x.remora(&["init", "--name", X, "--listen", &x.listen()])?;
        x.start_daemon()?;
        let ticket = x.remora(&["ticket"])?;
        y.remora(&["join", &ticket, "--name", Y, "--listen", &y.listen()])?;
        y.start_daemon()?;
        // Most of the time goes into images; the hosts do not need each other for that.
        std::thread::scope(|scope| {
            let sides = [&mut x, &mut y].map(|side| scope.spawn(move || side.start_engine(images)));
            for side in sides {
                side.join().map_err(|_| anyhow::anyhow!("the thread that starts an engine ended"))??;
                progress();
            }
            anyhow::Ok(())
        })?;
        for side in [&x, &y] {
            side.wait_for("the other member", || Ok(side.status()?["connected"].as_u64() == Some(1)))?;
        }
        Ok(Pair { x, y, lab })
    }

    /// Stops engines and daemons and waits for them.
    pub(super) fn stop(&mut self, progress: &dyn Fn()) -> Result<()> {
        for side in [&mut self.x, &mut self.y] {
            side.host.stop_dockerd()?;
            if let Some(mut daemon) = side.daemon.take() {
                daemon.stop(STOP_TIMEOUT).with_context(|| format!("stop the daemon of {}", side.name))?;
            }
            progress();
        }
        Ok(())
    }

    /// A directory on the machine's disk, at the same path on both hosts; gone with the pair.
    pub(super) fn shelf(&self, name: &str) -> Result<PathBuf> {
        let dir = self.lab.directory().join("shelf").join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// What the daemons said last.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for side in [&self.x, &self.y] {
            let said = side.daemon.as_ref().map(Running::log_tail).unwrap_or_default();
            let _in_memory = write!(words, "\n--- {}'s daemon said last:\n{said}", side.name);
        }
        words + "\n---"
    }
}

impl Side {
    fn listen(&self) -> String {
        format!("/ip4/{}/tcp/{PORT}", self.host.address())
    }

    /// `remora ARGS` on the host, to its end; yields its output.
    pub(super) fn remora(&self, args: &[&str]) -> Result<String> {
        let program = exe::path()?;
        let program = program.to_str().context("the program's path is not UTF-8")?;
        self.host.exec(&[&[program, "remora"], args].concat())
    }

    fn status(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.remora(&["--json", "status"])?).context("read the JSON of remora status")
    }

    fn start_daemon(&mut self) -> Result<()> {
        let mut command =
            self.host.command(exe::path()?.to_str().context("the program's path is not UTF-8")?)?;
        command.args(["remora", "daemon"]).env_remove("REMORA_DATA").env_remove("REMORA_API");
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()));
        let mut daemon = self.host.spawn_command(command, "remora")?;
        let began = Instant::now();
        while self.status().is_err() {
            if !daemon.is_running() || began.elapsed() > PATIENCE {
                bail!("the daemon of {} does not answer: {}", self.name, daemon.log_tail());
            }
            std::thread::sleep(POLL);
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    fn start_engine(&mut self, images: &[Image]) -> Result<()> {
        self.host.start_dockerd()?;
        images.iter().try_for_each(|image| self.host.load(image))
    }

    /// `docker ARGS`, to its end; yields its output.
    pub(super) fn docker(&self, args: &[&str]) -> Result<String> {
        self.host.docker(args)
    }

    /// `docker ARGS` that has to fail; yields what it complained of, and how long that took.
    pub(super) fn refused(&self, args: &[&str]) -> Result<(String, Duration)> {
        let began = Instant::now();
        let output = self.host.docker_output(args)?;
        let took = began.elapsed();
        ensure!(!output.status.success(), "docker {} on {} was not refused", args.join(" "), self.name);
        Ok((String::from_utf8_lossy(&output.stderr).trim().to_owned(), took))
    }

    /// What a container wrote on both its outputs.
    pub(super) fn said(&self, container: &str) -> Result<String> {
        let output = self.host.docker_output(&["logs", container])?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
    }

    /// Runs a container of `image` to its end, with a volume of ours at `/v`; yields its output.
    pub(super) fn run(&self, volume: &str, image: &str, words: &[&str]) -> Result<String> {
        let mount = format!("{volume}:/v");
        self.docker(&[&run_words(&["--rm", "-v", &mount]), &[image][..], words].concat())
    }

    /// Runs a shell script in a container of the Debian image, with a volume of ours at `/v` and `args` as `$1`...
    pub(super) fn script(&self, volume: &str, script: &str, args: &[&str]) -> Result<String> {
        self.run(volume, DEBIAN, &[&["bash", "-euo", "pipefail", "-c", script, "script"], args].concat())
    }

    /// A container with a volume of ours at `/v` that goes on until it is dropped.
    pub(super) fn keep<'a>(&'a self, name: &'a str, volume: &str) -> Result<Container<'a>> {
        let mount = format!("{volume}:/v");
        let options = ["-d", "--init", "--name", name, "-v", &mount];
        self.docker(&[&run_words(&options), &[DEBIAN, "sleep", "1000"][..]].concat())?;
        Ok(Container { side: self, name, is_removed: false })
    }

    /// Everything that is on a volume now, by the mount of its host. The volume has to be in use there.
    pub(super) fn manifest(&self, volume: &str) -> Result<Manifest> {
        manifest(&self.mount_point(volume)?, &|_| {})
    }

    /// Where a volume in use on the host is mounted, as the machine can reach it.
    pub(super) fn mount_point(&self, volume: &str) -> Result<PathBuf> {
        let point = self.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", volume])?;
        let inside = Path::new(&point).strip_prefix("/").context("the engine knows no mount point")?;
        ensure!(!inside.as_os_str().is_empty(), "{volume} is not mounted on {}", self.name);
        Ok(self.host.root()?.join(inside))
    }

    /// Waits until a question is answered with yes.
    pub(super) fn wait_for(&self, what: &str, yes: impl Fn() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !yes()? {
            ensure!(began.elapsed() < PATIENCE, "{}: {what} did not come about in {PATIENCE:?}", self.name);
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// `docker run` with what every container of ours has: no network, volumes from our driver.
pub(super) fn run_words<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--network=none", "--volume-driver", DRIVER], options].concat()
}

/// A running container; dropped, it is removed.
pub(super) struct Container<'a> {
    side: &'a Side,
    name: &'a str,
    is_removed: bool,
}

impl Container<'_> {
    /// Runs a command in it.
    pub(super) fn exec(&self, words: &[&str]) -> Result<String> {
        self.side.docker(&[&["exec", self.name], words].concat())
    }

    /// Removes it, and waits until that is done.
    pub(super) fn remove(mut self) -> Result<()> {
        self.is_removed = true;
        self.side.docker(&["rm", "-f", self.name]).map(drop)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.is_removed {
            let _host_goes_too = self.side.docker(&["rm", "-f", self.name]);
        }
    }
}
