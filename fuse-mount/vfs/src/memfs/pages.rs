//! The content of a file: a size and the pages that hold data.
//!
//! What always holds: a byte at or past the size, and a byte in no page, reads as zero and is zero in its page; so
//! growing a file never shows old bytes.

use std::collections::BTreeMap;

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;

type Page = Box<[u8; PAGE_BYTES as usize]>;

/// A sparse sequence of bytes.
#[derive(Default)]
pub(super) struct Pages {
    size: u64,
    pages: BTreeMap<u64, Page>,
}

/// The part of a range that lies in one page.
struct Piece {
    page: u64,
    /// Offset in the page.
    start: usize,
    /// Offset in the range.
    at: usize,
    len: usize,
}

/// Cuts a range at page borders, in order.
#[allow(clippy::cast_possible_truncation)]
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let position = offset + at as u64;
        let start = (position % PAGE_BYTES) as usize;
        let piece = Piece {
            page: position / PAGE_BYTES,
            start,
            at,
            len: (PAGE_BYTES as usize - start).min(len - at),
        };
        at += piece.len;
        Some(piece)
    })
}

impl Pages {
    /// Bytes, holes included.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many pages hold data.
    pub(super) fn n_pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// How many pages a write would add.
    pub(super) fn n_pages_missing(&self, offset: u64, len: usize) -> u64 {
        pieces(offset, len).filter(|piece| !self.pages.contains_key(&piece.page)).count() as u64
    }

    /// Reads at most `len` bytes, fewer only at the end.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        for piece in pieces(offset, bytes.len()) {
            if let Some(page) = self.pages.get(&piece.page) {
                bytes[piece.at..piece.at + piece.len]
                    .copy_from_slice(&page[piece.start..piece.start + piece.len]);
            }
        }
        bytes
    }

    /// Writes, growing the file if needed.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for piece in pieces(offset, data.len()) {
            let page = self.pages.entry(piece.page).or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
            page[piece.start..piece.start + piece.len].copy_from_slice(&data[piece.at..piece.at + piece.len]);
        }
        if !data.is_empty() {
            self.grow(offset + data.len() as u64);
        }
    }

    /// Makes the file at least this long.
    pub(super) fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Cuts or extends the file.
    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, self.size - size);
        }
        self.size = size;
    }

    /// Zeroes a range and frees its whole pages; the size stays.
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return;
        }
        let first_whole = offset.div_ceil(PAGE_BYTES);
        // The last page counts as whole when the range reaches the end of the file in it.
        let end_whole = if end == self.size { end.div_ceil(PAGE_BYTES) } else { end / PAGE_BYTES };
        if first_whole < end_whole {
            let mut freed = self.pages.split_off(&first_whole);
            self.pages.append(&mut freed.split_off(&end_whole));
        }
        for edge in [offset / PAGE_BYTES, (end - 1) / PAGE_BYTES] {
            let start = (edge * PAGE_BYTES).max(offset);
            let stop = ((edge + 1) * PAGE_BYTES).min(end);
            if let Some(page) = self.pages.get_mut(&edge)
                && start < stop
            {
                page[(start - edge * PAGE_BYTES) as usize..(stop - edge * PAGE_BYTES) as usize].fill(0);
            }
        }
    }

    /// The next byte of data at or after `offset`.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let (page, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        let position = (page * PAGE_BYTES).max(offset);
        (position < self.size).then_some(position)
    }

    /// The next hole at or after `offset`; the end of the file is one. `None` past the end.
    pub(super) fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let mut page = offset / PAGE_BYTES;
        for (present, _) in self.pages.range(page..) {
            if *present != page {
                break;
            }
            page += 1;
        }
        Some((page * PAGE_BYTES).max(offset).min(self.size))
    }

    /// The data in a range as (offset, bytes), in order, at most a page each; holes are left out.
    pub(super) fn data_in(&self, offset: u64, len: u64) -> Vec<(u64, Vec<u8>)> {
        let end = offset.saturating_add(len).min(self.size);
        let mut found = Vec::new();
        let mut position = offset;
        while let Some(start) = self.next_data(position).filter(|start| *start < end) {
            let stop = ((start / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
            found.push((start, self.read(start, usize::try_from(stop - start).unwrap_or(0))));
            position = stop;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE_BYTES, Pages};
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Punch(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let offset = 0..5 * PAGE_BYTES;
        prop_oneof![
            (offset.clone(), proptest::collection::vec(any::<u8>(), 0..9000))
                .prop_map(|(o, d)| Step::Write(o, d)),
            offset.clone().prop_map(Step::Truncate),
            (offset, 0..3 * PAGE_BYTES).prop_map(|(o, n)| Step::Punch(o, n)),
        ]
    }

    proptest! {
        #[test]
        fn pages_behave_like_a_flat_vector(steps in proptest::collection::vec(step(), 1..20)) {
            let mut pages = Pages::default();
            let mut flat: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        pages.write(offset, &data);
                        let end = offset as usize + data.len();
                        if !data.is_empty() && flat.len() < end {
                            flat.resize(end, 0);
                        }
                        if !data.is_empty() {
                            flat[offset as usize..end].copy_from_slice(&data);
                        }
                    }
                    Step::Truncate(size) => {
                        pages.truncate(size);
                        flat.resize(size as usize, 0);
                    }
                    Step::Punch(offset, len) => {
                        pages.punch(offset, len);
                        let end = ((offset + len) as usize).min(flat.len());
                        if (offset as usize) < end {
                            flat[offset as usize..end].fill(0);
                        }
                    }
                }
                assert_eq!(pages.size(), flat.len() as u64);
                assert_eq!(pages.read(0, flat.len() + 10), flat);
                check_holes(&pages, &flat);
            }
        }
    }

    /// What is called a hole is zero, data and holes alternate, and the walk ends at the end of the file.
    fn check_holes(pages: &Pages, flat: &[u8]) {
        let mut position = 0;
        while let Some(data) = pages.next_data(position) {
            assert!(flat[position as usize..data as usize].iter().all(|b| *b == 0));
            let hole = pages.next_hole(data).unwrap();
            assert!(hole > data);
            position = hole;
        }
        assert!(flat[position as usize..].iter().all(|b| *b == 0));
        assert_eq!(pages.next_hole(flat.len() as u64), None);
    }

    #[test]
    fn a_hole_of_a_tebibyte_costs_no_page() {
        let mut pages = Pages::default();
        pages.write(1 << 40, b"x");
        assert_eq!(pages.n_pages(), 1);
        assert_eq!(pages.next_data(0), Some(1 << 40));
        assert_eq!(pages.next_hole(0), Some(0));
    }
}
