//! Our own engine is told of every volume, with its options and labels, before somebody asks for it there.
//!
//! An engine keeps options and labels in files of its own: what it first learns through a bare lookup has neither, and
//! compose then refuses the volume. Asking it once for its volumes also makes Swarm's scheduler see the driver.
//!
//! Labels never reach a volume driver, so the host where a volume was created asks its engine for them and puts them into the
//! catalogue; the others give a young volume without labels a moment before they tell their engines of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use remora_cluster::identity::VolumeId;
use remora_cluster::registry::catalogue::CatalogueEntry;
use remora_cluster::registry::entry::Key;
use remora_cluster::volume_record::VolumeRecord;
use remora_fuse_mount::docker::engine::{Engine, EngineError, EngineVolume, Seed};
use remora_store::fault::chain;

use crate::members::membership::Membership;
use crate::members::now::unix_ms;

/// The name users type after `docker volume create -d`.
const DRIVER: &str = "remora";

/// How long to wait before an engine that failed is asked again.
const RETRY: Duration = Duration::from_secs(30);

/// How long to wait before looking again for an engine that is not there: it may start right after us, and must be told of
/// the volumes before its users ask for them.
const ABSENT_RETRY: Duration = Duration::from_millis(500);

/// How long a young volume may wait for its labels, and how often they are looked for.
const LABELS_WAIT: Duration = Duration::from_secs(1);
const LABELS_POLL: Duration = Duration::from_millis(100);

/// A volume older than this has the labels it will ever have.
const YOUNG_MS: u64 = 10_000;

/// News come in bursts.
const BURST: Duration = Duration::from_millis(50);

/// How a round of telling went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    /// The engine knows every volume.
    Complete,
    /// Some volumes wait for their labels.
    Waiting,
    /// Nobody listens.
    Absent,
    /// The engine did not answer as it should.
    Failed,
}

/// Keeps the engine of this host informed, for ever. Absence of an engine is no error.
pub(crate) async fn keep(members: Arc<Membership>) {
    let mut changed = members.watch();
    let mut seeding = Seeding {
        engine: Engine::local(),
        members,
        told: BTreeSet::new(),
        seen: BTreeMap::new(),
        is_announced: false,
    };
    loop {
        match seeding.round().await {
            Round::Complete => {
                if changed.changed().await.is_err() {
                    return;
                }
                tokio::time::sleep(BURST).await;
            }
            Round::Waiting => tokio::time::sleep(LABELS_POLL).await,
            Round::Absent => tokio::time::sleep(ABSENT_RETRY).await,
            Round::Failed => tokio::time::sleep(RETRY).await,
        }
    }
}

struct Seeding {
    engine: Engine,
    members: Arc<Membership>,
    /// Volumes the engine knows.
    told: BTreeSet<VolumeId>,
    /// When this process first saw volumes it has not told of yet.
    seen: BTreeMap<VolumeId, Instant>,
    is_announced: bool,
}

impl Seeding {
    async fn round(&mut self) -> Round {
        let round = self.tell().await;
        if let Err(e) = &round {
            tracing::debug!(error = %chain(e), "the engine was not told of the volumes");
            // It may have been replaced by one that knows nothing.
            self.told.clear();
            self.is_announced = false;
        }
        match round {
            Ok(round) => round,
            Err(EngineError::Absent { .. }) => Round::Absent,
            Err(_) => Round::Failed,
        }
    }

    /// Tells what it was not told yet.
    async fn tell(&mut self) -> Result<Round, EngineError> {
        if !self.is_announced {
            if !self.engine.announce().await? {
                return Ok(Round::Absent);
            }
            self.is_announced = true;
        }
        let entries = self.members.read(|r| r.volumes());
        self.told.retain(|id| entries.iter().any(|e| e.record.id == *id));
        let untold: Vec<CatalogueEntry> =
            entries.into_iter().filter(|e| !self.told.contains(&e.record.id)).collect();
        let lacks_labels = untold.iter().any(|e| e.record.labels.is_empty());
        let known = if lacks_labels { self.engine.volumes().await? } else { Vec::new() };
        let mut round = Round::Complete;
        for mut entry in untold {
            if self.is_ours(&entry.record) {
                self.learn_labels(&mut entry, &known);
            }
            if self.waits_for_labels(&entry.record) {
                round = Round::Waiting;
                continue;
            }
            self.tell_one(&entry).await?;
            self.seen.remove(&entry.record.id);
            self.told.insert(entry.record.id);
        }
        Ok(round)
    }

    async fn tell_one(&self, entry: &CatalogueEntry) -> Result<(), EngineError> {
        let seed = Seed {
            name: entry.shown_name.clone(),
            driver: DRIVER.into(),
            options: entry.record.options.clone(),
            labels: entry.record.labels.clone(),
        };
        match self.engine.seed(&seed).await {
            // The engine has a volume of this name from another driver: its user decides, the others are still told.
            Err(e @ EngineError::Refused { .. }) => {
                tracing::warn!(volume = seed.name, error = %chain(&e), "the engine cannot have this volume");
                Ok(())
            }
            other => other,
        }
    }

    /// Whether the volume was created on this host, as far as its record tells.
    fn is_ours(&self, record: &VolumeRecord) -> bool {
        record.keepers.first() == Some(&self.members.me())
    }

    /// Puts the labels that only our engine was told into the catalogue.
    fn learn_labels(&self, entry: &mut CatalogueEntry, known: &[EngineVolume]) {
        let Some(labels) = labels_of(&entry.shown_name, known).filter(|_| entry.record.labels.is_empty())
        else {
            return;
        };
        // The record may have changed while the engine was asked.
        let Some(record) = self.members.read(|r| r.volume(&entry.record.id)).filter(|r| !r.removed) else {
            return;
        };
        let record = VolumeRecord { labels, ..record };
        if VolumeRecord::decode(&record.encode()).is_err() {
            tracing::warn!(
                volume = entry.shown_name,
                "the labels are too many or too long for other hosts to have them"
            );
            return;
        }
        entry.record = record;
        if let Err(failure) = self.members.put(Key::Volume(entry.record.id), Some(entry.record.encode())) {
            tracing::warn!(volume = entry.shown_name, error = %failure, "the labels of a volume were not kept");
        }
    }

    fn waits_for_labels(&mut self, record: &VolumeRecord) -> bool {
        let first_seen = *self.seen.entry(record.id).or_insert_with(Instant::now);
        let is_young = unix_ms() < record.created_unix_ms.saturating_add(YOUNG_MS);
        record.labels.is_empty() && is_young && first_seen.elapsed() < LABELS_WAIT
    }
}

/// The labels an engine keeps for a volume of ours, if there are any.
fn labels_of(name: &str, known: &[EngineVolume]) -> Option<BTreeMap<String, String>> {
    let volume = known.iter().find(|v| v.driver == DRIVER && v.name == name)?;
    volume.labels.clone().filter(|labels| !labels.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_taken_from_volumes_of_ours_alone() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let volume = |driver: &str, labels| EngineVolume {
            name: "notes".into(),
            driver: driver.into(),
            options: None,
            labels: Some(labels),
        };
        assert_eq!(labels_of("notes", &[volume("remora", labels.clone())]), Some(labels.clone()));
        assert_eq!(labels_of("notes", &[volume("local", labels.clone())]), None);
        assert_eq!(labels_of("other", &[volume("remora", labels)]), None);
        assert_eq!(labels_of("notes", &[volume("remora", BTreeMap::new())]), None);
    }
}
