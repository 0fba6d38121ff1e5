//! A keeper's files, read and made good at the opening.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::keeper::Keeper;
use remora_cluster::lease::{LeaseTimes, Millis};
use remora_cluster::promise::Promise;
use remora_cluster::tip::Chain;
use remora_store::ctl::Slots;
use remora_store::disk::RealDisk;
use remora_store::file_header::FileKind;
use remora_store::layout::{VolumeDir, segment_name};
use remora_store::log::{Log, LogOptions, Recovery};

use crate::exit::{Code, Failure};
use crate::keepers::chain::{ChainBuilder, tip_at};
use crate::keepers::kept::{Ctl, Inner, Kept, Relieve, damaged};
use crate::members::now::boot_ms;

impl Kept {
    /// Opens what is on disk, or begins with `first` if nothing is. `relieve` is asked for room when the disk is full: it gives up a piece
    /// of what is set aside for that, and says whether there was any.
    pub(crate) fn open(
        id: VolumeId,
        me: PeerId,
        dir: VolumeDir,
        first: &Promise,
        relieve: Relieve,
    ) -> Result<Arc<Kept>, Failure> {
        if has_log(&dir) && !dir.ctl().exists() {
            // A keeper that forgot what it promised must not vote as if it never had.
            return Err(Failure::new(
                Code::Damaged,
                format!(
                    "volume {id}: {} is gone though the log is there: restore it, or move {} away and let this host become a keeper anew",
                    dir.ctl().display(),
                    dir.root().display()
                ),
            ));
        }
        let first = Ctl { promise: first.encode(), used_term: 0 };
        let slots = Slots::open_or_create(&RealDisk, &dir.ctl(), || first)
            .map_err(|e| damaged(&id, "read the promise", &e))?;
        let promise =
            Promise::decode(&slots.get().promise).map_err(|e| damaged(&id, "read the promise", &e))?;
        let mut chain = ChainBuilder::default();
        let options = LogOptions::new(FileKind::VolumeLog, id.0);
        let (log, recovery) = Log::open(Arc::new(RealDisk), &dir.log(), options, &mut |view| {
            chain.take(&view).map_err(Into::into)
        })
        .map_err(|e| damaged(&id, "open the log", &e))?;
        let damage = damage_in(&dir, &recovery);
        if let Some(damage) = &damage {
            tracing::error!(volume = %id, ?recovery, "{damage}: this keeper does not vote");
        }
        let base = promise.checkpoint.map(|c| c.tip).unwrap_or_default();
        let mut chain = chain.finish(base);
        if base.seq > chain.tip.seq && damage.is_none() {
            // The checkpoint was promised and the crash came before the old log was set aside.
            log.truncate_after(0, &dir.fork())
                .map_err(|e| damaged(&id, "begin the log at its checkpoint", &e))?;
            chain = Chain::from_base(base);
        }
        if let Some(after) = lost_after(&promise, &chain).filter(|_| damage.is_none()) {
            tracing::warn!(volume = %id, after, "commits of a writer that had lost the volume are kept as a fork");
            log.truncate_after(after, &dir.fork())
                .map_err(|e| damaged(&id, "cut what came behind the elected chain", &e))?;
            chain.cut_to(tip_at(&log, after).unwrap_or(chain.base));
        }
        let now = Millis(boot_ms());
        let machine = Keeper::new(me, promise, chain, damage.is_some(), LeaseTimes::default(), now);
        let inner = Inner {
            machine,
            next_request: 1,
            waiting: BTreeMap::new(),
            commits: BTreeMap::new(),
            local: None,
        };
        Ok(Arc::new(Kept {
            id,
            me,
            dir,
            log: Arc::new(log),
            slots,
            damage,
            relieve,
            is_full: AtomicBool::new(false),
            inner: Mutex::new(inner),
        }))
    }
}

/// Where a log is damaged, if it is.
fn damage_in(dir: &VolumeDir, recovery: &Recovery) -> Option<String> {
    let Recovery::Damaged { segment, at, .. } = recovery else { return None };
    Some(format!("{} is damaged at byte {at}", dir.log().join(segment_name(*segment)).display()))
}

/// The last commit that counts, if the log goes on behind it in an older term than that of the last election: whoever wrote that had
/// lost the volume already, and the next writer's commits must not come behind it.
fn lost_after(promise: &Promise, chain: &Chain) -> Option<u64> {
    let hold = promise.hold?;
    let after = hold.base.seq.max(chain.base.seq);
    chain.term_of(after + 1).filter(|term| *term < hold.term).map(|_| after)
}

/// Whether a log was ever begun.
fn has_log(dir: &VolumeDir) -> bool {
    std::fs::read_dir(dir.log()).is_ok_and(|mut names| names.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keepers::chain::{frame_of, tip_of};
    use remora_cluster::config::{Config, Durability};
    use remora_cluster::promise::Hold;
    use remora_cluster::tip::{CommitId, Term, Tip};
    use remora_store::layout::DataDir;
    use remora_vfs::attr::Timestamp;
    use remora_volume::commit::{Commit, CommitHeader, FLAG_END};

    #[test]
    fn a_keeper_that_lost_its_promise_is_not_opened() {
        let data = tempfile::tempdir().unwrap();
        let (id, me) = (VolumeId([7; 16]), PeerId([1; 32]));
        let dir = || DataDir::new(data.path()).volume(&id.0);
        drop(Kept::open(id, me, dir(), &Promise::blank(id), Arc::new(|| false)).unwrap());
        drop(Kept::open(id, me, dir(), &Promise::blank(id), Arc::new(|| false)).unwrap());
        std::fs::remove_file(dir().ctl()).unwrap();
        let failure = Kept::open(id, me, dir(), &Promise::blank(id), Arc::new(|| false)).err().unwrap();
        assert_eq!(failure.code, Code::Damaged);
        assert!(failure.text.contains("ctl"), "{failure}");
    }

    /// A keeper that was told of the election of term 2 after commit 2, and whose log has commits of these terms.
    fn reopened(terms: &[u64]) -> (tempfile::TempDir, Arc<Kept>) {
        let data = tempfile::tempdir().unwrap();
        let (id, me, other) = (VolumeId([7; 16]), PeerId([1; 32]), PeerId([2; 32]));
        let dir = || DataDir::new(data.path()).volume(&id.0);
        let config = Config::at_creation(vec![me, other], Durability::Quorum);
        let kept =
            Kept::open(id, me, dir(), &Promise::at_creation(id, config.clone()), Arc::new(|| false)).unwrap();
        let mut tip = Tip::default();
        let mut elected = Chain::default();
        for term in terms {
            let commit = commit(&id, tip, *term);
            kept.log().append(&frame_of(&commit), &[&commit.bytes]).unwrap();
            tip = tip_of(&commit);
            if tip.seq <= 2 {
                elected.push(tip);
            }
        }
        kept.log().sync().unwrap();
        // As if the keeper had cut its log before it wrote this down, and something came behind it afterwards.
        let hold = Hold { peer: other, term: Term(2), since_unix_ms: 1, base: elected.tip, released: None };
        let record = Promise { term: Term(2), hold: Some(hold), ..kept.promise() };
        kept.persist(&record).unwrap();
        drop(kept);
        let kept = Kept::open(id, me, dir(), &Promise::blank(id), Arc::new(|| false)).unwrap();
        (data, kept)
    }

    fn commit(id: &VolumeId, after: Tip, term: u64) -> Commit {
        let base = CommitId([9; 32]).cid().unwrap();
        let prev = if after.seq == 0 { [9; 32] } else { after.id.0 };
        let seq = after.seq + 1;
        let header = CommitHeader {
            volume: id.0,
            prev,
            term,
            seq,
            base,
            base_seq: 0,
            flags: FLAG_END,
            time: Timestamp(1),
        };
        Commit::seal(header, b"ops", Vec::new()).unwrap()
    }

    #[test]
    fn commits_of_an_older_term_behind_the_elected_chain_become_a_fork() {
        let (_data, kept) = reopened(&[1, 1, 1, 1]);
        assert_eq!(kept.durable_tip().rank(), (Term(1), 2));
        assert_eq!(kept.forks().unwrap().len(), 1, "they are kept");
        assert_eq!(kept.damage(), None);
    }

    #[test]
    fn commits_of_the_elected_term_and_of_the_chain_before_it_stay() {
        for (terms, end) in [(&[1, 1, 2, 2][..], (Term(2), 4)), (&[1], (Term(1), 1)), (&[1, 2], (Term(2), 2))]
        {
            let (_data, kept) = reopened(terms);
            assert_eq!(kept.durable_tip().rank(), end);
            assert!(kept.forks().unwrap().is_empty());
        }
    }
}
