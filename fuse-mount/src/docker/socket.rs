//! The file an engine finds us by: made once it can be answered, removed only if it is still ours.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why the plugin socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers on it; stop that one or use another path.
    #[error("another process answers on {}; only one remora daemon can serve an engine", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket lies there; it is left alone.
    #[error("{} exists and is not a socket; move it away", path.display())]
    NotASocket {
        /// What lies there.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ServeError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
        move |source| ServeError::Io { doing, path: path.to_owned(), source }
    }
}

/// A listening plugin socket on which nobody answers yet: connections wait in its queue and are not refused.
///
/// A daemon opens it before anything that takes time, so that an engine which starts meanwhile waits instead of failing.
#[derive(Debug)]
pub struct PluginSocket {
    listener: UnixListener,
    file: Option<SocketFile>,
}

impl PluginSocket {
    /// Opens the socket at `path` with mode 0600, making its directory if need be.
    ///
    /// A file left by a process that died is replaced; one that is answered is not. The file appears under its name when
    /// it can already be connected to, and never with wider permissions.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left behind.
    pub fn open(path: &Path) -> Result<PluginSocket, ServeError> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(ServeError::io("make directory", directory))?;
        refuse_if_taken(path)?;
        // Short: a socket's path has 108 bytes at most, and the final name is at least about as long as this.
        let fresh = directory.join(format!(".r{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(ServeError::io("open socket", path))?;
        let finish = || -> io::Result<Metadata> {
            fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let metadata = fs::symlink_metadata(&fresh)?;
            fs::rename(&fresh, path)?;
            Ok(metadata)
        };
        match finish() {
            Ok(metadata) => Ok(PluginSocket { listener, file: Some(SocketFile::new(path, &metadata)) }),
            Err(source) => {
                let _ = fs::remove_file(&fresh);
                Err(ServeError::io("open socket", path)(source))
            }
        }
    }

    /// Takes a socket that a service manager opened for us; its file is left alone.
    ///
    /// # Errors
    /// [`ServeError::Io`] if it cannot be made non-blocking.
    pub fn from_listener(listener: UnixListener) -> Result<PluginSocket, ServeError> {
        listener.set_nonblocking(true).map_err(ServeError::io("use inherited socket", Path::new("")))?;
        Ok(PluginSocket { listener, file: None })
    }

    /// The listener, and the file that goes away with the second value.
    pub(super) fn into_parts(self) -> (UnixListener, Option<SocketFile>) {
        (self.listener, self.file)
    }
}

fn refuse_if_taken(path: &Path) -> Result<(), ServeError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ServeError::io("look at", path)(source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(source) => Err(ServeError::io("ask who answers on", path)(source)),
    }
}

/// Removes the socket's file when dropped, unless somebody else has put another one there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path, metadata: &Metadata) -> SocketFile {
        SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "plugin socket file left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PluginSocket, ServeError};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_that_is_answered_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugins/r.sock");
        let first = PluginSocket::open(&path).unwrap();
        assert!(matches!(PluginSocket::open(&path), Err(ServeError::InUse { .. })));
        assert!(UnixStream::connect(&path).is_ok());
        drop(first.into_parts());
        assert!(!path.exists(), "the file goes with its owner");
    }

    #[test]
    fn a_socket_left_by_the_dead_is_replaced_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.sock");
        drop(UnixListener::bind(&path).unwrap());
        let _socket = PluginSocket::open(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(PluginSocket::open(&path), Err(ServeError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_survives_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.sock");
        let first = PluginSocket::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = PluginSocket::open(&path).unwrap();
        drop(first.into_parts());
        assert!(UnixStream::connect(&path).is_ok());
    }
}
