//! Commits from the writer on another host, added to the log, while there is room for them.

use std::sync::atomic::Ordering;

use remora_cluster::keeper::KeeperEvent;
use remora_cluster::tip::Tip;
use remora_store::log::LogError;
use remora_store::reserve::from_reserve;
use remora_volume::commit::Commit;

use crate::keepers::chain::{frame_of, tip_at};
use crate::keepers::kept::Kept;

impl Kept {
    /// Whether the last commits did not fit the disk. The keeper is well, and takes commits as soon as there is room.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Adds commits; everything in the log is on disk when this returns. `durable` is where a log without commits begins.
    pub(super) fn append_log(&self, durable: Tip, commits: &[Commit], upto: Tip) -> KeeperEvent {
        let append = |commit: &Commit| self.log.append(&frame_of(commit), &[&commit.bytes]).map(drop);
        // Commits that were to come behind some that did not fit must not come without them.
        let appended = if self.is_full() && !self.joins(durable, commits) {
            Ok(false)
        } else {
            append_all(commits, append, &*self.relieve)
        };
        let is_whole = match appended.and_then(|is_whole| self.log.sync().map(|()| is_whole)) {
            Ok(is_whole) => is_whole,
            Err(e) => return self.fact(Err(e), KeeperEvent::LogDurable { tip: upto }),
        };
        let was_full = self.is_full.swap(!is_whole, Ordering::Relaxed);
        if is_whole {
            return KeeperEvent::LogDurable { tip: upto };
        }
        if !was_full {
            tracing::warn!(volume = %self.id, "no space left for the log: its writer is asked to come back");
        }
        let tip = self.log.tail().and_then(|tail| tip_at(&self.log, tail.seq));
        KeeperEvent::LogFull { tip: tip.unwrap_or(durable) }
    }

    fn joins(&self, durable: Tip, commits: &[Commit]) -> bool {
        let end = self.log.tail().map_or(durable.seq, |tail| tail.seq);
        commits.first().is_none_or(|first| first.header.seq == end + 1)
    }
}

/// Appends commits, with what `relieve` gives up for them if the disk is full; `false` if there was no room for all of them.
fn append_all(
    commits: &[Commit],
    append: impl Fn(&Commit) -> Result<(), LogError>,
    relieve: &dyn Fn() -> bool,
) -> Result<bool, LogError> {
    for commit in commits {
        let is_full = |error: &LogError| matches!(error, LogError::Full(_));
        match from_reserve(relieve, is_full, || append(commit)) {
            Err(LogError::Full(_)) => return Ok(false),
            other => other?,
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io;
    use std::path::Path;

    use remora_cluster::tip::CommitId;
    use remora_store::fault::DiskFault;
    use remora_vfs::attr::Timestamp;
    use remora_volume::commit::{CommitHeader, FLAG_END};

    use super::*;

    fn commit(seq: u64) -> Commit {
        let base = CommitId([9; 32]).cid().unwrap();
        let (volume, prev, time) = ([7; 16], [0; 32], Timestamp(1));
        let header = CommitHeader { volume, prev, term: 1, seq, base, base_seq: 0, flags: FLAG_END, time };
        Commit::seal(header, b"ops", Vec::new()).unwrap()
    }

    /// Appends three commits where `n_room` fit, and one more for each of the `n_aside` pieces; answers how many came.
    fn check(n_room: usize, n_aside: usize) -> (Result<bool, LogError>, usize) {
        let (room, aside) = (Cell::new(n_room), Cell::new(n_aside));
        let log = RefCell::new(Vec::new());
        let append = |commit: &Commit| {
            if room.get() == 0 {
                let full = io::Error::from(io::ErrorKind::StorageFull);
                return Err(LogError::Full(DiskFault::at("make segment", Path::new("log"))(full)));
            }
            room.set(room.get() - 1);
            log.borrow_mut().push(commit.header.seq);
            Ok(())
        };
        let relieve = || {
            let has_any = aside.get() > 0;
            aside.set(aside.get().saturating_sub(1));
            room.set(room.get() + usize::from(has_any));
            has_any
        };
        let done = append_all(&[commit(1), commit(2), commit(3)], append, &relieve);
        let log = log.into_inner();
        assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>(), "from the first, without gaps");
        (done, log.len())
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_what_was_set_aside() {
        assert!(matches!(check(3, 0), (Ok(true), 3)));
        assert!(matches!(check(1, 0), (Ok(false), 1)));
        assert!(matches!(check(0, 2), (Ok(false), 2)));
        assert!(matches!(check(1, 2), (Ok(true), 3)));
    }

    #[test]
    fn any_other_failure_is_told() {
        let failed = |_: &Commit| Err(LogError::Failed { reason: "gone".into() });
        assert!(append_all(&[commit(1)], failed, &|| true).is_err());
    }
}
