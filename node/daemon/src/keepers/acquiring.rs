//! The candidate: drives `remora_cluster::acquire` until this host may write a volume, or knows why not.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use remora_cluster::acquire::{Acquire, AcquireEffect, AcquireError, AcquireEvent, AcquireOptions, Won};
use remora_cluster::config::Config;
use remora_cluster::identity::PeerId;
use remora_cluster::lease::Millis;
use remora_cluster::message::{COMMIT_BYTES_MAX, Message};
use remora_cluster::placement::choose;
use remora_cluster::tip::{Term, Tip};
use remora_cluster::volume_record::VolumeRecord;

use crate::exit::{Code, Failure};
use crate::keepers::desk::{Keepers, held};
use crate::keepers::kept::Kept;
use crate::members::membership::Membership;
use crate::members::now::{boot_ms, unix_ms};
use crate::volumes::wishes::wanted_keepers;

/// How long an acquisition may take; Docker gives a mount 120 s.
const DEADLINE_MS: u64 = 60_000;

/// How long it may take while too few keepers are connected: enough for a connection to come about, not for a host.
const LONELY_DEADLINE_MS: u64 = 8_000;

/// How often the machine is told that time passes.
const TICK: Duration = Duration::from_millis(100);

/// Chunks of a chain that are fetched at most; each is some mebibytes.
const CHUNKS_MAX: usize = 1_000_000;

/// Opens the volume and commits its START; answers where the log then ends, on disk.
pub(crate) type BuildStart<'a> = dyn FnMut(Term, Tip, &Config) -> Result<Tip, Failure> + 'a;

/// Becomes the writer of a volume. Blocks until that is decided.
pub(crate) fn acquire(
    keepers: &Arc<Keepers>,
    kept: &Arc<Kept>,
    record: &VolumeRecord,
    build_start: &mut BuildStart<'_>,
) -> Result<Won, Failure> {
    let (events, inbox) = channel();
    let options = options(keepers.members(), kept, record);
    let (machine, effects) = Acquire::begin(options, Millis(boot_ms()));
    let mut candidate = Candidate { keepers, kept, record, machine, events, build_start };
    candidate.run(&inbox, effects)
}

fn options(members: &Membership, kept: &Kept, record: &VolumeRecord) -> AcquireOptions {
    let config =
        kept.config().unwrap_or_else(|| Config::at_creation(record.keepers.clone(), record.durability));
    let connected: Vec<PeerId> =
        members.net().map(|net| net.connected().into_iter().map(|c| c.peer).collect()).unwrap_or_default();
    let replicas = record.replicas as usize;
    // A holder that is alive goes on renewing: waiting for its lease would only make the refusal late.
    let holder = kept.promise().hold.filter(|h| h.released.is_none()).map(|h| h.peer);
    let hinted = members.read(|r| r.holder(&record.id)).and_then(|(holder, _)| holder.writer);
    let is_alive = [holder, hinted].iter().flatten().any(|peer| connected.contains(peer));
    let (ranked, invited) = members.read(|registry| {
        let candidates = registry.candidates();
        let ranked = choose(&record.id.0, &candidates, candidates.len());
        (ranked, wanted_keepers(&record.id, registry, replicas, &connected))
    });
    let is_here = |peer: &PeerId| *peer == members.me() || connected.contains(peer);
    let deadline_ms = if config.is_quorum(is_here) { DEADLINE_MS } else { LONELY_DEADLINE_MS };
    AcquireOptions {
        volume: record.id,
        me: members.me(),
        floor: kept.floor(),
        config,
        replicas,
        durability: record.durability,
        ranked,
        invited,
        evidence: None,
        served: kept.promise().served(members.me()),
        waits_for_lease: !is_alive,
        deadline: Millis(boot_ms()) + deadline_ms,
        now_unix_ms: unix_ms(),
    }
}

struct Candidate<'a, 'b> {
    keepers: &'a Arc<Keepers>,
    kept: &'a Arc<Kept>,
    record: &'a VolumeRecord,
    machine: Acquire,
    events: Sender<AcquireEvent>,
    build_start: &'a mut BuildStart<'b>,
}

impl Candidate<'_, '_> {
    fn run(&mut self, inbox: &Receiver<AcquireEvent>, effects: Vec<AcquireEffect>) -> Result<Won, Failure> {
        let mut effects = effects;
        loop {
            for effect in effects {
                if let Some(end) = self.apply(effect) {
                    return end;
                }
            }
            let event = match inbox.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => AcquireEvent::Tick,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::failed("the candidacy ended by itself"));
                }
            };
            effects = self.machine.on(Millis(boot_ms()), event);
        }
    }

    /// Does one effect; the end of the candidacy, if it is one.
    fn apply(&mut self, effect: AcquireEffect) -> Option<Result<Won, Failure>> {
        match effect {
            AcquireEffect::PersistTerm(term) => match self.kept.use_term(term) {
                Ok(()) => self.tell(AcquireEvent::TermPersisted(term)),
                Err(failure) => return Some(Err(failure)),
            },
            AcquireEffect::Send { to, message } => self.send(to, message),
            AcquireEffect::FetchChain { from, after, target } => self.fetch(from, after, target),
            AcquireEffect::BuildStart { term, after, config } => {
                match (self.build_start)(term, after, &config) {
                    Ok(tip) => self.tell(AcquireEvent::StartReady { tip }),
                    Err(failure) => {
                        self.give_back(term, after, &config);
                        return Some(Err(failure));
                    }
                }
            }
            AcquireEffect::SendLog { to, after, commit_seq } => {
                let term = self.machine.term();
                if let Some(append) = self.kept.append_after(term, after, commit_seq) {
                    self.send(to, Message::Append(append));
                } else {
                    self.tell(AcquireEvent::Unreachable { peer: to });
                }
            }
            AcquireEffect::Won(won) => return Some(Ok(*won)),
            AcquireEffect::Lost(error) => return Some(Err(self.explain(&error))),
        }
        None
    }

    fn tell(&self, event: AcquireEvent) {
        let _ended = self.events.send(event);
    }

    fn send(&self, to: PeerId, message: Message) {
        let (keepers, events, id) = (Arc::clone(self.keepers), self.events.clone(), self.record.id);
        self.keepers.runtime().spawn_blocking(move || {
            let event = match keepers.ask(id, to, message) {
                Some(message) => AcquireEvent::Reply { from: to, message },
                None => AcquireEvent::Unreachable { peer: to },
            };
            let _ended = events.send(event);
        });
    }

    fn fetch(&self, from: PeerId, after: Tip, target: Tip) {
        let (keepers, kept, events) = (Arc::clone(self.keepers), Arc::clone(self.kept), self.events.clone());
        let term = self.machine.term();
        self.keepers.runtime().spawn_blocking(move || {
            let event = match fetch_chain(&keepers, &kept, term, from, after, target) {
                Ok(tip) => AcquireEvent::ChainReady { tip },
                Err(why) => {
                    tracing::warn!(volume = %kept.id(), from = %from, why, "the chain could not be fetched");
                    AcquireEvent::ChainFailed
                }
            };
            let _ended = events.send(event);
        });
    }

    /// The election is won but the volume cannot be opened here: nobody else should wait for us.
    fn give_back(&self, term: Term, tip: Tip, config: &Config) {
        let mut told = config.voters();
        told.extend(self.kept.config().map(|known| known.voters()).unwrap_or_default());
        told.push(self.keepers.members().me());
        told.sort_unstable();
        told.dedup();
        for to in told {
            let _best_effort = self.keepers.ask(self.record.id, to, Message::Release { term, tip });
        }
    }

    fn explain(&self, error: &AcquireError) -> Failure {
        let members = self.keepers.members();
        let name = &self.record.name;
        let hosts =
            |peers: &[PeerId]| peers.iter().map(|p| members.name_of(p)).collect::<Vec<_>>().join(", ");
        match error {
            AcquireError::Held { hold, .. } => held(members, name, hold),
            AcquireError::Behind { peer } => Failure::new(
                Code::Unreachable,
                format!(
                    "volume {name}: its newest data is on host {}, which does not answer: start the daemon there or mend \
                     the network, then try again",
                    members.name_of(peer)
                ),
            ),
            AcquireError::Unreachable { missing } => Failure::new(
                Code::Unreachable,
                format!(
                    "volume {name}: not enough of its keepers answer; missing: {}: start the daemon there or mend the \
                     network, then try again",
                    hosts(missing)
                ),
            ),
            AcquireError::Outbid { .. } => Failure::new(
                Code::Conflict,
                format!("volume {name}: another host is mounting it at this moment"),
            ),
        }
    }
}

/// Brings this host's log from `after` to `target`, a chunk at a time.
fn fetch_chain(
    keepers: &Keepers,
    kept: &Kept,
    term: Term,
    from: PeerId,
    after: Tip,
    target: Tip,
) -> Result<Tip, String> {
    let mut after = after;
    for _ in 0..CHUNKS_MAX {
        if after.seq >= target.seq {
            return Ok(after);
        }
        let bytes_max = u32::try_from(COMMIT_BYTES_MAX).unwrap_or(u32::MAX);
        let answer = keepers.ask(kept.id(), from, Message::FetchLog { after, bytes_max });
        let Some(Message::LogChunk(mut chunk)) = answer else { return Err("it sent no chain".into()) };
        let room = usize::try_from(target.seq.saturating_sub(after.seq)).unwrap_or(usize::MAX);
        if chunk.checkpoint.is_none() {
            // What came after the election's chain is not ours to take.
            chunk.commits.truncate(room);
        }
        let n_commits = chunk.commits.len();
        match kept.take_chunk(term, chunk) {
            Message::Ack { tip, .. } if tip.seq > after.seq => after = tip,
            other => return Err(format!("{n_commits} commits brought nothing new: {other:?}")),
        }
    }
    Err("the chain has no end".into())
}
