//! Mounts for the container engine.

use std::path::PathBuf;
use std::sync::Arc;

use remora_cluster::identity::VolumeId;

use crate::exit::Failure;
use crate::volumes::service::Volumes;

impl Volumes {
    /// Where a volume is mounted for the engine, if it is.
    pub(crate) fn docker_mountpoint(&self, id: &str) -> Option<PathBuf> {
        let id: VolumeId = id.parse().ok()?;
        self.get(&id).map(|mounted| mounted.point().to_path_buf())
    }

    /// Mounts a volume for a container that is about to start.
    pub(crate) fn mount_for_docker(&self, name: &str) -> Result<PathBuf, Failure> {
        let record = self.record(name)?;
        let turn = self.turn(record.id);
        let _turn = turn.lock();
        let mounted = self.ensure_mounted(&record)?;
        mounted.expect_container();
        Ok(mounted.point().to_path_buf())
    }

    /// A container is gone, or an operation of the engine has ended; the volume is released if the kernel knows no user.
    pub(crate) fn unmount_for_docker(&self, name: &str) -> Result<(), Failure> {
        // A volume that was removed meanwhile has nothing to unmount.
        let Ok(record) = self.record(name) else { return Ok(()) };
        let turn = self.turn(record.id);
        let _turn = turn.lock();
        if let Some(mounted) = self.get(&record.id) {
            mounted.forget_container();
        }
        self.release_if_unused(&record.id)
    }

    /// Releases what nobody uses any more though nobody said so: an engine that was killed never unmounts.
    pub(crate) fn sweep(self: &Arc<Self>) {
        self.restore_late();
        let all: Vec<VolumeId> = self.mounted.lock().keys().copied().collect();
        for id in all {
            let turn = self.turn(id);
            let Some(_turn) = turn.try_lock() else { continue };
            if let Err(failure) = self.release_if_unused(&id) {
                tracing::warn!(volume = %id, error = %failure, "a volume nobody uses could not be released");
            }
        }
        self.give_back_forgotten();
    }
}
