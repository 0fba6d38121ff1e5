//! Time, network and faults of a simulated cluster, and what its users do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use remora_cluster::acquire::{Acquire, AcquireEvent, AcquireOptions};
use remora_cluster::config::{Config, Durability};
use remora_cluster::keeper::KeeperEvent;
use remora_cluster::lease::Millis;
use remora_cluster::promise::Promise;
use remora_cluster::tip::{Term, Tip};
use remora_cluster::writer::WriterEvent;

use crate::simulate::check::Checker;
use crate::simulate::host::{Caller, Commit, Host, Payload, VOLUME, peer, tip_of};
use crate::simulate::{Counts, Mistake};

const FAULTS_END_US: u64 = 10_000_000;
const END_US: u64 = 22_000_000;
const ANSWER_US: u64 = 600_000;
const TICK_US: u64 = 60_000;

/// What happens at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A request arrives.
    Request { from: usize, to: usize, rpc: u64, payload: Payload },
    /// An answer arrives.
    Answer { to: usize, from: usize, rpc: u64, payload: Payload },
    /// A request was not answered in time.
    NoAnswer { host: usize, rpc: u64 },
    /// A keeper's record, fork or log is on disk.
    DiskDone { host: usize, life: u64, done: DiskDone },
    /// A host looks at its clock.
    Tick { host: usize },
    /// An application writes and calls fsync.
    Write { host: usize, life: u64 },
    /// Somebody mounts the volume somewhere, or unmounts it.
    User,
    /// A host loses power.
    Crash,
    /// It is back.
    Restart { host: usize },
    /// The network is cut.
    Cut,
    /// The network is whole.
    Heal,
}

/// What a disk finished.
#[derive(Debug, Clone)]
pub(crate) enum DiskDone {
    /// The record, and what may follow.
    Record { record: Box<Promise>, then: Vec<remora_cluster::keeper::KeeperEffect> },
    /// The commits a keeper added.
    Appended { tip: Tip },
    /// The commits a writer made.
    Written { tip: Tip, attempt: u64 },
    /// A suffix is a fork now.
    Forked { after_seq: u64 },
    /// The term of a candidate.
    Term { term: Term, attempt: u64 },
}

/// A seed's own mixture of faults: one in so many.
#[derive(Debug, Clone, Copy)]
struct Rates {
    loss: u64,
    duplicate: u64,
    slow_message: u64,
    slow_disk: u64,
    crash_us: u64,
    cut_us: u64,
    write_us: u64,
    user_us: u64,
}

/// What one seed gave.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// What was counted.
    pub(crate) counts: Counts,
    /// The rule that was broken, if one was.
    pub(crate) violation: Option<String>,
    /// Over every event, in order.
    pub(crate) digest: u64,
}

/// One run.
pub(crate) struct World {
    pub(super) mistake: Option<Mistake>,
    random: u64,
    pub(super) now_us: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    pub(super) hosts: Vec<Host>,
    cut: Vec<bool>,
    rates: Rates,
    pub(super) durability: Durability,
    replicas: usize,
    pub(super) next_rpc: u64,
    pub(super) calls: BTreeMap<u64, (usize, usize, Caller)>,
    /// The last host that won, and whether it released.
    pub(super) last_writer: Option<(usize, bool)>,
    pub(super) checker: Checker,
    pub(super) counts: Counts,
    digest: u64,
}

impl World {
    /// The world of a seed.
    pub(crate) fn new(seed: u64, mistake: Option<Mistake>) -> Self {
        let mut world = World {
            mistake,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D,
            now_us: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            hosts: Vec::new(),
            cut: Vec::new(),
            rates: Rates {
                loss: 0,
                duplicate: 0,
                slow_message: 0,
                slow_disk: 0,
                crash_us: 0,
                cut_us: 0,
                write_us: 0,
                user_us: 0,
            },
            durability: Durability::Quorum,
            replicas: 3,
            next_rpc: 1,
            calls: BTreeMap::new(),
            last_writer: None,
            checker: Checker::default(),
            counts: Counts::default(),
            digest: seed,
        };
        world.draw_rates();
        let mut n = 3 + world.below(3) as usize;
        let mut n_keepers = if world.below(2) == 0 { 1 } else { 3 };
        if world.below(4) == 0 {
            world.durability = Durability::Local;
        }
        // Every fifth world keeps each volume on two hosts, as two hosts do by default; every second of them has no more.
        if seed % 5 == 4 {
            (n_keepers, world.replicas) = (2, 2);
            n = if seed.is_multiple_of(2) { 2 } else { n };
            world.rates.crash_us = world.rates.crash_us.min(700_000);
            world.durability = if seed.is_multiple_of(8) { Durability::Quorum } else { Durability::Local };
        }
        let members = (0..n_keepers).map(peer).collect();
        let config = Config::at_creation(members, world.durability);
        for index in 0..n {
            let is_keeper = index < n_keepers;
            let record =
                if is_keeper { Promise::at_creation(VOLUME, config.clone()) } else { Promise::blank(VOLUME) };
            world.hosts.push(Host::new(index, record, mistake));
            world.after(TICK_US + index as u64 * 1_000, Event::Tick { host: index });
        }
        world.cut = vec![false; n * n];
        world.after(1_000, Event::User);
        let (crash, cut) = (world.rates.crash_us, world.rates.cut_us);
        world.after(crash, Event::Crash);
        world.after(cut, Event::Cut);
        world
    }

    fn draw_rates(&mut self) {
        self.rates = Rates {
            loss: [1_000, 100, 20][self.below(3) as usize],
            duplicate: [1_000, 50, 10][self.below(3) as usize],
            slow_message: [500, 50, 10][self.below(3) as usize],
            slow_disk: [500, 50, 10][self.below(3) as usize],
            crash_us: [500_000, 2_000_000, 8_000_000][self.below(3) as usize],
            cut_us: [500_000, 2_000_000, 8_000_000][self.below(3) as usize],
            write_us: [5_000, 30_000, 200_000][self.below(3) as usize],
            user_us: [100_000, 500_000, 2_000_000][self.below(3) as usize],
        };
    }

    /// A number below `bound`, from the seed (splitmix64).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    pub(super) fn now(&self) -> Millis {
        Millis(self.now_us / 1_000)
    }

    pub(super) fn after(&mut self, delay_us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((self.now_us + delay_us, self.order)));
        self.events.insert(self.order, event);
    }

    pub(super) fn disk_delay(&mut self) -> u64 {
        let slow =
            if self.has_faults() && self.below(self.rates.slow_disk) == 0 { self.below(300_000) } else { 0 };
        200 + self.below(2_000) + slow
    }

    /// Sends over the network, which may lose, delay, duplicate and reorder; within a host it does not.
    pub(super) fn transmit(&mut self, from: usize, to: usize, event: Event) {
        if from == to {
            self.after(20, event);
            return;
        }
        if self.cut[from * self.hosts.len() + to] || (self.has_faults() && self.below(self.rates.loss) == 0) {
            self.counts.lost += 1;
            return;
        }
        let slow = if self.has_faults() && self.below(self.rates.slow_message) == 0 {
            self.below(1_500_000)
        } else {
            0
        };
        let delay = 200 + self.below(3_000) + slow;
        if self.below(self.rates.duplicate) == 0 {
            let again = delay + self.below(1_000_000);
            self.after(again, event.clone());
        }
        self.after(delay, event);
    }

    /// Asks a peer; the answer or its absence comes back to `caller`.
    pub(super) fn request(&mut self, from: usize, to: usize, caller: Caller, payload: Payload) {
        let rpc = self.next_rpc;
        self.next_rpc += 1;
        self.calls.insert(rpc, (from, to, caller));
        self.transmit(from, to, Event::Request { from, to, rpc, payload });
        self.after(ANSWER_US, Event::NoAnswer { host: from, rpc });
    }

    fn has_faults(&self) -> bool {
        self.now_us < FAULTS_END_US
    }

    /// Runs to the end: first with faults, then without, when the volume must become writable with all that was
    /// acknowledged.
    pub(crate) fn run(mut self) -> Outcome {
        while let Some(Reverse((at, order))) = self.queue.pop() {
            let Some(event) = self.events.remove(&order) else { continue };
            if at > END_US {
                break;
            }
            self.now_us = at;
            self.counts.events += 1;
            self.step(event);
            self.digest = self.digest.rotate_left(7) ^ at ^ self.random;
            if self.checker.violation.is_some() {
                break;
            }
        }
        let writers =
            self.hosts.iter().filter(|host| host.writer.as_ref().is_some_and(|writer| !writer.is_over()));
        if writers.count() != 1 && self.checker.violation.is_none() {
            self.checker.fail("the volume did not become writable after the faults had ended".to_owned());
        }
        if let Some(rule) = &mut self.checker.violation {
            rule.push_str(&format!(" (at {} ms, {:?})", self.now_us / 1_000, self.durability));
        }
        self.counts.virtual_ms = self.now_us / 1_000;
        self.counts.acked = self.checker.n_acked();
        Outcome { counts: self.counts, violation: self.checker.violation, digest: self.digest }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Request { from, to, rpc, payload } => self.on_request(from, to, rpc, payload),
            Event::Answer { to, from, rpc, payload } => {
                if self.hosts[to].is_up
                    && let Some((_, _, caller)) = self.calls.remove(&rpc)
                {
                    self.on_answer(to, from, caller, payload);
                }
            }
            Event::NoAnswer { host, rpc } => {
                if let Some((_, to, caller)) = self.calls.remove(&rpc) {
                    self.on_no_answer(host, to, caller);
                }
            }
            Event::DiskDone { host, life, done } => {
                if self.hosts[host].life == life {
                    self.on_disk_done(host, done);
                }
            }
            Event::Tick { host } => {
                self.after(TICK_US, Event::Tick { host });
                if self.hosts[host].is_up {
                    self.on_tick(host);
                }
            }
            Event::Write { host, life } => self.on_write(host, life),
            Event::User => self.on_user(),
            Event::Crash => self.on_crash(),
            Event::Restart { host } => self.on_restart(host),
            Event::Cut => self.on_cut(),
            Event::Heal => {
                self.cut.fill(false);
                let delay = self.rates.cut_us / 2 + self.below(self.rates.cut_us);
                self.after(delay, Event::Cut);
            }
        }
    }

    fn on_tick(&mut self, host: usize) {
        let now = self.now();
        if let Some(acquire) = &mut self.hosts[host].acquire {
            let effects = acquire.on(now, AcquireEvent::Tick);
            self.do_acquire(host, effects);
        }
        self.turn_writer(host, WriterEvent::Tick);
    }

    /// One application write: a commit in the log, sent at once, synced a little later.
    fn on_write(&mut self, host: usize, life: u64) {
        let is_writing = self.hosts[host].writer.as_ref().is_some_and(|writer| !writer.is_over());
        if self.hosts[host].life != life || !is_writing || self.hosts[host].is_closing {
            return;
        }
        self.commit(host);
        let delay = if self.has_faults() { 1 + self.below(self.rates.write_us) } else { 200_000 };
        self.after(delay, Event::Write { host, life });
    }

    fn commit(&mut self, host: usize) {
        let nonce = self.below(u64::MAX);
        let Some(term) = self.hosts[host].writer.as_ref().map(|writer| writer.term()) else { return };
        let commit = Commit::after(tip_of(&self.hosts[host].log), term, nonce);
        self.checker.on_commit(&commit);
        self.hosts[host].log.push(commit);
        let (delay, life, attempt) = (self.disk_delay(), self.hosts[host].life, self.hosts[host].attempt);
        let done = DiskDone::Written { tip: commit.tip, attempt };
        self.after(delay, Event::DiskDone { host, life, done });
        self.turn_writer(host, WriterEvent::Appended { tip: commit.tip });
    }

    /// Starts what a new writer does.
    pub(super) fn begin_writes(&mut self, host: usize) {
        let life = self.hosts[host].life;
        self.after(1_000, Event::Write { host, life });
    }

    fn on_user(&mut self) {
        let delay = if self.has_faults() { 1 + self.below(self.rates.user_us) } else { 500_000 };
        self.after(delay, Event::User);
        // In the end everybody tries in turn: a local volume is its last writer's to mount.
        let n = self.hosts.len() as u64;
        let host = if self.has_faults() { self.below(n) } else { self.now_us / 500_000 % n } as usize;
        if !self.hosts[host].is_up {
            return;
        }
        if self.hosts[host].writer.is_some() {
            if self.has_faults() {
                self.hosts[host].is_closing = true;
                self.close_if_flushed(host);
            }
        } else if self.hosts[host].acquire.is_none() {
            self.mount(host);
        }
    }

    fn mount(&mut self, host: usize) {
        let waits_for_lease = self.below(2) == 0;
        let known = self.hosts[0].disk.record.config_with(&Default::default()).cloned();
        let own = self.hosts[host].keeper.config().cloned();
        let Some(config) = own.or(known) else { return };
        let used = self.hosts[host].disk.term_used;
        let floor = match self.mistake {
            Some(Mistake::ReusedTerm) => Term(used.0.saturating_sub(1)),
            _ => used.max(self.hosts[host].disk.record.term),
        };
        let options = AcquireOptions {
            volume: VOLUME,
            me: peer(host),
            floor,
            config,
            replicas: self.replicas,
            durability: self.durability,
            ranked: (0..self.hosts.len()).map(peer).collect(),
            invited: Vec::new(),
            evidence: None,
            served: self.hosts[host].keeper.record().served(peer(host)),
            waits_for_lease,
            deadline: self.now() + 4_000,
            now_unix_ms: self.now().0,
        };
        let (mut acquire, effects) = Acquire::begin(options, self.now());
        acquire.mistakes.longest_wins = self.mistake == Some(Mistake::LongestInsteadOfHighestTerm);
        acquire.mistakes.alone_of_many = self.mistake == Some(Mistake::AloneOfMany);
        let state = &mut self.hosts[host];
        state.attempt += 1;
        state.is_closing = false;
        state.acquire = Some(acquire);
        self.do_acquire(host, effects);
    }

    fn on_crash(&mut self) {
        if !self.has_faults() {
            return;
        }
        let delay = self.rates.crash_us / 2 + self.below(self.rates.crash_us);
        self.after(delay, Event::Crash);
        let host = self.below(self.hosts.len() as u64) as usize;
        if self.hosts[host].is_up {
            self.counts.crashes += 1;
            let n_kept = self.below(4) as usize;
            self.hosts[host].crash(n_kept);
            self.calls.retain(|_, (from, _, _)| *from != host);
            // Of two hosts, one that is away for long is what the other has to go on without.
            let longer = if self.replicas == 2 { 4 } else { 1 };
            let back = 10_000 + longer * self.below(2_000_000);
            self.after(back, Event::Restart { host });
        }
    }

    fn on_restart(&mut self, host: usize) {
        let (now, mistake) = (self.now(), self.mistake);
        self.hosts[host].restart(now, mistake);
        let term = self.hosts[host].disk.record.term;
        self.checker.on_restart(host, term);
    }

    fn on_cut(&mut self) {
        if !self.has_faults() {
            return;
        }
        self.counts.partitions += 1;
        let n = self.hosts.len();
        let sides = self.below(1 << n);
        let is_one_way = self.below(4) == 0;
        for from in 0..n {
            for to in 0..n {
                let (a, b) = (sides >> from & 1, sides >> to & 1);
                self.cut[from * n + to] = if is_one_way { a < b } else { a != b };
            }
        }
        let delay = 50_000 + self.below(2_500_000);
        self.after(delay, Event::Heal);
    }

    /// Feeds a keeper; it turns when its disk is idle.
    pub(super) fn feed(&mut self, host: usize, event: KeeperEvent) {
        self.hosts[host].inbox.push_back(event);
        self.turn_keeper(host);
    }
}
