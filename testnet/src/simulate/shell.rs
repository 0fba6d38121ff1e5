//! The shell of every simulated host: does what the state machines say, as the daemon does.

use remora_cluster::acquire::{AcquireEffect, AcquireError, AcquireEvent, Won};
use remora_cluster::config::Durability;
use remora_cluster::keeper::{KeeperEffect, KeeperEvent, RequestId};
use remora_cluster::message::Message;
use remora_cluster::tip::Tip;
use remora_cluster::writer::{Writer, WriterEffect, WriterEvent};

use crate::simulate::Mistake;
use crate::simulate::host::{Caller, Commit, Payload, Pending, TIMES, host_of, peer, tip_of};
use crate::simulate::world::{DiskDone, Event, World};

impl World {
    pub(super) fn on_request(&mut self, from: usize, to: usize, rpc: u64, payload: Payload) {
        if !self.hosts[to].is_up {
            return;
        }
        if let Payload::Plain(Message::FetchLog { after, .. }) = &payload {
            let payload = Payload::Chunk(self.hosts[to].commits_after(after));
            self.transmit(to, from, Event::Answer { to: from, from: to, rpc, payload });
            return;
        }
        // A duplicate of a request is a request of its own.
        self.next_rpc += 1;
        let request = RequestId(self.next_rpc);
        let (event, commits) = match payload {
            Payload::Plain(message) => {
                (KeeperEvent::Request { from: peer(from), request, message }, Vec::new())
            }
            Payload::Append { term, commits, commit_seq } => {
                let headers = commits.iter().map(Commit::header).collect();
                let from = peer(from);
                let event =
                    KeeperEvent::Append { from, request, term, checkpoint: None, headers, commit_seq };
                (event, commits)
            }
            Payload::Chunk(_) => return,
        };
        self.hosts[to].pending.insert(request, Pending { from, rpc, commits });
        self.feed(to, event);
    }

    /// Does effects and handles events until the disk is busy or nothing is left.
    pub(super) fn turn_keeper(&mut self, host: usize) {
        while !self.hosts[host].is_disk_busy {
            if let Some(effect) = self.hosts[host].effects.pop_front() {
                self.do_keeper(host, effect);
                continue;
            }
            let Some(event) = self.hosts[host].inbox.pop_front() else { return };
            let now = self.now();
            let effects = self.hosts[host].keeper.on(now, event);
            self.hosts[host].effects.extend(effects);
        }
    }

    fn schedule(&mut self, host: usize, done: DiskDone) {
        let (delay, life) = (self.disk_delay(), self.hosts[host].life);
        self.after(delay, Event::DiskDone { host, life, done });
    }

    fn do_keeper(&mut self, host: usize, effect: KeeperEffect) {
        match effect {
            KeeperEffect::Persist { record, then } => {
                if self.mistake == Some(Mistake::ReplyBeforePersist) {
                    for effect in then.into_iter().rev() {
                        self.hosts[host].effects.push_front(effect);
                    }
                    self.schedule(host, DiskDone::Record { record, then: Vec::new() });
                    return;
                }
                self.hosts[host].is_disk_busy = true;
                self.schedule(host, DiskDone::Record { record, then });
            }
            KeeperEffect::AppendLog { request, skip, upto } => self.append(host, request, skip, upto),
            KeeperEffect::MoveSuffixToFork { after_seq } => {
                self.hosts[host].is_disk_busy = true;
                self.schedule(host, DiskDone::Forked { after_seq });
            }
            KeeperEffect::InstallCheckpoint { .. } => {
                self.checker.fail("a checkpoint was installed in a world without checkpoints".to_owned());
            }
            KeeperEffect::StopLocalWriter { .. } => {
                let state = &mut self.hosts[host];
                state.writer = None;
                state.acquire = None;
                state.disk.log = state.log.clone();
                let tip = tip_of(&state.log);
                state.inbox.push_front(KeeperEvent::LocalStopped { tip });
            }
            KeeperEffect::Reply { request, message } => {
                let Some(pending) = self.hosts[host].pending.remove(&request) else { return };
                if let Message::Promised(promised) = &message {
                    self.checker.on_promise_told(host, promised.term);
                }
                let (to, rpc, payload) = (pending.from, pending.rpc, Payload::Plain(message));
                self.transmit(host, to, Event::Answer { to, from: host, rpc, payload });
            }
        }
    }

    fn append(&mut self, host: usize, request: RequestId, skip: usize, upto: Tip) {
        let Some(pending) = self.hosts[host].pending.get(&request) else { return };
        let added: Vec<Commit> = pending.commits.iter().skip(skip).copied().collect();
        for commit in &added {
            self.checker.on_commit(commit);
        }
        self.hosts[host].log.extend(added);
        if self.mistake == Some(Mistake::AckBeforeSync) {
            self.hosts[host].inbox.push_front(KeeperEvent::LogDurable { tip: upto });
        }
        self.schedule(host, DiskDone::Appended { tip: upto });
    }

    pub(super) fn on_disk_done(&mut self, host: usize, done: DiskDone) {
        let now = self.now();
        match done {
            DiskDone::Record { record, then } => {
                let state = &mut self.hosts[host];
                if record.term < state.disk.record.term && self.mistake.is_none() {
                    self.checker.fail(format!("the promise of host {host} went down"));
                    return;
                }
                state.disk.record = *record;
                state.is_disk_busy = false;
                for effect in then.into_iter().rev() {
                    state.effects.push_front(effect);
                }
                self.turn_keeper(host);
            }
            DiskDone::Appended { tip } => {
                self.hosts[host].sync_to(tip);
                self.feed(host, KeeperEvent::LogDurable { tip });
            }
            DiskDone::Forked { after_seq } => {
                let state = &mut self.hosts[host];
                state.log.truncate(after_seq as usize);
                state.disk.log = state.log.clone();
                state.is_disk_busy = false;
                self.counts.forks += 1;
                let tip = tip_of(&state.log);
                state.inbox.push_front(KeeperEvent::SuffixMoved { tip });
                self.turn_keeper(host);
            }
            DiskDone::Term { term, attempt } => {
                let state = &mut self.hosts[host];
                state.disk.term_used = term;
                if let Some(acquire) = state.acquire.as_mut().filter(|_| state.attempt == attempt) {
                    let effects = acquire.on(now, AcquireEvent::TermPersisted(term));
                    self.do_acquire(host, effects);
                }
            }
            DiskDone::Written { tip, attempt } => self.on_written(host, tip, attempt),
        }
    }

    fn on_written(&mut self, host: usize, tip: Tip, attempt: u64) {
        let now = self.now();
        if self.hosts[host].attempt != attempt {
            return;
        }
        self.hosts[host].sync_to(tip);
        self.feed(host, KeeperEvent::LocalDurable { tip });
        if let Some(acquire) = &mut self.hosts[host].acquire {
            let effects = acquire.on(now, AcquireEvent::StartReady { tip });
            self.do_acquire(host, effects);
        }
        self.turn_writer(host, WriterEvent::LocalDurable { seq: tip.seq });
    }

    pub(super) fn do_acquire(&mut self, host: usize, effects: Vec<AcquireEffect>) {
        let attempt = self.hosts[host].attempt;
        let caller = Caller::Acquire(attempt);
        for effect in effects {
            match effect {
                AcquireEffect::PersistTerm(term) => self.schedule(host, DiskDone::Term { term, attempt }),
                AcquireEffect::Send { to, message } => {
                    self.request(host, host_of(&to), caller, Payload::Plain(message));
                }
                AcquireEffect::FetchChain { from, after, .. } => {
                    let fetch = Message::FetchLog { after, bytes_max: 1 << 20 };
                    self.request(host, host_of(&from), Caller::Fetch(attempt), Payload::Plain(fetch));
                }
                AcquireEffect::BuildStart { term, after, config } => {
                    let nonce = self.below(u64::MAX);
                    let start = Commit::after(after, term, nonce);
                    self.checker.on_commit(&start);
                    self.hosts[host].log.push(start);
                    if self.mistake == Some(Mistake::ServeBeforeStart) {
                        let config = config.settled();
                        let progress = [(peer(host), (start.tip, self.now()))].into();
                        self.won(host, &Won { term, config, start: start.tip, progress, elected: None });
                    }
                    self.schedule(host, DiskDone::Written { tip: start.tip, attempt });
                }
                AcquireEffect::SendLog { to, after, commit_seq } => {
                    let Some(term) = self.hosts[host].acquire.as_ref().map(|acquire| acquire.term()) else {
                        return;
                    };
                    self.send_log(host, host_of(&to), caller, (term, after, commit_seq));
                }
                AcquireEffect::Won(won) => self.won(host, &won),
                AcquireEffect::Lost(error) => {
                    if let AcquireError::Held { .. } = error {
                        self.counts.refused += 1;
                    }
                    self.hosts[host].acquire = None;
                    self.stop_local(host);
                }
            }
        }
    }

    /// Whatever was written here is put on disk, and the keeper is told that nothing follows.
    fn stop_local(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        if state.keeper.is_local_writer_running() {
            state.disk.log = state.log.clone();
            let tip = tip_of(&state.log);
            self.feed(host, KeeperEvent::LocalStopped { tip });
        }
    }

    fn send_log(
        &mut self,
        host: usize,
        to: usize,
        caller: Caller,
        append: (remora_cluster::tip::Term, Tip, u64),
    ) {
        let (term, after, commit_seq) = append;
        match self.hosts[host].commits_after(&after) {
            Some(commits) => self.request(host, to, caller, Payload::Append { term, commits, commit_seq }),
            None => self.checker.fail(format!("host {host} was told to send what is not on its chain")),
        }
    }

    fn won(&mut self, host: usize, won: &Won) {
        let now = self.now();
        let is_alive = |(index, other): (usize, &crate::simulate::host::Host)| {
            let writer = other
                .writer
                .as_ref()
                .filter(|writer| index != host && !writer.is_over() && !writer.is_releasing());
            writer.is_some_and(|writer| {
                self.durability == Durability::Local || writer.lease_until().is_some_and(|until| until > now)
            })
        };
        if self.hosts.iter().enumerate().any(is_alive) && self.mistake.is_none() {
            self.checker
                .fail(format!("host {host} became writer in term {} while another one was", won.term));
        }
        let has_start = |peer: &remora_cluster::identity::PeerId| {
            let log = &self.hosts[host_of(peer)].disk.log;
            log.get(won.start.seq as usize - 1).is_some_and(|commit| commit.tip == won.start)
        };
        let is_met = won.config.is_met_by_all(has_start);
        self.counts.alone += u64::from(!won.config.is_quorum(has_start));
        let attempt = self.hosts[host].attempt;
        self.counts.won += 1;
        self.counts.takeovers +=
            u64::from(self.last_writer.is_some_and(|(before, released)| before != host && !released));
        self.last_writer = Some((host, false));
        self.checker.on_won(host, attempt, won.term, &self.hosts[host].log, is_met);
        let (writer, effects) = Writer::begin(peer(host), won, TIMES, now);
        let state = &mut self.hosts[host];
        state.acquire = None;
        state.acked_seq = won.start.seq;
        state.writer = Some(writer);
        self.do_writer(host, effects);
        self.begin_writes(host);
    }

    pub(super) fn turn_writer(&mut self, host: usize, event: WriterEvent) {
        let now = self.now();
        if let Some(writer) = &mut self.hosts[host].writer {
            let effects = writer.on(now, event);
            self.do_writer(host, effects);
        }
    }

    fn do_writer(&mut self, host: usize, effects: Vec<WriterEffect>) {
        let caller = Caller::Writer(self.hosts[host].attempt);
        for effect in effects {
            match effect {
                WriterEffect::SendLog { to, after, commit_seq } => {
                    let Some(term) = self.hosts[host].writer.as_ref().map(|writer| writer.term()) else {
                        return;
                    };
                    self.send_log(host, host_of(&to), caller, (term, after, commit_seq));
                }
                WriterEffect::Send { to, message } => {
                    self.request(host, host_of(&to), caller, Payload::Plain(message));
                }
                WriterEffect::Durable { seq } => {
                    let range = self.hosts[host].acked_seq as usize..seq as usize;
                    self.hosts[host].acked_seq = seq;
                    for index in range {
                        let commit = self.hosts[host].log[index];
                        self.checker.on_acked(&commit);
                    }
                    self.close_if_flushed(host);
                }
                WriterEffect::StepDown(_) | WriterEffect::Released => {
                    if effect == WriterEffect::Released && self.last_writer == Some((host, false)) {
                        self.last_writer = Some((host, true));
                    }
                    self.hosts[host].writer = None;
                    self.stop_local(host);
                }
            }
        }
    }

    /// An unmount flushes, then releases.
    pub(super) fn close_if_flushed(&mut self, host: usize) {
        let state = &self.hosts[host];
        if state.is_closing && state.acked_seq == state.log.len() as u64 {
            self.turn_writer(host, WriterEvent::Release);
        }
    }

    pub(super) fn on_answer(&mut self, host: usize, from: usize, caller: Caller, payload: Payload) {
        let now = self.now();
        let attempt = self.hosts[host].attempt;
        match (caller, payload) {
            (Caller::Acquire(of), Payload::Plain(message)) if of == attempt => {
                if let Some(acquire) = &mut self.hosts[host].acquire {
                    let effects = acquire.on(now, AcquireEvent::Reply { from: peer(from), message });
                    self.do_acquire(host, effects);
                }
            }
            (Caller::Fetch(of), Payload::Chunk(chunk)) if of == attempt => {
                self.on_chunk(host, attempt, chunk);
            }
            (Caller::Adopt(of), Payload::Plain(message)) if of == attempt => {
                let event = match message {
                    Message::Ack { tip, .. } => AcquireEvent::ChainReady { tip },
                    _ => AcquireEvent::ChainFailed,
                };
                if let Some(acquire) = &mut self.hosts[host].acquire {
                    let effects = acquire.on(now, event);
                    self.do_acquire(host, effects);
                }
            }
            (Caller::Writer(of), Payload::Plain(message)) if of == attempt => {
                self.turn_writer(host, WriterEvent::Reply { from: peer(from), message });
            }
            _ => {}
        }
    }

    /// What was fetched goes through this host's own keeper.
    fn on_chunk(&mut self, host: usize, attempt: u64, chunk: Option<Vec<Commit>>) {
        let Some(acquire) = &mut self.hosts[host].acquire else { return };
        let term = acquire.term();
        match chunk {
            Some(commits) => {
                let append = Payload::Append { term, commits, commit_seq: 0 };
                self.request(host, host, Caller::Adopt(attempt), append);
            }
            None => self.on_no_answer(host, host, Caller::Fetch(attempt)),
        }
    }

    pub(super) fn on_no_answer(&mut self, host: usize, to: usize, caller: Caller) {
        let now = self.now();
        let attempt = self.hosts[host].attempt;
        let event = match caller {
            Caller::Acquire(of) if of == attempt => AcquireEvent::Unreachable { peer: peer(to) },
            Caller::Fetch(of) | Caller::Adopt(of) if of == attempt => AcquireEvent::ChainFailed,
            Caller::Writer(of) if of == attempt => {
                self.turn_writer(host, WriterEvent::Unreachable { peer: peer(to) });
                return;
            }
            _ => return,
        };
        if let Some(acquire) = &mut self.hosts[host].acquire {
            let effects = acquire.on(now, event);
            self.do_acquire(host, effects);
        }
    }
}
