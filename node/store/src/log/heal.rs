//! Putting the frames back that a damaged log lost, when somebody else has them.
//!
//! The log itself proves what it is given: frames behind the damage are known by number and digest, and whoever heals has to show
//! that what it brings leads to them. Until all of it is on disk nothing of the old files changes; then they are replaced at once.

use std::collections::BTreeMap;

use crate::fault::DiskFault;
use crate::file_header::{FILE_HEADER_BYTES, FileHeader};
use crate::frame::{FrameKind, FrameMeta};
use crate::layout::{parse_segment_name, segment_name};
use crate::log::cut::{FrameWriter, new_header};
use crate::log::recover::{find_segments, scan_failed, scan_of};
use crate::log::{Log, LogError};

impl Log {
    /// The digests, by number, of the frames that can be read behind the damage. Empty if the log is not damaged, and if too much of
    /// it is gone to say where it ended.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn behind_damage(&self) -> Result<BTreeMap<u64, [u8; 32]>, LogError> {
        let shared = &self.shared;
        let mut behind = BTreeMap::new();
        let found = find_segments(&*shared.disk, &shared.dir, &shared.options)?;
        if !shared.is_read_only || found.broken.is_some() {
            return Ok(behind);
        }
        let (number, end) = {
            let tail = shared.tail.lock();
            (tail.segment.number, tail.end)
        };
        for segment in found.segments.iter().filter(|segment| segment.number >= number) {
            let from = if segment.number == number { end } else { FILE_HEADER_BYTES };
            let searched = scan_of(segment).search(from, &mut |view| {
                if view.header.meta.kind != FrameKind::MARK {
                    behind.insert(view.header.meta.seq, view.header.meta.digest);
                }
                Ok(())
            });
            searched.map_err(|error| scan_failed(segment, error))?;
        }
        Ok(behind)
    }

    /// Replaces a damaged log by its undamaged beginning and `rest`, atomically and durably. This log stays as it is, read-only:
    /// drop it and open the directory again. The caller has proved that `rest` is what followed, up to the last frame of
    /// [`Log::behind_damage`].
    ///
    /// # Errors
    /// Nothing has changed, unless the last step failed, after which the directory holds the old log or the new one.
    pub fn heal(&self, rest: &mut dyn Iterator<Item = (FrameMeta, Vec<u8>)>) -> Result<(), LogError> {
        let shared = &self.shared;
        let names =
            shared.disk.list(&shared.dir).map_err(DiskFault::at("list log directory", &shared.dir))?;
        let number = names.iter().filter_map(|name| parse_segment_name(name)).max().unwrap_or(0) + 1;
        let path = shared.dir.join(segment_name(number));
        let header = FileHeader { is_snapshot: true, ..new_header(shared, number) };
        let mut writer = FrameWriter::create(&*shared.disk, &path, header)?;
        for frame in self.iter_from(0) {
            let frame = frame?;
            writer.push(&frame.header.meta, &frame.payload)?;
        }
        for (meta, payload) in rest {
            writer.push(&meta, &payload)?;
        }
        writer.finish(&*shared.disk, &shared.dir, shared.options.segment_bytes_first).map(drop)
    }
}
