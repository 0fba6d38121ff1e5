//! The thread that cuts, writes and syncs what nobody waits for, and starts checkpoints when they are cheap.
//!
//! It is parked while nothing is dirty: an idle volume costs no CPU. Whoever makes the volume dirty wakes it.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::MutexGuard;

use remora_store::fault::chain;
use remora_vfs::attr::Ino;

use crate::bulk::RUN_AGE_MAX;
use crate::journal::Pen;
use crate::volume::shared::{Core, Shared};

/// An open batch this old is written to the log.
const CUT_AGE: Duration = Duration::from_millis(200);
/// An op this old is synced.
const SYNC_AGE: Duration = Duration::from_secs(1);
/// More unsynced bytes than this are synced at once, so that writers seldom reach the bound at which they wait.
const SYNC_BYTES: u64 = 16 << 20;
/// How long a full disk is left alone before the next attempt.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// A volume that has been left alone this long is checkpointed.
const CHECKPOINT_IDLE: Duration = Duration::from_secs(30);
/// While busy, the tail must also be this part of the volume.
const CHECKPOINT_TAIL_FRACTION: u64 = 8;
/// A tail this long is enough whatever the size of the volume: an opening reads all of it.
const CHECKPOINT_TAIL_MAX: u64 = 4 << 30;

/// More commits than this since the base, and a checkpoint is due: the place of each is kept in memory.
const CHECKPOINT_COMMITS: usize = 512 << 10;
/// How long a checkpoint that failed is left alone.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(30);

/// What is due.
enum Task {
    /// End the thread.
    Stop,
    /// Log these runs.
    CloseRuns(Vec<Ino>),
    /// Write out, and sync if told to.
    Write { pen: Pen, is_synced: bool },
    /// Derive a checkpoint.
    Checkpoint,
    /// Look how full the disk is.
    Look,
    /// Nothing for this long, or until somebody changes something.
    Sleep(Option<Duration>),
}

/// Starts the thread.
pub(crate) fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    Builder::new().name("volume".to_owned()).spawn(move || run(&shared))
}

fn run(shared: &Arc<Shared>) {
    let mut core = shared.core.lock();
    loop {
        match shared.next_task(&mut core) {
            Task::Stop => return,
            Task::Sleep(None) => {
                core.wish.is_parked = true;
                shared.wake.wait(&mut core);
                core.wish.is_parked = false;
            }
            Task::Sleep(Some(time)) => {
                core.wish.is_parked = core.journal.ages().1.is_none() && core.runs.is_empty();
                shared.wake.wait_for(&mut core, time);
                core.wish.is_parked = false;
            }
            Task::Checkpoint => MutexGuard::unlocked(&mut core, || start_checkpoint(shared)),
            task => MutexGuard::unlocked(&mut core, || shared.perform(task)),
        }
    }
}

/// A checkpoint takes long, and the log must be written meanwhile.
fn start_checkpoint(shared: &Arc<Shared>) {
    let shared_too = shared.clone();
    let thread = Builder::new().name("checkpoint".to_owned()).spawn(move || shared_too.try_checkpoint());
    if let Err(error) = thread {
        tracing::warn!(%error, "cannot start a checkpoint");
        shared.checkpoint_ended(&mut shared.core.lock());
    }
}

impl Shared {
    /// Does everything that is due, in the caller's thread.
    pub(crate) fn tick(&self) {
        loop {
            let task = self.next_task(&mut self.core.lock());
            match task {
                Task::Stop | Task::Sleep(_) => return,
                task => self.perform(task),
            }
        }
    }

    fn perform(&self, task: Task) {
        match task {
            Task::CloseRuns(inos) => inos.into_iter().for_each(|ino| drop(self.settled(ino))),
            Task::Write { mut pen, is_synced } => {
                if self.round_or_trouble(&mut pen, is_synced) {
                    self.core.lock().journal.put_pen(pen);
                } else {
                    let mut core = self.core.lock();
                    core.journal.put_pen(pen);
                    core.wish.write = false;
                    core.wish.pause_until = Some(self.clock.elapsed() + FULL_PAUSE);
                }
            }
            Task::Checkpoint => self.try_checkpoint(),
            Task::Look => self.look_at_space(),
            Task::Stop | Task::Sleep(_) => {}
        }
    }

    fn next_task(&self, core: &mut Core) -> Task {
        let now = self.clock.elapsed();
        if core.wish.stop {
            return Task::Stop;
        }
        if core.journal.check().is_err() {
            return Task::Sleep(None);
        }
        let stale = core.runs.stale(now);
        if !stale.is_empty() {
            return Task::CloseRuns(stale);
        }
        if let Some(pause) = core.wish.pause_until {
            if pause > now {
                return Task::Sleep(Some(pause - now));
            }
            core.wish.pause_until = None;
        }
        if let Some(task) = write_task(core, now) {
            return task;
        }
        if self.is_look_due(core, now) {
            return Task::Look;
        }
        if self.is_checkpoint_due(core, now) {
            core.wish.is_checkpointing = true;
            return Task::Checkpoint;
        }
        Task::Sleep(self.sleep_time(core, now))
    }

    fn is_checkpoint_due(&self, core: &Core, now: Duration) -> bool {
        let tail = core.journal.tail_bytes();
        if core.wish.is_checkpointing || core.journal.durable() <= core.journal.base().1 {
            return false;
        }
        if core.wish.no_checkpoint_before.is_some_and(|at| now < at) {
            return false;
        }
        if core.wish.retries_checkpoint {
            return true;
        }
        if tail == 0 {
            return false;
        }
        let is_idle = now.saturating_sub(core.journal.touched()) >= CHECKPOINT_IDLE;
        let part = (core.state.stats().bytes / CHECKPOINT_TAIL_FRACTION).min(CHECKPOINT_TAIL_MAX);
        let is_long = tail >= self.checkpoint_log_bytes.max(part);
        let is_large = core.state.changes().reaches(&self.changes_max, 1)
            || core.journal.n_commits() >= CHECKPOINT_COMMITS;
        core.pressure.is_urgent()
            || ((is_long || is_large || is_idle) && core.journal.has_changed_since_base())
    }

    /// A checkpoint in the background: what goes wrong is logged, and tried again later.
    fn try_checkpoint(&self) {
        let made = match self.room_if_tight().map(|room| self.checkpoint_part(room)) {
            Some(Ok(Some(part))) => Ok(part),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => self.make_checkpoint(),
        };
        let mut core = self.core.lock();
        let now = self.clock.elapsed();
        let pause = core.pressure.pause(&made).or(made.is_err().then_some(CHECKPOINT_PAUSE));
        core.wish.no_checkpoint_before = pause.map(|pause| now + pause);
        core.wish.retries_checkpoint = made.is_err();
        self.checkpoint_ended(&mut core);
        drop(core);
        if let Err(error) = made {
            tracing::warn!(error = chain(&error), "no checkpoint");
        }
    }

    /// Another checkpoint may be started.
    fn checkpoint_ended(&self, core: &mut Core) {
        core.wish.is_checkpointing = false;
        core.journal.touch(self.clock.elapsed());
        self.look_at_changes(core);
        self.eased.notify_all();
        self.wake.notify_one();
    }

    /// How long nothing can become due; `None` until something is changed.
    fn sleep_time(&self, core: &Core, now: Duration) -> Option<Duration> {
        let (opened, unsynced) = core.journal.ages();
        let run = (!core.runs.is_empty()).then_some(RUN_AGE_MAX);
        let cut = opened.map(|at| (at + CUT_AGE).saturating_sub(now));
        let sync = unsynced.map(|at| (at + SYNC_AGE).saturating_sub(now));
        let idle = (!core.wish.is_checkpointing && core.journal.has_changed_since_base())
            .then(|| core.journal.touched() + CHECKPOINT_IDLE)
            .map(|at| core.wish.no_checkpoint_before.map_or(at, |not_before| not_before.max(at)))
            .map(|at| at.saturating_sub(now));
        let look = self.next_look(core).map(|at| at.saturating_sub(now));
        // If it is not due then, it waits for something to become durable, and who brings that about is heard.
        let retry = core.wish.no_checkpoint_before.filter(|at| core.wish.retries_checkpoint && *at > now);
        let retry = retry.map(|at| at - now);
        // Whoever holds the pen may take longer than what is due; look again soon, not at once.
        let soonest = [run, cut, sync, idle, look, retry].into_iter().flatten().min()?;
        Some(soonest.max(Duration::from_millis(5)))
    }
}

/// Writing out, if it is due and nobody else is at it.
fn write_task(core: &mut Core, now: Duration) -> Option<Task> {
    let (opened, unsynced) = core.journal.ages();
    let is_cut = opened.is_some_and(|at| now.saturating_sub(at) >= CUT_AGE);
    let is_old = unsynced.is_some_and(|at| now.saturating_sub(at) >= SYNC_AGE);
    let is_awaited = core.journal.has_unsynced_waiters();
    let is_much = core.journal.unsynced_weight() >= SYNC_BYTES;
    // Somebody who came while the pen was away left no wish behind: that he waits is reason enough.
    if !(is_cut || is_old || is_much || is_awaited || core.journal.has_closed()) {
        core.wish.write = false;
        return None;
    }
    // The wish is over even if the pen is away: who gives it back wishes again, and must be heard.
    core.wish.write = false;
    let pen = core.journal.take_pen()?;
    Some(Task::Write { pen, is_synced: is_old || is_much || is_awaited })
}
