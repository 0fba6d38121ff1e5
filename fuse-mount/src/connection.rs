//! The kernel's end of a mount: whether it still asks, and how to end it.
//!
//! What always holds: while [`Connection::is_live`], the superblock exists and its device number is nobody else's; so a
//! number is only acted on after that question.

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount};
use rustix::time::Timespec;
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Where the kernel shows FUSE connections, by minor device number.
const CONTROL_DIR: &str = "/sys/fs/fuse/connections";

/// How long threads wait for one another at the start of a mount.
const WATCH_WAIT: Duration = Duration::from_secs(10);

/// An open connection.
pub(crate) struct Connection {
    /// Our own handle on `/dev/fuse`: tells when the connection is over, and keeps it if all threads are lost.
    device_file: OwnedFd,
    /// `st_dev` of the mount, once known.
    device: OnceLock<u64>,
    /// Threads that serve requests.
    n_threads: usize,
    /// How many of them are watched.
    n_watched: Mutex<usize>,
    all_watched: Condvar,
}

thread_local! {
    static WATCHED: RefCell<Option<EndOfThread>> = const { RefCell::new(None) };
}

/// Lives as long as a thread that serves requests.
///
/// Such a thread ends when the connection does. If it ends sooner it has panicked outside our code, and what it was working on will never be answered. Then the connection is
/// aborted: errors that can be seen and a mount that can be made again, in place of processes that hang for ever.
struct EndOfThread(Arc<Connection>);

impl Drop for EndOfThread {
    fn drop(&mut self) {
        if self.0.is_live() {
            tracing::error!("a thread that serves the mount has died; aborting the mount");
            if let Err(error) = self.0.abort() {
                tracing::error!(%error, "abort the mount");
            }
        }
    }
}

impl Connection {
    /// The connection behind this `/dev/fuse`.
    pub(crate) fn new(device_file: OwnedFd, n_threads: usize) -> Self {
        Connection {
            device_file,
            device: OnceLock::new(),
            n_threads,
            n_watched: Mutex::new(0),
            all_watched: Condvar::new(),
        }
    }

    /// Tells the number of the mounted device; the first call counts.
    pub(crate) fn set_device(&self, device: u64) {
        let _ = self.device.set(device);
    }

    /// `st_dev` of the mount, once it is known.
    pub(crate) fn device(&self) -> Option<u64> {
        self.device.get().copied()
    }

    /// Whether the kernel still asks: not unmounted everywhere, not aborted.
    pub(crate) fn is_live(&self) -> bool {
        let mut files = [PollFd::new(&self.device_file, PollFlags::empty())];
        let immediately = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut files, Some(&immediately)) {
            Ok(_) => !files[0].revents().intersects(PollFlags::ERR | PollFlags::HUP),
            // Interrupted or out of memory: nothing was learned.
            Err(_) => true,
        }
    }

    /// Makes the calling thread's end an abort if the connection is live then.
    ///
    /// A thread waits here once, until all are watched: so as many requests at the same time as there are threads reach
    /// every one of them, and none is left that could die unseen.
    pub(crate) fn watch_this_thread(self: &Arc<Self>) {
        let is_new = WATCHED.with_borrow_mut(|watched| {
            let is_new = watched.is_none();
            if is_new {
                *watched = Some(EndOfThread(Arc::clone(self)));
            }
            is_new
        });
        if is_new {
            *self.n_watched.lock() += 1;
            self.all_watched.notify_all();
            self.wait_watched();
        }
    }

    /// Waits until every thread is watched; answers whether it came to that.
    pub(crate) fn wait_watched(&self) -> bool {
        let deadline = Instant::now() + WATCH_WAIT;
        let mut n_watched = self.n_watched.lock();
        while *n_watched < self.n_threads {
            if self.all_watched.wait_until(&mut n_watched, deadline).timed_out() {
                return *n_watched >= self.n_threads;
            }
        }
        true
    }

    /// Ends the connection: all requests, now and later, fail with `ENOTCONN`; the mount stays in place, dead. (Pages the
    /// kernel has cached may still be read.)
    ///
    /// A connection that is over is left alone.
    pub(crate) fn abort(&self) -> io::Result<()> {
        if !self.is_live() {
            return Ok(());
        }
        let Some(device) = self.device() else {
            return Err(io::Error::other("the mount's device number is not known"));
        };
        let minor = u64::from(rustix::fs::minor(device)) | (u64::from(rustix::fs::major(device)) << 20);
        let file: PathBuf = [CONTROL_DIR, &minor.to_string(), "abort"].iter().collect();
        match std::fs::write(&file, b"1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.is_live() {
                    return Ok(());
                }
                // Where no init system has mounted it, the control file system is missing.
                mount("fusectl", CONTROL_DIR, "fusectl", MountFlags::empty(), None)?;
                std::fs::write(&file, b"1")
            }
            result => result,
        }
    }
}
