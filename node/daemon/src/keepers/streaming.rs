//! Commits on their way to the other keepers, and the writer's lease: the shell around `remora_cluster::writer`.
//!
//! One thread a mounted volume. The journal only rings its bell; what there is to send the thread reads from the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use remora_cluster::acquire::Won;
use remora_cluster::config::Durability;
use remora_cluster::identity::PeerId;
use remora_cluster::lease::{LeaseTimes, Millis};
use remora_cluster::message::Message;
use remora_cluster::tip::{CommitId, Term, Tip};
use remora_cluster::writer::{Writer, WriterEffect, WriterEvent};
use remora_volume::journal::durability::{CommitFrame, Replicator};
use remora_volume::volume::Volume;

use crate::keepers::chain::from_volume;
use crate::keepers::desk::Keepers;
use crate::keepers::kept::Kept;
use crate::members::now::boot_ms;

/// How often the machine is told that time passes.
const TICK: Duration = Duration::from_millis(500);

/// How soon to look again for this host's own disk when a keeper was faster.
const OWN_DISK: Duration = Duration::from_micros(300);

/// What wakes the thread.
#[allow(
    clippy::large_enum_variant,
    reason = "one answer a keeper is under way; a box would only move it once more"
)]
pub(crate) enum Ring {
    /// There are new commits.
    Commits,
    /// A keeper answered, or did not.
    Answer { from: PeerId, message: Option<Message> },
    /// Give the volume back; the answer says whether enough keepers know.
    Release(SyncSender<bool>),
    /// End without giving it back.
    End,
}

/// The journal's door: rings once until the thread has looked.
pub(crate) struct Bell {
    rung: AtomicBool,
    /// The newest commit in the log. The journal's own word for it comes a moment later than the ring.
    newest: Mutex<Tip>,
    sender: Sender<Ring>,
    /// The oldest commit some keeper lacks; 0 for none.
    oldest_needed: AtomicU64,
    /// Whether there is anybody to send to.
    has_peers: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> (Arc<Bell>, Receiver<Ring>) {
        let (sender, receiver) = channel();
        let bell = Bell {
            rung: AtomicBool::new(false),
            newest: Mutex::new(Tip::default()),
            sender,
            oldest_needed: AtomicU64::new(0),
            has_peers: AtomicBool::new(false),
        };
        (Arc::new(bell), receiver)
    }

    pub(crate) fn send(&self, ring: Ring) -> bool {
        self.sender.send(ring).is_ok()
    }
}

impl Replicator for Bell {
    fn commit(&self, frame: CommitFrame) {
        let id = CommitId::from_cid(&frame.cid).unwrap_or_default();
        *self.newest.lock() = Tip { term: Term(frame.term), seq: frame.seq, id };
        if self.has_peers.load(Ordering::Relaxed) && !self.rung.swap(true, Ordering::AcqRel) {
            let _ended = self.sender.send(Ring::Commits);
        }
    }

    fn oldest_needed(&self) -> Option<u64> {
        match self.oldest_needed.load(Ordering::Relaxed) {
            0 => None,
            seq => Some(seq),
        }
    }
}

/// What the thread needs.
pub(crate) struct Stream {
    pub(crate) keepers: Arc<Keepers>,
    pub(crate) kept: Arc<Kept>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) lag: Arc<AtomicU64>,
}

/// Starts the thread of a writer that has won.
pub(crate) fn start(stream: Stream, inbox: Receiver<Ring>, won: Won) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("remora-stream".into()).spawn(move || {
        let me = stream.keepers.members().me();
        let has_peers = won.config.voters().iter().any(|peer| *peer != me);
        stream.bell.has_peers.store(has_peers, Ordering::Relaxed);
        let now = Millis(boot_ms());
        let (machine, effects) = Writer::begin(me, &won, LeaseTimes::default(), now);
        Sending { stream, machine, releasing: None, owes: false }.run(&inbox, effects);
    })
}

struct Sending {
    stream: Stream,
    machine: Writer,
    releasing: Option<SyncSender<bool>>,
    /// Keepers have more on disk than this host: its own sync is about to end.
    owes: bool,
}

impl Sending {
    fn run(mut self, inbox: &Receiver<Ring>, effects: Vec<WriterEffect>) {
        self.apply(effects);
        while !self.machine.is_over() {
            let wait = if self.owes { OWN_DISK } else { TICK };
            let event = match inbox.recv_timeout(wait) {
                Ok(Ring::Commits) => WriterEvent::Tick,
                Ok(Ring::Answer { from, message: Some(message) }) => WriterEvent::Reply { from, message },
                Ok(Ring::Answer { from, message: None }) => WriterEvent::Unreachable { peer: from },
                Ok(Ring::Release(answer)) => {
                    self.releasing = Some(answer);
                    WriterEvent::Release
                }
                Ok(Ring::End) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => WriterEvent::Tick,
            };
            self.look();
            let effects = self.machine.on(Millis(boot_ms()), event);
            self.apply(effects);
            self.measure();
        }
    }

    /// Tells the machine how far this host's log has come.
    fn look(&mut self) {
        self.stream.bell.rung.store(false, Ordering::Release);
        let status = self.stream.volume.status();
        let now = Millis(boot_ms());
        let newest = *self.stream.bell.newest.lock();
        let tip = if newest.seq > status.tip.seq { newest } else { from_volume(status.tip) };
        let appended = self.machine.on(now, WriterEvent::Appended { tip });
        let durable = self.machine.on(now, WriterEvent::LocalDurable { seq: status.synced_seq });
        self.owes = status.synced_seq < tip.seq && self.machine.config().durability == Durability::Quorum;
        self.apply(appended);
        self.apply(durable);
    }

    fn apply(&mut self, effects: Vec<WriterEffect>) {
        for effect in effects {
            match effect {
                WriterEffect::SendLog { to, after, commit_seq } => {
                    let append = self.stream.kept.append_after(self.machine.term(), after, commit_seq);
                    match append {
                        Some(append) => self.send(to, Message::Append(append)),
                        None => self.ring(Ring::Answer { from: to, message: None }),
                    }
                }
                WriterEffect::Send { to, message } => self.send(to, message),
                WriterEffect::Durable { seq } => self.stream.volume.acked(seq),
                WriterEffect::StepDown(reason) => {
                    tracing::error!(volume = %self.stream.kept.id(), %reason, "this host stops writing the volume");
                    self.stream.volume.fail(&reason.to_string());
                    self.answer_release(false);
                }
                WriterEffect::Released => self.answer_release(true),
            }
        }
    }

    fn answer_release(&mut self, is_released: bool) {
        if let Some(answer) = self.releasing.take() {
            let _gave_up = answer.send(is_released);
        }
    }

    fn ring(&self, ring: Ring) {
        let _ended = self.stream.bell.sender.send(ring);
    }

    fn send(&self, to: PeerId, message: Message) {
        let (keepers, bell, id) =
            (Arc::clone(&self.stream.keepers), Arc::clone(&self.stream.bell), self.stream.kept.id());
        if to == keepers.members().me() {
            keepers.runtime().clone().spawn_blocking(move || {
                let message = keepers.ask(id, to, message);
                bell.send(Ring::Answer { from: to, message });
            });
        } else {
            keepers.runtime().clone().spawn(async move {
                let message = keepers.ask_peer(id, to, message).await;
                bell.send(Ring::Answer { from: to, message });
            });
        }
    }

    /// What the slowest keeper lacks.
    fn measure(&self) {
        let tip = self.stream.volume.status().tip.seq;
        let slowest = self.machine.slowest_seq();
        self.stream.lag.store(tip.saturating_sub(slowest), Ordering::Relaxed);
        let needed = if slowest < tip { slowest + 1 } else { 0 };
        self.stream.bell.oldest_needed.store(needed, Ordering::Relaxed);
    }
}
