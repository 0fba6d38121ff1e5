//! What candidates, writers and keepers of a volume say to one another. docs/PROTOCOL tells the story; the types are here.
//!
//! Every request gets one answer. Who sends is known from the connection and never read from the message. Commits travel
//! as their blocks' bytes: the receiver hashes them and reads their headers itself before its keeper sees them.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::bounded::{DecodeError, decode_versioned, encode_versioned, list};
use crate::config::Config;
use crate::identity::{PeerId, VolumeId};
use crate::promise::Hold;
use crate::tip::{Chain, Checkpoint, Term, Tip};

const VERSION: u8 = 1;
/// Largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Most bytes of commits in one message, unless a single commit is larger.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most commits in one message.
pub const COMMITS_MAX: usize = 16 * 1024;

/// A message about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The volume.
    pub volume: VolumeId,
    /// What is said.
    pub message: Message,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Candidate to keeper: may I write?
    Prepare(Prepare),
    /// Keeper to candidate: nobody with a lower term from now on.
    Promised(Box<Promised>),
    /// Keeper to candidate: no.
    Refused(Box<Refusal>),
    /// Candidate to keeper: a majority promised, and this is the chain that goes on.
    Elected(Box<Elected>),
    /// Keeper to candidate: my log is on that chain, up to here.
    Aligned {
        /// The term of the election.
        term: Term,
        /// Where the keeper's log ends, on disk.
        tip: Tip,
    },
    /// Writer to keeper: add these.
    Append(Append),
    /// Keeper to writer: on disk up to here.
    Ack {
        /// The writer's term.
        term: Term,
        /// Where the keeper's log ends, on disk.
        tip: Tip,
    },
    /// Keeper to writer or candidate: not done.
    Nack(Box<Nack>),
    /// Writer to keeper: I write no more; the chain ends here.
    Release {
        /// The writer's term.
        term: Term,
        /// The end of its chain.
        tip: Tip,
    },
    /// Keeper to writer: noted, on disk.
    Released {
        /// The term released.
        term: Term,
    },
    /// Writer to keeper: I am alive.
    Renew {
        /// The writer's term.
        term: Term,
        /// Everything up to here is committed.
        commit_seq: u64,
    },
    /// Keeper to writer: nobody else may have it for a lease's time.
    Renewed {
        /// The writer's term.
        term: Term,
        /// Where the keeper's log ends, on disk.
        tip: Tip,
    },
    /// Anybody to keeper: show me your chain after this commit.
    FetchLog {
        /// What the asker has.
        after: Tip,
        /// Most bytes of commits to answer with.
        bytes_max: u32,
    },
    /// Keeper: this.
    LogChunk(LogChunk),
    /// The volume is unknown here, or its log cannot be read.
    NotHere,
}

/// A reason to pass over a writer that did not tell this keeper that it released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// Another keeper knows that the writer of `term` released at `tip`.
    Released {
        /// The term released.
        term: Term,
        /// Where its chain ended.
        tip: Tip,
    },
    /// An operator vouches that the writer of `term` is dead.
    Fenced {
        /// The writer.
        peer: PeerId,
        /// Its term.
        term: Term,
    },
}

impl Evidence {
    /// The highest term it speaks of.
    pub fn term(&self) -> Term {
        match self {
            Evidence::Released { term, .. } | Evidence::Fenced { term, .. } => *term,
        }
    }
}

/// A candidacy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The term the candidate wants; never used by it before.
    pub term: Term,
    /// Why the last writer need not be waited for, if there is a reason.
    pub evidence: Option<Evidence>,
}

/// A promise, and what the keeper knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The term promised.
    pub term: Term,
    /// The keeper's log; all of it is on disk.
    pub chain: Chain,
    /// The configuration in that log.
    pub config: Config,
    /// The last writer it knows of.
    pub hold: Option<Hold>,
    /// The tree its log begins from, if not from the volume's creation.
    pub checkpoint: Option<Checkpoint>,
}

/// Why a keeper does not promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RefuseReason {
    /// It promised this term or a higher one: come back with a higher one.
    Outbid,
    /// Somebody writes the volume.
    Held,
    /// It was never a keeper of this volume, or forgot that it was.
    NotKeeper,
    /// Its log is damaged.
    Damaged,
    /// Too many requests wait: come back.
    Busy,
}

/// A refusal, and what the keeper knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub reason: RefuseReason,
    /// The highest term it promised.
    pub promised: Term,
    /// The last writer it knows of.
    pub hold: Option<Hold>,
    /// How long the writer's lease still lasts, in milliseconds; None if it does not run out by itself.
    pub lease_left_ms: Option<u64>,
    /// The configuration it knows.
    pub config: Option<Config>,
}

/// The result of an election.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elected {
    /// The term that was promised by a majority.
    pub term: Term,
    /// The chain that goes on.
    pub chain: Chain,
    /// The configuration in that chain.
    pub config: Config,
    /// The configuration that the START of this term brings.
    pub next: Config,
    /// When, by the candidate's clock, milliseconds since 1970.
    pub since_unix_ms: u64,
}

/// Commits to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The writer's term.
    pub term: Term,
    /// Where to begin anew if the keeper's log ends before it.
    pub checkpoint: Option<Checkpoint>,
    /// The blocks, in order.
    #[serde(deserialize_with = "list::<_, _, COMMITS_MAX>")]
    pub commits: Vec<ByteBuf>,
    /// Everything up to here is committed.
    pub commit_seq: u64,
}

/// Why commits, a release or a renewal were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NackReason {
    /// A higher term was promised.
    Superseded,
    /// The keeper was not told of this election: send it first.
    NotElected,
    /// The commits do not join the log: send from its tip on.
    Gap,
    /// The keeper's disk failed or its log is damaged.
    Damaged,
    /// Too many requests wait: come back.
    Busy,
    /// The keeper's disk has no room for them: what joined and was there or fitted is kept, come back with the rest. Otherwise the
    /// keeper is well, and believes in the writer for another lease.
    Full,
}

/// Not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// Why.
    pub reason: NackReason,
    /// The highest term promised.
    pub promised: Term,
    /// The last writer the keeper knows of.
    pub hold: Option<Hold>,
    /// Where its log ends.
    pub tip: Tip,
}

/// Part of a keeper's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Where to begin if what the asker has is older than all that is kept.
    pub checkpoint: Option<Checkpoint>,
    /// The blocks after it, in order.
    #[serde(deserialize_with = "list::<_, _, COMMITS_MAX>")]
    pub commits: Vec<ByteBuf>,
    /// Where the keeper's chain ends.
    pub end: Tip,
}

impl Message {
    /// The rule that a message from elsewhere breaks, if any.
    fn broken_rule(&self) -> Option<&'static str> {
        match self {
            Message::Promised(promised) => promised.chain.broken_rule().or(promised.config.broken_rule()),
            Message::Refused(refusal) => refusal.config.as_ref().and_then(Config::broken_rule),
            Message::Elected(elected) => {
                let configs = elected.config.broken_rule().or(elected.next.broken_rule());
                elected.chain.broken_rule().or(configs)
            }
            _ => None,
        }
    }
}

impl Envelope {
    /// The bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_versioned(VERSION, self)
    }

    /// Reads what [`Envelope::encode`] wrote, and checks every bound.
    ///
    /// # Errors
    /// Malformed, larger than 5 MiB, from a newer version, or saying what cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let envelope: Envelope = decode_versioned("keeper message", VERSION, MESSAGE_BYTES_MAX, bytes)?;
        match envelope.message.broken_rule() {
            Some(reason) => Err(DecodeError::Invalid { what: "keeper message", reason }),
            None => Ok(envelope),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Append, Elected, Envelope, Evidence, LogChunk, Message, Prepare};
    use crate::config::{Config, Durability};
    use crate::identity::{PeerId, VolumeId};
    use crate::tip::{Boundary, Chain, Term, Tip};
    use proptest::prelude::{any, proptest};
    use serde_bytes::ByteBuf;

    fn elected() -> Elected {
        let config = Config::at_creation(vec![PeerId([1; 32])], Durability::Local);
        let next = config.succeeded_by(Term(3), vec![PeerId([2; 32])], Durability::Quorum);
        Elected { term: Term(3), chain: Chain::default(), config, next, since_unix_ms: 5 }
    }

    fn envelope(message: Message) -> Envelope {
        Envelope { volume: VolumeId([4; 16]), message }
    }

    #[test]
    fn messages_read_back() {
        let tip = Tip { term: Term(1), seq: 2, ..Tip::default() };
        for message in [
            Message::Prepare(Prepare {
                term: Term(2),
                evidence: Some(Evidence::Released { term: Term(1), tip }),
            }),
            Message::Elected(Box::new(elected())),
            Message::Append(Append {
                term: Term(2),
                checkpoint: None,
                commits: vec![ByteBuf::from(vec![1, 2, 3])],
                commit_seq: 9,
            }),
            Message::LogChunk(LogChunk { checkpoint: None, commits: vec![], end: tip }),
            Message::NotHere,
        ] {
            let envelope = envelope(message);
            assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }
    }

    #[test]
    fn an_election_that_cannot_be_is_refused() {
        let mut twice = elected();
        twice.next.members.push(PeerId([2; 32]));
        let mut empty = elected();
        empty.config.members.clear();
        let mut unordered = elected();
        unordered.chain.boundaries = vec![Boundary { term: Term(2), first_seq: 9 }];
        for elected in [twice, empty, unordered] {
            let bytes = envelope(Message::Elected(Box::new(elected))).encode();
            assert!(Envelope::decode(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..16) {
            let _ = Envelope::decode(&bytes);
            let mut bytes = [vec![1], vec![4; 16], vec![kind], bytes].concat();
            let _ = Envelope::decode(&bytes);
            bytes.truncate(40);
            let _ = Envelope::decode(&bytes);
        }
    }
}
