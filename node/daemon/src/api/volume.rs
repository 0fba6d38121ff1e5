//! Calls about volumes.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};

use crate::api::Services;
use crate::api::answer::{Answer, blocking_json, read_json};
use crate::exit::Failure;
use crate::wire::{CreateVolume, MountVolume, UnmountDir, VolumeState};

type Shared = State<Arc<Services>>;

pub(crate) async fn list(State(services): Shared) -> Answer<Vec<VolumeState>> {
    blocking_json(move || Ok(services.volumes.list())).await
}

pub(crate) async fn create(State(services): Shared, body: Bytes) -> Answer<VolumeState> {
    let wish: CreateVolume = read_json(&body)?;
    blocking_json(move || services.volumes.create(&wish)).await
}

pub(crate) async fn inspect(State(services): Shared, Path(name): Path<String>) -> Answer<VolumeState> {
    blocking_json(move || services.volumes.inspect(&name)).await
}

pub(crate) async fn remove(State(services): Shared, Path(name): Path<String>) -> Answer<()> {
    blocking_json(move || services.volumes.remove(&name)).await
}

pub(crate) async fn mount(State(services): Shared, Path(name): Path<String>, body: Bytes) -> Answer<()> {
    let wish: MountVolume = read_json(&body)?;
    let dir = absolute(&wish.dir)?;
    blocking_json(move || services.volumes.mount(&name, &dir, wish.read_only)).await
}

pub(crate) async fn unmount(State(services): Shared, body: Bytes) -> Answer<()> {
    let wish: UnmountDir = read_json(&body)?;
    let dir = absolute(&wish.dir)?;
    blocking_json(move || services.volumes.unmount(&dir)).await
}

fn absolute(dir: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(dir);
    if path.is_absolute() && !dir.contains('\0') {
        Ok(path)
    } else {
        Err(Failure::usage(format!("{dir:?} is no absolute path")))
    }
}
