//! Which volumes are kept on this host, and who on the network is asked for what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use parking_lot::Mutex;
use remora_cluster::config::Config;
use remora_cluster::identity::{PeerId, VolumeId};
use remora_cluster::message::{Envelope, Message};
use remora_cluster::promise::Promise;
use remora_cluster::volume_record::VolumeRecord;
use remora_dag::block::BlockSink;
use remora_net::exchange::Providers;
use remora_net::protocol::Protocol;
use remora_store::fault::chain;
use remora_store::layout::{DataDir as StoreDir, parse_volume_name};
use remora_vfs::attr::Timestamp;
use remora_volume::commit::digest_in;
use remora_volume::journal::blocks::BlockStore;
use remora_volume::volume::options::Base;

use crate::content::blocks::NodeBlocks;
use crate::exit::{Code, Context, Failure};
use crate::keepers::hydrate::{Hydration, before_ack};
use crate::keepers::kept::Kept;
use crate::members::membership::Membership;
use crate::paths::DataDir;

/// How long a keeper has for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Volumes a host keeps at most; more are refused, so that no member can fill this host with empty logs.
const KEPT_MAX: usize = 4096;

/// How long a volume that could not be opened is left alone: that may have read all of its log, and peers ask often.
const UNOPENED_PAUSE: Duration = Duration::from_secs(60);

/// What the directory of a volume ends in while it is deleted.
const DOOMED: &str = "removed";

/// The keepers of this host.
pub(crate) struct Keepers {
    store: StoreDir,
    members: Arc<Membership>,
    blocks: Arc<NodeBlocks>,
    kept: Mutex<BTreeMap<VolumeId, Arc<Kept>>>,
    hydration: Hydration,
    /// Volumes on this disk that could not be opened, and why.
    unopened: Mutex<BTreeMap<VolumeId, Unopened>>,
    /// Held while a keeper's files are opened, which takes as long as its log is long. Taken before `kept`, which is not held then:
    /// the other volumes go on.
    opening: Mutex<()>,
    runtime: tokio::runtime::Handle,
}

/// Why a volume could not be opened, and when.
struct Unopened {
    failure: Failure,
    at: Instant,
}

impl Keepers {
    /// Opens every volume that is on this disk. Must be called on a tokio runtime.
    pub(crate) fn open(
        data: &DataDir,
        members: Arc<Membership>,
        blocks: Arc<NodeBlocks>,
    ) -> Result<Arc<Self>, Failure> {
        let keepers = Arc::new(Keepers {
            store: data.store(),
            members,
            blocks,
            kept: Mutex::new(BTreeMap::new()),
            hydration: Hydration::default(),
            unopened: Mutex::new(BTreeMap::new()),
            opening: Mutex::new(()),
            runtime: tokio::runtime::Handle::current(),
        });
        let dir = keepers.store.volumes();
        let names = match std::fs::read_dir(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(keepers),
            Err(e) => return Err(Failure::failed(format!("list {}: {e}", dir.display()))),
        };
        for entry in names {
            let entry = entry.doing("list the volumes")?;
            let name = entry.file_name();
            if entry.path().extension().is_some_and(|ending| ending == DOOMED) {
                std::fs::remove_dir_all(entry.path()).doing("delete a removed volume")?;
                continue;
            }
            if let Some(id) = name.to_str().and_then(parse_volume_name) {
                let id = VolumeId(id);
                // One volume that cannot be opened must not keep the others from their users.
                if let Err(failure) = keepers.kept_or(id, &Promise::blank(id)) {
                    tracing::error!(volume = %id, error = %failure, "a volume cannot be opened");
                }
            }
        }
        Ok(keepers)
    }

    pub(crate) fn members(&self) -> &Arc<Membership> {
        &self.members
    }

    pub(crate) fn blocks(&self) -> &Arc<NodeBlocks> {
        &self.blocks
    }

    pub(crate) fn store(&self) -> &StoreDir {
        &self.store
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Volumes of this host whose files are damaged, with what is wrong.
    pub(crate) fn damaged(&self) -> Vec<(VolumeId, String)> {
        let mut damaged: Vec<(VolumeId, String)> =
            self.unopened.lock().iter().map(|(id, why)| (*id, why.failure.text.clone())).collect();
        let kept = self.kept.lock();
        damaged.extend(kept.iter().filter_map(|(id, kept)| Some((*id, kept.damage()?))));
        damaged
    }

    /// Volumes whose writer's commits this host has no room for.
    pub(crate) fn full(&self) -> Vec<VolumeId> {
        self.all().iter().filter(|kept| kept.is_full()).map(|kept| kept.id()).collect()
    }

    pub(crate) fn hydration(&self) -> &Hydration {
        &self.hydration
    }

    /// Everything this host has anything of.
    pub(crate) fn all(&self) -> Vec<Arc<Kept>> {
        self.kept.lock().values().cloned().collect()
    }

    /// Whether the catalogue says that the volume was removed.
    pub(crate) fn is_removed(&self, id: &VolumeId) -> bool {
        self.members.read(|registry| registry.volume(id)).is_some_and(|record| record.removed)
    }

    /// Marks the end of every log, for the end of the daemon: the next one can tell a damaged last commit from a torn one.
    pub(crate) fn close(&self) {
        for kept in self.all() {
            if let Err(e) = kept.log().close() {
                tracing::warn!(volume = %kept.id(), error = %chain(&e), "close a log");
            }
        }
    }

    /// The keeper of a volume, if this host has anything of it.
    pub(crate) fn get(&self, id: &VolumeId) -> Option<Arc<Kept>> {
        self.kept.lock().get(id).cloned()
    }

    /// Opens a keeper's files again, which have changed under it: it was damaged and took no part in anything.
    pub(crate) fn reopen(&self, id: &VolumeId) -> Result<(), Failure> {
        let _opening = self.opening.lock();
        let opened = self.open_files(*id, &Promise::blank(*id))?;
        self.kept.lock().insert(*id, opened);
        Ok(())
    }

    /// The keeper of a volume, made with `first` on disk if there is none. What could not be opened is not read again for some time.
    pub(crate) fn kept_or(&self, id: VolumeId, first: &Promise) -> Result<Arc<Kept>, Failure> {
        if let Some(kept) = self.get(&id) {
            return Ok(kept);
        }
        let _opening = self.opening.lock();
        if let Some(kept) = self.get(&id) {
            return Ok(kept);
        }
        if self.kept.lock().len() >= KEPT_MAX {
            return Err(Failure::failed(format!("this host keeps {KEPT_MAX} volumes already")));
        }
        if let Some(unopened) = self.unopened.lock().get(&id)
            && unopened.at.elapsed() < UNOPENED_PAUSE
        {
            return Err(unopened.failure.clone());
        }
        let opened = self.open_files(id, first).inspect_err(|failure| {
            let mut unopened = self.unopened.lock();
            if unopened.len() < KEPT_MAX {
                unopened.insert(id, Unopened { failure: failure.clone(), at: Instant::now() });
            }
        })?;
        self.kept.lock().insert(id, Arc::clone(&opened));
        self.unopened.lock().remove(&id);
        Ok(opened)
    }

    fn open_files(&self, id: VolumeId, first: &Promise) -> Result<Arc<Kept>, Failure> {
        let blocks = Arc::clone(&self.blocks);
        let relieve = Arc::new(move || blocks.store().relieve());
        Kept::open(id, self.members.me(), self.store.volume(&id.0), first, relieve)
    }

    /// Deletes what this host has of a volume that was removed; `false` while somebody writes it.
    pub(crate) fn drop_removed(&self, id: &VolumeId) -> Result<bool, Failure> {
        let mut kept = self.kept.lock();
        let Some(one) = kept.get(id) else { return Ok(false) };
        let hold = one.promise().hold;
        if one.local().is_some() || hold.is_some_and(|h| h.released.is_none() && h.peer != self.members.me())
        {
            return Ok(false);
        }
        let dir = self.store.volume(&id.0);
        // Under another name first: half a volume must not be taken for one at the next start.
        let doomed = dir.root().with_extension(DOOMED);
        std::fs::rename(dir.root(), &doomed).doing(format_args!("remove {}", dir.root().display()))?;
        kept.remove(id);
        drop(kept);
        std::fs::remove_dir_all(&doomed).doing(format_args!("remove {}", doomed.display()))?;
        tracing::info!(volume = %id, "deleted: it was removed from the catalogue");
        Ok(true)
    }

    /// Makes this host the first keeper of a new volume; durable on return.
    pub(crate) fn found(&self, record: &VolumeRecord) -> Result<(), Failure> {
        self.first_tree(record)?;
        let config = Config::at_creation(record.keepers.clone(), record.durability);
        self.kept_or(record.id, &Promise::at_creation(record.id, config)).map(drop)
    }

    /// The tree a volume begins with; the same on every host, and on this host's disk when it returns.
    pub(crate) fn first_tree(&self, record: &VolumeRecord) -> Result<Base, Failure> {
        let time = Timestamp::from_parts(
            i64::try_from(record.created_unix_ms / 1000).unwrap_or(0),
            u32::try_from(record.created_unix_ms % 1000).unwrap_or(0) * 1_000_000,
        );
        let mode = u16::try_from(record.root_mode & 0o7777).unwrap_or(0o755);
        let (_, blocks) = remora_volume::tree::genesis(record.root_uid, record.root_gid, mode, time)
            .map_err(|e| Failure::failed(chain(&e)))?;
        let tree =
            blocks.last().map(|b| *b.cid()).ok_or_else(|| Failure::failed("a first tree without blocks"))?;
        for block in blocks {
            self.blocks.put(block).map_err(|e| Failure::failed(chain(&e)))?;
        }
        self.blocks.sync().doing("make the first tree durable")?;
        let digest = digest_in(&tree).ok_or_else(|| Failure::failed("a first tree without a digest"))?;
        Ok(Base { tree, seq: 0, term: 0, digest })
    }

    /// Answers a peer's message about a volume.
    pub(crate) fn answer(&self, from: PeerId, request: &Bytes) -> Result<Vec<u8>, String> {
        let envelope = Envelope::decode(request).map_err(|e| chain(&e))?;
        let id = envelope.volume;
        let kept = match &envelope.message {
            // An election may make this host a keeper; a candidate may ask one that is none.
            Message::Prepare(_) | Message::Elected(_) => {
                Some(self.kept_or(id, &Promise::blank(id)).map_err(|e| e.text)?)
            }
            _ => self.get(&id),
        };
        let message = match (kept, envelope.message) {
            (None, _) => Message::NotHere,
            (Some(kept), Message::Append(append)) => {
                // Blocks that come before the commits that refer to them.
                let _protection = self.blocks.store().protect();
                kept.append(from, append, |commits, commit_seq| {
                    before_ack::ready(self, &kept, from, commits, commit_seq)
                })
            }
            (Some(kept), message) => kept.ask(from, message),
        };
        Ok(Envelope { volume: id, message }.encode())
    }

    /// Asks a keeper, this host's own included; `None` if it does not answer. Blocks.
    pub(crate) fn ask(&self, id: VolumeId, to: PeerId, message: Message) -> Option<Message> {
        if to == self.members.me() {
            return self.get(&id).map(|kept| kept.ask(to, message));
        }
        self.runtime.block_on(self.ask_peer(id, to, message))
    }

    /// Asks a keeper on another host.
    pub(crate) async fn ask_peer(&self, id: VolumeId, to: PeerId, message: Message) -> Option<Message> {
        let net = self.members.net()?;
        let request = Envelope { volume: id, message }.encode().into();
        let answer = match net.request(&to, Protocol::Keeper, request, ANSWER_TIMEOUT).await {
            Ok(answer) => answer,
            Err(e) => {
                tracing::debug!(volume = %id, host = %self.members.name_of(&to), error = %chain(&e), "no answer");
                return None;
            }
        };
        match Envelope::decode(&answer) {
            Ok(envelope) if envelope.volume == id => Some(envelope.message),
            Ok(_) => None,
            Err(e) => {
                tracing::warn!(volume = %id, from = %to, error = %chain(&e), "an answer that cannot be read");
                None
            }
        }
    }

    /// Whom to ask for a block: members that are connected, those first that keep a volume together with this host.
    pub(crate) fn providers(self: &Arc<Self>) -> Providers {
        let keepers = Arc::clone(self);
        Arc::new(move |_cid: &Cid| {
            let Some(net) = keepers.members.net() else { return Vec::new() };
            let mut first: Vec<PeerId> = Vec::new();
            for kept in keepers.kept.lock().values() {
                // Never waits: a keeper that is busy is left out of the order, not out of the list.
                first.extend(kept.partners());
            }
            let mut peers: Vec<PeerId> = net.connected().into_iter().map(|c| c.peer).collect();
            peers.sort_by_key(|peer| !first.contains(peer));
            peers
        })
    }

    /// A member can be reached again.
    pub(crate) fn on_connected(&self, peer: PeerId) {
        tracing::trace!(%peer, "keepers know");
    }
}

/// Says who holds a volume, for the one who wanted it.
pub(crate) fn held(members: &Membership, name: &str, hold: &remora_cluster::promise::Hold) -> Failure {
    let host = members.name_of(&hold.peer);
    let since = crate::members::now::rfc3339(hold.since_unix_ms);
    Failure::new(
        Code::Conflict,
        format!(
            "volume {name} is in use on host {host} since {since}: stop its containers there, or type \
             `remora volume unmount DIR` on {host}, then try again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use remora_store::blocks::{Blocks, BlocksOptions};
    use remora_store::disk::RealDisk;
    use remora_store::index::IndexKind;

    use super::*;
    use crate::members::found::init;
    use crate::members::papers::Papers;

    #[tokio::test]
    async fn a_volume_that_cannot_be_opened_is_not_read_again_at_once() {
        let root = tempfile::tempdir().unwrap();
        let data = DataDir::new(root.path());
        init(&data, None, None, Vec::new()).unwrap();
        let members = Membership::open(&data, Papers::load(&data).unwrap()).unwrap();
        let packs = root.path().join("packs");
        let blocks = Blocks::open(Arc::new(RealDisk), &packs, BlocksOptions::new(IndexKind::Memory)).unwrap();
        let keepers = Keepers::open(&data, members, NodeBlocks::new(Arc::new(blocks))).unwrap();
        let (id, other) = (VolumeId([7; 16]), VolumeId([8; 16]));
        let (blank, dir) = (Promise::blank(id), keepers.store().volume(&id.0));
        std::fs::create_dir_all(dir.log()).unwrap();
        let stray = dir.log().join("0000000001.seg");
        std::fs::write(&stray, b"").unwrap();
        let failure = keepers.kept_or(id, &blank).err().unwrap();
        assert_eq!(failure.code, Code::Damaged);
        std::fs::remove_file(stray).unwrap();
        let again = keepers.kept_or(id, &blank).err().unwrap();
        assert_eq!(again.text, failure.text, "it was read again");
        assert_eq!(keepers.damaged().len(), 1, "and is told of");
        keepers.kept_or(other, &Promise::blank(other)).unwrap();
        let long_ago = Instant::now().checked_sub(UNOPENED_PAUSE).unwrap();
        keepers.unopened.lock().get_mut(&id).unwrap().at = long_ago;
        keepers.kept_or(id, &blank).unwrap();
        assert!(keepers.damaged().is_empty());
    }
}
