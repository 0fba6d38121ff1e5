//! A Docker engine on a host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::hosts::host::Host;
use crate::hosts::images::Image;
use crate::hosts::running::{POLL, Running};

/// How long an engine may take to answer after its start. One that has to wait for a plugin takes 15 s a volume.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an engine may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

impl Host {
    /// Starts the engine and waits until it answers; yields how long that took. Nothing if it runs.
    ///
    /// Its containers have no network: what they need is on their volumes.
    ///
    /// # Errors
    /// If it does not answer within 60 s; the text ends with its last words.
    pub fn start_dockerd(&mut self) -> Result<Duration> {
        if self.dockerd.as_mut().is_some_and(Running::is_running) {
            return Ok(Duration::ZERO);
        }
        let started = Instant::now();
        let mut command = self.command("dockerd")?;
        command.args([
            "--host",
            "unix:///run/docker.sock",
            "--data-root",
            "/var/lib/docker",
            "--exec-root",
            "/run/docker",
        ]);
        command.args([
            "--pidfile",
            "/run/docker.pid",
            "--config-file",
            "/etc/docker/none.json",
            "--bridge=none",
        ]);
        command.args([
            "--iptables=false",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
            "--storage-driver",
            "overlay2",
        ]);
        command.args(["--cgroup-parent", &self.cgroup()]);
        std::fs::write(self.root()?.join("etc/docker/none.json"), "{}")
            .context("write the engine's configuration")?;
        let mut dockerd = self.spawn_command(command, "dockerd")?;
        let socket = self.docker_socket()?;
        while !answers(&socket) {
            if !dockerd.is_running() {
                bail!("the engine of host {} ended: {}", self.number(), dockerd.log_tail());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("the engine of host {} does not answer: {}", self.number(), dockerd.log_tail());
            }
            std::thread::sleep(POLL);
        }
        self.dockerd = Some(dockerd);
        Ok(started.elapsed())
    }

    /// Asks the engine to end and waits; its containers end as well.
    ///
    /// # Errors
    /// If it does not end within 60 s.
    pub fn stop_dockerd(&mut self) -> Result<()> {
        if let Some(mut dockerd) = self.dockerd.take() {
            dockerd.stop(STOP_TIMEOUT)?;
        }
        Ok(())
    }

    /// Kills the engine alone; its containers go on.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill_dockerd(&mut self) -> Result<()> {
        if let Some(mut dockerd) = self.dockerd.take() {
            dockerd.kill()?;
        }
        Ok(())
    }

    /// The engine's socket, as the machine can reach it.
    ///
    /// # Errors
    /// If the host is off.
    pub fn docker_socket(&self) -> Result<PathBuf> {
        Ok(self.root()?.join("run/docker.sock"))
    }

    /// `docker ARGS` on the host, to its end; yields its output without the last line's end.
    ///
    /// # Errors
    /// If it fails; the text holds what it complained of.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        self.exec(&docker_words(args))
    }

    /// `docker ARGS` on the host, whatever becomes of it.
    ///
    /// # Errors
    /// If it could not be run.
    pub fn docker_output(&self, args: &[&str]) -> Result<Output> {
        self.run(&docker_words(args))
    }

    /// Gives the engine an image.
    ///
    /// # Errors
    /// If the engine refuses it.
    pub fn load(&self, image: &Image) -> Result<()> {
        let tar = image.tar.to_str().context("the image's path is not UTF-8")?;
        let path = format!("ENV PATH={}", image.path);
        self.docker(&["import", "-c", "CMD [\"/bin/sh\"]", "-c", &path, tar, image.name]).map(drop)
    }
}

/// The client that came with the engine, if there are several.
fn docker_words<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let client = if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" };
    std::iter::once(client).chain(args.iter().copied()).collect()
}

fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"HTTP/1.1 200" || answer == *b"HTTP/1.0 200")
    };
    ask().unwrap_or(false)
}
