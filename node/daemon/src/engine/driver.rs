//! Remora as Docker's volume driver: the engine's questions, answered from [`Volumes`].

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use remora_fuse_mount::docker::options::VolumeOptions;
use remora_fuse_mount::docker::{Caller, Lookup, Refusal, VolumeDriver, VolumeView};

use crate::exit::Failure;
use crate::volumes::service::Volumes;
use crate::wire::{CreateVolume, VolumeState};

/// The driver; it answers "unknown" until the node is up, so that the engine asks again instead of forgetting volumes.
pub(crate) struct Driver {
    volumes: OnceLock<Arc<Volumes>>,
}

impl Driver {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Driver { volumes: OnceLock::new() })
    }

    pub(crate) fn connect(&self, volumes: Arc<Volumes>) {
        let _first_wins = self.volumes.set(volumes);
    }

    /// Runs work that waits for disks and peers.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Volumes>) -> Result<T, Failure> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, Refusal>> {
        let Some(volumes) = self.volumes.get().cloned() else {
            return async { Err(Refusal("remora is starting on this host: try again in a moment".into())) }
                .boxed();
        };
        async move {
            match tokio::task::spawn_blocking(move || work(&volumes)).await {
                Ok(result) => result.map_err(|failure| Refusal(failure.text)),
                Err(e) => Err(Refusal(format!("remora failed in the middle of the request: {e}"))),
            }
        }
        .boxed()
    }
}

fn view(volumes: &Volumes, state: VolumeState) -> VolumeView {
    let mountpoint = volumes.docker_mountpoint(&state.id);
    let created = state.created.clone();
    let name = state.name.clone();
    let status = match serde_json::to_value(state) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    VolumeView { name, mountpoint, created, status }
}

impl VolumeDriver for Driver {
    fn list(&self) -> Vec<VolumeView> {
        let Some(volumes) = self.volumes.get() else { return Vec::new() };
        volumes.list().into_iter().map(|state| view(volumes, state)).collect()
    }

    fn get(&self, name: &str) -> Lookup {
        let Some(volumes) = self.volumes.get() else { return Lookup::Unknown };
        match volumes.find(name) {
            Some(state) => Lookup::Found(view(volumes, state)),
            None => Lookup::Absent,
        }
    }

    fn create(&self, name: String, options: VolumeOptions) -> BoxFuture<'_, Result<(), Refusal>> {
        self.blocking(move |volumes| {
            if volumes.find(&name).is_some() {
                return Ok(());
            }
            let wish = CreateVolume { name, ..CreateVolume::default() };
            volumes.create_with(&wish, &options).map(drop)
        })
    }

    fn remove(&self, name: String) -> BoxFuture<'_, Result<(), Refusal>> {
        self.blocking(move |volumes| volumes.remove(&name))
    }

    fn mount(&self, name: String, _id: String, _caller: Caller) -> BoxFuture<'_, Result<PathBuf, Refusal>> {
        self.blocking(move |volumes| volumes.mount_for_docker(&name))
    }

    fn unmount(&self, name: String, _id: String) -> BoxFuture<'_, Result<(), Refusal>> {
        self.blocking(move |volumes| volumes.unmount_for_docker(&name))
    }
}
