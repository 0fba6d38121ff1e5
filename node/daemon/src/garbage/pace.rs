//! When space is given back, and how eagerly. No clock and no disk in here.

use std::time::Duration;

/// Collections by themselves are this far apart, when the store grew enough or long ago.
const PAUSE_MIN: Duration = Duration::from_secs(300);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// While space is short they may be closer; and closer still when the log of a volume was folded, for that is what makes blocks
/// unused: one begins the grace, one ends it, and one more takes what was put meanwhile.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeal {
    /// There is time and space.
    Calm,
    /// More may be unused than is still free.
    Short,
    /// The disk is nearly full.
    Tight,
}

/// What is remembered between collections.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Duration,
    /// Bytes of packs after the last collection.
    bytes_after: u64,
    /// Bytes of packs that the last collection looked at and left: they are live, or not worth it.
    settled_bytes: u64,
    /// As of the last look while space was short.
    folded: u64,
    /// Collections that are due soon because that grew.
    n_due: u32,
    /// Something stood in the way of the last one.
    has_failed: bool,
}

impl Pace {
    /// Whether it is time for a collection. `grace` is how long what was put is left alone at most.
    pub(super) fn due(&mut self, look: &Look, grace: Duration) -> Option<Zeal> {
        let since = look.now.saturating_sub(self.last);
        let is_short = self.is_short(look);
        if is_short && self.folded != look.folded {
            self.folded = look.folded;
            self.n_due = COLLECTIONS_FOLDED;
        }
        // What was begun is ended: the first of them gives back little, and what it leaves is settled for good only by the next.
        if is_short || self.n_due > 0 {
            let pause = match self.n_due {
                // What stands in the way (copies on their way, mostly) is not to be disturbed all the time while there is space.
                _ if self.has_failed && !look.is_tight() => PAUSE_MIN,
                0 => PAUSE_SHORT,
                _ => PAUSE_FOLDED,
            };
            let zeal = if look.is_tight() { Zeal::Tight } else { Zeal::Short };
            return (since >= pause.min(grace)).then_some(zeal);
        }
        let grown = look.pack_bytes.saturating_sub(self.bytes_after);
        let is_much = grown >= GROWTH_BYTES + self.bytes_after / 2;
        let is_due = (is_much && since >= PAUSE_MIN.min(grace)) || (grown > 0 && since >= PAUSE_MAX);
        is_due.then_some(Zeal::Calm)
    }

    /// Whether more may be unused than is still free: then it is given back before the disk is nearly full, because it takes a while
    /// and writers do not wait.
    fn is_short(&self, look: &Look) -> bool {
        let unsettled = look.pack_bytes.saturating_sub(self.settled_bytes);
        Look { free_bytes: look.free_bytes.saturating_sub(unsettled), ..*look }.is_tight()
    }

    /// Space can be set aside again: there is enough, or what comes back soon has come.
    pub(super) fn is_at_rest(&self, look: &Look) -> bool {
        self.n_due == 0 || !look.is_tight()
    }

    /// One was tried.
    pub(super) fn tried(&mut self, now: Duration, is_made: bool) {
        self.last = now;
        self.n_due = self.n_due.saturating_sub(1);
        self.has_failed = !is_made;
    }

    /// One was made, and this is what is left; `settled_bytes` of it was looked at, if anything was.
    pub(super) fn made(&mut self, pack_bytes: u64, settled_bytes: Option<u64>) {
        self.bytes_after = pack_bytes;
        self.settled_bytes = settled_bytes.unwrap_or(self.settled_bytes).min(pack_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GRACE: Duration = Duration::from_secs(3600);

    fn look(secs: u64, free_mib: u64, pack_mib: u64, folded: u64) -> Look {
        Look {
            now: Duration::from_secs(secs),
            free_bytes: free_mib * MIB,
            reserve_bytes: 80 * MIB,
            pack_bytes: pack_mib * MIB,
            folded,
        }
    }

    #[test]
    fn what_may_be_unused_is_looked_at_before_it_is_all_the_space_there_is() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(40, 650, 450, 1), GRACE), None, "there is more left");
        assert_eq!(pace.due(&look(44, 600, 500, 2), GRACE), Some(Zeal::Short));
    }

    #[test]
    fn what_was_begun_because_space_is_short_is_ended() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(44, 600, 500, 2), GRACE), Some(Zeal::Short));
        pace.tried(Duration::from_secs(44), true);
        // Nothing was old enough; a little more is seen to be in use than there is.
        pace.made(500 * MIB, Some(400 * MIB));
        assert_eq!(pace.due(&look(46, 600, 500, 2), GRACE), None, "the grace is not over");
        assert_eq!(pace.due(&look(48, 600, 500, 2), GRACE), Some(Zeal::Short));
        pace.tried(Duration::from_secs(48), true);
        assert_eq!(pace.due(&look(52, 600, 500, 2), GRACE), Some(Zeal::Short));
        assert!(!pace.is_at_rest(&look(52, 100, 500, 2)));
        assert!(pace.is_at_rest(&look(52, 600, 500, 2)), "there is enough to set some aside");
        pace.tried(Duration::from_secs(52), true);
        assert!(pace.is_at_rest(&look(52, 100, 500, 2)));
        assert_eq!(pace.due(&look(99, 600, 500, 2), GRACE), None);
    }

    #[test]
    fn what_is_in_use_is_not_looked_at_again_and_again() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(40, 200, 1000, 1), GRACE), Some(Zeal::Short));
        for secs in [40, 44, 48] {
            pace.tried(Duration::from_secs(secs), true);
            pace.made(1000 * MIB, Some(1000 * MIB));
        }
        assert_eq!(pace.due(&look(1000, 200, 1000, 2), GRACE), None);
        assert_eq!(pace.due(&look(1000, 200, 1020, 2), GRACE), None);
        assert_eq!(pace.due(&look(1000, 150, 1020, 2), GRACE), Some(Zeal::Tight), "nearly full");
    }

    #[test]
    fn with_space_enough_it_takes_a_gibibyte_and_five_minutes() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(200, 100_000, 1024, 1), GRACE), None);
        assert_eq!(pace.due(&look(300, 100_000, 1023, 1), GRACE), None);
        assert_eq!(pace.due(&look(300, 100_000, 1024, 1), GRACE), Some(Zeal::Calm));
        assert_eq!(pace.due(&look(3600, 100_000, 1, 1), GRACE), Some(Zeal::Calm), "or an hour");
    }

    #[test]
    fn a_collection_that_cannot_be_made_is_tried_again_but_not_at_once() {
        let mut pace = Pace::default();
        assert_eq!(pace.due(&look(40, 100, 900, 0), GRACE), Some(Zeal::Tight));
        pace.tried(Duration::from_secs(40), false);
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
