//! Who ends a run from outside: a signal, or time when something hangs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

const POLL: Duration = Duration::from_millis(200);

/// A thread that listens and looks at the clock.
#[derive(Clone, Default)]
pub(super) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_interrupted: AtomicBool,
    is_stuck: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    daemons: Mutex<Vec<u32>>,
}

impl Watch {
    /// Begins to listen to SIGINT and SIGTERM.
    pub(super) fn start() -> Result<Watch> {
        let watch = Watch::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime for signals")?;
        let shared = Arc::clone(&watch.shared);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
                let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
                let _waits = ready.send(());
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => shared.is_interrupted.store(true, Ordering::SeqCst),
                        _ = terminate.recv() => shared.is_interrupted.store(true, Ordering::SeqCst),
                        () = tokio::time::sleep(POLL) => shared.look(),
                    }
                }
            });
        });
        is_ready.recv().context("listen to signals")?;
        Ok(watch)
    }

    /// Whether somebody wants the run to end.
    pub(super) fn is_interrupted(&self) -> bool {
        self.shared.is_interrupted.load(Ordering::SeqCst)
    }

    /// Whether the daemons were killed because something hung.
    pub(super) fn is_stuck(&self) -> bool {
        self.shared.is_stuck.load(Ordering::SeqCst)
    }

    /// These are the daemons now; if no other deadline is set before `within` is over, they are killed, and what hangs in
    /// their mounts comes back with an error.
    pub(super) fn expect_within(&self, within: Duration, daemons: Vec<u32>) {
        *self.shared.daemons.lock().unwrap_or_else(PoisonError::into_inner) = daemons;
        *self.shared.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + within);
    }
}

impl Shared {
    fn look(&self) {
        let mut deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline.is_none_or(|at| Instant::now() < at) {
            return;
        }
        *deadline = None;
        self.is_stuck.store(true, Ordering::SeqCst);
        let daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in daemons.iter().filter_map(|pid| i32::try_from(*pid).ok()).filter_map(Pid::from_raw) {
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}
