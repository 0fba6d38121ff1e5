//! When space is given back, and how it is asked for.
//!
//! What always holds: one collection at a time, and none while copies of volumes are brought to this host; nothing is given back
//! while anything is unclear: a damaged volume, one that is not whole here, a damaged list of what was added.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remora_cluster::identity::VolumeId;
use remora_store::blocks::sweep::{SweepOptions, Swept};
use remora_store::fault::chain;

use crate::config::Config;
use crate::content::added::Added;
use crate::exit::{Code, Failure};
use crate::garbage::marking::Marking;
use crate::garbage::pace::{Look, Pace, Zeal};
use crate::keepers::desk::Keepers;
use crate::keepers::kept::Kept;
use crate::run::OTHERS_FRACTION;
use crate::volumes::space;
use crate::wire::Collected;

/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is on its way to be referred to has this long when space is short: whoever puts a block for a volume, or adds something, holds
/// a protection until it is referred to, so this is a margin.
const GRACE_SHORT: Duration = Duration::from_secs(4);

/// The newest pack is sealed when space is short and it has this many bytes, so that what is unused in it goes, too.
const SEAL_BYTES_MIN: u64 = 4 << 20;

/// Bytes that stay free when live blocks are moved on a nearly full disk.
const SWEEP_FREE_BYTES: u64 = 8 << 20;

/// A pack is written anew when so much of it is waste: half of it, or much less when every byte counts or somebody asked for it.
const WASTE_PERCENT: u64 = 50;
const WASTE_PERCENT_SHORT: u64 = 30;
const WASTE_PERCENT_MIN: u64 = 10;

/// How long a person waits for work on copies to end.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// Gives back what nothing refers to.
pub(crate) struct Garbage {
    keepers: Arc<Keepers>,
    added: Arc<Added>,
    grace: Duration,
    reserve_bytes: u64,
    started: Instant,
    running: Mutex<Running>,
    trouble: Mutex<Option<String>>,
    is_stopping: AtomicBool,
}

/// What is kept from one collection to the next.
#[derive(Default)]
struct Running {
    pace: Pace,
    /// Volumes that were removed from the catalogue, and since when that is known.
    removed: BTreeMap<VolumeId, Duration>,
}

impl Garbage {
    pub(crate) fn new(config: &Config, keepers: Arc<Keepers>, added: Arc<Added>) -> Arc<Self> {
        Arc::new(Garbage {
            keepers,
            added,
            grace: Duration::from_secs(config.gc_grace_secs),
            reserve_bytes: config.reserve_bytes,
            started: Instant::now(),
            running: Mutex::default(),
            trouble: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        })
    }

    /// Collects because somebody asked for it.
    pub(crate) fn collect_now(&self) -> Result<Collected, Failure> {
        let Some(mut running) = self.running.try_lock_for(TURN_TIMEOUT) else {
            return Err(Failure::conflict("space is being given back already: try again when that is done"));
        };
        let zeal = running.pace.zeal(&self.look());
        self.collect(&mut running, zeal, WASTE_PERCENT_MIN)
    }

    /// How often [`Garbage::collect_if_due`] is worth a call.
    pub(crate) fn every(&self) -> Duration {
        LOOK_EVERY.min(self.grace)
    }

    /// Collects if it is time. Blocks for as long as it takes.
    pub(crate) fn collect_if_due(&self) {
        let Some(mut running) = self.running.try_lock() else { return };
        if let Some(reserve) = self.keepers.blocks().store().reserve() {
            reserve.fill(self.reserve_bytes / OTHERS_FRACTION);
        }
        let Some(zeal) = running.pace.due(&self.look(), self.grace) else { return };
        let waste_percent = match zeal {
            Zeal::Calm => WASTE_PERCENT,
            Zeal::Short => WASTE_PERCENT_SHORT,
            Zeal::Tight => WASTE_PERCENT_MIN,
        };
        let result = self.collect(&mut running, zeal, waste_percent);
        match &result {
            Ok(done) if done.bytes_removed > 0 || done.volumes_dropped > 0 => {
                tracing::info!(?done, "space given back");
            }
            Ok(done) => tracing::debug!(?done, "there was nothing to give back"),
            Err(failure) => tracing::info!(why = %failure, "no space is given back for now"),
        }
    }

    /// What an operator should know: the disk is nearly full and nothing can be done about it here.
    pub(crate) fn warning(&self) -> Option<String> {
        let trouble = self.trouble.lock().clone()?;
        self.look()
            .is_tight()
            .then(|| format!("the disk is nearly full and no space can be given back: {trouble}"))
    }

    /// Ends what runs, and all that would come. Blocks until it has ended: from then on nothing is put into the store.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        drop(self.running.lock());
    }

    fn look(&self) -> Look {
        let store = self.keepers.blocks().store();
        Look {
            now: self.started.elapsed(),
            free_bytes: space::free(self.keepers.store().root(), store.aside_bytes())
                .map_or(u64::MAX, |space| space.free),
            reserve_bytes: self.reserve_bytes,
            pack_bytes: store.pack_bytes().unwrap_or(0),
            folded: self.folded(),
        }
    }

    /// Grows when a log is folded into a tree.
    fn folded(&self) -> u64 {
        let contained = |kept: &Arc<Kept>| match kept.local() {
            Some(volume) => volume.status().base_seq,
            None => kept.promise().checkpoint.map_or(0, |checkpoint| checkpoint.tip.seq),
        };
        self.keepers.all().iter().map(contained).sum()
    }

    fn collect(&self, running: &mut Running, zeal: Zeal, waste_percent: u64) -> Result<Collected, Failure> {
        if self.is_stopping() {
            return Err(Failure::new(Code::NotReady, "the daemon is stopping"));
        }
        let began = self.started.elapsed();
        let result = self.sweep(running, zeal, waste_percent);
        let ended = self.started.elapsed();
        running.pace.tried(ended, ended - began, result.is_ok());
        *self.trouble.lock() = result.as_ref().err().map(|failure| failure.text.clone());
        result
    }

    fn sweep(&self, running: &mut Running, zeal: Zeal, waste_percent: u64) -> Result<Collected, Failure> {
        let volumes_dropped = self.drop_removed(&mut running.removed, self.started.elapsed())?;
        let store = self.keepers.blocks().store();
        // What copies are thought to be whole rests on nothing going away meanwhile.
        let swept = self.keepers.hydration().while_paused(TURN_TIMEOUT, |are_gone| {
            let is_calm = zeal == Zeal::Calm;
            let grace = if is_calm { self.grace } else { self.grace.min(GRACE_SHORT) };
            if !is_calm && let Err(e) = store.seal_newest(SEAL_BYTES_MIN) {
                tracing::warn!(error = chain(&e), "the newest pack is left as it is");
            }
            let Some(sweep) = store.begin_sweep(self.started.elapsed(), grace) else {
                return Err(Failure::conflict("the store is being verified: try again when that is done"));
            };
            let live = self.mark()?;
            let keep_free = if zeal == Zeal::Tight { SWEEP_FREE_BYTES } else { self.reserve_bytes / 2 };
            let options =
                SweepOptions { waste_percent, reserve_bytes: keep_free.min(self.reserve_bytes / 2) };
            // Until it is known to have removed nothing.
            *are_gone = true;
            let swept = sweep
                .run(&live, options, &mut || !self.is_stopping())
                .map_err(|e| Failure::failed(format!("give back space: {}", chain(&e))))?;
            *are_gone = swept.n_blocks_removed > 0;
            Ok(swept)
        });
        let swept = swept.ok_or_else(|| {
            Failure::conflict("copies of volumes are being brought to this host: try again when that is done")
        })??;
        let bytes_after = store.pack_bytes().unwrap_or(0);
        let settled_bytes = (swept.n_packs_old > 0).then_some(swept.bytes_live + swept.bytes_dead_left);
        running.pace.made(bytes_after, settled_bytes, swept.n_blocks_removed > 0);
        Ok(collected(&swept, volumes_dropped, bytes_after))
    }

    /// Everything that counts on this host, or why that cannot be known.
    fn mark(&self) -> Result<remora_store::blocks::touches::Live, Failure> {
        let refuse = |why: String| Failure::new(Code::NotReady, format!("nothing is given back: {why}"));
        if let Some(damage) = self.added.damage() {
            return Err(refuse(damage.into()));
        }
        if let Some((id, why)) = self.keepers.damaged().into_iter().next() {
            return Err(refuse(format!("volume {id} is damaged here: {why}")));
        }
        let is_stopping = || self.is_stopping();
        let marking = Marking::new(self.keepers.blocks().store(), &is_stopping);
        for root in self.added.all() {
            marking.added(&root).map_err(refuse)?;
        }
        for kept in self.keepers.all() {
            let name = || {
                let record = self.keepers.members().read(|registry| registry.volume(&kept.id()));
                record.map_or_else(|| kept.id().to_string(), |record| record.name)
            };
            marking
                .volume(&self.keepers, &kept)
                .map_err(|why| refuse(format!("volume {}: {why}", name())))?;
        }
        Ok(marking.finish())
    }

    /// Lets go of volumes that were removed from the catalogue some time ago and that nobody writes.
    fn drop_removed(&self, seen: &mut BTreeMap<VolumeId, Duration>, now: Duration) -> Result<u64, Failure> {
        let removed: Vec<VolumeId> = self
            .keepers
            .all()
            .iter()
            .map(|kept| kept.id())
            .filter(|id| self.keepers.is_removed(id))
            .collect();
        seen.retain(|id, _| removed.contains(id));
        let mut n = 0;
        for id in removed {
            let since = *seen.entry(id).or_insert(now);
            if now.saturating_sub(since) >= self.grace && self.keepers.drop_removed(&id)? {
                seen.remove(&id);
                n += 1;
            }
        }
        Ok(n)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}

fn collected(swept: &Swept, volumes_dropped: u64, bytes_after: u64) -> Collected {
    Collected {
        volumes_dropped,
        packs_removed: swept.n_packs_removed,
        bytes_removed: swept.bytes_removed,
        bytes_moved: swept.bytes_moved,
        blocks_removed: swept.n_blocks_removed,
        bytes_unused_left: swept.bytes_dead_left,
        bytes_after,
    }
}
