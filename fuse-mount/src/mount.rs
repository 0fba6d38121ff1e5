//! Mounts: made, watched, taken down.
//!
//! We call `mount(2)` ourselves: no helper program, no option string a name could break into, and no unmounting by path
//! alone. What always holds: only a mount whose device number is this mount's is ever unmounted, and a mount that could
//! not be made leaves nothing behind.

use crate::adapter::Adapter;
use crate::connection::Connection;
use crate::notify::Notifier;
use crate::stale::{FS_TYPE, clear_dead, is_mount_of_ours, mount_at, resolve};
use fuser::{Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use remora_vfs::filesystem::Filesystem;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Read-ahead, in KiB. The kernel offers a file system 128; one request carries at most 1024.
const READ_AHEAD_KIB: u32 = 1024;

/// The most threads one mount gets.
const N_THREADS_MAX: usize = 64;

/// The longest source name, in bytes.
const FS_NAME_BYTES_MAX: usize = 200;

/// How long `unmount` waits for the threads of a session the kernel has ended: they only finish what they are at.
const END_WAIT: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// What `df` and the mount table show as source; unusual characters become `_`.
    pub fs_name: String,
    /// Whether the kernel refuses changes.
    pub read_only: bool,
    /// Threads that answer requests, 1..=64; other numbers are clamped.
    pub threads: usize,
    /// Whether there are extended attributes. Without them listings and small writes are faster.
    pub xattr: bool,
    /// Whether there are POSIX ACLs, kept by the file system and enforced by the kernel. They cost a question to the file system
    /// for every inode whose permissions are looked at or listed for the first time.
    pub acl: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions { fs_name: "remora".to_owned(), read_only: false, threads: 4, xattr: true, acl: false }
    }
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened: load the module, or give the container the device.
    #[error("open /dev/fuse")]
    Device(#[source] io::Error),
    /// The directory is missing, is no directory or cannot be read.
    #[error("look at {dir}", dir = .dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A living mount of ours is there already.
    #[error("{dir} is mounted already", dir = .dir.display())]
    AlreadyMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused (`EPERM`: mounting takes root).
    #[error("mount {dir}", dir = .dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel and we could not agree, or no thread could be started.
    #[error("start serving {dir}", dir = .dir.display())]
    Session {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The mount is there but its root cannot be read, so it was taken down again.
    #[error("first look at the root of {dir}", dir = .dir.display())]
    NoAnswer {
        /// The directory.
        dir: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Something else is mounted over it; unmount that first.
    #[error("{dir} is covered by another mount", dir = .dir.display())]
    Covered {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused to unmount.
    #[error("unmount {dir}", dir = .dir.display())]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection could not be aborted.
    #[error("abort the mount at {dir}", dir = .dir.display())]
    Abort {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is left after an unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Nothing: the session is over and the file system is no longer called.
    Ended,
    /// Open files or other mount namespaces (containers) still use it, and it goes on serving them;
    /// [`Mount::on_end`] tells when the last is gone.
    Lingering,
}

type OnEnd = Box<dyn FnOnce() + Send>;

/// Whether the session is over, and who wants to know.
#[derive(Default)]
struct End {
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    is_over: bool,
    callbacks: Vec<OnEnd>,
}

impl End {
    fn finish(&self) {
        let callbacks = {
            let mut state = self.state.lock();
            state.is_over = true;
            std::mem::take(&mut state.callbacks)
        };
        self.changed.notify_all();
        for callback in callbacks {
            callback();
        }
    }

    fn wait(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut state = self.state.lock();
        while !state.is_over {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return state.is_over;
            }
        }
        true
    }
}

/// A mounted file system. Dropping it unmounts; what still uses it then is served until it is gone.
pub struct Mount {
    dir: PathBuf,
    device: u64,
    connection: Arc<Connection>,
    notifier: Notifier,
    end: Arc<End>,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount").field("dir", &self.dir).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Mount {
    /// Mounts `fs` at the existing directory `dir` and returns when it answers. Blocks; takes root.
    ///
    /// A dead mount of ours at the same place is cleared away first. Set-user-id programs and device nodes work, as on the
    /// engine's own volumes. On an error nothing stays mounted.
    pub fn start(fs: Arc<dyn Filesystem>, dir: &Path, options: &MountOptions) -> Result<Mount, MountError> {
        let dir = prepare(dir)?;
        let device_file = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| MountError::Device(error.into()))?;
        let watched = device_file.try_clone().map_err(MountError::Device)?;
        mount_device(&device_file, &dir, options)
            .map_err(|source| MountError::Mount { dir: dir.clone(), source })?;
        let half = HalfMade { dir: &dir };
        let session_error = |source| MountError::Session { dir: dir.clone(), source };

        let n_threads = options.threads.clamp(1, N_THREADS_MAX);
        let connection = Arc::new(Connection::new(watched, n_threads));
        let adapter = Adapter::new(fs, Arc::clone(&connection), options);
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(n_threads);
        let session =
            Session::from_fd(adapter, device_file, SessionACL::All, config).map_err(session_error)?;
        let notifier = Notifier::start(session.notifier()).map_err(session_error)?;
        let end = Arc::new(End::default());
        spawn_session(session, Arc::clone(&connection), Arc::clone(&end)).map_err(session_error)?;

        let root = first_look(&dir, n_threads, &connection)
            .map_err(|source| MountError::NoAnswer { dir: dir.clone(), source })?;
        connection.set_device(root.st_dev);
        raise_read_ahead(root.st_dev);
        std::mem::forget(half);
        Ok(Mount { dir, device: root.st_dev, connection, notifier, end })
    }

    /// Where it is mounted, as the mount table has it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `st_dev` of everything in it; nobody else's while [`Mount::is_live`].
    #[must_use]
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Whether requests still come: neither unmounted everywhere nor aborted.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.connection.is_live()
    }

    /// To tell the kernel what to forget.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Calls back once when the session is over: unmounted and no longer used anywhere, or aborted. At once if it is over
    /// already. The callback runs on the session's thread (or this one) and must not block on this mount.
    pub fn on_end(&self, callback: OnEnd) {
        let mut state = self.end.state.lock();
        if state.is_over {
            drop(state);
            callback();
        } else {
            state.callbacks.push(callback);
        }
    }

    /// Waits for the end of the session, at most so long; answers whether it is over.
    #[must_use]
    pub fn wait_end(&self, at_most: Duration) -> bool {
        self.end.wait(at_most)
    }

    /// Takes the mount out of this namespace: cleanly, or if it is busy by detaching it. Never waits for those who use it.
    ///
    /// Unmounting again, or after somebody else did, is no error.
    pub fn unmount(&self) -> Result<Unmounted, MountError> {
        self.detach()?;
        if self.is_live() {
            return Ok(Unmounted::Lingering);
        }
        if self.end.wait(END_WAIT) { Ok(Unmounted::Ended) } else { Ok(Unmounted::Lingering) }
    }

    /// Ends the session at once: everybody who uses the mount gets `ENOTCONN`, and the mount stays, dead, so that nothing
    /// is written to the directory below it. Pages the kernel has cached may still be read.
    pub fn abort(&self) -> Result<(), MountError> {
        self.connection.abort().map_err(|source| MountError::Abort { dir: self.dir.clone(), source })
    }

    fn detach(&self) -> Result<(), MountError> {
        let dir = || self.dir.clone();
        let unmount_error = |source| MountError::Unmount { dir: dir(), source };
        if !self.is_live() {
            // The device number may belong to somebody else by now; being dead and ours in kind is what counts.
            clear_dead(&self.dir).map_err(unmount_error)?;
            return Ok(());
        }
        match mount_at(&self.dir).map_err(unmount_error)? {
            Some(entry) if entry.device == self.device => {}
            Some(_) if is_in_table(self.device, &self.dir).map_err(unmount_error)? => {
                return Err(MountError::Covered { dir: dir() });
            }
            _ => return Ok(()),
        }
        match rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            }
            result => result,
        }
        .map_err(|error| unmount_error(error.into()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, dir = %self.dir.display(), "unmount");
        }
    }
}

/// Takes down a mount that was begun and not finished.
struct HalfMade<'a> {
    dir: &'a Path,
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            tracing::warn!(%error, dir = %self.dir.display(), "take down a mount that did not come up");
        }
    }
}

/// A directory that can be mounted on, without a dead mount of ours.
fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    let failed = |source| MountError::Directory { dir: dir.to_owned(), source };
    let dir = resolve(dir).map_err(failed)?;
    clear_dead(&dir).map_err(failed)?;
    if is_mount_of_ours(&dir).map_err(failed)? {
        return Err(MountError::AlreadyMounted { dir });
    }
    if !std::fs::metadata(&dir).map_err(failed)?.is_dir() {
        return Err(failed(io::Error::from(Errno::NOTDIR)));
    }
    Ok(dir)
}

fn mount_device(device_file: &OwnedFd, dir: &Path, options: &MountOptions) -> io::Result<()> {
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device_file.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let data = CString::new(data).map_err(io::Error::other)?;
    let flags = if options.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount(source_name(&options.fs_name), dir, FS_TYPE, flags, data.as_c_str())?;
    Ok(())
}

/// A source name that no reader of the mount table stumbles over.
fn source_name(fs_name: &str) -> String {
    let name: String = fs_name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.:/@".contains(c) { c } else { '_' })
        .take(FS_NAME_BYTES_MAX)
        .collect();
    if name.is_empty() { "remora".to_owned() } else { name }
}

fn spawn_session(session: Session<Adapter>, connection: Arc<Connection>, end: Arc<End>) -> io::Result<()> {
    std::thread::Builder::new().name("remora-fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "serve a mount");
        }
        if let Err(error) = connection.abort() {
            tracing::error!(%error, "abort a mount that is no longer served");
        }
        end.finish();
    })?;
    Ok(())
}

/// Asks something of every thread that serves the mount, then for the root.
fn first_look(dir: &Path, n_threads: usize, connection: &Connection) -> io::Result<rustix::fs::Stat> {
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            // The kernel never answers `statfs` by itself. What it says does not matter.
            std::thread::Builder::new().spawn_scoped(scope, || rustix::fs::statfs(dir).is_ok())?;
        }
        io::Result::Ok(())
    })?;
    if !connection.wait_watched() {
        return Err(io::Error::other("not every thread that serves the mount answers"));
    }
    Ok(rustix::fs::stat(dir)?)
}

/// Read-ahead cannot be negotiated above what the kernel offers, but it can be set afterwards.
fn raise_read_ahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, file, "raise read-ahead");
    }
}

fn is_in_table(device: u64, dir: &Path) -> io::Result<bool> {
    Ok(crate::stale::mount_table()?.iter().any(|entry| entry.device == device && entry.dir == dir))
}

#[cfg(test)]
mod tests {
    use super::source_name;

    #[test]
    fn a_source_name_has_nothing_to_stumble_over() {
        assert_eq!(source_name("remora:notes"), "remora:notes");
        assert_eq!(source_name("a,suid b\n\0\u{e9}\\"), "a_suid_b____");
        assert_eq!(source_name(""), "remora");
        assert_eq!(source_name(&"x".repeat(1000)).len(), 200);
    }
}
