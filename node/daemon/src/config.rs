//! `config.toml`: one struct, each key with its unit, default and reason.

use std::path::{Path, PathBuf};

use remora_volume::volume::options::CHECKPOINT_LOG_BYTES;
use serde::{Deserialize, Serialize};

use crate::exit::{Code, Context, Failure};

/// The port a node listens on unless told otherwise.
const PORT_DEFAULT: u16 = 4717;

/// A node's settings. Unknown keys are refused: a typing mistake must not pass for a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What the cluster calls this host; shown in errors and `peers`. Default: the host name.
    pub(crate) name: String,
    /// Failure domain (rack, room); copies are spread over zones. Default: "default".
    #[serde(default = "default_zone")]
    pub(crate) zone: String,
    /// Multiaddrs to listen on for peers; `/tcp/0` lets the system choose the port.
    #[serde(default = "default_listen")]
    pub(crate) listen: Vec<String>,
    /// Look for members on the local network by mDNS (addresses only, never trust).
    #[serde(default)]
    pub(crate) mdns: bool,
    /// Docker's plugin socket: "auto" (root: `/run/docker/plugins/remora.sock`), "off", or a path.
    #[serde(default = "default_docker")]
    pub(crate) docker_plugin: String,
    /// Bytes kept free on the store's disk for deletes, commits and clean-up; below it writes answer ENOSPC.
    #[serde(default = "default_reserve")]
    pub(crate) reserve_bytes: u64,
    /// Seconds for which a block that nothing refers to is kept all the same; what is on its way to be referred to has that long.
    #[serde(default = "default_grace")]
    pub(crate) gc_grace_secs: u64,
    /// A log this long is turned into a tree while the volume is busy. Shorter: a volume opens sooner after a crash.
    /// Longer: less is written.
    #[serde(default = "default_checkpoint_log")]
    pub(crate) checkpoint_log_bytes: u64,
}

fn default_zone() -> String {
    "default".into()
}

fn default_listen() -> Vec<String> {
    vec![format!("/ip4/0.0.0.0/tcp/{PORT_DEFAULT}")]
}

fn default_docker() -> String {
    "auto".into()
}

fn default_reserve() -> u64 {
    256 << 20
}

fn default_grace() -> u64 {
    600
}

/// The longest grace: a week.
const GRACE_SECS_MAX: u64 = 7 * 24 * 3600;

fn default_checkpoint_log() -> u64 {
    CHECKPOINT_LOG_BYTES
}

/// The longest host or zone name, in bytes.
const NAME_BYTES_MAX: usize = 64;

impl Config {
    /// The settings of a new node; empty choices take their defaults.
    pub(crate) fn fresh(
        name: Option<String>,
        zone: Option<String>,
        listen: Vec<String>,
    ) -> Result<Self, Failure> {
        let config = Config {
            name: name.unwrap_or_else(host_name),
            zone: zone.unwrap_or_else(default_zone),
            listen: if listen.is_empty() { default_listen() } else { listen },
            mdns: false,
            docker_plugin: default_docker(),
            reserve_bytes: default_reserve(),
            gc_grace_secs: default_grace(),
            checkpoint_log_bytes: default_checkpoint_log(),
        };
        config.validate().map_err(Failure::usage)?;
        Ok(config)
    }

    /// Reads and checks the file; an error names the file, the key and the remedy.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Failure::new(
                Code::NotReady,
                format!(
                    "no node in {}: type `remora init` for a new cluster or `remora join TICKET`",
                    path.parent().unwrap_or(path).display()
                ),
            ),
            _ => Failure::failed(format!("read {}: {e}", path.display())),
        })?;
        let damaged = |why: String| {
            Failure::new(
                Code::Damaged,
                format!("{}: {why}\nmend the file, nothing was changed", path.display()),
            )
        };
        let config: Config = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        config.validate().map_err(damaged)?;
        Ok(config)
    }

    /// Writes the file for a new node; durable on return.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string_pretty(self).doing("encode config")?;
        write_durably(path, text.as_bytes(), 0o600)
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        for (key, value) in [("name", &self.name), ("zone", &self.zone)] {
            let good = !value.is_empty()
                && value.len() <= NAME_BYTES_MAX
                && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if !good {
                return Err(format!("{key} = {value:?}: 1 to {NAME_BYTES_MAX} of [A-Za-z0-9._-]"));
            }
        }
        if self.listen.is_empty() || self.listen.len() > 8 {
            return Err("listen: between 1 and 8 addresses".into());
        }
        for address in &self.listen {
            remora_net::peer::parse_address(address)
                .map_err(|e| format!("listen = {address:?}: {e}; like /ip4/0.0.0.0/tcp/{PORT_DEFAULT}"))?;
        }
        if self.gc_grace_secs == 0 || self.gc_grace_secs > GRACE_SECS_MAX {
            return Err(format!("gc_grace_secs = {}: between 1 and {GRACE_SECS_MAX}", self.gc_grace_secs));
        }
        if !matches!(self.docker_plugin.as_str(), "auto" | "off") && !self.docker_plugin.starts_with('/') {
            return Err(format!(
                "docker_plugin = {:?}: \"auto\", \"off\" or an absolute path",
                self.docker_plugin
            ));
        }
        Ok(())
    }

    /// Where the Docker plugin listens, if it does; the flag says whether a failure to listen ends the daemon.
    pub(crate) fn docker_socket(&self) -> Option<(PathBuf, bool)> {
        match self.docker_plugin.as_str() {
            "off" => None,
            "auto" => rustix::process::geteuid()
                .is_root()
                .then(|| (PathBuf::from("/run/docker/plugins/remora.sock"), false)),
            path => Some((PathBuf::from(path), true)),
        }
    }
}

/// This machine's name, cut to what a member's name may be.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    if name.is_empty() { "host".into() } else { name }
}

/// Writes a small file so that after a crash it is either the old or the new one; durable on return.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let staged = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        match path.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().doing(format_args!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edit: &str) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, edit).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_minimal_config_takes_the_defaults() {
        let config = check("name = \"a\"").unwrap();
        assert_eq!((config.zone.as_str(), config.docker_plugin.as_str()), ("default", "auto"));
    }

    #[test]
    fn a_corrupt_config_is_named_and_left_alone() {
        for bad in
            ["name = ", "nam = \"a\"", "name = \"a/b\"", "name = \"a\"\nlisten = [\"nonsense\"]", "\u{0}"]
        {
            let failure = check(bad).unwrap_err();
            assert_eq!(failure.code, Code::Damaged, "{bad:?}: {failure}");
            assert!(failure.text.contains("config.toml"), "{failure}");
        }
    }

    #[test]
    fn a_missing_config_says_what_to_type() {
        let failure = Config::load(Path::new("/nonexistent/config.toml")).unwrap_err();
        assert_eq!(failure.code, Code::NotReady);
        assert!(failure.text.contains("remora init"));
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let config = Config::fresh(Some("n1".into()), None, vec!["/ip4/127.0.0.1/tcp/0".into()]).unwrap();
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
    }
}
