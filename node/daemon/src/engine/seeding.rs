//! Our own engine is told of every volume, with its options and labels, before somebody asks for it there.
//!
//! An engine keeps options and labels in files of its own: what it first learns through a bare lookup has neither, and
//! compose then refuses the volume. Asking it once for its volumes also makes Swarm's scheduler see the driver.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use remora_fuse_mount::docker::engine::{Engine, Seed};

use crate::content::add::chain;
use crate::members::membership::Membership;

/// The name users type after `docker volume create -d`.
const DRIVER: &str = "remora";

/// How long to wait before an engine that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(30);

/// Keeps the engine of this host informed, for ever. Absence of an engine is no error.
pub(crate) async fn keep(members: Arc<Membership>) {
    let engine = Engine::local();
    let mut changed = members.watch();
    let mut told = BTreeSet::new();
    let mut is_announced = false;
    loop {
        if !is_announced {
            is_announced = engine.announce().await.unwrap_or(false);
        }
        let complete = is_announced && seed(&engine, &members, &mut told).await;
        if complete {
            if changed.changed().await.is_err() {
                return;
            }
            // News come in bursts.
            tokio::time::sleep(Duration::from_millis(50)).await;
        } else {
            tokio::time::sleep(RETRY).await;
            told.clear();
            is_announced = false;
        }
    }
}

/// Tells what it was not told yet; whether all of it arrived.
async fn seed(engine: &Engine, members: &Membership, told: &mut BTreeSet<String>) -> bool {
    for entry in members.read(|r| r.volumes()) {
        if told.contains(&entry.shown_name) {
            continue;
        }
        let seed = Seed {
            name: entry.shown_name.clone(),
            driver: DRIVER.into(),
            options: entry.record.options.clone(),
            labels: entry.record.labels.clone(),
        };
        match engine.seed(&seed).await {
            Ok(()) => {
                told.insert(entry.shown_name);
            }
            Err(e) => {
                tracing::debug!(volume = seed.name, error = %chain(&e), "the engine was not told of a volume");
                return false;
            }
        }
    }
    true
}
