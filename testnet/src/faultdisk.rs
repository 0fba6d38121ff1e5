//! A disk that we control, for a real file system: it can fail, and it can lose its power.
//!
//! A FUSE server of this process shows one file; a loop device makes a disk of it; ext4 lies on that. No device mapper is
//! needed. What is written stays in the disk's cache until a flush: a power cut keeps every write up to the last flush and, of
//! the later ones, whatever a seed says (see [`platter`]).
//!
//! ```text
//!   ext4 at DIR/fs  ->  /dev/loopN  ->  DIR/disk/disk.img (FUSE)  ->  Platter (memory)
//! ```
//!
//! What always holds: nothing of it survives the process. [`FaultDisk`] takes down what it made when it is dropped; when the
//! process dies first, a small shell waiting at the other end of a pipe does.

pub mod platter;
mod attach;
mod server;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::faultdisk::attach::{Janitor, LoopDevice, check_ext4, make_ext4, mount_ext4, unmount_all};
use crate::faultdisk::platter::{Counts, Cut, Platter};
use crate::faultdisk::server::Served;

/// How long programs that were just killed may keep the file system busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The same when nobody wants it any more.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// How the loop driver reaches the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LoopIo {
    /// Past the page cache: every request of the file system reaches the disk as it is.
    #[default]
    Direct,
    /// Through the page cache of the image: reads may be answered from it.
    Buffered,
}

/// A disk, and the ext4 on it while it is mounted. Dropped, all of it is gone; programs that still use it get errors.
pub struct FaultDisk {
    dir: PathBuf,
    io: LoopIo,
    platter: Arc<Platter>,
    is_mounted: bool,
    device: Option<LoopDevice>,
    /// Keeps the image reachable; after the loop device, before the janitor.
    served: Served,
    janitor: Janitor,
}

impl FaultDisk {
    /// A disk of `bytes` with an empty ext4 on it, not mounted. Everything of it lies below `dir`, which is made.
    ///
    /// The bytes live in memory, as many as are written; give it at least 16 MiB. Takes root, FUSE and loop devices.
    pub fn create(dir: &Path, bytes: u64) -> Result<FaultDisk> {
        FaultDisk::create_with(dir, bytes, LoopIo::default())
    }

    /// As [`FaultDisk::create`], with a choice of how the loop driver works.
    pub fn create_with(dir: &Path, bytes: u64, io: LoopIo) -> Result<FaultDisk> {
        let dir = std::path::absolute(dir)?;
        for part in [&dir, &dir.join("disk"), &dir.join("fs")] {
            std::fs::create_dir_all(part).with_context(|| format!("create {}", part.display()))?;
        }
        let platter = Arc::new(Platter::new(bytes)?);
        let janitor = Janitor::start(&dir)?;
        let served = Served::start(Arc::clone(&platter), &dir.join("disk"))?;
        let mut disk = FaultDisk { dir, io, platter, is_mounted: false, device: None, served, janitor };
        disk.attach()?;
        make_ext4(disk.device()?)?;
        Ok(disk)
    }

    /// Where ext4 is (or would be) mounted.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// The block device, as long as the power is on.
    pub fn device(&self) -> Result<&Path> {
        Ok(self.device.as_ref().context("the disk is not attached")?.path())
    }

    /// Mounts ext4, if it is not, and answers where.
    pub fn mount(&mut self) -> Result<PathBuf> {
        let dir = self.dir();
        if !self.is_mounted {
            mount_ext4(self.device()?, &dir)?;
            self.is_mounted = true;
        }
        Ok(dir)
    }

    /// Unmounts ext4 and everything that is mounted in it. An error if programs still use it.
    pub fn unmount(&mut self) -> Result<()> {
        if self.is_mounted {
            unmount_all(&self.dir(), BUSY_TIMEOUT)?;
            self.is_mounted = false;
        }
        Ok(())
    }

    /// While on, every write that reaches the disk fails with `EIO` and changes nothing.
    pub fn fail_writes(&self, on: bool) {
        self.platter.fail_writes(on);
    }

    /// While on, every flush that reaches the disk fails with `EIO`. What was written stays in the disk's cache: it is read
    /// back, and is durable once a later flush succeeds.
    pub fn fail_flushes(&self, on: bool) {
        self.platter.fail_flushes(on);
    }

    /// Reads that touch these bytes of the disk fail with `EIO`; `None` ends that. What ext4 has in its cache it does not ask for.
    pub fn fail_reads(&self, range: Option<Range<u64>>) {
        self.platter.fail_reads(range);
    }

    /// From now on a flush takes so long; what is written meanwhile is not part of it. At first it takes no time.
    pub fn set_flush_time(&self, flush_time: Duration) {
        self.platter.set_flush_time(flush_time);
    }

    /// Requests served so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.platter.counts()
    }

    /// Writes into the file `to` what the disk would hold if its power were cut now. The disk itself goes on.
    pub fn image_after_power_cut(&self, seed: u64, to: &Path) -> Result<Cut> {
        self.platter.image_after_power_cut(seed, to)
    }

    /// Cuts the power: from now on every request fails with `EIO`, and `seed` has decided what is left.
    pub fn cut_power(&self, seed: u64) -> Result<Cut> {
        self.platter.cut_power(seed)
    }

    /// Whether [`FaultDisk::cut_power`] has been called since the last [`FaultDisk::power_on`].
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.platter.is_dead()
    }

    /// Gives the power back: what used the file system must have ended. ext4 is checked (an error if the check finds more to do
    /// than to replay the journal) and not mounted.
    pub fn power_on(&mut self) -> Result<()> {
        self.unmount()?;
        self.device.take();
        self.platter.power_on();
        self.attach()?;
        check_ext4(self.device()?)
    }

    fn attach(&mut self) -> Result<()> {
        ensure!(self.device.is_none(), "the disk is attached already");
        let device = LoopDevice::attach(&self.served.image(), self.io)?;
        self.janitor.knows(device.path());
        self.device = Some(device);
        Ok(())
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        let unmounted = if self.is_mounted { unmount_all(&self.dir(), DROP_TIMEOUT) } else { Ok(()) };
        if unmounted.is_err() {
            // Whoever still has files open keeps the rest alive, until then out of sight.
            attach::detach_all(&self.dir());
        }
        self.device.take();
        self.served.stop(unmounted.is_ok());
        self.janitor.dismiss();
    }
}
