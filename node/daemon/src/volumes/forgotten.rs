//! Volumes that this host still holds though they are not mounted: its daemon was killed, and nobody mounted them again.
//!
//! Without this no other host could have them until somebody thought of mounting and unmounting them here.

use std::sync::Arc;

use remora_cluster::config::majority;
use remora_cluster::identity::PeerId;
use remora_cluster::volume_record::VolumeRecord;

use crate::volumes::service::Volumes;

impl Volumes {
    /// Gives back what nobody uses; to be called now and then. A volume that cannot be had at this moment is left for the next time.
    pub(super) fn give_back_forgotten(self: &Arc<Self>) {
        let me = self.members.me();
        let held: Vec<VolumeRecord> = self.members.read(|registry| {
            let is_held = |record: &VolumeRecord| {
                registry.holder(&record.id).is_some_and(|(holder, _)| holder.writer == Some(me))
            };
            registry.volumes().into_iter().map(|entry| entry.record).filter(is_held).collect()
        });
        for record in held {
            if self.get(&record.id).is_some() || !self.reaches_keepers(&record) {
                continue;
            }
            let turn = self.turn(record.id);
            let Some(_turn) = turn.try_lock() else { continue };
            if self.get(&record.id).is_some() {
                continue;
            }
            // Whoever may write it may give it back: what the log holds is brought to its end, as for any mount.
            let given = self.ensure_mounted(&record).and_then(|_| self.release_if_unused(&record.id));
            match given {
                Ok(()) => {
                    tracing::info!(volume = %record.name, "given back: held since before the last start, used by nobody");
                }
                Err(failure) => {
                    tracing::warn!(volume = %record.name, error = %failure, "a volume nobody uses is still held");
                }
            }
        }
    }

    /// Whether asking for the volume has a chance: otherwise it would take its time and hold up who waits for its turn.
    fn reaches_keepers(&self, record: &VolumeRecord) -> bool {
        let connected = self.members.net().map(|net| net.connected()).unwrap_or_default();
        let me = self.members.me();
        let is_here = |peer: &PeerId| *peer == me || connected.iter().any(|c| c.peer == *peer);
        record.keepers.iter().filter(|peer| is_here(peer)).count() >= majority(record.keepers.len())
    }
}
