//! Keepers that really keep: what a volume's commits and trees refer to is brought onto this disk, in the background.
//!
//! One round over all volumes at a time. A volume is looked at when its log grew or got another base since it was last found whole,
//! and not in the first seconds after it changed hands: its first reads go before. On the host that writes it, the same is done
//! once a term for what was there before that term; what the writer itself makes is on its disk.
//!
//! The tree of a checkpoint is made here, from the tree before it and the log, as far as those go; the rest is fetched.
//!
//! What always holds: "whole" is said only of blocks that are durable here; the log before a tree is dropped only when the tree is
//! whole and the commit that names it is committed; nothing waits for this work but the end of the daemon.

pub(crate) mod collect;
pub(crate) mod making;
pub(crate) mod before_ack;

use std::cell::Cell;
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
use remora_store::fault::chain;
use remora_volume::commit::Commit;
use remora_volume::journal::blocks::BlockStore;
use remora_volume::recover::last_commit;

use crate::keepers::chain::tip_at;
use crate::keepers::desk::Keepers;
use crate::keepers::hydrate::collect::{Collect, Known, Reach, Stopped};
use crate::keepers::hydrate::making::{Difference, Outcome, make};
use crate::keepers::kept::Kept;

/// How often volumes are looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// How long a volume that changed hands is left to those who read it first.
const SETTLE_TIME: Duration = Duration::from_secs(4);

/// How long a volume is left alone after blocks of it could not be had.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long a batch is followed by a pause at most, while this host serves mounts: the pause is as long as the batch took.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a tree that could not be made here is only fetched.
const MAKE_AGAIN_AFTER: Duration = Duration::from_secs(300);

/// What was done for one volume since the daemon began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Trees of checkpoints that were made here.
    pub(crate) n_made: u64,
    /// Bytes of ops in them.
    pub(crate) made_bytes: u64,
    /// Trees of checkpoints that came out different here.
    pub(crate) n_different: u64,
    /// The last of them.
    pub(crate) difference: Option<Difference>,
    /// Bytes of blocks that were fetched in the background.
    pub(crate) fetched_bytes: u64,
}

/// What this host has of one volume, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The newest commit in the log.
    pub(crate) seq: u64,
    /// Everything up to the newest commit is on this disk.
    pub(crate) is_whole: bool,
    /// Blocks that could not be had at the last attempt; `None` before the first one.
    pub(crate) n_missing: Option<u64>,
    /// What it took.
    pub(crate) tally: Tally,
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
    tally: Tally,
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
    /// A tree that could not be made here, and until when that is believed.
    unmade: Option<(Cid, Instant)>,
    tally: Tally,
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
            unmade: None,
            tally: Tally::default(),
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
        Some(Copy { seq, is_whole, n_missing: shown.n_missing, tally: shown.tally })
    }

    /// Volumes of which this host came to another tree than the writer, with the last such tree.
    pub(crate) fn differences(&self) -> Vec<(VolumeId, Difference)> {
        let shown = self.shown.lock();
        shown.iter().filter_map(|(id, shown)| Some((*id, shown.tally.difference?))).collect()
    }

    /// Ends the round that runs, and all that would come. Blocks until it has ended: from then on nothing is put into the store.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        drop(self.round.lock());
    }

    /// Runs `work` while no copy is brought here; `None` if the work on copies did not end in time. If it sets what it is given, for
    /// blocks are gone, what was known to be whole is looked at again afterwards.
    pub(crate) fn while_paused<T>(&self, timeout: Duration, work: impl FnOnce(&mut bool) -> T) -> Option<T> {
        let mut round = self.round.try_lock_for(timeout)?;
        let mut are_gone = false;
        let done = work(&mut are_gone);
        if are_gone {
            round.values_mut().for_each(|progress| progress.known = Known::default());
        }
        Some(done)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Shows what is known of a volume; without a count of missing blocks the last one stands.
    fn show(&self, id: VolumeId, progress: &Progress, n_missing: Option<u64>) {
        let whole = (progress.whole.seq > 0).then_some((progress.whole.term.0, progress.whole.seq));
        let whole_term = progress.whole_term.map(|term| term.0);
        let mut all = self.shown.lock();
        let n_missing = n_missing.or_else(|| all.get(&id)?.n_missing);
        all.insert(id, Shown { whole, whole_term, n_missing, tally: progress.tally });
    }
}

/// Looks after the volumes of this host once.
pub(crate) fn round(keepers: &Arc<Keepers>) {
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
    let exchange = exchange.preferring(&kept.partners());
    let here = Here { keepers, exchange, still: &still, fetched_bytes: Cell::new(0) };
    let brought = bring(kept, hands, progress, &here);
    progress.tally.fetched_bytes += here.fetched_bytes.get();
    keepers.hydration().show(kept.id(), progress, brought.as_ref().ok().copied());
    let n_missing = brought?;
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
    // Until the next look nothing but this knows that the tree's blocks are wanted.
    let _protection = here.keepers.blocks().protect();
    let nodes = match progress.tree == Some(base) {
        true => None,
        false => {
            let Progress { known, unmade, tally, .. } = progress;
            let mut made = || try_to_make(kept, &base, (unmade, tally), here);
            Some(collect.made_or_fetched(&base, known, &mut made)?)
        }
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

/// Makes the newest tree from the log, unless that was tried in vain lately; answers whether it is made.
fn try_to_make(
    kept: &Kept,
    tree: &Cid,
    (unmade, tally): (&mut Option<(Cid, Instant)>, &mut Tally),
    here: &Here<'_>,
) -> Result<bool, Stopped> {
    if unmade.is_some_and(|(left, until)| left == *tree && Instant::now() < until) {
        return Ok(false);
    }
    let (outcome, fetched_bytes) = make(here.keepers, kept, here.still)?;
    tally.fetched_bytes += fetched_bytes;
    match outcome {
        Outcome::Made { n_trees, ops_bytes } => {
            tally.n_made += n_trees as u64;
            tally.made_bytes += ops_bytes;
            return Ok(true);
        }
        Outcome::Different(difference) => {
            tally.n_different += 1;
            tally.difference = Some(difference);
        }
        Outcome::Left => {}
    }
    *unmade = Some((*tree, Instant::now() + MAKE_AGAIN_AFTER));
    Ok(false)
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

/// Leaves this host to its mounts for as long as the work took that began then; at once if it serves none.
fn rest(keepers: &Keepers, began: Instant) {
    if keepers.all().iter().any(|kept| kept.local().is_some()) {
        std::thread::sleep(began.elapsed().min(PAUSE_MAX));
    }
}

/// This host's store, and peers behind it.
struct Here<'a> {
    keepers: &'a Arc<Keepers>,
    exchange: Exchange,
    still: &'a (dyn Fn() -> bool + Sync),
    fetched_bytes: Cell<u64>,
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
        let fetched = fetched.map_err(|e| failed(&e))?;
        self.fetched_bytes.set(self.fetched_bytes.get() + fetched.bytes);
        rest(self.keepers, began);
        Ok(fetched.missing.into_iter().map(|(cid, _)| cid).collect())
    }
}
