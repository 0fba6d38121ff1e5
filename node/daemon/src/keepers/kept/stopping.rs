//! The writer on this host: when it begins to append to the keeper's log, and when it has ended for good.
//!
//! What always holds: once the machine is told that the writer stopped, nothing more of it comes into the log, however far its threads
//! had come; and where the log ended then is on disk.

use std::sync::Arc;

use remora_cluster::keeper::KeeperEvent;
use remora_cluster::tip::Term;
use remora_volume::volume::Volume;

use crate::keepers::chain::tip_at;
use crate::keepers::kept::{Inner, Kept};

impl Kept {
    /// The writer on this host begins; its commits are the keeper's from now on. `false`, and nothing is begun, if it has been
    /// stopped since it was elected for this term: it must not append anything.
    #[must_use]
    pub(crate) fn attach(&self, volume: Arc<Volume>, term: Term) -> bool {
        let mut inner = self.inner.lock();
        let is_held = inner.machine.record().hold.is_some_and(|h| h.peer == self.me && h.term == term);
        let is_running = is_held && inner.machine.is_local_writer_running();
        if is_running && let Some(earlier) = inner.local.replace(volume) {
            earlier.fail("another writer began on this host");
        }
        is_running
    }

    /// The writer on this host has ended; it is stopped if it was not.
    pub(crate) fn detach(&self) {
        let mut inner = self.inner.lock();
        if let Some(volume) = inner.local.take() {
            if volume.status().failed.is_none() {
                volume.fail("this host let the volume go");
            }
            let event = self.stopped(&inner);
            self.drive(&mut inner, event);
        }
    }

    /// This host gives `term` back: a writer that did not close, because it never got to serve, has ended first.
    pub(super) fn end_local(&self, term: Term) {
        let inner = self.inner.lock();
        let is_own = inner.machine.record().hold.is_some_and(|h| h.peer == self.me && h.term == term);
        if let Some(volume) = inner.local.as_ref().filter(|_| is_own)
            && volume.status().failed.is_none()
        {
            volume.fail("its term was given back");
        }
    }

    /// The writer on this host must not append any more.
    pub(super) fn stop_local(&self, inner: &mut Inner, term: Term) -> KeeperEvent {
        if let Some(volume) = inner.local.take() {
            tracing::error!(volume = %self.id, %term, "another host takes the volume over: this mount answers EIO");
            volume.fail("another host took the volume over");
        }
        self.stopped(inner)
    }

    /// What the machine is told when the writer on this host appends nothing any more.
    fn stopped(&self, inner: &Inner) -> KeeperEvent {
        let end = self.log.tail().map_or(0, |tail| tail.seq);
        let tip = tip_at(&self.log, end).unwrap_or(inner.machine.durable_tip());
        self.fact(self.log.sync(), KeeperEvent::LocalStopped { tip })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::Duration;

    use remora_cluster::config::{Config, Durability};
    use remora_cluster::identity::{PeerId, VolumeId};
    use remora_cluster::message::{Elected, Evidence, Message, Prepare};
    use remora_cluster::promise::Promise;
    use remora_cluster::tip::{Chain, Tip};
    use remora_dag::block::BlockSink;
    use remora_store::blocks::{Blocks, BlocksOptions};
    use remora_store::disk::RealDisk;
    use remora_store::index::IndexKind;
    use remora_store::layout::DataDir;
    use remora_vfs::attr::{NewNode, ROOT_INO, Timestamp};
    use remora_vfs::filesystem::{Caller, Filesystem};
    use remora_volume::clock::Clock;
    use remora_volume::commit::digest_in;
    use remora_volume::tree::genesis;
    use remora_volume::volume::options::{Base, VolumeOptions};

    use super::*;

    const ID: VolumeId = VolumeId([7; 16]);
    const ME: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);

    /// One of two keepers, which was told that this host was elected for term 1.
    fn elected() -> (tempfile::TempDir, Arc<Kept>) {
        let data = tempfile::tempdir().unwrap();
        let config = Config::at_creation(vec![ME, OTHER], Durability::Local);
        let dir = DataDir::new(data.path()).volume(&ID.0);
        let kept = Kept::open(ID, ME, dir, &Promise::at_creation(ID, config), Arc::new(|| false)).unwrap();
        assert!(matches!(prepare(&kept, ME, 1), Message::Promised(_)));
        assert!(matches!(elect(&kept, ME, 1, Chain::default()), Message::Aligned { .. }));
        (data, kept)
    }

    /// Another host's candidacy, with an operator's word that this one is dead.
    fn prepare(kept: &Kept, from: PeerId, term: u64) -> Message {
        let evidence = Some(Evidence::Fenced { peer: ME, term: Term(term - 1) });
        kept.ask(from, Message::Prepare(Prepare { term: Term(term), evidence }))
    }

    fn elect(kept: &Kept, from: PeerId, term: u64, chain: Chain) -> Message {
        let config = kept.config().unwrap();
        let next = Config { generation: Term(term), ..config.clone() };
        let elected = Elected { term: Term(term), chain, config, next, since_unix_ms: 1 };
        kept.ask(from, Message::Elected(Box::new(elected)))
    }

    /// The volume, as this host writes it in term 1.
    fn volume(kept: &Kept, clock: Arc<dyn Clock>) -> Arc<Volume> {
        let mut options = BlocksOptions::new(IndexKind::Memory);
        options.is_background = false;
        let blocks = Blocks::open(Arc::new(RealDisk), &kept.dir.root().join("packs"), options).unwrap();
        let (tree, made) = genesis(0, 0, 0o755, Timestamp(0)).unwrap();
        made.into_iter().for_each(|block| BlockSink::put(&blocks, block).unwrap());
        let tree = *tree.to_block().cid();
        let base = Base { tree, seq: 0, term: 0, digest: digest_in(&tree).unwrap() };
        let mut options = VolumeOptions::new(ID.0, 1, Arc::clone(kept.log()), Arc::new(blocks), base);
        options.background = false;
        options.reserve_bytes = Some(0);
        options.clock = clock;
        Arc::new(Volume::open(options).unwrap())
    }

    /// Lets another host take the volume over at the moment a commit is stamped: the writer is about to append it then.
    #[derive(Default)]
    struct TakenOver {
        kept: OnceLock<Arc<Kept>>,
        promised: OnceLock<Tip>,
    }

    impl Clock for TakenOver {
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }

        fn now(&self) -> Timestamp {
            if let Some(kept) = self.kept.get()
                && let Message::Promised(promised) = prepare(kept, OTHER, 2)
            {
                self.promised.set(promised.chain.tip).unwrap();
            }
            Timestamp(1)
        }
    }

    fn write(volume: &Volume, name: &[u8]) -> bool {
        let caller = Caller { uid: 0, gid: 0 };
        volume.make(caller, ROOT_INO, name, &NewNode::File, 0o644, Timestamp(1)).unwrap();
        volume.flush().is_ok()
    }

    #[test]
    fn what_another_host_is_promised_is_all_that_the_stopped_writer_appended() {
        let (_data, kept) = elected();
        let clock = Arc::new(TakenOver::default());
        let volume = volume(&kept, Arc::clone(&clock) as _);
        assert!(kept.attach(Arc::clone(&volume), Term(1)));
        assert!(write(&volume, b"before"));
        assert!(clock.kept.set(Arc::clone(&kept)).is_ok());
        assert!(!write(&volume, b"late"));
        let promised = *clock.promised.get().unwrap();
        assert_eq!(promised.rank(), (Term(1), 1));
        assert_eq!(kept.log().tail().map(|tail| tail.seq), Some(promised.seq));
    }

    #[test]
    fn a_writer_that_lost_its_term_while_it_opened_appends_nothing() {
        let (_data, kept) = elected();
        let volume = volume(&kept, Arc::new(TakenOver::default()));
        assert!(matches!(prepare(&kept, OTHER, 2), Message::Promised(_)));
        assert!(!kept.attach(Arc::clone(&volume), Term(1)), "it is promised to another host");
        assert!(matches!(elect(&kept, OTHER, 2, Chain::default()), Message::Aligned { .. }));
        assert!(!kept.attach(volume, Term(1)), "another host writes it");
        assert!(kept.local().is_none());
    }

    #[test]
    fn a_writer_whose_term_is_given_back_appends_nothing_more() {
        let (_data, kept) = elected();
        let volume = volume(&kept, Arc::new(TakenOver::default()));
        assert!(kept.attach(Arc::clone(&volume), Term(1)));
        kept.ask(ME, Message::Release { term: Term(0), tip: Tip::default() });
        assert!(write(&volume, b"before"), "that was an earlier one");
        let tip = kept.durable_tip();
        assert_eq!(
            kept.ask(ME, Message::Release { term: Term(1), tip }),
            Message::Released { term: Term(1) }
        );
        assert!(volume.status().failed.is_some());
        assert!(volume.flush().is_err());
    }

    #[test]
    fn a_writer_that_is_let_go_appends_nothing_more() {
        let (_data, kept) = elected();
        let volume = volume(&kept, Arc::new(TakenOver::default()));
        assert!(kept.attach(Arc::clone(&volume), Term(1)));
        assert!(write(&volume, b"before"));
        kept.detach();
        let caller = Caller { uid: 0, gid: 0 };
        volume.make(caller, ROOT_INO, b"late", &NewNode::File, 0o644, Timestamp(1)).unwrap_err();
        assert!(volume.flush().is_err());
        assert_eq!(kept.log().tail().map(|tail| tail.seq), Some(1));
    }
}
