//! What the kernel must forget, told by one thread that holds no lock.
//!
//! The kernel takes the inode's or directory's lock to forget, and may hold that lock while it waits for an answer of
//! ours. So a notification must never be sent from where a request is handled, nor under a lock a handler takes; here it
//! goes through a queue of bounded length, and sending to the queue never blocks.

use fuser::INodeNo;
use remora_vfs::attr::Ino;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Notifications that may wait.
const QUEUE_LEN: usize = 1024;

/// Why a notification was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// Too many wait already; try again, or tell the kernel to forget something larger.
    #[error("{QUEUE_LEN} notifications wait already")]
    Full,
    /// The mount is gone, and with it what the kernel remembered.
    #[error("the mount is gone")]
    Ended,
}

enum Notice {
    Inode { ino: Ino, offset: i64, len: i64 },
    Entry { parent: Ino, name: Vec<u8> },
    Barrier(SyncSender<()>),
}

/// Tells the kernel what to forget, in the order of the calls. Clones share one queue and thread.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: SyncSender<Notice>,
}

impl Notifier {
    /// Starts the thread; it ends when the last clone is dropped.
    pub(crate) fn start(kernel: fuser::Notifier) -> io::Result<Self> {
        let (queue, notices) = sync_channel(QUEUE_LEN);
        std::thread::Builder::new()
            .name("remora-notify".to_owned())
            .spawn(move || send_all(&kernel, &notices))?;
        Ok(Notifier { queue })
    }

    /// Forget the attributes and all cached content of an inode.
    pub fn inval_inode(&self, ino: Ino) -> Result<(), NotifyError> {
        self.push(Notice::Inode { ino, offset: 0, len: 0 })
    }

    /// Forget the attributes of an inode; its content stays cached.
    pub fn inval_attributes(&self, ino: Ino) -> Result<(), NotifyError> {
        self.push(Notice::Inode { ino, offset: -1, len: 0 })
    }

    /// Forget what a name leads to, or that it leads nowhere.
    pub fn inval_entry(&self, parent: Ino, name: &[u8]) -> Result<(), NotifyError> {
        self.push(Notice::Entry { parent, name: name.to_vec() })
    }

    /// Waits until the kernel has been told everything that was queued before. Not to be called where a request is handled.
    pub fn wait(&self) -> Result<(), NotifyError> {
        let (done, told) = sync_channel(1);
        self.queue.send(Notice::Barrier(done)).map_err(|_| NotifyError::Ended)?;
        told.recv().map_err(|_| NotifyError::Ended)
    }

    fn push(&self, notice: Notice) -> Result<(), NotifyError> {
        self.queue.try_send(notice).map_err(|error| match error {
            TrySendError::Full(_) => NotifyError::Full,
            TrySendError::Disconnected(_) => NotifyError::Ended,
        })
    }
}

fn send_all(kernel: &fuser::Notifier, notices: &Receiver<Notice>) {
    while let Ok(notice) = notices.recv() {
        let result = match notice {
            Notice::Inode { ino, offset, len } => kernel.inval_inode(INodeNo(ino), offset, len),
            Notice::Entry { parent, name } => kernel.inval_entry(INodeNo(parent), OsStr::from_bytes(&name)),
            Notice::Barrier(done) => {
                // Nobody waits any more: fine.
                let _ = done.send(());
                Ok(())
            }
        };
        if let Err(error) = result {
            // ENOENT (it was not remembered) is no error here; the rest means that the mount is gone.
            tracing::debug!(%error, "notify the kernel");
        }
    }
}
