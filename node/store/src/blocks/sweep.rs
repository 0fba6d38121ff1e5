//! Giving back the space of blocks that nothing refers to.
//!
//! ```text
//!  begin    the caller says when; from here on what is put or kept is left alone
//!  mark     the caller walks everything that counts and fills a `Live`
//!  census   how much of each old, sealed pack is live
//!  pack     its live blocks are written anew and made durable, the index forgets the rest, the file goes
//! ```
//!
//! What always holds: a pack is removed only after every live block in it is durable elsewhere; a block that is put again while it is
//! being swept is stored anew or stays; a crash at any point leaves all live blocks readable, at worst twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use cid::Cid;

use crate::blocks::read::read_whole;
use crate::blocks::touches::{Live, Protection};
use crate::blocks::verify::cid_of_place;
use crate::blocks::{Blocks, BlocksError, Shared};
use crate::fault::DiskFault;
use crate::frame::frame_span;
use crate::index::{BlockPlace, Digest};
use crate::pack::Pack;

const PAGE_ENTRIES: usize = 4096;

/// Blocks that are looked at under one lock; puts wait that long.
const BATCH: usize = 256;

/// What a sweep may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepOptions {
    /// A pack is written anew when at least this part of it, in percent, is dead. One without a live block goes in any case.
    pub waste_percent: u64,
    /// Bytes of the disk that stay free, with what is set aside: no live block is moved that would take them.
    pub reserve_bytes: u64,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Packs that were looked at: sealed, and old enough.
    pub n_packs_old: u64,
    /// Packs that are gone.
    pub n_packs_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Bytes of live blocks that were written anew.
    pub bytes_moved: u64,
    /// Blocks that are gone.
    pub n_blocks_removed: u64,
    /// Dead bytes in packs that were left as they are.
    pub bytes_dead_left: u64,
    /// Bytes of live blocks in old packs, before.
    pub bytes_live: u64,
    /// Whether it ended before it had looked at everything.
    pub is_stopped: bool,
}

/// A sweep that has begun; no other one begins while it lives.
pub struct Sweep<'a> {
    blocks: &'a Blocks,
    /// Packs from this one on are left alone; `None` leaves all alone.
    bound: Option<u64>,
    _alone: MutexGuard<'a, ()>,
}

impl Blocks {
    /// Begins a new pack if the newest has at least `bytes_min`, so that sweeps may look at that one, too. Answers whether it did.
    ///
    /// # Errors
    /// The new pack cannot be made; everything is as it was.
    pub fn seal_newest(&self, bytes_min: u64) -> Result<bool, BlocksError> {
        Ok(self.shared.roll_early(bytes_min)?)
    }

    /// Begins a sweep; `None` while another one or a `verify` runs. `now` is the time since any fixed point, `grace` how long what
    /// was put or kept is left alone. Everything that must stay has to be found by the caller after this call.
    pub fn begin_sweep(&self, now: Duration, grace: Duration) -> Option<Sweep<'_>> {
        let alone = self.shared.sweeping.try_lock()?;
        let pack = self.shared.append.lock().pack.number;
        let bound = self.shared.touches.lock().turn(now, grace, pack);
        Some(Sweep { blocks: self, bound, _alone: alone })
    }

    /// While the answer lives, no block is swept that is put or kept from now on.
    pub fn protect(&self) -> Protection {
        self.shared.touches.lock().protect()
    }

    /// As [`Blocks::has`]; if it is here it is not swept for the grace of the next sweeps, so that there is time to refer to it.
    ///
    /// # Errors
    /// As [`Blocks::has`].
    pub fn keep(&self, cid: &Cid) -> Result<bool, BlocksError> {
        if let Ok(digest) = super::digest_of(cid) {
            self.shared.touches.lock().touch(&digest);
        }
        self.has(cid)
    }

    /// Whether the index knows the block; nothing is read from the packs.
    pub fn knows(&self, cid: &Cid) -> bool {
        super::digest_of(cid).is_ok_and(|digest| self.shared.find(&digest).is_some())
    }
}

impl Sweep<'_> {
    /// Removes what is not in `live` from old packs, as far as that pays. `go_on` is asked before each pack.
    ///
    /// *Durability*: what it reports as removed is gone for good; every live block is durable all the time.
    ///
    /// # Errors
    /// The disk or the index failed; nothing that is live is lost.
    pub fn run(
        self,
        live: &Live,
        options: SweepOptions,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Swept, BlocksError> {
        let shared = &self.blocks.shared;
        let mut swept = Swept::default();
        let Some(bound) = self.bound else {
            swept.is_stopped = true;
            return Ok(swept);
        };
        // A place that the index has lost would pass for a block that is dead.
        shared.prove_index();
        shared.drain()?;
        shared.seal_full_from_reserve();
        // An index that says it covers a pack that is gone would be taken for that of another store.
        shared.checkpoint(false)?;
        let old = shared.old_packs(bound)?;
        swept.n_packs_old = old.len() as u64;
        let (census, n_known) = shared.census(bound, live)?;
        let mut packs = Vec::with_capacity(old.len());
        for pack in old {
            let size = pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
            let live_bytes = census.get(&pack.number).copied().unwrap_or(0);
            swept.bytes_live += live_bytes;
            packs.push((live_bytes, size, pack));
        }
        // What is taken out must not pass for lost after a crash.
        shared.index.set_count(0)?;
        // Those that cost nothing make room for those that cost something.
        packs.sort_by_key(|(live_bytes, _, pack)| (*live_bytes, pack.number));
        for (live_bytes, size, pack) in packs {
            let dead = size.saturating_sub(live_bytes);
            let is_worth =
                live_bytes == 0 || dead.saturating_mul(100) >= size.saturating_mul(options.waste_percent);
            if swept.is_stopped
                || !is_worth
                || !go_on()
                || !shared.has_room(live_bytes, options.reserve_bytes)?
            {
                swept.is_stopped |= is_worth;
                swept.bytes_dead_left += dead;
                continue;
            }
            if shared.sweep_pack(&pack, live, &mut swept)? {
                swept.n_packs_removed += 1;
                swept.bytes_removed += size;
            } else {
                swept.bytes_dead_left += dead;
            }
        }
        shared.checkpoint(false)?;
        shared.index.set_count(n_known.saturating_sub(swept.n_blocks_removed))?;
        Ok(swept)
    }
}

impl Shared {
    /// Sealed packs before `bound` whose removal leaves no doubt about a pack before them, in order.
    fn old_packs(&self, bound: u64) -> Result<Vec<Arc<Pack>>, BlocksError> {
        let packs: Vec<Arc<Pack>> = self.packs.read().values().cloned().collect();
        let mut old = Vec::new();
        let mut is_sealed_before = true;
        for pack in packs.into_iter().filter(|pack| pack.number < bound) {
            let is_sealed = pack.is_sealed().map_err(DiskFault::at("read pack trailer", &pack.path))?;
            // An open that finds a pack without its seal asks the next one whether anything is missing.
            if is_sealed && is_sealed_before {
                old.push(pack);
            }
            is_sealed_before = is_sealed;
        }
        Ok(old)
    }

    /// How much of each pack before `bound` is live, and how many places the index holds in all.
    fn census(&self, bound: u64, live: &Live) -> Result<(BTreeMap<u64, u64>, u64), BlocksError> {
        let mut census: BTreeMap<u64, u64> = BTreeMap::new();
        let mut n_known = 0;
        let mut after: Option<Digest> = None;
        loop {
            let page = self.index.page(after.as_ref(), PAGE_ENTRIES)?;
            let Some((last, _)) = page.last() else { return Ok((census, n_known)) };
            n_known += page.len() as u64;
            after = Some(*last);
            let touches = self.touches.lock();
            for (digest, place) in page.iter().filter(|(_, place)| u64::from(place.pack) < bound) {
                if live.has(digest) || touches.has(digest) {
                    let span = frame_span(u64::from(place.at), place.stored_bytes as usize).1;
                    *census.entry(u64::from(place.pack)).or_default() += span;
                }
            }
        }
    }

    /// Whether `bytes` can be written without touching what stays free.
    fn has_room(&self, bytes: u64, reserve: u64) -> Result<bool, BlocksError> {
        if bytes == 0 {
            return Ok(true);
        }
        let free = self.disk.free_bytes(&self.dir).map_err(DiskFault::at("measure free space", &self.dir))?;
        Ok(free.saturating_add(self.aside_bytes()).saturating_sub(bytes) >= reserve)
    }

    /// Empties one pack and removes it; answers whether it did. It stays if something in it cannot be read.
    fn sweep_pack(&self, pack: &Arc<Pack>, live: &Live, swept: &mut Swept) -> Result<bool, BlocksError> {
        let entries = pack.read_footer().map_err(DiskFault::at("read pack footer", &pack.path))?;
        let Some(entries) = entries else { return Ok(false) };
        let mut is_empty = true;
        for batch in entries.chunks(BATCH) {
            for (digest, place) in self.forget_dead(batch, live, swept)? {
                is_empty &= self.move_block(pack, &digest, &place, swept)?;
            }
        }
        if !is_empty {
            return Ok(false);
        }
        self.drain()?;
        // Whoever found it before it goes reads from it still.
        pack.hold()?;
        // Whoever reads all places anew must not find this pack half gone.
        let _one_at_a_time = self.drain.lock();
        self.packs.write().remove(&(pack.number as u32));
        self.files.forget(pack.number);
        self.disk.remove(&pack.path).map_err(DiskFault::at("remove pack", &pack.path))?;
        self.disk.sync_dir(&self.dir).map_err(DiskFault::at("remove pack", &pack.path))?;
        tracing::debug!(pack = pack.number, "pack removed");
        Ok(true)
    }

    /// Takes dead blocks of a pack out of the index; answers the others that the index still finds there.
    fn forget_dead(
        &self,
        batch: &[(Digest, BlockPlace)],
        live: &Live,
        swept: &mut Swept,
    ) -> Result<Vec<(Digest, BlockPlace)>, BlocksError> {
        // Held while the index forgets: a put touches before it looks, so it either is seen here or finds nothing.
        let touches = self.touches.lock();
        let mut stay = Vec::new();
        let mut dead = Vec::new();
        for (digest, place) in batch {
            if self.recent.read().get(digest).is_some() || self.index.get(digest)? != Some(*place) {
                continue;
            }
            if live.has(digest) || touches.has(digest) {
                stay.push((*digest, *place));
            } else {
                dead.push(*digest);
            }
        }
        self.index.remove_all(&dead)?;
        swept.n_blocks_removed += dead.len() as u64;
        Ok(stay)
    }

    /// Writes a block anew; answers whether it could be read.
    fn move_block(
        &self,
        pack: &Pack,
        digest: &Digest,
        place: &BlockPlace,
        swept: &mut Swept,
    ) -> Result<bool, BlocksError> {
        let cid = cid_of_place(digest, place);
        match read_whole(pack, place, digest)? {
            Some(bytes) => {
                self.append_from_reserve(&cid, digest, &bytes)?;
                swept.bytes_moved += u64::from(place.stored_bytes);
                Ok(true)
            }
            None => {
                let error = self.suspect(&cid, *digest, place);
                tracing::warn!(%error, "a pack is kept for a block in it");
                Ok(false)
            }
        }
    }
}
