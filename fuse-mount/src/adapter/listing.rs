//! Directory listings for the kernel.
//!
//! The kernel's offsets: 0 is the start, 1 after `.`, 2 after `..`, and cookie + 2 after an entry.

use remora_vfs::attr::{Attr, DirEntry, Ino};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Filesystem, Reply};

/// Entries asked for at a time: the kernel's usual buffer of 4 KiB takes about this many with their attributes.
const BATCH_FIRST: usize = 32;
/// Entries asked for when the buffer turns out to be bigger.
const BATCH_NEXT: usize = 256;

/// Offsets given to `.` and `..`.
const N_DOTS: u64 = 2;

/// One line of a listing.
pub(super) struct Line {
    /// The name; may be `.` or `..`.
    pub(super) name: Vec<u8>,
    /// The kernel's offset after this line.
    pub(super) offset: u64,
    /// The inode.
    pub(super) attr: Attr,
    /// Whether this is `.` or `..`, for which the kernel keeps no reference.
    pub(super) is_dot: bool,
}

/// Feeds the lines after `offset` to `add` until it answers `false` or the directory ends.
///
/// `add` runs when the file system is not in `readdir`, so it may call it.
pub(super) fn walk(
    fs: &dyn Filesystem,
    ino: Ino,
    offset: u64,
    add: &mut dyn FnMut(&Line) -> bool,
) -> Reply<()> {
    for (after, name) in [(1, b".".as_slice()), (N_DOTS, b"..")] {
        if offset < after {
            let dot = if after == 1 { ino } else { fs.parent(ino)? };
            // The parent of a directory that was removed may be gone as well; it is shown as itself then.
            let attr = fs.getattr(dot).or_else(|_| fs.getattr(ino))?;
            if !add(&Line { name: name.to_vec(), offset: after, attr, is_dot: true }) {
                return Ok(());
            }
        }
    }
    let mut cookie = offset.saturating_sub(N_DOTS);
    let mut batch_len = BATCH_FIRST;
    loop {
        let batch = read_batch(fs, ino, cookie, batch_len)?;
        for entry in &batch {
            let line = Line {
                name: entry.name.clone(),
                offset: offset_after(entry.cookie)?,
                attr: entry.attr,
                is_dot: false,
            };
            if !add(&line) {
                return Ok(());
            }
            cookie = entry.cookie;
        }
        if batch.len() < batch_len {
            return Ok(());
        }
        batch_len = BATCH_NEXT;
    }
}

fn read_batch(fs: &dyn Filesystem, ino: Ino, cookie: u64, len: usize) -> Reply<Vec<DirEntry>> {
    let mut batch = Vec::with_capacity(len);
    fs.readdir(ino, cookie, &mut |entry| {
        if batch.len() == len {
            return false;
        }
        batch.push(entry.clone());
        true
    })?;
    Ok(batch)
}

/// The kernel's offset after a cookie; it has to stay positive as an `off_t`.
fn offset_after(cookie: u64) -> Reply<u64> {
    cookie.checked_add(N_DOTS).filter(|offset| i64::try_from(*offset).is_ok()).ok_or(Errno::EOVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::walk;
    use remora_vfs::attr::{NewNode, ROOT_INO, Timestamp};
    use remora_vfs::filesystem::{Caller, Filesystem};
    use remora_vfs::memfs::MemFs;

    fn names(fs: &MemFs, offset: u64, n_max: usize) -> (Vec<String>, u64) {
        let (mut names, mut last) = (Vec::new(), offset);
        walk(fs, ROOT_INO, offset, &mut |line| {
            if names.len() == n_max {
                return false;
            }
            names.push(String::from_utf8(line.name.clone()).unwrap());
            last = line.offset;
            true
        })
        .unwrap();
        (names, last)
    }

    #[test]
    fn a_listing_in_pieces_is_the_listing() {
        let fs = MemFs::new(Timestamp(0));
        for i in 0..700 {
            let name = format!("{i}");
            fs.make(Caller::default(), ROOT_INO, name.as_bytes(), &NewNode::File, 0, Timestamp(0)).unwrap();
        }
        let (all, _) = names(&fs, 0, usize::MAX);
        assert_eq!(all.len(), 702);
        assert_eq!(all[..2], [".", ".."]);
        for n in [1, 2, 3, 31, 300] {
            let (mut pieces, mut offset) = (Vec::new(), 0);
            loop {
                let (piece, last) = names(&fs, offset, n);
                if piece.is_empty() {
                    break;
                }
                pieces.extend(piece);
                offset = last;
            }
            assert_eq!(pieces, all);
        }
    }
}
