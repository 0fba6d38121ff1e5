//! Moving places from memory to the index, on a thread that sleeps while there is nothing to move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::blocks::{BlocksError, DRAIN_NOW, Shared};
use crate::index::{Covered, Digest};

/// Places moved to the index before it is made durable, full packs or not: what is not is read again after a crash.
const CHECKPOINT_AT: usize = 128 * 1024;

/// What the background thread is to do.
#[derive(Default)]
pub(super) struct Signal {
    wanted: Mutex<Wanted>,
    /// Places moved to the index since it was last made durable.
    n_moved: AtomicUsize,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    is_drain: bool,
    is_checkpoint: bool,
    is_stop: bool,
}

impl Signal {
    /// Places wait for the index.
    pub(super) fn wake(&self) {
        self.set(|wanted| wanted.is_drain = true);
    }

    /// A pack is full: time to make the index durable, so that a crash costs little.
    pub(super) fn wake_rolled(&self) {
        self.set(|wanted| wanted.is_checkpoint = true);
    }

    fn set(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock());
        self.changed.notify_one();
    }
}

/// The background thread.
pub(super) struct Worker {
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts it; without a thread puts do the moving themselves.
    pub(super) fn start(shared: &Arc<Shared>) -> Option<Worker> {
        let shared = shared.clone();
        let thread =
            std::thread::Builder::new().name("blocks-index".to_owned()).spawn(move || run(&shared)).ok()?;
        Some(Worker { thread })
    }

    /// Stops it and waits for its end.
    pub(super) fn stop(self, shared: &Shared) {
        shared.signal.set(|wanted| wanted.is_stop = true);
        // It catches its errors; a panic would be our bug and has been printed.
        let _ = self.thread.join();
    }
}

fn run(shared: &Shared) {
    let mut is_counted = false;
    loop {
        let is_checkpoint = {
            let mut wanted = shared.signal.wanted.lock();
            while !(wanted.is_stop || wanted.is_drain || wanted.is_checkpoint) {
                shared.signal.changed.wait(&mut wanted);
            }
            if wanted.is_stop {
                return;
            }
            wanted.is_drain = false;
            std::mem::take(&mut wanted.is_checkpoint)
        };
        let is_much = shared.signal.n_moved.load(Ordering::Relaxed) >= CHECKPOINT_AT;
        let result = if is_checkpoint || is_much { shared.checkpoint(false) } else { shared.drain() };
        if let Err(error) = result {
            tracing::warn!(%error, "cannot bring the index up to date");
        }
        if !std::mem::replace(&mut is_counted, true) && shared.index.lacks_places() {
            tracing::warn!("the index has lost places");
            shared.prove_index();
        }
    }
}

impl Shared {
    /// Moves all places of durable blocks to the index, syncing first: the index must never know more than the packs hold. If the index
    /// fails the places stay in memory, until there are too many of them.
    pub(super) fn drain(&self) -> Result<(), BlocksError> {
        let _one_at_a_time = self.drain.lock();
        self.drain_locked()?;
        self.seal_full_or_later();
        Ok(())
    }

    /// Returns whether the index has everything now.
    fn drain_locked(&self) -> Result<bool, BlocksError> {
        let places = self.recent.write().begin_drain();
        let n_places = places.len();
        let moved = self.sync().and_then(|()| {
            let places: Vec<(Digest, _)> = places.iter().map(|(digest, place)| (*digest, *place)).collect();
            self.index.insert_all(&places).or_else(|error| {
                self.give_index_up(&error);
                Ok(self.index.insert_all(&places)?)
            })
        });
        let mut recent = self.recent.write();
        match moved {
            Ok(()) => {
                recent.drained();
                self.signal.n_moved.fetch_add(n_places, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => {
                recent.undrain();
                let is_bearable = matches!(error, BlocksError::Index(_)) && recent.len() < 4 * DRAIN_NOW;
                if is_bearable { Ok(false) } else { Err(error) }
            }
        }
    }

    /// Moves all places to the index and makes that durable.
    pub(super) fn checkpoint(&self, is_clean: bool) -> Result<(), BlocksError> {
        let _one_at_a_time = self.drain.lock();
        // What is written from here on may or may not be moved; it is behind `covered` and will be looked at again.
        let (covered, written) = {
            let append = self.append.lock();
            let salt = append.pack.salt;
            (Covered { pack: append.pack.number, offset: append.end.at, salt }, append.written)
        };
        let is_moved = self.drain_locked()?;
        self.seal_full_or_later();
        if !is_moved {
            return Ok(());
        }
        self.signal.n_moved.store(0, Ordering::Relaxed);
        let covered = {
            let append = self.append.lock();
            assert!(written <= append.synced, "index ahead of the packs");
            // The next open does not look at packs before, and this one it has to seal.
            append.full.front().map_or(covered, |full| full.covered().min(covered))
        };
        if let Err(error) = self.index.checkpoint(covered, is_clean) {
            // A sync that failed once says nothing the next time: what it has is not believed any more.
            self.give_index_up(&error);
        }
        Ok(())
    }
}
