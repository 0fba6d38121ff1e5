//! Keepers that really keep: what a volume's commits and trees refer to is brought onto this disk, in the background.
//!
//! One round over all volumes at a time. A volume is looked at when its log grew or got another base since it was last found whole,
//! and not in the first seconds after it changed hands: its first reads go before. On the host that writes it, the same is done
//! once a term for what was there before that term; what the writer itself makes is on its disk.
//!
//! What always holds: "whole" is said only of blocks that are durable here; the log before a tree is dropped only when the tree is
//! whole and the commit that names it is committed; nothing waits for this work but the end of the daemon.

pub(crate) mod collect;
pub(crate) mod before_ack;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;
use remora_cluster::identity::VolumeId;
use remora_cluster::tip::{Term, Tip};
use remora_dag::block::{BlockSink, BlockSource};
use remora_net::exchange::Exchange;
use remora_volume::commit::Commit;
use remora_volume::journal::blocks::BlockStore;
use remora_volume::recover::last_commit;

use crate::content::add::chain;
use crate::keepers::chain::tip_at;
use crate::keepers::desk::Keepers;
use crate::keepers::hydrate::collect::{Collect, Known, Reach, Stopped};
use crate::keepers::kept::Kept;

/// How often volumes are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// How long a volume that changed hands is left to those who read it first.
const SETTLE_TIME: Duration = Duration::from_secs(4);

/// How long a volume is left alone after blocks of it could not be had.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long a batch is followed by a pause at most, while this host serves mounts: the pause is as long as the batch took.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What this host has of one volume, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The newest commit in the log.
    pub(crate) seq: u64,
    /// Everything up to the newest commit is on this disk.
    pub(crate) is_whole: bool,
    /// Blocks that could not be had at the last attempt; `None` before the first one.
    pub(crate) n_missing: Option<u64>,
}

/// What the rounds know.
#[derive(Default)]
pub(crate) struct Hydration {
    /// Held during a round.
    round: Mutex<BTreeMap<VolumeId, Progress>>,
    shown: Mutex<BTreeMap<VolumeId, Shown>>,
    is_stopping: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    /// The newest commit, when all was found here.
    whole: Option<(u64, u64)>,
    /// The term in which this host writes and has all that was there before.
    whole_term: Option<u64>,
    n_missing: Option<u64>,
}

/// Who has the volume; work stops when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hands {
    term: Term,
    is_released: bool,
    is_local: bool,
}

struct Progress {
    hands: Option<Hands>,
    not_before: Instant,
    /// The commit up to which everything is here.
    whole: Tip,
    /// The tree that is here.
    tree: Option<Cid>,
    /// As [`Shown::whole_term`].
    whole_term: Option<Term>,
    known: Known,
}

impl Progress {
    fn new() -> Self {
        let not_before = Instant::now();
        Progress {
            hands: None,
            not_before,
            whole: Tip::default(),
            tree: None,
            whole_term: None,
            known: Known::default(),
        }
    }
}

impl Hydration {
    /// What this host has of a volume; `None` if it is not one of its keepers, or was not looked at yet. Reads no disk.
    pub(crate) fn copy_of(&self, kept: &Kept) -> Option<Copy> {
        let shown = *self.shown.lock().get(&kept.id())?;
        let end = kept.log().tail().map(|tail| (u64::from(tail.term), tail.seq));
        let is_whole = match (shown.whole_term, end) {
            (Some(term), Some((end_term, _))) if term == end_term => true,
            _ => shown.whole.is_some() && shown.whole == end,
        };
        let seq = end.map_or(0, |(_, seq)| seq);
        Some(Copy { seq, is_whole, n_missing: shown.n_missing })
    }

    /// Ends the round that runs, and all that would come. Blocks until it has ended: from then on nothing is put into the store.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        drop(self.round.lock());
    }

    /// Runs `work` while no copy is brought here; `None` if the work on copies did not end in time. What was known to be whole is
    /// looked at again afterwards.
    pub(crate) fn while_paused<T>(&self, timeout: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let mut round = self.round.try_lock_for(timeout)?;
        for progress in round.values_mut() {
            progress.known = Known::default();
        }
        Some(work())
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    fn show(&self, id: VolumeId, progress: &Progress, n_missing: Option<u64>) {
        let whole = (progress.whole.seq > 0).then_some((progress.whole.term.0, progress.whole.seq));
        let whole_term = progress.whole_term.map(|term| term.0);
        self.shown.lock().insert(id, Shown { whole, whole_term, n_missing });
    }
}

/// Looks after the volumes of this host until the daemon ends.
pub(crate) async fn rounds(keepers: Arc<Keepers>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let keepers = Arc::clone(&keepers);
        if let Err(e) = tokio::task::spawn_blocking(move || round(&keepers)).await {
            tracing::error!(error = %e, "bring volumes to this host");
        }
    }
}

fn round(keepers: &Arc<Keepers>) {
    let hydration = keepers.hydration();
    let mut all = hydration.round.lock();
    for kept in keepers.all() {
        if hydration.is_stopping() {
            return;
        }
        let progress = all.entry(kept.id()).or_insert_with(Progress::new);
        match look(keepers, &kept, progress) {
            Ok(()) => {}
            Err(Stopped::Interrupted) => {
                tracing::debug!(volume = %kept.id(), "left for something more urgent");
            }
            Err(Stopped::Failed(why)) => {
                tracing::warn!(volume = %kept.id(), why, "this host's copy of the volume is not complete");
                progress.not_before = Instant::now() + RETRY_AFTER;
            }
        }
    }
}

/// Brings one volume here, if it is this host's to keep and there is anything to do.
fn look(keepers: &Arc<Keepers>, kept: &Arc<Kept>, progress: &mut Progress) -> Result<(), Stopped> {
    let me = keepers.members().me();
    if kept.config().is_none_or(|config| !config.voters().contains(&me)) || keepers.is_removed(&kept.id()) {
        keepers.hydration().shown.lock().remove(&kept.id());
        return Ok(());
    }
    let hands = hands(kept);
    if progress.hands != Some(hands) {
        progress.hands = Some(hands);
        progress.not_before = Instant::now() + SETTLE_TIME;
    }
    if Instant::now() < progress.not_before {
        return Ok(());
    }
    let (Some(exchange), Some(end)) = (keepers.blocks().exchange(), kept.log().tail()) else { return Ok(()) };
    let is_done = match hands.is_local {
        true => progress.whole_term == Some(hands.term),
        false => (progress.whole.term.0, progress.whole.seq) == (u64::from(end.term), end.seq),
    };
    if is_done {
        return forget(kept, progress);
    }
    if !hands.is_local && progress.whole_term == Some(Term(u64::from(end.term))) {
        note_own(kept, progress)?;
        return forget(kept, progress);
    }
    let still = || !keepers.hydration().is_stopping() && self::hands(kept) == hands;
    let here = Here { keepers, exchange: exchange.preferring(&kept.partners()), still: &still };
    let n_missing = bring(kept, hands, progress, &here)?;
    keepers.hydration().show(kept.id(), progress, Some(n_missing));
    if n_missing > 0 {
        tracing::warn!(volume = %kept.id(), n_missing, "blocks of the volume could not be had; they will be asked for again");
        progress.not_before = Instant::now() + RETRY_AFTER;
        return Ok(());
    }
    forget(kept, progress)
}

fn hands(kept: &Kept) -> Hands {
    let (hold, is_local) = (kept.promise().hold, kept.local().is_some());
    Hands {
        term: hold.map_or(Term(0), |hold| hold.term),
        is_released: hold.is_some_and(|hold| hold.released.is_some()),
        is_local,
    }
}

/// Fetches what is missing; answers how many blocks could not be had. With none, everything is durable and noted in `progress`.
fn bring(kept: &Kept, hands: Hands, progress: &mut Progress, here: &Here<'_>) -> Result<u64, Stopped> {
    let newest = last_commit(kept.log()).map_err(|e| failed(&e))?;
    let Some(newest) = newest else { return Ok(0) };
    // The writer's own commits are here; what was there before it is not always.
    let end = match (hands.is_local, kept.promise().hold) {
        (true, Some(hold)) => hold.base,
        _ => crate::keepers::chain::tip_of(&newest),
    };
    let is_known = tip_at(kept.log(), progress.whole.seq) == Some(progress.whole);
    let from = newest.header.base_seq.max(if is_known { progress.whole.seq } else { 0 });
    let mut collect = Collect::new(here);
    for frame in kept.log().iter_from(from + 1) {
        let frame = frame.map_err(|e| failed(&e))?;
        if frame.header.meta.seq > end.seq {
            break;
        }
        collect.commit(&Commit::decode(frame.payload).map_err(|e| failed(&e))?)?;
    }
    collect.flush()?;
    let base = newest.header.base;
    let nodes = match progress.tree == Some(base) {
        true => None,
        false => Some(collect.tree(&base, &progress.known)?),
    };
    let (n_fetched, n_missing) = (collect.n_fetched, collect.n_missing);
    here.keepers.blocks().sync().map_err(|e| failed(&e))?;
    if n_fetched > 0 {
        tracing::info!(volume = %kept.id(), n_fetched, n_missing, "blocks of the volume were brought to this host");
    }
    if n_missing == 0 {
        progress.whole = end;
        progress.whole_term = hands.is_local.then_some(hands.term);
        progress.tree = Some(base);
        if let Some(nodes) = nodes {
            progress.known.add(nodes);
        }
    }
    Ok(n_missing)
}

/// This host wrote the volume up to its end, and had all that was there before: all of it is here.
fn note_own(kept: &Kept, progress: &mut Progress) -> Result<(), Stopped> {
    if let Some(newest) = last_commit(kept.log()).map_err(|e| failed(&e))? {
        progress.whole = crate::keepers::chain::tip_of(&newest);
        progress.tree = Some(newest.header.base);
    }
    Ok(())
}

/// Commits that the tree on this disk stands for need not be kept.
fn forget(kept: &Kept, progress: &Progress) -> Result<(), Stopped> {
    let Some(tree) = progress.tree else { return Ok(()) };
    kept.forget_before(&tree).map_err(Stopped::Failed)
}

fn failed(error: &dyn std::error::Error) -> Stopped {
    Stopped::Failed(chain(error))
}

/// This host's store, and peers behind it.
struct Here<'a> {
    keepers: &'a Arc<Keepers>,
    exchange: Exchange,
    still: &'a dyn Fn() -> bool,
}

impl Reach for Here<'_> {
    fn has(&self, cid: &Cid) -> Result<bool, Stopped> {
        if self.keepers.hydration().is_stopping() {
            return Err(Stopped::Interrupted);
        }
        self.keepers.blocks().store().keep(cid).map_err(|e| failed(&e))
    }

    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, Stopped> {
        let blocks: &dyn BlockSource = &**self.keepers.blocks();
        Ok(blocks
            .get(cid)
            .map_err(|e| tracing::warn!(%cid, error = %e, "a node of a tree cannot be read"))
            .ok())
    }

    fn fetch(&self, cids: &[Cid]) -> Result<Vec<Cid>, Stopped> {
        if !(self.still)() {
            return Err(Stopped::Interrupted);
        }
        let began = Instant::now();
        let sink: Arc<dyn BlockSink> = Arc::clone(self.keepers.blocks()) as _;
        let fetched = self.keepers.runtime().block_on(self.exchange.fetch_many(cids.iter().copied(), sink));
        let missing = fetched.map_err(|e| failed(&e))?.missing;
        if self.keepers.all().iter().any(|kept| kept.local().is_some()) {
            std::thread::sleep(began.elapsed().min(PAUSE_MAX));
        }
        Ok(missing.into_iter().map(|(cid, _)| cid).collect())
    }
}
