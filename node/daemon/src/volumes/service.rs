//! What users do with volumes, on this host.
//!
//! What always holds: of one volume one thing is done at a time (its turn is held); a volume that nobody uses is released, so
//! that any other host can have it; a mount that was asked for is remembered on disk before the call returns.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use remora_cluster::identity::VolumeId;
use remora_cluster::registry::catalogue::CatalogueEntry;
use remora_cluster::registry::entry::Key;
use remora_cluster::volume_record::{VolumeRecord, check_name};
use remora_fuse_mount::docker::options::{VolumeOptions, asks_for_acls};
use remora_store::fault::chain;
use remora_volume::volume::Volume;

use crate::config::Config;
use crate::exit::{Code, Context, Failure};
use crate::keepers::desk::{Keepers, held};
use crate::keepers::hydrate::Copy;
use crate::keepers::hydrate::making::Difference;
use crate::keepers::writing::{Limits, Writing};
use crate::members::membership::Membership;
use crate::members::now::{rfc3339, unix_ms};
use crate::paths::DataDir;
use crate::volumes::advice;
use crate::volumes::mounted::{Mounted, clear_dead, point_of, unbind};
use crate::volumes::remembered::{Mounts, Remembered};
use crate::volumes::wishes;
use crate::wire::{CreateVolume, Here, Holder, LocalCopy, VolumeState};

/// Logs of this many bytes are folded when the daemon stops: shorter ones are read in a moment, longer ones take too long to fold.
const FOLD_BYTES: RangeInclusive<u64> = (128 << 20)..=(2 << 30);

/// How long that is waited for.
const FOLD_TIME_MAX: Duration = Duration::from_secs(10);

/// Threads that serve one mount.
const MOUNT_THREADS: usize = 4;

/// The volumes of this host.
pub(crate) struct Volumes {
    pub(super) members: Arc<Membership>,
    keepers: Arc<Keepers>,
    limits: Limits,
    points: PathBuf,
    remembered: Mounts,
    pub(super) mounted: Mutex<BTreeMap<VolumeId, Arc<Mounted>>>,
    turns: Mutex<BTreeMap<VolumeId, Arc<Mutex<()>>>>,
    /// Directories whose mount did not come back yet after the start.
    late: Mutex<BTreeSet<PathBuf>>,
    /// Kernel sessions that are being taken down; a volume is not mounted again before its own is gone.
    ending: Mutex<BTreeMap<VolumeId, JoinHandle<()>>>,
}

impl Volumes {
    pub(crate) fn new(
        data: &DataDir,
        config: &Config,
        members: Arc<Membership>,
        keepers: Arc<Keepers>,
    ) -> Arc<Self> {
        Arc::new(Volumes {
            members,
            keepers,
            limits: Limits {
                reserve_bytes: config.reserve_bytes,
                checkpoint_log_bytes: config.checkpoint_log_bytes,
            },
            points: data.docker_mounts(),
            remembered: Mounts::load(data.mounts()),
            mounted: Mutex::new(BTreeMap::new()),
            turns: Mutex::new(BTreeMap::new()),
            late: Mutex::new(BTreeSet::new()),
            ending: Mutex::new(BTreeMap::new()),
        })
    }

    /// One thing at a time for one volume.
    pub(super) fn turn(&self, id: VolumeId) -> Arc<Mutex<()>> {
        Arc::clone(self.turns.lock().entry(id).or_default())
    }

    pub(super) fn record(&self, name: &str) -> Result<VolumeRecord, Failure> {
        self.members.read(|r| r.volume_named(name)).map(|entry| entry.record).ok_or_else(|| {
            Failure::not_found(format!("no volume {name:?}: `remora volume ls` shows what there is"))
        })
    }

    pub(super) fn get(&self, id: &VolumeId) -> Option<Arc<Mounted>> {
        self.mounted.lock().get(id).cloned()
    }

    /// Every volume of the cluster; reads no disk and asks nobody.
    pub(crate) fn list(&self) -> Vec<VolumeState> {
        self.members.read(|r| r.volumes()).iter().map(|entry| self.state(entry)).collect()
    }

    /// One volume; reads no disk and asks nobody.
    pub(crate) fn find(&self, name: &str) -> Option<VolumeState> {
        self.members.read(|r| r.volume_named(name)).map(|entry| self.state(&entry))
    }

    pub(crate) fn inspect(&self, name: &str) -> Result<VolumeState, Failure> {
        self.find(name).ok_or_else(|| {
            Failure::not_found(format!("no volume {name:?}: `remora volume ls` shows what there is"))
        })
    }

    fn state(&self, entry: &CatalogueEntry) -> VolumeState {
        let record = &entry.record;
        let holder = self.members.read(|r| r.holder(&record.id)).and_then(|(holder, _)| {
            let host = self.members.name_of(&holder.writer?);
            Some(Holder { host, since: rfc3339(holder.since_unix_ms) })
        });
        VolumeState {
            name: entry.shown_name.clone(),
            id: record.id.to_string(),
            created: rfc3339(record.created_unix_ms),
            durability: match record.durability {
                remora_cluster::config::Durability::Quorum => "quorum".into(),
                remora_cluster::config::Durability::Local => "local".into(),
            },
            replicas: u8::try_from(record.replicas).unwrap_or(u8::MAX),
            size_limit: record.size_limit,
            acl: asks_for_acls(&record.options),
            keepers: record.keepers.iter().map(|peer| self.members.name_of(peer)).collect(),
            holder,
            here: self.get(&record.id).map(|mounted| here(&mounted)),
            copy: self.keepers.get(&record.id).and_then(|kept| {
                let copy = self.keepers.hydration().copy_of(&kept)?;
                Some(local_copy(&copy))
            }),
        }
    }

    pub(crate) fn create(&self, wish: &CreateVolume) -> Result<VolumeState, Failure> {
        check_name(&wish.name).map_err(|e| Failure::usage(chain(&e)))?;
        if self.find(&wish.name).is_some() {
            return Err(Failure::conflict(format!("there is a volume {:?} already", wish.name)));
        }
        self.create_with(wish, &wishes::options(wish)?)
    }

    /// Creates a volume; it is in the catalogue on this host's disk when this returns.
    pub(crate) fn create_with(
        &self,
        wish: &CreateVolume,
        options: &VolumeOptions,
    ) -> Result<VolumeState, Failure> {
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).doing("draw a volume id")?;
        let id = VolumeId(id);
        let record = self.members.read(|r| wishes::record(id, &wish.name, options, r, unix_ms()))?;
        self.keepers.found(&record)?;
        self.members.put(Key::Volume(id), Some(record.encode()))?;
        tracing::info!(volume = %record.name, id = %id, "created");
        self.inspect(&wish.name)
    }

    /// Removes a volume that nobody holds.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        let record = self.record(name)?;
        let turn = self.turn(record.id);
        let _turn = turn.lock();
        self.release_if_unused(&record.id)?;
        if let Some(mounted) = self.get(&record.id) {
            let users = mounted.users()?;
            let dirs: Vec<String> = users.here.iter().map(|d| d.display().to_string()).collect();
            let whom = if dirs.is_empty() { "a container".into() } else { dirs.join(", ") };
            return Err(Failure::conflict(format!(
                "volume {name} is in use on this host by {whom}: stop that first"
            )));
        }
        let hold = self.keepers.get(&record.id).and_then(|kept| kept.promise().hold);
        let hint = self.members.read(|r| r.holder(&record.id)).and_then(|(holder, _)| holder.writer);
        if let Some(hold) = hold.filter(|h| h.released.is_none() && h.peer != self.members.me()) {
            return Err(held(&self.members, name, &hold));
        }
        if let Some(writer) = hint.filter(|writer| *writer != self.members.me()) {
            let host = self.members.name_of(&writer);
            return Err(Failure::conflict(format!(
                "volume {name} is in use on host {host}: unmount it there first"
            )));
        }
        let gone = VolumeRecord { removed: true, ..record };
        self.members.put(Key::Volume(gone.id), Some(gone.encode()))?;
        tracing::info!(volume = %gone.name, "removed from the catalogue");
        Ok(())
    }

    /// Mounts a volume on a directory; returns when the mount answers.
    pub(crate) fn mount(&self, name: &str, dir: &Path, read_only: bool) -> Result<(), Failure> {
        let record = self.record(name)?;
        let turn = self.turn(record.id);
        let _turn = turn.lock();
        clear_dead(dir)?;
        let wanted = Remembered { volume: record.id.to_string(), read_only };
        let mounted = self.ensure_mounted(&record)?;
        if self.remembered.get(dir).as_ref() == Some(&wanted)
            && mounted.users()?.here.iter().any(|d| d == dir)
        {
            return Ok(());
        }
        let bound = mounted.bind(dir, read_only).and_then(|()| self.remembered.add(dir, wanted));
        if bound.is_err() {
            self.release_if_unused(&record.id)?;
        }
        bound
    }

    /// Unmounts a directory; the last one hands the volume back, durable.
    pub(crate) fn unmount(&self, dir: &Path) -> Result<(), Failure> {
        let known = self.remembered.get(dir);
        let id = known.as_ref().and_then(|r| r.volume.parse::<VolumeId>().ok());
        let Some(id) = id else {
            return Err(Failure::not_found(format!("no volume is mounted on {}", dir.display())));
        };
        let turn = self.turn(id);
        let _turn = turn.lock();
        match unbind(dir) {
            // Somebody unmounted it by hand: what is left is to forget it.
            Err(failure) if failure.code == Code::NotFound => {}
            other => other?,
        }
        self.remembered.remove(dir)?;
        self.release_if_unused(&id)
    }

    /// The mounted volume, acquired and mounted if it was not. Called with the volume's turn.
    pub(super) fn ensure_mounted(&self, record: &VolumeRecord) -> Result<Arc<Mounted>, Failure> {
        if let Some(mounted) = self.get(&record.id) {
            if mounted.is_live() && mounted.failed().is_none() {
                return Ok(mounted);
            }
            // It stepped down, or the kernel's side is gone: let it go, and take it anew.
            self.let_go(&record.id, &mounted);
        }
        self.wait_for_end(&record.id);
        let writing = Writing::open(&self.keepers, record, self.limits)?;
        let point = point_of(&self.points, &record.id.to_string());
        match Mounted::start(record, writing, &point, MOUNT_THREADS) {
            Ok(mounted) => {
                let mounted = Arc::new(mounted);
                self.mounted.lock().insert(record.id, Arc::clone(&mounted));
                tracing::info!(volume = %record.name, term = %mounted.writing.term(), "mounted");
                Ok(mounted)
            }
            Err((writing, failure)) => {
                writing.release_or_end()?;
                Err(failure)
            }
        }
    }

    /// Waits until the kernel has let go of an earlier session of a volume.
    fn wait_for_end(&self, id: &VolumeId) {
        let ending = self.ending.lock().remove(id);
        if let Some(Err(_)) = ending.map(JoinHandle::join) {
            tracing::error!(volume = %id, "taking a volume from the kernel panicked");
        }
    }

    fn let_go(&self, id: &VolumeId, mounted: &Mounted) {
        for result in [mounted.stop(), mounted.writing.release_or_end()] {
            if let Err(failure) = result {
                tracing::warn!(volume = %mounted.name, error = %failure, "let a volume go");
            }
        }
        self.mounted.lock().remove(id);
    }

    /// Gives the volume back if the kernel knows no user of it. Called with the volume's turn.
    pub(super) fn release_if_unused(&self, id: &VolumeId) -> Result<(), Failure> {
        let Some(mounted) = self.get(id) else { return Ok(()) };
        if !mounted.is_unused()? {
            return Ok(());
        }
        // Durable first: if that fails, the mount must still be there to be read and tried again.
        if mounted.failed().is_none() {
            mounted.settle()?;
            mounted.writing.volume().flush().map_err(|errno| {
                Failure::failed(format!(
                    "volume {} could not be made durable ({errno}): it stays mounted",
                    mounted.name
                ))
            })?;
        }
        // Nobody can reach it any more. The kernel takes its time to drop the pages of a large volume; the next host need
        // not wait for that.
        let session = Arc::clone(&mounted);
        let ending = std::thread::Builder::new().name("remora-unmount".into()).spawn(move || {
            if let Err(failure) = session.stop() {
                tracing::warn!(volume = %session.name, error = %failure, "take a volume from the kernel");
            }
        });
        self.ending.lock().insert(*id, ending.doing("start a thread")?);
        mounted.writing.release()?;
        self.mounted.lock().remove(id);
        tracing::info!(volume = %mounted.name, "released");
        Ok(())
    }

    /// Brings back the mounts that a stop or crash of the daemon took away. What fails is tried again, see
    /// [`Volumes::restore_late`].
    pub(crate) fn restore(&self) {
        let dirs = self.remembered.all().into_iter().map(|(dir, _)| dir);
        self.late.lock().extend(dirs);
        self.restore_late();
    }

    /// Tries again to bring back what could not be brought back so far: a keeper may have been away.
    pub(crate) fn restore_late(&self) {
        let late: Vec<PathBuf> = self.late.lock().iter().cloned().collect();
        for dir in late {
            let Some(remembered) = self.remembered.get(&dir) else {
                self.late.lock().remove(&dir);
                continue;
            };
            let record = remembered
                .volume
                .parse::<VolumeId>()
                .ok()
                .and_then(|id| self.members.read(|r| r.volume(&id)));
            let Some(record) = record.filter(|r| !r.removed) else {
                tracing::warn!(dir = %dir.display(), "a remembered mount's volume is gone");
                self.late.lock().remove(&dir);
                continue;
            };
            let shown = self.members.read(|r| r.volumes());
            let name = shown.iter().find(|e| e.record.id == record.id).map(|e| e.shown_name.clone());
            let mounted = self.mount(&name.unwrap_or(record.name), &dir, remembered.read_only);
            match mounted {
                Ok(()) => drop(self.late.lock().remove(&dir)),
                Err(failure) => {
                    tracing::warn!(dir = %dir.display(), error = %failure, "a mount did not come back; it is tried again");
                }
            }
        }
    }

    /// Takes every volume from the kernel and gives it back, for the end of the daemon. Mounts stay remembered.
    pub(crate) fn stop(&self) {
        let all: Vec<(VolumeId, Arc<Mounted>)> =
            self.mounted.lock().iter().map(|(id, m)| (*id, Arc::clone(m))).collect();
        fold_long_logs(all.iter().map(|(_, mounted)| Arc::clone(mounted.writing.volume())));
        for (id, mounted) in all {
            let turn = self.turn(id);
            let _turn = turn.lock();
            for dir in mounted.users().map(|u| u.here).unwrap_or_default() {
                let _detached = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
            }
            self.let_go(&id, &mounted);
        }
        let ending: Vec<VolumeId> = self.ending.lock().keys().copied().collect();
        ending.iter().for_each(|id| self.wait_for_end(id));
    }

    /// What an operator should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let failed =
            |m: &Arc<Mounted>| m.failed().map(|why| format!("volume {} stepped down: {why}", m.name));
        let mut warnings: Vec<String> = self.mounted.lock().values().filter_map(failed).collect();
        let name_of = |id: &VolumeId| {
            self.members.read(|r| r.volume(id)).map_or_else(|| id.to_string(), |record| record.name)
        };
        warnings.extend(
            self.keepers
                .damaged()
                .into_iter()
                .map(|(id, why)| format!("volume {} is damaged on this host: {why}", name_of(&id))),
        );
        warnings.extend(self.keepers.full().iter().map(|id| {
            format!(
                "volume {}: the disk of this host is full, so this keeper takes no commits: free space, it goes on by itself",
                name_of(id)
            )
        }));
        warnings.extend(self.keepers.hydration().differences().into_iter().map(|(id, difference)| {
            let Difference { upto, named, derived } = difference;
            format!(
                "volume {}: up to commit {upto} its writer made the tree {named}, this host comes to {derived} from the same \
                 commits; the writer's was fetched: type `remora store verify` on its keepers, and report this",
                name_of(&id)
            )
        }));
        warnings.extend(self.remembered.damage().map(str::to_owned));
        let storage = self.members.read(|r| r.members().len());
        if storage == 2 {
            warnings.push(
                "with 2 members volumes are durable on the writer's own disk only (durability=local); the other host \
                 follows: a third member makes fsync wait for a majority"
                    .into(),
            );
        }
        warnings
    }
}

/// Makes trees of long logs, so that the next start need not read them; what takes too long is left for then.
fn fold_long_logs(volumes: impl Iterator<Item = Arc<Volume>>) {
    let (sender, done) = mpsc::channel();
    let mut n = 0;
    for volume in volumes.filter(|volume| FOLD_BYTES.contains(&volume.status().tail_bytes)) {
        let sender = sender.clone();
        let fold = move || {
            if let Err(error) = volume.checkpoint() {
                tracing::info!(error = %chain(&error), "a long log is left as it is");
            }
            // Nobody listens any more after the time is up.
            let _late = sender.send(());
        };
        if std::thread::Builder::new().name("fold".into()).spawn(fold).is_ok() {
            n += 1;
        }
    }
    let until = Instant::now() + FOLD_TIME_MAX;
    for _ in 0..n {
        if done.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
            tracing::info!("not all long logs were folded in time");
            return;
        }
    }
}

fn local_copy(copy: &Copy) -> LocalCopy {
    LocalCopy {
        seq: copy.seq,
        complete: copy.is_whole,
        missing_blocks: copy.n_missing,
        trees_made: copy.tally.n_made,
        made_bytes: copy.tally.made_bytes,
        trees_different: copy.tally.n_different,
        fetched_bytes: copy.tally.fetched_bytes,
    }
}

fn here(mounted: &Mounted) -> Here {
    let status = mounted.writing.volume().status();
    let mounts = mounted.dirs();
    Here {
        mounts: mounts.iter().map(|d| d.display().to_string()).collect(),
        term: u32::try_from(mounted.writing.term().0).unwrap_or(u32::MAX),
        seq: status.tip.seq,
        durable_seq: status.durable_seq,
        log_bytes: mounted.writing.log_bytes(),
        files: status.inodes,
        bytes: status.bytes,
        lag_commits: mounted.writing.lag(),
        advice: status.failed.as_deref().map(|why| advice::on(why).to_owned()),
        failed: status.failed,
    }
}
