//! When space is given back, and how eagerly. No clock and no disk in here.

use std::time::Duration;

/// Collections by themselves are this far apart, when the store grew enough or long ago.
const PAUSE_MIN: Duration = Duration::from_secs(300);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// While space is short they may be closer; and closer still when the log of a volume was folded, for that is what makes blocks
/// unused: one begins the grace, one ends it, and one more takes what was put meanwhile. When so many in a row found nothing
/// (something long is being put, mostly), each waits twice as long as the one before, until the disk is nearly full.
const PAUSE_SHORT: Duration = Duration::from_secs(30);
const PAUSE_FOLDED: Duration = Duration::from_secs(4);
const COLLECTIONS_FOLDED: u32 = 3;

/// The store may grow by this much, and by half of what it was, before anything is done on a disk with space enough.
const GROWTH_BYTES: u64 = 1 << 30;

/// With fewer free bytes than so many reserves, the disk is nearly full.
const TIGHT_RESERVES: u64 = 2;

/// What is seen of the disk and of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Since any fixed point.
    pub(super) now: Duration,
    /// Free bytes, what is set aside included.
    pub(super) free_bytes: u64,
    /// Bytes that shall stay free.
    pub(super) reserve_bytes: u64,
    /// Bytes of all packs.
    pub(super) pack_bytes: u64,
    /// Grows when a log is folded into a tree.
    pub(super) folded: u64,
}

impl Look {
    /// The disk is nearly full.
    pub(super) fn is_tight(&self) -> bool {
        self.free_bytes < self.reserve_bytes.saturating_mul(TIGHT_RESERVES)
    }
}

/// How eagerly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Zeal {
    /// There is time and space.
    Calm,
    /// More of what was put lately may be unused than is still free.
    Short,
    /// The disk is nearly full.
    Tight,
}

/// What is remembered between collections.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the last one ended, and how long it took.
    last: Duration,
    took: Duration,
    /// Bytes of packs after the last collection.
    bytes_after: u64,
    /// Bytes of packs that the last collection looked at and left: they are live, or not worth it. What an earlier process left counts
    /// as such until the first.
    settled_bytes: Option<u64>,
    /// As of the last look while space was short.
    folded: u64,
    /// Collections that are due soon because that grew.
    n_due: u32,
    /// Collections in a row that found nothing.
    n_idle: u32,
    /// Something stood in the way of the last one.
    has_failed: bool,
}

impl Pace {
    /// Whether it is time for a collection. `grace` is how long what was put is left alone at most.
    pub(super) fn due(&mut self, look: &Look, grace: Duration) -> Option<Zeal> {
        if self.settled_bytes.is_none() {
            self.settled_bytes = Some(look.pack_bytes);
            // On a disk that is nearly full, whoever ended may have been about to give space back.
            self.folded = if look.is_tight() { 0 } else { look.folded };
        }
        let since = look.now.saturating_sub(self.last);
        let zeal = self.zeal(look);
        if zeal > Zeal::Calm && self.folded != look.folded {
            self.folded = look.folded;
            self.n_due = COLLECTIONS_FOLDED;
        }
        // What was begun is ended: the first of them gives back little, and what it leaves is settled for good only by the next.
        if zeal > Zeal::Calm || self.n_due > 0 {
            let pause = self.pause(zeal).max(self.took).min(grace);
            return (since >= pause).then_some(zeal.max(Zeal::Short));
        }
        let grown = look.pack_bytes.saturating_sub(self.bytes_after);
        let is_much = grown >= GROWTH_BYTES + self.bytes_after / 2;
        let is_due = (is_much && since >= PAUSE_MIN.min(grace)) || (grown > 0 && since >= PAUSE_MAX);
        is_due.then_some(Zeal::Calm)
    }

    /// What stands in the way (copies on their way, mostly) is not disturbed all the time while there is space.
    fn pause(&self, zeal: Zeal) -> Duration {
        if zeal < Zeal::Tight {
            if self.has_failed {
                return PAUSE_MIN;
            }
            if let Some(n_times) = self.n_idle.checked_sub(COLLECTIONS_FOLDED) {
                return PAUSE_SHORT.saturating_mul(1 << n_times.min(10)).min(PAUSE_MIN);
            }
        }
        if self.n_due > 0 { PAUSE_FOLDED } else { PAUSE_SHORT }
    }

    /// How eager a collection has to be. Space is short when more of what was put since the last one may be unused than is still
    /// free: it is given back before the disk is nearly full, because that takes a while and writers do not wait.
    pub(super) fn zeal(&self, look: &Look) -> Zeal {
        let unsettled = look.pack_bytes.saturating_sub(self.settled_bytes.unwrap_or(look.pack_bytes));
        let room = look.free_bytes.saturating_sub(look.reserve_bytes.saturating_mul(TIGHT_RESERVES));
        if look.is_tight() {
            Zeal::Tight
        } else if unsettled > room {
            Zeal::Short
        } else {
            Zeal::Calm
        }
    }

    /// One was tried; it took so long.
    pub(super) fn tried(&mut self, now: Duration, took: Duration, is_made: bool) {
        self.last = now;
        self.took = took;
        self.n_due = self.n_due.saturating_sub(1);
        self.has_failed = !is_made;
    }

    /// One was made, and this is what is left; `settled_bytes` of it was looked at, if anything was.
    pub(super) fn made(&mut self, pack_bytes: u64, settled_bytes: Option<u64>, has_removed: bool) {
        let settled = settled_bytes.or(self.settled_bytes).map(|bytes| bytes.min(pack_bytes));
        self.n_idle =
            if has_removed || settled > self.settled_bytes { 0 } else { self.n_idle.saturating_add(1) };
        self.bytes_after = pack_bytes;
        self.settled_bytes = settled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GRACE: Duration = Duration::from_secs(3600);
    const TOOK: Duration = Duration::from_millis(100);

    fn look(secs: u64, free_mib: u64, pack_mib: u64, folded: u64) -> Look {
        Look {
            now: Duration::from_secs(secs),
            free_bytes: free_mib * MIB,
            reserve_bytes: 80 * MIB,
            pack_bytes: pack_mib * MIB,
            folded,
        }
    }

    /// As at the start of a node with an empty store.
    fn begun() -> Pace {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(2, 1400, 0, 0), GRACE), None);
        pace
    }

    #[test]
    fn what_may_be_unused_is_looked_at_before_it_is_all_the_space_there_is() {
        let mut pace = begun();
        assert_eq!(pace.due(&look(40, 650, 450, 1), GRACE), None, "there is more left");
        assert_eq!(pace.due(&look(44, 600, 500, 2), GRACE), Some(Zeal::Short));
    }

    #[test]
    fn without_a_reserve_too() {
        let mut pace = begun();
        let look = Look { reserve_bytes: 0, ..look(40, 499, 500, 1) };
        assert_eq!(pace.due(&look, GRACE), Some(Zeal::Short));
    }

    #[test]
    fn what_was_begun_because_space_is_short_is_ended() {
        let mut pace = begun();
        assert_eq!(pace.due(&look(44, 600, 500, 2), GRACE), Some(Zeal::Short));
        // Nothing was old enough; a little more is seen to be in use than there is.
        pace.made(500 * MIB, Some(400 * MIB), false);
        pace.tried(Duration::from_secs(44), TOOK, true);
        assert_eq!(pace.due(&look(46, 600, 500, 2), GRACE), None, "the grace is not over");
        assert_eq!(pace.due(&look(48, 600, 500, 2), GRACE), Some(Zeal::Short));
        pace.tried(Duration::from_secs(48), TOOK, true);
        assert_eq!(pace.due(&look(52, 600, 500, 2), GRACE), Some(Zeal::Short));
        pace.tried(Duration::from_secs(52), TOOK, true);
        assert_eq!(pace.due(&look(99, 600, 500, 2), GRACE), None);
    }

    #[test]
    fn what_is_in_use_is_not_looked_at_again_and_again() {
        let mut pace = begun();
        assert_eq!(pace.due(&look(40, 200, 1000, 1), GRACE), Some(Zeal::Short));
        for secs in [40, 44, 48] {
            pace.made(1000 * MIB, Some(1000 * MIB), false);
            pace.tried(Duration::from_secs(secs), TOOK, true);
        }
        assert_eq!(pace.due(&look(1000, 200, 1000, 2), GRACE), None);
        assert_eq!(pace.due(&look(1000, 200, 1020, 2), GRACE), None);
        assert_eq!(pace.due(&look(1000, 150, 1020, 2), GRACE), Some(Zeal::Tight), "nearly full");
    }

    #[test]
    fn a_store_that_was_there_at_the_start_is_no_reason_for_haste_unless_the_disk_is_nearly_full() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(2, 300, 1000, 7), GRACE), None);
        assert_eq!(pace.due(&look(60, 300, 1000, 7), GRACE), None);
        assert_eq!(pace.due(&look(60, 300, 1200, 8), GRACE), Some(Zeal::Short));
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(2, 100, 1000, 7), GRACE), None);
        assert_eq!(pace.due(&look(4, 100, 1000, 7), GRACE), Some(Zeal::Tight));
    }

    #[test]
    fn collections_that_find_nothing_become_rare_and_hurry_again_on_a_disk_that_is_nearly_full() {
        let mut pace = begun();
        let (mut now, mut n_made) = (0, 0);
        for secs in (44..1044).step_by(2) {
            // Something long is being put, and a volume is folded all the time.
            if pace.due(&look(secs, 600, 500, secs), GRACE).is_some() {
                pace.made(500 * MIB, None, false);
                pace.tried(Duration::from_secs(secs), TOOK, true);
                (now, n_made) = (secs, n_made + 1);
            }
        }
        assert!((6..12).contains(&n_made), "{n_made}");
        assert_eq!(pace.due(&look(now + 4, 150, 900, 3000), GRACE), Some(Zeal::Tight));
    }

    #[test]
    fn collections_take_half_of_the_time_at_most() {
        let mut pace = begun();
        pace.tried(Duration::from_secs(40), Duration::from_secs(20), true);
        assert_eq!(pace.due(&look(59, 100, 900, 1), GRACE), None);
        assert_eq!(pace.due(&look(60, 100, 900, 1), GRACE), Some(Zeal::Tight));
    }

    #[test]
    fn with_space_enough_it_takes_a_gibibyte_and_five_minutes() {
        let mut pace = begun();
        assert_eq!(pace.due(&look(200, 100_000, 1024, 1), GRACE), None);
        assert_eq!(pace.due(&look(300, 100_000, 1023, 1), GRACE), None);
        assert_eq!(pace.due(&look(300, 100_000, 1024, 1), GRACE), Some(Zeal::Calm));
        assert_eq!(pace.due(&look(3600, 100_000, 1, 1), GRACE), Some(Zeal::Calm), "or an hour");
    }

    #[test]
    fn a_collection_that_cannot_be_made_is_tried_again_but_not_at_once() {
        let mut pace = begun();
        assert_eq!(pace.due(&look(40, 100, 900, 0), GRACE), Some(Zeal::Tight));
        pace.tried(Duration::from_secs(40), TOOK, false);
        assert_eq!(pace.due(&look(60, 100, 900, 0), GRACE), None);
        assert_eq!(pace.due(&look(70, 100, 900, 0), GRACE), Some(Zeal::Tight));
        assert_eq!(
            pace.due(&look(339, 900, 900, 7), GRACE),
            None,
            "copies are on their way, and there is space"
        );
        assert_eq!(pace.due(&look(340, 900, 900, 7), GRACE), Some(Zeal::Short));
    }
}
