//! Looking at everything: listing the blocks, and hashing all of them.

use std::collections::BTreeSet;
use std::convert::Infallible;

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use remora_dag::block::SHA2_256;
use sha2::{Digest as _, Sha256};

use crate::blocks::open::{scan_failed, scan_of};
use crate::blocks::read::{raw_of, read_whole};
use crate::blocks::{Blocks, BlocksError, SUSPECTS_MAX, Shared};
use crate::fault::DiskFault;
use crate::file_header::FILE_HEADER_BYTES;
use crate::index::{BlockPlace, Digest};
use crate::pack::{Pack, entry_of};

const PAGE_ENTRIES: usize = 1024;

/// How far [`Blocks::verify`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of packs read.
    pub done_bytes: u64,
    /// Bytes of packs to be read.
    pub total_bytes: u64,
}

/// What [`Blocks::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Frames whose block hashed right.
    pub n_good: u64,
    /// Blocks that were on disk and not in the index; they are now.
    pub n_indexed: u64,
    /// Blocks of which no good copy is here, at most 65,536 of them. Putting one heals it.
    pub damaged: Vec<Cid>,
    /// Whether the caller stopped it before the end.
    pub is_stopped: bool,
}

impl Blocks {
    /// Reads and hashes every block, puts into the index what it lacks, and reports what is damaged. `progress` is called after each
    /// pack and stops the work by answering `false`. Other work goes on meanwhile; blocks put meanwhile may be left out.
    ///
    /// # Errors
    /// Only if the disk cannot be read at all; damage is in the report.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(VerifyProgress) -> bool,
    ) -> Result<VerifyReport, BlocksError> {
        let _alone = self.shared.sweeping.lock();
        self.shared.drain()?;
        let (last, last_end) = {
            let append = self.shared.append.lock();
            (append.pack.number, append.end.at)
        };
        let packs: Vec<_> = self.shared.packs.read().values().cloned().collect();
        let mut limits = Vec::with_capacity(packs.len());
        for pack in packs.iter().filter(|pack| pack.number <= last) {
            let len = pack.file.len().map_err(DiskFault::at("measure pack", &pack.path))?;
            limits.push((pack, if pack.number == last { last_end } else { len }));
        }
        let total_bytes = limits.iter().map(|(_, limit)| limit).sum();
        let mut report = VerifyReport::default();
        let mut good = BTreeSet::new();
        let mut done_bytes = 0;
        for (pack, limit) in limits {
            self.shared.verify_pack(pack, limit, &mut good, &mut report)?;
            done_bytes += limit;
            if !progress(VerifyProgress { done_bytes, total_bytes }) {
                report.is_stopped = true;
                return Ok(report);
            }
        }
        self.shared.find_damaged(&good, &mut report)?;
        Ok(report)
    }

    /// Every block's CID, each once, in no order, under the codec it was put with. Blocks put meanwhile may be left out.
    pub fn cids(&self) -> Cids<'_> {
        let recent = self.shared.recent.read().all();
        let seen = recent.keys().copied().collect();
        Cids { shared: &self.shared, page: recent.into_iter().collect(), seen, after: None, is_done: false }
    }
}

/// CIDs; made by [`Blocks::cids`].
pub struct Cids<'a> {
    shared: &'a Shared,
    page: Vec<(Digest, BlockPlace)>,
    /// Those that came from memory, so that the index does not show them again.
    seen: BTreeSet<Digest>,
    after: Option<Digest>,
    is_done: bool,
}

impl Iterator for Cids<'_> {
    type Item = Result<Cid, BlocksError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((digest, place)) = self.page.pop() {
                return Some(Ok(cid_of_place(&digest, &place)));
            }
            if self.is_done {
                return None;
            }
            match self.shared.index.page(self.after.as_ref(), PAGE_ENTRIES) {
                Ok(page) => {
                    self.after = page.last().map(|(digest, _)| *digest);
                    self.is_done = page.len() < PAGE_ENTRIES;
                    self.page = page.into_iter().filter(|(digest, _)| !self.seen.contains(digest)).collect();
                }
                Err(error) => {
                    self.is_done = true;
                    return Some(Err(error.into()));
                }
            }
        }
    }
}

impl Shared {
    fn verify_pack(
        &self,
        pack: &Pack,
        limit: u64,
        good: &mut BTreeSet<Digest>,
        report: &mut VerifyReport,
    ) -> Result<(), BlocksError> {
        let mut unknown = Vec::new();
        let mut visit = |view: crate::scan::FrameView<'_>| {
            let Some((digest, place)) = entry_of(&view) else { return Ok::<(), Infallible>(()) };
            let raw = raw_of(view.header, Bytes::copy_from_slice(view.payload));
            if raw.is_some_and(|raw| <[u8; 32]>::from(Sha256::digest(&raw)) == digest) {
                report.n_good += 1;
                good.insert(digest);
                unknown.push((digest, place));
            }
            Ok(())
        };
        scan_of(pack, limit)
            .search(FILE_HEADER_BYTES, &mut visit)
            .map_err(|error| scan_failed(pack, error))?;
        // An entry that leads nowhere is as good as none.
        unknown.retain(|(digest, place)| {
            let known = self.find(digest).map(|(_, known)| known);
            known != Some(*place) && !self.leads_to_it(digest)
        });
        report.n_indexed += unknown.len() as u64;
        Ok(self.index.insert_all(&unknown)?)
    }

    fn leads_to_it(&self, digest: &Digest) -> bool {
        let Some((pack, place)) = self.find(digest) else { return false };
        matches!(read_whole(&pack, &place, digest), Ok(Some(_)))
    }

    fn find_damaged(&self, good: &BTreeSet<Digest>, report: &mut VerifyReport) -> Result<(), BlocksError> {
        let mut after = None;
        loop {
            let page = self.index.page(after.as_ref(), PAGE_ENTRIES)?;
            for (digest, place) in &page {
                if good.contains(digest) || self.leads_to_it(digest) || report.damaged.len() >= SUSPECTS_MAX {
                    continue;
                }
                let cid = cid_of_place(digest, place);
                // Remembered, so that a put heals it.
                let _ = self.suspect(&cid, *digest, place);
                report.damaged.push(cid);
            }
            match page.last() {
                Some((digest, _)) if page.len() == PAGE_ENTRIES => after = Some(*digest),
                _ => return Ok(()),
            }
        }
    }
}

pub(super) fn cid_of_place(digest: &Digest, place: &BlockPlace) -> Cid {
    // 32 bytes always fit into 64.
    let hash = Multihash::wrap(SHA2_256, digest).unwrap_or_default();
    Cid::new_v1(u64::from(place.codec), hash)
}
