//! One keeper on this host: its promise and log on disk, and the machine that decides.
//!
//! What always holds: the machine's effects are done in order under one lock, a promise is on disk before what follows it,
//! and the answer to a request leaves only when the machine gave it. Fetching and decoding happen before the lock is
//! taken.

mod adding;
mod opening;
mod showing;
mod stopping;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::keeper::{Keeper, KeeperEffect, KeeperEvent, RequestId};
use remora_cluster::lease::Millis;
use remora_cluster::message::{Append, LogChunk, Message};
use remora_cluster::promise::Promise;
use remora_cluster::tip::{CommitHeader, Term, Tip};
use remora_store::ctl::Slots;
use remora_store::disk::{Disk, RealDisk};
use remora_store::fault::chain as cause;
use remora_store::layout::{VolumeDir, is_unfinished};
use remora_store::log::{Log, LogError};
use remora_volume::commit::Commit;
use remora_volume::volume::Volume;
use serde::{Deserialize, Serialize};

use crate::exit::{Code, Failure};
use crate::keepers::chain::{header_of, named_base, tip_at};
use crate::members::now::boot_ms;

/// How long the machine may keep a request waiting for the disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What is in a volume's ctl file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ctl {
    /// The encoded [`Promise`].
    promise: Vec<u8>,
    /// The highest term this host used as a candidate; written before it is used.
    used_term: u64,
}

/// See [`Kept::open`].
pub(crate) type Relieve = Arc<dyn Fn() -> bool + Send + Sync>;

/// One keeper.
pub(crate) struct Kept {
    id: VolumeId,
    me: PeerId,
    dir: VolumeDir,
    log: Arc<Log>,
    slots: Slots<Ctl>,
    /// What was found damaged at the opening.
    damage: Option<String>,
    /// Gives up a piece of what is set aside for a full disk; whether there was any.
    relieve: Relieve,
    /// Whether the last commits did not fit the disk.
    is_full: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    machine: Keeper,
    next_request: u64,
    waiting: BTreeMap<RequestId, SyncSender<Message>>,
    /// Commits of Appends whose `AppendLog` may still come.
    commits: BTreeMap<RequestId, Vec<Commit>>,
    /// The writer on this host, while it runs.
    local: Option<Arc<Volume>>,
}

impl Kept {
    pub(crate) fn id(&self) -> VolumeId {
        self.id
    }

    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The files of suffixes that lost.
    pub(crate) fn forks(&self) -> Result<Vec<PathBuf>, String> {
        let dir = self.dir.fork();
        let names = RealDisk.list(&dir).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(format!("list {}: {e}", dir.display())),
        })?;
        Ok(names.into_iter().filter(|name| !is_unfinished(name)).map(|name| dir.join(name)).collect())
    }

    /// Why this keeper neither votes nor takes commits, if it does not; names the file.
    pub(crate) fn damage(&self) -> Option<String> {
        let failed = || self.log.failed().map(|why| format!("{} failed ({why})", self.dir.log().display()));
        self.damage.clone().or_else(failed)
    }

    /// What is promised, as on disk.
    pub(crate) fn promise(&self) -> Promise {
        self.inner.lock().machine.record().clone()
    }

    /// The newest commit known to be committed; 0 before anybody said so since the start.
    pub(crate) fn commit_seq(&self) -> u64 {
        self.inner.lock().machine.commit_seq()
    }

    /// The last commit of the log that is on disk and whole.
    pub(crate) fn durable_tip(&self) -> Tip {
        self.inner.lock().machine.durable_tip()
    }

    /// The configuration that counts here, if this host is a keeper.
    pub(crate) fn config(&self) -> Option<remora_cluster::config::Config> {
        self.inner.lock().machine.config().cloned()
    }

    /// The highest term this host used or promised.
    pub(crate) fn floor(&self) -> Term {
        Term(self.slots.get().used_term).max(self.inner.lock().machine.record().term)
    }

    /// Notes that a term is used; durable on return.
    pub(crate) fn use_term(&self, term: Term) -> Result<(), Failure> {
        let _inner = self.inner.lock();
        let ctl = Ctl { used_term: term.0.max(self.slots.get().used_term), ..self.slots.get() };
        self.slots.put(&ctl).map_err(|e| damaged(&self.id, "write the term", &e))
    }

    /// The writer on this host.
    pub(crate) fn local(&self) -> Option<Arc<Volume>> {
        self.inner.lock().local.clone()
    }

    /// Handles a message and answers it. Blocks until the machine and the disk have decided.
    pub(crate) fn ask(&self, from: PeerId, message: Message) -> Message {
        match message {
            Message::FetchLog { after, bytes_max } => self.fetch(after, bytes_max),
            Message::Append(append) => self.append(from, append, |commits, _| Ok(commits.len())),
            Message::Release { term, .. } if from == self.me => {
                self.end_local(term);
                self.submit(|request| KeeperEvent::Request { from, request, message }, None)
            }
            other => self.submit(|request| KeeperEvent::Request { from, request, message: other }, None),
        }
    }

    /// Handles commits from `from`. `ready` sees them before any lock is taken and says how many of them, from the first, may be
    /// taken; it may wait for the network.
    pub(crate) fn append(
        &self,
        from: PeerId,
        append: Append,
        ready: impl FnOnce(&[Commit], u64) -> Result<usize, String>,
    ) -> Message {
        let decoded = decode_all(&append, &self.id);
        let commits = decoded.and_then(|mut commits| {
            commits.truncate(ready(&commits, append.commit_seq)?);
            Ok(commits)
        });
        let commits = match commits {
            Ok(commits) => commits,
            Err(why) => {
                tracing::warn!(volume = %self.id, %from, why, "commits are refused");
                return Message::NotHere;
            }
        };
        let headers: Vec<CommitHeader> = commits.iter().map(header_of).collect();
        let Append { term, checkpoint, commit_seq, .. } = append;
        self.submit(
            |request| KeeperEvent::Append { from, request, term, checkpoint, headers, commit_seq },
            Some(commits),
        )
    }

    fn submit(&self, event: impl FnOnce(RequestId) -> KeeperEvent, commits: Option<Vec<Commit>>) -> Message {
        let (sender, answer): (_, Receiver<Message>) = sync_channel(1);
        let request = {
            let mut inner = self.inner.lock();
            self.note_local(&mut inner);
            let request = RequestId(inner.next_request);
            inner.next_request += 1;
            inner.waiting.insert(request, sender);
            if let Some(commits) = commits {
                inner.commits.insert(request, commits);
            }
            self.drive(&mut inner, event(request));
            request
        };
        // Without an answer at once the request waits behind another one, whose thread will answer it.
        let message = answer.recv_timeout(ANSWER_TIMEOUT).unwrap_or(Message::NotHere);
        let mut inner = self.inner.lock();
        inner.waiting.remove(&request);
        inner.commits.remove(&request);
        message
    }

    /// Tells the machine how far the writer on this host has come.
    fn note_local(&self, inner: &mut Inner) {
        let Some(volume) = &inner.local else { return };
        let synced = volume.status().synced_seq;
        if synced > inner.machine.durable_tip().seq
            && let Some(tip) = tip_at(&self.log, synced)
        {
            self.drive(inner, KeeperEvent::LocalDurable { tip });
        }
    }

    fn drive(&self, inner: &mut Inner, event: KeeperEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let effects = inner.machine.on(Millis(boot_ms()), event);
            self.apply(inner, effects, &mut events);
        }
    }

    fn apply(&self, inner: &mut Inner, effects: Vec<KeeperEffect>, events: &mut Vec<KeeperEvent>) {
        for effect in effects {
            match effect {
                KeeperEffect::Persist { record, then } => match self.persist(&record) {
                    Ok(()) => self.apply(inner, then, events),
                    Err(e) => {
                        tracing::error!(volume = %self.id, error = %e, "the promise cannot be written");
                        events.insert(0, KeeperEvent::LogDamaged);
                    }
                },
                KeeperEffect::AppendLog { request, skip, upto } => {
                    let commits = inner.commits.remove(&request).unwrap_or_default();
                    let commits = commits.get(skip..).unwrap_or_default();
                    events.insert(0, self.append_log(inner.machine.durable_tip(), commits, upto));
                }
                KeeperEffect::MoveSuffixToFork { after_seq } => {
                    let tip = tip_at(&self.log, after_seq).unwrap_or(inner.machine.chain().base);
                    let outcome = self.log.truncate_after(after_seq, &self.dir.fork()).map(drop);
                    tracing::warn!(volume = %self.id, after_seq, "commits that lost are kept as a fork");
                    events.insert(0, self.fact(outcome, KeeperEvent::SuffixMoved { tip }));
                }
                KeeperEffect::InstallCheckpoint { .. } => {
                    let outcome = self.log.truncate_after(0, &self.dir.fork()).map(drop);
                    events.insert(0, self.fact(outcome, KeeperEvent::CheckpointInstalled));
                }
                KeeperEffect::StopLocalWriter { term } => {
                    events.insert(0, self.stop_local(inner, term));
                }
                KeeperEffect::Reply { request, message } => {
                    inner.commits.remove(&request);
                    if let Some(waiting) = inner.waiting.remove(&request) {
                        let _gave_up = waiting.send(message);
                    }
                }
            }
        }
    }

    fn persist(&self, record: &Promise) -> Result<(), String> {
        let ctl = Ctl { promise: record.encode(), ..self.slots.get() };
        self.slots.put(&ctl).map_err(|e| cause(&e))
    }

    /// What the machine is told when a step on the log is done.
    fn fact(&self, outcome: Result<(), LogError>, good: KeeperEvent) -> KeeperEvent {
        match outcome {
            Ok(()) => good,
            Err(e) => {
                tracing::error!(volume = %self.id, error = %cause(&e), "the log failed: this keeper stops voting");
                KeeperEvent::LogDamaged
            }
        }
    }

    /// Drops the commits before the one that `tree` stands for, if a committed commit names that tree; never while this host writes.
    /// All blocks of the tree must be durable here.
    pub(crate) fn forget_before(&self, tree: &Cid) -> Result<(), String> {
        let inner = self.inner.lock();
        if inner.local.is_some() || inner.machine.is_local_writer_running() {
            return Ok(());
        }
        let Some((base, base_seq)) = named_base(&self.log, inner.machine.commit_seq()) else { return Ok(()) };
        let is_dropped = self.log.first_seq().is_none_or(|first| first >= base_seq);
        if base != *tree || is_dropped {
            return Ok(());
        }
        self.log.drop_before(base_seq).map_err(|e| cause(&e))
    }

    /// The other keepers of this volume; none while this keeper is busy.
    pub(crate) fn partners(&self) -> Vec<PeerId> {
        let Some(inner) = self.inner.try_lock() else { return Vec::new() };
        let voters = inner.machine.config().map(remora_cluster::config::Config::voters).unwrap_or_default();
        let writer = inner.machine.record().hold.map(|hold| hold.peer);
        let mut partners: Vec<PeerId> =
            writer.into_iter().chain(voters).filter(|peer| *peer != self.me).collect();
        partners.dedup();
        partners
    }

    /// Adds what another keeper sent, in the name of this host as the candidate of `term`.
    pub(crate) fn take_chunk(&self, term: Term, chunk: LogChunk) -> Message {
        let commit_seq = 0;
        self.ask(
            self.me,
            Message::Append(Append {
                term,
                checkpoint: chunk.checkpoint,
                commits: chunk.commits,
                commit_seq,
            }),
        )
    }
}

/// Reads the commits of an Append; each must be of this volume.
fn decode_all(append: &Append, id: &VolumeId) -> Result<Vec<Commit>, String> {
    append
        .commits
        .iter()
        .map(|bytes| {
            let commit = Commit::decode(Bytes::copy_from_slice(bytes)).map_err(|e| cause(&e))?;
            if commit.header.volume == id.0 {
                Ok(commit)
            } else {
                Err("a commit of another volume".to_owned())
            }
        })
        .collect()
}

fn damaged(id: &VolumeId, doing: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Damaged, format!("volume {id}: {doing}: {}", cause(error)))
}
