//! The identity of this host: an ed25519 key in a file that only its owner can read.
//!
//! What always holds:
//! * the secret leaves this file only into the key file, written with mode 0600;
//! * a key file is written once and never replaced: whoever loses the key loses the membership;
//! * what [`Identity::load`] returns signs for the public half that is written beside the secret.
//!
//! The file is one line: `remora-node-key 1 <128 hex digits>`, the secret and then the public half.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libp2p::identity::{Keypair, ed25519};
use remora_cluster::identity::PeerId;
use thiserror::Error;

const MAGIC: &str = "remora-node-key";
const VERSION: &str = "1";
const FILE_BYTES_MAX: u64 = 1024;
const PAIR_BYTES: usize = 64;

/// Why a key could not be read or written.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// There is no key at this path; `remora init` makes one.
    #[error("there is no node key at {}", path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// Others than the owner may read the key, so that it may be known to them.
    #[error("node key {} has mode {mode:o}, others can read it; run `chmod 600 {}`", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a key. Its content is left as it is.
    #[error("node key {} is damaged ({reason}); restore it from a backup, or move it away, run `remora init` and join again as a new member", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file was written by a newer version of this program.
    #[error("node key {} has format {version}, which is newer than this program", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version it names.
        version: String,
    },
    /// There already is a file, and keys are never replaced.
    #[error("{} exists already and is not replaced", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// The key pair of a host.
#[derive(Clone)]
pub struct Identity {
    pair: ed25519::Keypair,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

impl Identity {
    /// A new key from the randomness of the system.
    #[must_use]
    pub fn generate() -> Identity {
        Identity { pair: ed25519::Keypair::generate() }
    }

    /// The public half, which names this host everywhere.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.pair.public().to_bytes())
    }

    /// Signs `message`; anybody verifies it with [`Identity::peer_id`] as the key.
    ///
    /// # Panics
    /// Never: an ed25519 signature has 64 bytes.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(&self.pair.sign(message));
        signature
    }

    /// The key as libp2p wants it.
    pub(crate) fn keypair(&self) -> Keypair {
        Keypair::from(self.pair.clone())
    }

    /// Reads the key at `path`.
    ///
    /// # Errors
    /// [`IdentityError`], each naming the file and what to do about it. Nothing is changed.
    pub fn load(path: &Path) -> Result<Identity, IdentityError> {
        let mut file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing { path: path.into() },
            _ => io_error("open node key", path)(source),
        })?;
        let meta = file.metadata().map_err(io_error("stat node key", path))?;
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::TooOpen { path: path.into(), mode });
        }
        let mut bytes = Vec::new();
        let limited = (&mut file).take(FILE_BYTES_MAX);
        { limited }.read_to_end(&mut bytes).map_err(io_error("read node key", path))?;
        parse(&bytes, path)
    }

    /// Writes the key to a new file at `path`, readable for its owner alone. It is durable, name included, on return.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] or [`IdentityError::Io`]; then there is no new file.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let temporary = path.with_extension("new");
        let written = write_synced(&temporary, self.line().as_bytes());
        let linked = written.and_then(|()| std::fs::hard_link(&temporary, path));
        // The second name goes whether or not the first one stands.
        let removed = std::fs::remove_file(&temporary);
        match linked {
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                return Err(IdentityError::Exists { path: path.into() });
            }
            other => other.and(removed).map_err(io_error("write node key", path))?,
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync the directory of", path))
    }

    fn line(&self) -> String {
        let mut line = format!("{MAGIC} {VERSION} ");
        for byte in self.pair.to_bytes() {
            line.push_str(&format!("{byte:02x}"));
        }
        line.push('\n');
        line
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { doing, path: path.into(), source }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A leftover of an interrupted save holds a key that nobody has used.
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(source),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn parse(bytes: &[u8], path: &Path) -> Result<Identity, IdentityError> {
    let damaged = |reason| IdentityError::Damaged { path: path.into(), reason };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some(MAGIC) {
        return Err(damaged("it does not begin with remora-node-key"));
    }
    match words.next() {
        Some(VERSION) => {}
        Some(version) if version.parse::<u32>().is_ok_and(|number| number > 1) => {
            return Err(IdentityError::Newer { path: path.into(), version: version.into() });
        }
        _ => return Err(damaged("it has no version")),
    }
    let digits = words.next().ok_or_else(|| damaged("it ends before the key"))?;
    if words.next().is_some() {
        return Err(damaged("something follows the key"));
    }
    let mut pair = hex(digits).ok_or_else(|| damaged("the key is not 128 hex digits"))?;
    let pair = ed25519::Keypair::try_from_bytes(&mut pair);
    Ok(Identity { pair: pair.map_err(|_| damaged("its two halves do not belong together"))? })
}

fn hex(digits: &str) -> Option<[u8; PAIR_BYTES]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * PAIR_BYTES {
        return None;
    }
    let mut bytes = [0; PAIR_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> (tempfile::TempDir, PathBuf, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let identity = Identity::generate();
        identity.save(&path).unwrap();
        (dir, path, identity)
    }

    #[test]
    fn a_saved_key_is_the_same_key_when_loaded_and_private() {
        let (dir, path, identity) = saved();
        let again = Identity::load(&path).unwrap();
        assert_eq!(again.peer_id(), identity.peer_id());
        assert_eq!(again.sign(b"hi"), identity.sign(b"hi"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_is_never_replaced() {
        let (_dir, path, identity) = saved();
        assert!(matches!(Identity::generate().save(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(Identity::load(&path).unwrap().peer_id(), identity.peer_id());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, path, _) = saved();
        for mode in [0o640, 0o604, 0o666] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(matches!(error, IdentityError::TooOpen { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn a_damaged_key_is_named_and_left_alone() {
        let (_dir, path, identity) = saved();
        let good = std::fs::read_to_string(&path).unwrap();
        let flipped = good.replace(&good[30..31], if &good[30..31] == "0" { "1" } else { "0" });
        for bad in ["", "hello", "remora-node-key", "remora-node-key 1", &good[..60], &flipped, "\u{fffd}"] {
            std::fs::write(&path, bad).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{bad:?}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
        std::fs::write(&path, good.replace(" 1 ", " 2 ")).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Newer { .. })));
        std::fs::write(&path, good).unwrap();
        assert_eq!(Identity::load(&path).unwrap().peer_id(), identity.peer_id());
    }

    #[test]
    fn a_missing_key_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Identity::load(&dir.path().join("node.key"));
        assert!(matches!(missing, Err(IdentityError::Missing { .. })));
    }
}
