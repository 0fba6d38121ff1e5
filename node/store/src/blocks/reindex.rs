//! When the index cannot be believed: every place is read from the packs again, once.
//!
//! Two cases. After an unclean stop nothing proves the tables whole: the first block that they lack, or lead astray for, makes all
//! places be put in anew before the answer is given. And tables that fail are given up: the places go into memory, and the
//! store works on as if nothing had happened.

use std::convert::Infallible;
use std::sync::Arc;

use cid::Cid;

use crate::blocks::open::{scan_failed, scan_of, without_lesser_copies};
use crate::blocks::{BlocksError, Shared};
use crate::fault::DiskFault;
use crate::file_header::FILE_HEADER_BYTES;
use crate::index::{BlockPlace, Digest, IndexError, IndexStore, Recent};
use crate::pack::{Pack, entry_of};

type Entries = Vec<(Digest, BlockPlace)>;

impl Shared {
    /// Reads a block where the index says it is. If it says nothing, or something wrong, it is proved first.
    ///
    /// `Ok(None)`: the block is not here. [`BlocksError::Corrupt`]: it is, and `read` could not make it out.
    pub(super) fn read_found<T>(
        &self,
        cid: &Cid,
        digest: &Digest,
        read: impl Fn(&Pack, &BlockPlace) -> Result<Option<T>, BlocksError>,
    ) -> Result<Option<T>, BlocksError> {
        let mut is_proved = false;
        loop {
            let mut wrong = None;
            if let Some((pack, place)) = self.find(digest) {
                if let Some(it) = read(&pack, &place)? {
                    return Ok(Some(it));
                }
                wrong = Some(place);
            }
            if is_proved || !self.prove_index() {
                return wrong.map_or(Ok(None), |place| Err(self.suspect(cid, *digest, &place)));
            }
            is_proved = true;
        }
    }

    /// Where the index says the block is. Tables that fail are given up, and the answer comes from the packs.
    pub(super) fn indexed(&self, digest: &Digest) -> Option<BlockPlace> {
        match self.index.get(digest) {
            Ok(place) => place,
            Err(error) => {
                let _one_at_a_time = self.drain.lock();
                self.give_index_up(&error);
                self.index.get(digest).ok().flatten()
            }
        }
    }

    /// Puts every place of the packs into the index if nothing has proved it yet. Answers whether that changed anything.
    pub(super) fn prove_index(&self) -> bool {
        if self.index.is_proven() {
            return false;
        }
        let _one_at_a_time = self.drain.lock();
        if self.index.is_proven() {
            // Somebody else has just done it.
            return true;
        }
        tracing::info!("nothing proves the index whole: every place is read from the packs again");
        if let Err(error) = self.index_all(&self.index) {
            self.give_index_up(&error);
        }
        self.index.set_proven();
        true
    }

    /// From here on the index is in memory. The caller holds the lock `drain`.
    pub(super) fn give_index_up(&self, error: &IndexError) {
        if self.index.failure().is_some() {
            return;
        }
        tracing::error!(%error, "the index failed: places of blocks are read from the packs and kept in memory");
        let places = IndexStore::in_memory();
        match self.index_all(&places) {
            Ok(()) => self.index.give_up(places, error),
            Err(error) => tracing::error!(%error, "an index in memory cannot be made"),
        }
    }

    /// Puts every place of the packs into an index, the newest whole copy of each block last.
    fn index_all(&self, index: &IndexStore) -> Result<(), IndexError> {
        let packs: Vec<Arc<Pack>> = self.packs.read().values().cloned().collect();
        for pack in &packs {
            let entries = self.entries_of(pack);
            match without_lesser_copies(&packs, index, &Recent::default(), entries) {
                Ok(entries) => index.insert_all(&entries)?,
                Err(BlocksError::Index(error)) => return Err(error),
                Err(error) => tracing::error!(pack = pack.number, %error, "a pack cannot be read"),
            }
        }
        Ok(())
    }

    /// What lies in a pack: by its table of contents, or by a walk. What cannot be read is left out, and said.
    fn entries_of(&self, pack: &Pack) -> Entries {
        {
            let append = self.append.lock();
            if append.pack.number == pack.number {
                return append.entries.clone();
            }
            if let Some(full) = append.full.iter().find(|full| full.pack.number == pack.number) {
                return full.entries.clone();
            }
        }
        match listed(pack) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(pack = pack.number, %error, "a pack cannot be listed");
                Entries::new()
            }
        }
    }
}

fn listed(pack: &Pack) -> Result<Entries, BlocksError> {
    if let Some(entries) = pack.read_footer().map_err(DiskFault::at("read pack footer", &pack.path))? {
        return Ok(entries);
    }
    let len = pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
    let mut entries = Entries::new();
    scan_of(pack, len)
        .search(FILE_HEADER_BYTES, &mut |view| {
            entries.extend(entry_of(&view));
            Ok::<(), Infallible>(())
        })
        .map_err(|error| scan_failed(pack, error))?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use remora_dag::block::{Block, Codec};

    use super::*;
    use crate::blocks::{Blocks, BlocksOptions};
    use crate::index::IndexKind;
    use crate::sim::SimDisk;

    #[test]
    fn an_index_that_fails_costs_no_block() {
        let disk = SimDisk::new(1);
        let options = BlocksOptions { pack_bytes: 20_000, ..BlocksOptions::new(IndexKind::Memory) };
        let blocks = Blocks::open(Arc::new(disk), Path::new("packs"), options).unwrap();
        let all: Vec<Block> =
            (0..60u64).map(|n| Block::seal(Codec::Raw, Bytes::from(n.to_le_bytes().repeat(200)))).collect();
        let (indexed, recent) = all.split_at(40);
        indexed.iter().for_each(|one| blocks.put(one.cid(), one.bytes()).unwrap());
        blocks.shared.drain().unwrap();
        recent.iter().for_each(|one| blocks.put(one.cid(), one.bytes()).unwrap());
        {
            let _held = blocks.shared.drain.lock();
            blocks.shared.give_index_up(&IndexError::Panicked);
        }
        assert!(blocks.index_failure().is_some());
        for one in &all {
            assert_eq!(blocks.get(one.cid()).unwrap().as_ref(), Some(one.bytes()));
        }
        blocks.mark_clean().unwrap();
        assert_eq!(blocks.stat().unwrap().n_blocks, 60);
    }
}
