//! A volume that is open for writing on this host, from its acquisition to its release.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remora_cluster::config::{Config, Durability};
use remora_cluster::identity::PeerId;
use remora_cluster::registry::entry::{Holder, Key};
use remora_cluster::tip::{Term, Tip};
use remora_cluster::volume_record::VolumeRecord;
use remora_store::fault::chain;
use remora_volume::journal::durability::Durability as Rule;
use remora_volume::op::Op;
use remora_volume::volume::Volume;
use remora_volume::volume::options::{Base, VolumeOptions};

use crate::exit::{Code, Context, Failure};
use crate::keepers::acquiring::acquire;
use crate::keepers::chain::tip_at;
use crate::keepers::desk::Keepers;
use crate::keepers::kept::Kept;
use crate::keepers::streaming::{Bell, Ring, Stream, start};
use crate::members::now::unix_ms;
use crate::volumes::space;

/// How long a release waits for keepers that are away; this host's own keeper knows in any case.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long START may take to reach this host's disk.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A volume that this host writes.
pub(crate) struct Writing {
    keepers: Arc<Keepers>,
    kept: Arc<Kept>,
    volume: Arc<Volume>,
    bell: Arc<Bell>,
    stream: Mutex<Option<std::thread::JoinHandle<()>>>,
    term: Term,
    since_unix_ms: u64,
    lag: Arc<AtomicU64>,
}

/// Settings of the store that a volume needs.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) reserve_bytes: u64,
    pub(crate) checkpoint_log_bytes: u64,
}

impl Writing {
    /// Acquires and opens a volume. Blocks until it is open or refused.
    pub(crate) fn open(
        keepers: &Arc<Keepers>,
        record: &VolumeRecord,
        limits: Limits,
    ) -> Result<Writing, Failure> {
        let genesis = keepers.first_tree(record)?;
        let blank = remora_cluster::promise::Promise::blank(record.id);
        let kept = keepers.kept_or(record.id, &blank).map_err(|failure| unopened(&failure, record))?;
        check_log(&kept, record)?;
        let (bell, inbox) = Bell::new();
        let mut opened: Option<Arc<Volume>> = None;
        let won = acquire(keepers, &kept, record, &mut |term, after, config| {
            if let Some(earlier) = opened.take() {
                // A carried configuration takes two STARTs: the first one's writer is over.
                end_writer(&kept, &earlier, "another term of this host began");
            }
            let volume = open_at(keepers, &kept, record, (term, config), (&genesis, limits), &bell)?;
            let _ = after;
            if !kept.attach(Arc::clone(&volume), term) {
                // Opening took longer than a lease.
                volume.fail("another host took the volume over while it was opened");
                return Err(outrun(record));
            }
            let start = commit_start(&kept, &volume, term, config).inspect_err(|_| {
                // Before the election is given back: this writer must have ended when another one begins.
                end_writer(&kept, &volume, "the term could not be begun");
            })?;
            opened = Some(volume);
            Ok(start)
        });
        let (won, volume) = match (won, opened) {
            (Ok(won), Some(volume)) => (won, volume),
            (Err(failure), opened) => {
                if let Some(volume) = opened {
                    end_writer(&kept, &volume, "the volume was not acquired");
                }
                return Err(failure);
            }
            (Ok(_), None) => return Err(Failure::failed("the volume was acquired but not opened")),
        };
        let lag = Arc::new(AtomicU64::new(0));
        let stream = Stream {
            keepers: Arc::clone(keepers),
            kept: Arc::clone(&kept),
            volume: Arc::clone(&volume),
            bell: Arc::clone(&bell),
            lag: Arc::clone(&lag),
        };
        // START is on a majority: what it stands for is durable, and so is everything before it.
        volume.acked(won.start.seq);
        // Not before: a commit after START says that its writer served.
        if let Err(errno) = volume.drop_orphans() {
            tracing::warn!(volume = %record.name, %errno, "deleted files that the last writer held open stay for now");
        }
        let term = won.term;
        let keeper_list = won.config.members.clone();
        let thread = start(stream, inbox, won).doing("start the stream of commits")?;
        let since_unix_ms = unix_ms();
        let writing = Writing {
            keepers: Arc::clone(keepers),
            kept,
            volume,
            bell,
            stream: Mutex::new(Some(thread)),
            term,
            since_unix_ms,
            lag,
        };
        writing.announce(record, &keeper_list);
        Ok(writing)
    }

    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// Bytes of the log on disk.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.kept.log().bytes()
    }

    /// Commits the slowest keeper lacks.
    pub(crate) fn lag(&self) -> u64 {
        self.lag.load(Ordering::Relaxed)
    }

    /// Tells the cluster who holds the volume, and who keeps it: hints, so a failure costs nothing but time.
    fn announce(&self, record: &VolumeRecord, keepers: &[PeerId]) {
        let members = self.keepers.members();
        let holder =
            Holder { writer: Some(members.me()), since_unix_ms: self.since_unix_ms, term: self.term.0 };
        let mut told = members.put(Key::Holder(record.id), Some(holder.encode()));
        // What others wrote into the record since we read it (labels) stays.
        let record = members.read(|r| r.volume(&record.id)).unwrap_or_else(|| record.clone());
        if told.is_ok() && record.keepers != keepers {
            let record = VolumeRecord { keepers: keepers.to_vec(), ..record.clone() };
            told = members.put(Key::Volume(record.id), Some(record.encode()));
        }
        if let Err(failure) = told {
            tracing::warn!(volume = %record.name, error = %failure, "the hint of who holds the volume is not written");
        }
    }

    /// Makes everything durable and gives the volume back. After an error it is still held, unless it had stepped down:
    /// then there is nothing to give back, and it is let go.
    pub(crate) fn release(&self) -> Result<(), Failure> {
        let is_failed = self.volume.status().failed.is_some();
        if !is_failed {
            self.volume.close().map_err(|errno| {
                Failure::failed(format!("the volume could not be made durable ({errno}): it stays mounted"))
            })?;
            let (answer, told) = sync_channel(1);
            self.bell.send(Ring::Release(answer));
            let is_known = told.recv_timeout(RELEASE_TIMEOUT).unwrap_or(false);
            if !is_known {
                tracing::warn!(volume = %self.kept.id(), "some keepers did not hear of the release; they will be asked past");
            }
        }
        self.end();
        let holder = Holder { writer: None, since_unix_ms: unix_ms(), term: self.term.0 };
        if let Err(failure) = self.keepers.members().put(Key::Holder(self.kept.id()), Some(holder.encode())) {
            tracing::warn!(error = %failure, "the hint of the release is not written");
        }
        Ok(())
    }

    /// As [`Writing::release`]; what cannot be given back steps down, for nobody will use this writer any more and the log must be
    /// free for the next one. It is still held then, by this host.
    ///
    /// # Errors
    /// As [`Writing::release`]: something that no fsync had been answered for is lost.
    pub(crate) fn release_or_end(&self) -> Result<(), Failure> {
        self.release().inspect_err(|_| {
            self.volume.fail("it could not be given back, and is taken up anew");
            self.end();
        })
    }

    /// No thread of this writer sends or appends anything any more.
    fn end(&self) {
        self.bell.send(Ring::End);
        if let Some(thread) = self.stream.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the stream of commits panicked");
        }
        self.kept.detach();
    }
}

/// What users know a volume by is its name.
fn unopened(failure: &Failure, record: &VolumeRecord) -> Failure {
    let text = failure.text.replace(&record.id.to_string(), &record.name);
    if failure.code != Code::Damaged {
        return Failure::new(failure.code, text);
    }
    Failure::new(
        failure.code,
        format!(
            "{text}; mount it on another host that keeps it, or restore the file from a backup and restart the daemon"
        ),
    )
}

/// A host whose own log is damaged cannot continue it, and the election would wait for its vote.
fn check_log(kept: &Kept, record: &VolumeRecord) -> Result<(), Failure> {
    let Some(damage) = kept.damage() else { return Ok(()) };
    Err(Failure::new(
        Code::Damaged,
        format!(
            "volume {}: {damage}; nothing was changed: mount it on another host that keeps it, or restore the file from a \
             backup and restart the daemon",
            record.name
        ),
    ))
}

/// Ends a writer that never got to serve.
fn end_writer(kept: &Kept, volume: &Volume, reason: &str) {
    volume.fail(reason);
    kept.detach();
}

/// Another host was faster than the opening here.
fn outrun(record: &VolumeRecord) -> Failure {
    Failure::new(
        Code::Conflict,
        format!(
            "volume {}: another host took it over while it was opened here: try again when it is released there",
            record.name
        ),
    )
}

fn open_at(
    keepers: &Arc<Keepers>,
    kept: &Arc<Kept>,
    record: &VolumeRecord,
    (term, config): (Term, &Config),
    (genesis, limits): (&Base, Limits),
    bell: &Arc<Bell>,
) -> Result<Arc<Volume>, Failure> {
    let promise = kept.promise();
    let base = promise.checkpoint.map_or_else(
        || genesis.clone(),
        |c| Base { tree: c.tree, seq: c.tip.seq, term: c.tip.term.0, digest: c.tip.id.0 },
    );
    let root = keepers.store().root().to_path_buf();
    let mut options = VolumeOptions::new(
        record.id.0,
        term.0,
        Arc::clone(kept.log()),
        Arc::clone(keepers.blocks()) as _,
        base,
    );
    options.size_limit = record.size_limit;
    options.durability = rule(config, keepers.members().me());
    options.replicator = Arc::clone(bell) as _;
    options.drops_orphans = false;
    options.reserve_bytes = Some(limits.reserve_bytes);
    options.checkpoint_log_bytes = limits.checkpoint_log_bytes;
    let store = Arc::clone(keepers.blocks().store());
    options.space = Arc::new(move || {
        space::free(&root, store.aside_bytes())
            .unwrap_or(remora_volume::volume::options::Space { total: 0, free: 0 })
    });
    let volume = Volume::open(options)
        .map_err(|e| Failure::new(Code::Damaged, format!("open volume {}: {}", record.name, chain(&e))))?;
    Ok(Arc::new(volume))
}

/// What an fsync on this host waits for: where nobody else keeps the volume, for nobody's word.
fn rule(config: &Config, me: PeerId) -> Rule {
    match config.durability {
        Durability::Quorum if config.voters().iter().any(|peer| *peer != me) => Rule::Quorum,
        Durability::Quorum | Durability::Local => Rule::Local,
    }
}

/// Commits START and waits until it is on this host's disk.
fn commit_start(kept: &Kept, volume: &Arc<Volume>, term: Term, config: &Config) -> Result<Tip, Failure> {
    let writer = postcard::to_stdvec(config).doing("encode the keepers")?;
    let seq = volume
        .begin_control(&Op::Start { term: term.0, writer: &writer })
        .map_err(|errno| Failure::failed(format!("begin the term: {errno}")))?;
    // Under the quorum rule the flush ends only with the keepers' word; the local disk is what START needs first.
    let flusher = Arc::clone(volume);
    std::thread::spawn(move || flusher.flush().map(drop));
    let began = Instant::now();
    while volume.status().synced_seq < seq {
        if let Some(why) = volume.status().failed {
            return Err(Failure::failed(format!("begin the term: {why}")));
        }
        if began.elapsed() > START_TIMEOUT {
            return Err(Failure::failed("begin the term: this host's disk does not answer"));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    tip_at(kept.log(), seq).ok_or_else(|| Failure::failed("begin the term: the commit is not in the log"))
}

#[cfg(test)]
mod tests {
    use super::{Rule, rule};
    use remora_cluster::config::{Config, Durability};
    use remora_cluster::identity::PeerId;

    #[test]
    fn with_one_keeper_an_fsync_waits_for_nobody() {
        let (me, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let under =
            |keepers: &[PeerId], durability| rule(&Config::at_creation(keepers.to_vec(), durability), me);
        assert_eq!(under(&[me], Durability::Quorum), Rule::Local);
        assert_eq!(under(&[me, other], Durability::Quorum), Rule::Quorum);
        assert_eq!(under(&[other], Durability::Quorum), Rule::Quorum, "the keeper is another host");
        assert_eq!(under(&[me, other], Durability::Local), Rule::Local);
    }
}
