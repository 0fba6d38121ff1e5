//! From a log to a state: verify the chain, replay its ops over the base.
//!
//! The newest commit names the base it is to be replayed over, so the log alone says where to begin. Always holds: an op
//! is applied only from a commit that follows the one before it; a block that is missing is fetched without a lock; the
//! same log and base give the same state on every host.

use std::io;
use std::sync::mpsc::sync_channel;

use cid::Cid;

use remora_dag::block::{BlockSource, SourceError};
use remora_store::frame::FrameKind;
use remora_store::log::{Frame, Log, LogError};

use remora_vfs::attr::Ino;
use remora_vfs::errno::Errno;

use crate::commit::{Commit, CommitError, Tip};
use crate::journal::payloads::{Payload, Payloads};
use crate::op::{Op, OpError, decode_all};
use crate::state::State;
use crate::state::changes::Changes;
use crate::stop::{FETCHES_MAX, Stop};
use crate::tree::{Tree, TreeError};
use crate::volume::options::Base;

/// Commits that are read and hashed before they are applied, at most; each is bounded in bytes.
const COMMITS_AHEAD: usize = 8;

/// Why a volume cannot be opened, or a state not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log cannot be read.
    #[error("read the log")]
    Log(#[from] LogError),
    /// The log was opened damaged: it must be healed from a keeper first.
    #[error("the log is damaged and must be healed first")]
    Damaged,
    /// The log begins too late for its base.
    #[error("the log begins with commit {first}, but its base ends with {base_seq}")]
    Gap {
        /// The first commit there is.
        first: u64,
        /// The last commit the base contains.
        base_seq: u64,
    },
    /// The term is older than the log's.
    #[error("term {term} is older than term {tip_term} of the log")]
    OldTerm {
        /// The term asked for.
        term: u64,
        /// The term of the newest commit.
        tip_term: u64,
    },
    /// A commit is not one, or does not follow the one before it.
    #[error("commit {seq}")]
    Commit {
        /// Its number, by its frame.
        seq: u64,
        /// What is wrong.
        source: CommitError,
    },
    /// The ops of a commit cannot be read.
    #[error("ops of commit {seq}")]
    Op {
        /// The commit.
        seq: u64,
        /// What is wrong.
        source: OpError,
    },
    /// An op of a commit cannot be carried out: the chain is not what it says.
    #[error("replay of commit {seq}")]
    Replay {
        /// The commit.
        seq: u64,
        /// What the state said.
        #[source]
        stop: Stop,
    },
    /// The base tree cannot be read.
    #[error("read the base tree")]
    Tree(#[from] TreeError),
    /// A block of the base cannot be had; try again when a peer that has it is there.
    #[error("fetch a block of the base tree")]
    Block(#[from] SourceError),
    /// What the last writer held open cannot be let go.
    #[error("drop inode {ino}: {errno}")]
    Orphan {
        /// The inode.
        ino: Ino,
        /// What the state said.
        errno: Errno,
    },
    /// The log ends before the commit that was asked for.
    #[error("the log ends with commit {last}, before commit {upto}")]
    Short {
        /// The last commit there is.
        last: u64,
        /// The commit that was asked for.
        upto: u64,
    },
    /// Whoever wanted it does so no longer.
    #[error("given up")]
    GivenUp,
    /// The background thread cannot be started.
    #[error("start the background thread")]
    Thread(#[from] io::Error),
}

/// A state and where it came from.
pub struct Replayed {
    /// The state after the last commit.
    pub(crate) state: State,
    /// The last commit.
    pub(crate) tip: Tip,
    /// The tree it was replayed over.
    pub(crate) base: Cid,
    /// The last commit the tree contains.
    pub(crate) base_seq: u64,
    /// Where the ops of every commit since are.
    pub(crate) payloads: Payloads,
    /// How many bytes they are.
    pub(crate) ops_bytes: u64,
    /// The last commit that changed the file system, 0 for none.
    pub(crate) changed: u64,
    /// Bytes of data that they removed.
    pub(crate) freed_bytes: u64,
}

/// The newest commit of a log; `None` if it is empty.
pub fn last_commit(log: &Log) -> Result<Option<Commit>, OpenError> {
    let Some(tail) = log.tail() else { return Ok(None) };
    commit_in(log.frame(tail.position)?).map(Some)
}

/// Commit `seq` of a log; `None` if the log does not have it.
pub fn commit_at(log: &Log, seq: u64) -> Result<Option<Commit>, OpenError> {
    let Some(position) = log.position_of(seq) else { return Ok(None) };
    commit_in(log.frame(position)?).map(Some)
}

fn commit_in(frame: Frame) -> Result<Commit, OpenError> {
    let seq = frame.header.meta.seq;
    Commit::decode(frame.payload).map_err(|source| OpenError::Commit { seq, source })
}

/// Replays what the log says over the base its newest commit names, or over `genesis` if the log is empty.
///
/// *Errors*: [`OpenError`]. Nothing is changed.
pub fn replay_all(
    log: &Log,
    blocks: &dyn BlockSource,
    volume: &[u8; 16],
    genesis: &Base,
) -> Result<Replayed, OpenError> {
    if log.is_read_only() {
        return Err(OpenError::Damaged);
    }
    match last_commit(log)? {
        None => {
            let tip = Tip { term: genesis.term, seq: genesis.seq, digest: genesis.digest };
            Replay::new(blocks, volume, genesis.tree, genesis.seq, Some(tip)).map(Replay::end)
        }
        Some(last) => {
            let (tree, seq) = (last.header.base, last.header.base_seq);
            let known = (genesis.seq == seq).then_some(Tip {
                term: genesis.term,
                seq: genesis.seq,
                digest: genesis.digest,
            });
            replay_ahead(log, blocks, volume, (tree, seq, known))
        }
    }
}

/// Whether a replay goes on; asked before every commit, with what differs from the base so far.
pub type GoOn<'a> = dyn Fn(&Changes) -> bool + 'a;

/// Replays all commits after `base` (a tree and the last commit it contains) up to `upto`.
pub(crate) fn replay(
    log: &Log,
    blocks: &dyn BlockSource,
    volume: &[u8; 16],
    base: (Cid, u64),
    upto: u64,
    go_on: &GoOn<'_>,
) -> Result<Replayed, OpenError> {
    let mut replay = Replay::begin(log, blocks, volume, (base.0, base.1, None))?;
    let last = replay.catch_up(log, upto, go_on)?;
    if last < upto {
        return Err(OpenError::Short { last, upto });
    }
    Ok(replay.end())
}

/// As [`replay`], up to the end of the log; a second thread reads and hashes ahead, for somebody waits for it.
fn replay_ahead(
    log: &Log,
    blocks: &dyn BlockSource,
    volume: &[u8; 16],
    base: (Cid, u64, Option<Tip>),
) -> Result<Replayed, OpenError> {
    let mut replay = Replay::begin(log, blocks, volume, base)?;
    std::thread::scope(|scope| {
        let (sender, commits) = sync_channel(COMMITS_AHEAD);
        let reading = move || each_commit(log, base.1, u64::MAX, &mut |read| sender.send(read).is_ok());
        std::thread::Builder::new().name("replay".to_owned()).spawn_scoped(scope, reading)?;
        for read in commits {
            let (commit, place) = read?;
            replay.add(&commit, place)?;
        }
        Ok(replay.end())
    })
}

/// A commit of a log and where its ops are, or why there is none.
type Read = Result<(Commit, Payload), OpenError>;

/// Reads and hashes the commits from `base_seq` up to `upto`, in order, until `take` answers `false`.
fn each_commit(log: &Log, base_seq: u64, upto: u64, take: &mut dyn FnMut(Read) -> bool) {
    for frame in log.iter_from(base_seq) {
        let read = match frame {
            Ok(frame) if frame.header.meta.kind != FrameKind::COMMIT => continue,
            Ok(frame) if frame.header.meta.seq > upto => return,
            Ok(frame) => read_commit(frame),
            Err(error) => Err(error.into()),
        };
        let is_last = read.is_err();
        if !take(read) || is_last {
            return;
        }
    }
}

fn read_commit(frame: Frame) -> Read {
    let position = frame.position;
    let commit = commit_in(frame)?;
    let place = Payload::Log { position, ops_offset: commit.ops_offset() };
    Ok((commit, place))
}

/// A state over `tree` that can be asked.
fn ready_state(blocks: &dyn BlockSource, tree: Tree) -> Result<State, OpenError> {
    let seq = tree.made_from;
    let mut state = State::open(tree);
    with_blocks(&mut state, blocks, seq, State::ready)?;
    Ok(state)
}

/// Does `step` again until it needs no more blocks. One that never ends would keep the volume from everybody without a word.
fn with_blocks<T>(
    state: &mut State,
    blocks: &dyn BlockSource,
    seq: u64,
    mut step: impl FnMut(&mut State) -> Result<T, Stop>,
) -> Result<T, OpenError> {
    for _ in 0..FETCHES_MAX {
        match step(state) {
            Ok(answer) => return Ok(answer),
            Err(Stop::Need(cid)) => {
                let bytes = blocks.get(&cid)?;
                state.supply(&cid, bytes);
            }
            Err(stop) => return Err(OpenError::Replay { seq, stop }),
        }
    }
    Err(OpenError::Replay { seq, stop: Stop::Refused("an operation needs more blocks than any may") })
}

/// A replay under way.
pub(crate) struct Replay<'a> {
    blocks: &'a dyn BlockSource,
    volume: &'a [u8; 16],
    /// The commit before the next one; `None` while it is not known.
    tip: Option<Tip>,
    done: Replayed,
}

impl<'a> Replay<'a> {
    /// A replay over a base that the log joins.
    pub(crate) fn begin(
        log: &Log,
        blocks: &'a dyn BlockSource,
        volume: &'a [u8; 16],
        base: (Cid, u64, Option<Tip>),
    ) -> Result<Replay<'a>, OpenError> {
        let (tree, base_seq, known) = base;
        let first = log.first_seq().unwrap_or(u64::MAX);
        if first > base_seq + 1 {
            return Err(OpenError::Gap { first, base_seq });
        }
        Replay::new(blocks, volume, tree, base_seq, known)
    }

    fn new(
        blocks: &'a dyn BlockSource,
        volume: &'a [u8; 16],
        base: Cid,
        base_seq: u64,
        tip: Option<Tip>,
    ) -> Result<Replay<'a>, OpenError> {
        let tree = Tree::load(&base, blocks)?;
        let state = ready_state(blocks, tree)?;
        let unknown = Tip { term: 0, seq: base_seq, digest: [0; 32] };
        let done = Replayed {
            state,
            tip: tip.unwrap_or(unknown),
            base,
            base_seq,
            payloads: Payloads::new(),
            ops_bytes: 0,
            changed: 0,
            freed_bytes: 0,
        };
        Ok(Replay { blocks, volume, tip, done })
    }

    fn add(&mut self, commit: &Commit, place: Payload) -> Result<(), OpenError> {
        let seq = commit.header.seq;
        if let Some(tip) = &self.tip
            && seq > tip.seq
        {
            commit.follows(self.volume, tip).map_err(|source| OpenError::Commit { seq, source })?;
        }
        self.tip = Some(commit.tip());
        if seq <= self.done.base_seq {
            return Ok(());
        }
        for op in decode_all(commit.ops()) {
            let (op, data_offset) = op.map_err(|source| OpenError::Op { seq, source })?;
            self.apply(seq, data_offset, &op)?;
            if is_change(&op) {
                self.done.changed = seq;
            }
        }
        self.done.ops_bytes += commit.ops().len() as u64;
        self.done.payloads.push(seq, place);
        Ok(())
    }

    fn apply(&mut self, seq: u64, data_offset: usize, op: &Op<'_>) -> Result<(), OpenError> {
        let before = self.done.state.stats().bytes;
        with_blocks(&mut self.done.state, self.blocks, seq, |state| {
            state.apply(seq, data_offset, op).map(drop)
        })?;
        self.done.freed_bytes += before.saturating_sub(self.done.state.stats().bytes);
        Ok(())
    }

    /// Goes on with the commits that it has not seen, up to `upto`; answers the last commit it has seen now.
    pub(crate) fn catch_up(&mut self, log: &Log, upto: u64, go_on: &GoOn<'_>) -> Result<u64, OpenError> {
        let from = self.tip.map_or(self.done.base_seq, |tip| tip.seq + 1);
        let mut added = Ok(());
        each_commit(log, from, upto, &mut |read| {
            added = match go_on(&self.done.state.changes()) {
                true => read.and_then(|(commit, place)| self.add(&commit, place)),
                false => Err(OpenError::GivenUp),
            };
            added.is_ok()
        });
        added?;
        Ok(self.tip.map_or(self.done.base_seq, |tip| tip.seq))
    }

    pub(crate) fn end(mut self) -> Replayed {
        if let Some(tip) = self.tip {
            self.done.tip = tip;
        }
        self.done
    }
}

/// Whether an op changes the file system, or only says something about the chain.
pub(crate) fn is_change(op: &Op<'_>) -> bool {
    !matches!(op, Op::Checkpoint { .. } | Op::Start { .. } | Op::Members { .. } | Op::Snapshot { .. })
}
