//! A mount for a test, taken down whatever happens.

use remora_fuse_mount::mount::{Mount, MountOptions};
use remora_vfs::attr::Timestamp;
use remora_vfs::filesystem::Filesystem;
use remora_vfs::memfs::MemFs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Refuses to go on where nothing can be mounted: a test that skips itself proves nothing.
pub(crate) fn check_machine() {
    assert!(rustix::process::geteuid().is_root(), "these tests mount file systems: run them as root");
    assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: load the fuse module");
}

/// A directory that is a mount point at most until the end of the test.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        check_machine();
        Place(tempfile::tempdir().unwrap())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
        while rustix::mount::unmount(self.0.path(), flags).is_ok() {}
    }
}

/// An in-memory file system, mounted.
pub(crate) struct Scene {
    // The mount goes before its place.
    pub mount: Mount,
    pub fs: Arc<MemFs>,
    pub place: Place,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Scene::with(&MountOptions::default())
    }

    pub(crate) fn with(options: &MountOptions) -> Self {
        let place = Place::new();
        let fs = Arc::new(MemFs::new(Timestamp(1)));
        let shared: Arc<dyn Filesystem> = Arc::<MemFs>::clone(&fs);
        let mount = Mount::start(shared, place.dir(), options).unwrap();
        Scene { mount, fs, place }
    }

    /// A path in the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.dir().join(name)
    }

    /// A file with this content.
    pub(crate) fn file(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, data).unwrap();
        path
    }
}

/// Runs a shell line as user and group 65534.
pub(crate) fn as_nobody(line: &str) -> bool {
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", line])
        .status()
        .unwrap()
        .success()
}
