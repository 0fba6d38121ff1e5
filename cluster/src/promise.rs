//! What a keeper promised: the record that must be on disk before the promise is told to anybody.
//!
//! What always holds: across crashes and restarts `term` never goes down, and for one term there is one candidate.

use serde::{Deserialize, Serialize};

use crate::bounded::{DecodeError, decode_versioned, encode_versioned};
use crate::config::Config;
use crate::identity::{PeerId, VolumeId};
use crate::tip::{Chain, Checkpoint, Term, Tip};

const VERSION: u8 = 1;
/// Largest encoded promise, in bytes: it fits a slot of the ctl file.
pub const PROMISE_BYTES_MAX: usize = 3 * 1024;

/// The last writer that was elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The writer.
    pub peer: PeerId,
    /// The term it was elected for.
    pub term: Term,
    /// When, by its own clock, milliseconds since 1970; for people.
    pub since_unix_ms: u64,
    /// The chain it was elected to go on with.
    pub base: Tip,
    /// Where its chain ended when it gave the volume back; None while it has not.
    pub released: Option<Tip>,
}

/// The durable state of one volume's keeper: the ctl record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The volume.
    pub volume: VolumeId,
    /// Commits of lower terms are refused from now on.
    pub term: Term,
    /// Whom the term was promised to; None before the first promise.
    pub candidate: Option<PeerId>,
    /// The last writer elected, as far as this keeper was told.
    pub hold: Option<Hold>,
    /// The configuration of the chain before `hold` began to write; None if this keeper was never made one. At the writer
    /// itself it is that of `hold` once it is known to have served.
    pub config: Option<Config>,
    /// The configuration that the START of `hold` brings: it counts once the log has a commit of that term.
    pub next: Option<Config>,
    /// The newest tree that stands for the beginning of the chain, if commits were dropped. It is written before the log
    /// is begun anew: if the log on disk ends before it after a crash, the log begins anew there.
    pub checkpoint: Option<Checkpoint>,
}

impl Hold {
    /// Whether the writer served, as far as a log on its chain shows: it released what it had written, or committed more
    /// than START.
    pub fn is_served_in(&self, log: &Chain) -> bool {
        let is_released = self.released.is_some_and(|tip| tip.term == self.term);
        is_released || (log.tip.term == self.term && log.tip.seq > self.base.seq + 1)
    }
}

impl Promise {
    /// Of a host that keeps nothing of the volume: it has no vote until a writer makes it a keeper.
    pub fn blank(volume: VolumeId) -> Self {
        Promise {
            volume,
            term: Term(0),
            candidate: None,
            hold: None,
            config: None,
            next: None,
            checkpoint: None,
        }
    }

    /// Of a keeper of a volume that is being created with this configuration. Write it to disk before the volume is
    /// announced.
    pub fn at_creation(volume: VolumeId, config: Config) -> Self {
        Promise { config: Some(config), ..Promise::blank(volume) }
    }

    /// The configuration that counts for a keeper with this log.
    pub fn config_with(&self, log: &Chain) -> Option<&Config> {
        let is_started = self.hold.is_some_and(|hold| log.tip.term == hold.term);
        if is_started { self.next.as_ref().or(self.config.as_ref()) } else { self.config.as_ref() }
    }

    /// The term in which `me` wrote last, if it is known here that it got as far as to serve, or that nobody can have served
    /// since it did. An election alone proves nothing: a candidate that nobody else heard of has written it down too.
    pub fn served(&self, me: PeerId) -> Option<Term> {
        let hold = self.hold.filter(|hold| hold.peer == me)?;
        self.config.as_ref().is_some_and(|config| config.generation == hold.term).then_some(hold.term)
    }

    /// The bytes for the disk.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`Promise::encode`] wrote.
    ///
    /// # Errors
    /// Malformed, too large, from a newer version, or with a configuration that cannot be. The keeper must not vote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let promise: Promise = decode_versioned("promise", VERSION, PROMISE_BYTES_MAX, bytes)?;
        let broken = [&promise.config, &promise.next].into_iter().flatten().find_map(Config::broken_rule);
        match broken {
            Some(reason) => Err(DecodeError::Invalid { what: "promise", reason }),
            None => Ok(promise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hold, PROMISE_BYTES_MAX, Promise};
    use crate::config::{Config, Durability};
    use crate::identity::{PeerId, VolumeId};
    use crate::tip::{Chain, Checkpoint, CommitId, Term, Tip};
    use crate::volume_record::KEEPERS_MAX;

    fn largest() -> Promise {
        let members = |first: u8| (first..first + KEEPERS_MAX as u8).map(|n| PeerId([n; 32])).collect();
        let tip = Tip { term: Term(u64::MAX), seq: u64::MAX, id: CommitId([255; 32]) };
        let config = Config::at_creation(members(1), Durability::Quorum).succeeded_by(
            Term(u64::MAX),
            members(100),
            Durability::Local,
        );
        Promise {
            volume: VolumeId([9; 16]),
            term: Term(u64::MAX),
            candidate: Some(PeerId([1; 32])),
            hold: Some(Hold {
                peer: PeerId([1; 32]),
                term: Term(7),
                since_unix_ms: u64::MAX,
                base: tip,
                released: Some(tip),
            }),
            config: Some(config.clone()),
            next: Some(config),
            checkpoint: CommitId([3; 32]).cid().map(|tree| Checkpoint { tip, tree }),
        }
    }

    #[test]
    fn the_largest_promise_fits_its_slot_and_reads_back() {
        let bytes = largest().encode();
        assert!(bytes.len() <= PROMISE_BYTES_MAX, "{}", bytes.len());
        assert_eq!(Promise::decode(&bytes), Ok(largest()));
        for cut in 0..bytes.len() {
            assert!(Promise::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_new_configuration_counts_once_its_start_is_in_the_log() {
        let promise = largest();
        let mut log = Chain::default();
        assert_eq!(promise.config_with(&log), promise.config.as_ref());
        log.push(Tip { term: Term(7), seq: 1, id: CommitId([1; 32]) });
        assert_eq!(promise.config_with(&log), promise.next.as_ref());
    }
}
