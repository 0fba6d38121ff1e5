//! Many callers, one sync: whoever comes while a sync runs shares the next one.
//!
//! What always holds: a caller returns `Ok` only if a sync that *began* after its bytes were written has succeeded; after the first
//! failure every caller fails, for ever.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// The meeting point of callers that want their writes durable.
pub struct GroupSync {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Everything up to this count is durable.
    durable: u64,
    is_running: bool,
    failed: Option<Arc<str>>,
}

impl GroupSync {
    /// A group in which everything up to `durable` is durable already.
    pub fn new(durable: u64) -> GroupSync {
        GroupSync {
            state: Mutex::new(State { durable, is_running: false, failed: None }),
            changed: Condvar::new(),
        }
    }

    /// Returns once everything up to `wanted` is durable. `sync` is run by at most one caller at a time, without a lock held; it
    /// returns up to where things are durable now, which is at least what was written when it began.
    ///
    /// # Errors
    /// The reason of the first failure, for ever.
    pub fn reach(
        &self,
        wanted: u64,
        mut sync: impl FnMut() -> Result<u64, Arc<str>>,
    ) -> Result<(), Arc<str>> {
        let mut state = self.state.lock();
        loop {
            if let Some(reason) = &state.failed {
                return Err(reason.clone());
            }
            if state.durable >= wanted {
                return Ok(());
            }
            if state.is_running {
                self.changed.wait(&mut state);
                continue;
            }
            state.is_running = true;
            drop(state);
            let result = sync();
            state = self.state.lock();
            state.is_running = false;
            match result {
                Ok(durable) => state.durable = state.durable.max(durable),
                Err(reason) => state.failed = Some(state.failed.take().unwrap_or(reason)),
            }
            self.changed.notify_all();
        }
    }

    /// Up to where everything is durable.
    pub fn durable(&self) -> u64 {
        self.state.lock().durable
    }

    /// Makes every later call fail; the first reason stays.
    pub fn fail(&self, reason: Arc<str>) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Why everything fails, if it does.
    pub fn failed(&self) -> Option<Arc<str>> {
        self.state.lock().failed.clone()
    }
}
