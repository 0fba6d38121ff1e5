//! The last writer goes on alone: what a pair of hosts needs when one of them is away.
//!
//! Of two keepers both are a majority. A host whose peer is down could therefore not even mount again what it alone has
//! written. But nobody else can have been elected either: an election needs every majority to contain somebody who
//! promised, and there is no majority without this host. So its own record, which is on disk before anything is
//! promised, knows of every writer there ever was; if the newest one is this host, and if an fsync waits for the writer's
//! disk only, then everything that was acknowledged is in its log.
//!
//! What always holds of a host that goes on alone:
//!
//! * it is on every list of keepers that counts, and none of them has a majority without it;
//! * it served in its newest term, so that the other keeper does not take itself for the last writer; nobody that answered
//!   knows of a newer one;
//! * it takes a new term and a new START: what it sent and had not synced before it crashed is another chain now;
//! * the keepers stay the same, and a change of keepers that was not settled stays unsettled.

use crate::acquire::{Acquire, AcquireEffect};
use crate::config::{Config, Durability};
use crate::lease::Millis;
use crate::promise::Hold;

/// How long keepers that do not answer are asked before this host goes on without them, in milliseconds.
pub const WAIT_MS: u64 = 2_000;

impl Acquire {
    /// Elects itself if it may go on alone.
    pub(super) fn try_alone(&mut self, now: Millis, effects: &mut Vec<AcquireEffect>) {
        if now < self.alone_from {
            return;
        }
        let Some((best, config)) = self.best() else { return };
        if self.wrote_last() && self.is_needed(&config) && self.reaches_last_writer(&best) {
            self.is_alone = true;
            self.config = config;
            self.elect(now, &best, effects);
        }
    }

    /// Whether this host wrote last, as far as it and everybody who answered knows. Its own record of an election is not
    /// enough: the other keeper may not have heard of it, then takes itself for the last writer, and both would go on.
    fn wrote_last(&self) -> bool {
        let me = self.options.me;
        let Some(own) = self.promises.get(&me) else { return false };
        let has_served = |hold: Hold| self.options.served == Some(hold.term) || hold.is_served_in(&own.chain);
        own.hold.is_some_and(|hold| hold.peer == me && has_served(hold))
            && self.last_hold().is_some_and(|hold| hold.peer == me)
    }

    /// Whether nobody can be elected, and nothing be acknowledged, without this host.
    pub(super) fn is_needed(&self, config: &Config) -> bool {
        #[cfg(feature = "mistakes")]
        if self.mistakes.alone_of_many {
            return config.durability == Durability::Local;
        }
        config.durability == Durability::Local && config.is_met_by_all(|peer| *peer == self.options.me)
    }
}
