//! One volume mounted on this host: the writer, the kernel's session, and who asked for it.
//!
//! A volume has one FUSE session a host, at a mount point of ours; every directory a user mounts it on, and every container, is
//! a bind of that. So all of them share one cache and one set of locks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remora_cluster::volume_record::VolumeRecord;
use remora_fuse_mount::docker::options::asks_for_acls;
use remora_fuse_mount::mount::{Mount, MountOptions};
use remora_fuse_mount::stale;
use remora_store::fault::chain;
use remora_vfs::filesystem::Filesystem;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::exit::{Code, Context, Failure};
use crate::keepers::writing::Writing;
use crate::volumes::users::{self, Users};

/// How long an engine may take from a mount to the start of its container: until then the id of the mount counts as a user.
const ENGINE_START_TIME: Duration = Duration::from_secs(120);

/// A mounted volume.
pub(crate) struct Mounted {
    pub(crate) name: String,
    pub(crate) writing: Writing,
    mount: Mount,
    /// Mount ids of the engine and when they came; hints, see [`users`].
    ids: Mutex<BTreeMap<u64, Instant>>,
    /// Every directory it was ever bound to in this session.
    bound: Mutex<BTreeSet<PathBuf>>,
    next_id: Mutex<u64>,
}

impl Mounted {
    /// Gives the volume to the kernel at `point`.
    pub(crate) fn start(
        record: &VolumeRecord,
        writing: Writing,
        point: &Path,
        threads: usize,
    ) -> Result<Mounted, (Writing, Failure)> {
        match present(record, &writing, point, threads) {
            Ok(mount) => Ok(Mounted {
                name: record.name.clone(),
                writing,
                mount,
                ids: Mutex::new(BTreeMap::new()),
                bound: Mutex::new(BTreeSet::new()),
                next_id: Mutex::new(0),
            }),
            Err(failure) => Err((writing, failure)),
        }
    }

    /// Our own mount point.
    pub(crate) fn point(&self) -> &Path {
        self.mount.dir()
    }

    /// Whether the kernel still serves it.
    pub(crate) fn is_live(&self) -> bool {
        self.mount.is_live()
    }

    /// Why the volume stepped down, if it did.
    pub(crate) fn failed(&self) -> Option<String> {
        self.writing.volume().status().failed
    }

    /// The directories of this host it is mounted on; cheap enough for every listing.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        users::here(self.mount.device(), self.point()).unwrap_or_default()
    }

    /// Who uses it, by the kernel's tables.
    pub(crate) fn users(&self) -> Result<Users, Failure> {
        users::of(self.mount.device(), self.point(), &self.bound.lock()).doing("read the mount tables")
    }

    /// An engine mounts: it counts as a user until its container is seen, or for the time that takes at most.
    pub(crate) fn expect_container(&self) {
        let mut next = self.next_id.lock();
        *next += 1;
        self.ids.lock().insert(*next, Instant::now());
    }

    /// An engine unmounts: one expectation less.
    pub(crate) fn forget_container(&self) {
        let mut ids = self.ids.lock();
        if let Some(oldest) = ids.keys().next().copied() {
            ids.remove(&oldest);
        }
    }

    /// Whether a container may be about to start.
    fn expects_container(&self) -> bool {
        let mut ids = self.ids.lock();
        ids.retain(|_, since| since.elapsed() < ENGINE_START_TIME);
        !ids.is_empty()
    }

    /// Whether nobody uses it, as far as can be known.
    pub(crate) fn is_unused(&self) -> Result<bool, Failure> {
        Ok(!self.expects_container() && self.users()?.is_empty())
    }

    /// Binds the volume to a directory.
    pub(crate) fn bind(&self, dir: &Path, read_only: bool) -> Result<(), Failure> {
        self.bound.lock().insert(dir.to_path_buf());
        bind(self.point(), dir, read_only)
    }

    /// Makes the kernel hand over what it still holds: pages written through shared mappings.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let dir = std::fs::File::open(self.point()).doing(format_args!("open {}", self.point().display()))?;
        rustix::fs::syncfs(&dir).doing(format_args!("sync {}", self.point().display()))
    }

    /// Takes the volume from the kernel; open files in it get errors from now on.
    pub(crate) fn stop(&self) -> Result<(), Failure> {
        self.mount.unmount().map(drop).map_err(|e| Failure::failed(chain(&e)))
    }
}

fn present(record: &VolumeRecord, writing: &Writing, point: &Path, threads: usize) -> Result<Mount, Failure> {
    prepare(point)?;
    let options = MountOptions {
        fs_name: format!("remora:{}", record.name),
        read_only: false,
        threads,
        acl: asks_for_acls(&record.options),
        ..MountOptions::default()
    };
    let filesystem: Arc<dyn Filesystem> = Arc::clone(writing.volume()) as _;
    Mount::start(filesystem, point, &options).map_err(|e| Failure::failed(format!("mount: {}", chain(&e))))
}

/// Makes the mount point; what a killed daemon left there is cleared away.
fn prepare(point: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    clear_dead(point)?;
    std::fs::create_dir_all(point).doing(format_args!("create {}", point.display()))?;
    // Nobody can write below the mount point while nothing is mounted there.
    std::fs::set_permissions(point, std::fs::Permissions::from_mode(0o000))
        .doing(format_args!("close {}", point.display()))
}

/// Detaches mounts whose daemon is gone.
pub(crate) fn clear_dead(dir: &Path) -> Result<(), Failure> {
    match stale::clear_dead(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop).doing(format_args!("clear the dead mount at {}", dir.display())),
    }
}

fn bind(point: &Path, dir: &Path, read_only: bool) -> Result<(), Failure> {
    clear_dead(dir)?;
    let meta = std::fs::metadata(dir).doing(format_args!("look at {}", dir.display()))?;
    if !meta.is_dir() {
        return Err(Failure::usage(format!("{} is no directory", dir.display())));
    }
    if stale::mount_at(dir).doing("read the mount table")?.is_some() {
        return Err(Failure::new(
            Code::Conflict,
            format!("something is mounted on {} already", dir.display()),
        ));
    }
    rustix::mount::mount_bind(point, dir).doing(format_args!("mount on {}", dir.display()))?;
    if !read_only {
        return Ok(());
    }
    rustix::mount::mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "").map_err(|e| {
        let _undone = rustix::mount::unmount(dir, UnmountFlags::DETACH);
        Failure::failed(format!("mount read-only on {}: {e}", dir.display()))
    })
}

/// Takes a bind away; a directory somebody is in stays mounted, and says so.
pub(crate) fn unbind(dir: &Path) -> Result<(), Failure> {
    match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(Failure::new(
            Code::Conflict,
            format!(
                "{} is in use: end the processes that have files open in it (`fuser -vm {0}`)",
                dir.display()
            ),
        )),
        Err(rustix::io::Errno::INVAL) => {
            Err(Failure::not_found(format!("nothing is mounted on {}", dir.display())))
        }
        Err(e) => Err(Failure::failed(format!("unmount {}: {e}", dir.display()))),
    }
}

/// Where a volume is mounted for the engine and for binds.
pub(crate) fn point_of(dir: &Path, id: &str) -> PathBuf {
    dir.join(id)
}
