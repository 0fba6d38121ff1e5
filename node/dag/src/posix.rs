//! POSIX rows: what a directory of a volume knows about its entries beyond name and content.
//!
//! The rows of a block travel in field 1000 of its UnixFS message as one table, one row a link that holds an entry, in the order of
//! the links. Other implementations skip the field and see a plain directory.
//!
//! ```text
//! version | n | n kind bytes | palette: count, (mode uid gid)... | one column after another, rows that have a row only:
//!   palette index | inode delta | size | mtime delta | ctime - mtime | ctime - btime | nlink | rdev | xattrs
//! ```
//!
//! All numbers are varints; differences are zigzag. A kind byte holds the kind (0: no row) and five flags that say
//! which of the last five columns the row has; a column holds no value that the flag could have said. The palette lists every
//! distinct owner and mode in order of first use. So every value has one encoding, and decoding refuses every other.
//!
//! In version 1 a row has extended attributes or the block that holds them. In version 2, written only where a row has
//! both, a list of attributes follows every block's CID, and may be empty.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;
use thiserror::Error;

use crate::block::{Block, Codec};
use crate::dagpb::decode_cid;
use crate::varint::{self, VarintError, unzigzag, zigzag};

/// The longest encoding of xattrs inside a row, in bytes (inclusive); longer ones get a block of their own.
///
/// With it the rows of the largest directory that is still one block fit into that block.
pub const XATTRS_INLINE_BYTES_MAX: usize = 192;

/// The longest xattr name, in bytes (inclusive).
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// The longest xattr value, in bytes (inclusive).
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;

/// The longest encoding of all xattrs of one inode, in bytes (inclusive).
pub const XATTRS_BYTES_MAX: usize = 1024 * 1024;

/// The longest encoding of xattrs in a row that has a block of them as well, in bytes (inclusive).
pub const XATTRS_BESIDE_BLOCK_BYTES_MAX: usize = 64;

const VERSION: u8 = 1;
const VERSION_BESIDE: u8 = 2;
const KIND: u8 = 0x07;
const HAS_CTIME: u8 = 0x08;
const HAS_BTIME: u8 = 0x10;
const HAS_NLINK: u8 = 0x20;
const HAS_RDEV: u8 = 0x40;
const HAS_XATTRS: u8 = 0x80;
const MODE_MAX: u16 = 0o7777;

/// A list of extended attributes: name and value, sorted by name, names unique.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The POSIX side of one directory entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// The inode number.
    pub ino: u64,
    /// The type, 1..=7: file, directory, symlink, character device, block device, fifo, socket.
    pub kind: u8,
    /// Permission bits, the low 12.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub mtime: i64,
    /// Last change of the inode, nanoseconds since 1970.
    pub ctime: i64,
    /// Creation, nanoseconds since 1970.
    pub btime: i64,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Extended attributes that are short enough to be here; see [`Row::spill`].
    pub xattrs: Xattrs,
    /// The raw block that holds the extended attributes that `xattrs` does not, see [`decode_xattrs`].
    pub xattrs_block: Option<Box<Cid>>,
}

/// Why rows cannot be written or read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RowError {
    /// A version of the table that this program does not know.
    #[error("table version {0} is not known")]
    Version(u8),
    /// A number is not one.
    #[error(transparent)]
    Varint(#[from] VarintError),
    /// A count that is not the number of entries, or a length that is not there.
    #[error("the table has the wrong length")]
    Length,
    /// A value outside its range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A sound value in an encoding that is not the one encoding.
    #[error("{0} is not in its one form")]
    Form(&'static str),
    /// Extended attributes that are too long, unsorted or repeated.
    #[error("extended attributes are too long, unsorted or repeated")]
    Xattrs,
}

impl Row {
    /// Moves extended attributes that are too long for a row into a raw block, which is returned and must be kept.
    ///
    /// # Errors
    /// [`RowError::Xattrs`] as [`encode_xattrs`].
    pub fn spill(&mut self) -> Result<Option<Block>, RowError> {
        if self.xattrs.is_empty() || self.xattrs_block.is_some() {
            return Ok(None);
        }
        let encoded = encode_xattrs(&self.xattrs)?;
        if encoded.len() <= XATTRS_INLINE_BYTES_MAX {
            return Ok(None);
        }
        let block = Block::seal(Codec::Raw, Bytes::from(encoded));
        self.xattrs_block = Some(Box::new(*block.cid()));
        self.xattrs.clear();
        Ok(Some(block))
    }

    fn kind_byte(&self) -> u8 {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        self.kind
            | flag(self.ctime != self.mtime, HAS_CTIME)
            | flag(self.btime != self.ctime, HAS_BTIME)
            | flag(self.nlink != 1, HAS_NLINK)
            | flag(self.rdev != 0, HAS_RDEV)
            | flag(!self.xattrs.is_empty() || self.xattrs_block.is_some(), HAS_XATTRS)
    }

    fn check(&self) -> Result<(), RowError> {
        if !(1..=7).contains(&self.kind) {
            return Err(RowError::Range("kind"));
        }
        if self.mode > MODE_MAX {
            return Err(RowError::Range("mode"));
        }
        Ok(())
    }

    /// Whether it has extended attributes in both places.
    fn has_both(&self) -> bool {
        self.xattrs_block.is_some() && !self.xattrs.is_empty()
    }
}

/// Writes the table of a block: one slot an entry, in the order of its links. `None` if no entry has a row.
///
/// # Errors
/// [`RowError::Range`] for a kind or mode that does not exist, [`RowError::Xattrs`] for attributes that should have been spilled.
pub fn encode_rows(rows: &[Option<&Row>]) -> Result<Option<Bytes>, RowError> {
    let present: Vec<&Row> = rows.iter().copied().flatten().collect();
    if present.is_empty() {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(16 + present.len() * 32);
    let version = if present.iter().any(|row| row.has_both()) { VERSION_BESIDE } else { VERSION };
    out.push(version);
    varint::put(&mut out, rows.len() as u64);
    for row in rows {
        if let Some(row) = row {
            row.check()?;
        }
        out.push(row.map_or(0, Row::kind_byte));
    }
    put_palette(&mut out, &present);
    put_deltas(&mut out, present.iter().map(|row| row.ino as i64));
    present.iter().for_each(|row| varint::put(&mut out, row.size));
    put_deltas(&mut out, present.iter().map(|row| row.mtime));
    for row in present.iter().filter(|row| row.ctime != row.mtime) {
        varint::put(&mut out, zigzag(row.ctime.wrapping_sub(row.mtime)));
    }
    for row in present.iter().filter(|row| row.btime != row.ctime) {
        varint::put(&mut out, zigzag(row.ctime.wrapping_sub(row.btime)));
    }
    present.iter().filter(|row| row.nlink != 1).for_each(|row| varint::put(&mut out, row.nlink.into()));
    present.iter().filter(|row| row.rdev != 0).for_each(|row| varint::put(&mut out, row.rdev.into()));
    for row in &present {
        put_row_xattrs(&mut out, row, version)?;
    }
    Ok(Some(Bytes::from(out)))
}

fn put_palette(out: &mut Vec<u8>, rows: &[&Row]) {
    let mut places: BTreeMap<(u16, u32, u32), u64> = BTreeMap::new();
    let mut palette = Vec::new();
    let mut indices = Vec::with_capacity(rows.len());
    for row in rows {
        let owner = (row.mode, row.uid, row.gid);
        let next = palette.len() as u64;
        indices.push(*places.entry(owner).or_insert_with(|| {
            palette.push(owner);
            next
        }));
    }
    varint::put(out, palette.len() as u64);
    for (mode, uid, gid) in palette {
        varint::put(out, mode.into());
        varint::put(out, uid.into());
        varint::put(out, gid.into());
    }
    for index in indices {
        varint::put(out, index);
    }
}

fn put_deltas(out: &mut Vec<u8>, values: impl Iterator<Item = i64>) {
    let mut last = 0i64;
    for value in values {
        varint::put(out, zigzag(value.wrapping_sub(last)));
        last = value;
    }
}

fn put_row_xattrs(out: &mut Vec<u8>, row: &Row, version: u8) -> Result<(), RowError> {
    let mut bytes_max = XATTRS_INLINE_BYTES_MAX;
    if let Some(cid) = &row.xattrs_block {
        let cid = cid.to_bytes();
        varint::put(out, 0);
        varint::put(out, cid.len() as u64);
        out.extend_from_slice(&cid);
        bytes_max = XATTRS_BESIDE_BLOCK_BYTES_MAX;
    }
    if !row.xattrs.is_empty() || (row.xattrs_block.is_some() && version == VERSION_BESIDE) {
        let encoded = encode_xattrs(&row.xattrs)?;
        if encoded.len() > bytes_max {
            return Err(RowError::Xattrs);
        }
        out.extend_from_slice(&encoded);
    }
    Ok(())
}

/// Writes a list of extended attributes as a spilled block holds it.
///
/// # Errors
/// [`RowError::Xattrs`]: not sorted by name, a name twice or of a wrong length, a value or the whole too long.
pub fn encode_xattrs(xattrs: &Xattrs) -> Result<Vec<u8>, RowError> {
    let is_sorted = xattrs.windows(2).all(|pair| matches!(pair, [a, b] if a.0 < b.0));
    let is_sound = xattrs.iter().all(|(name, value)| is_sound_xattr(name, value));
    let len: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    if !is_sorted || !is_sound || len > XATTRS_BYTES_MAX {
        return Err(RowError::Xattrs);
    }
    let mut out = Vec::with_capacity(len + 3);
    varint::put(&mut out, xattrs.len() as u64);
    for part in xattrs.iter().flat_map(|(name, value)| [name, value]) {
        varint::put(&mut out, part.len() as u64);
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// Reads a spilled block of extended attributes.
///
/// # Errors
/// [`RowError`]: not the one encoding of a sound list.
pub fn decode_xattrs(bytes: &[u8]) -> Result<Xattrs, RowError> {
    let mut rest = bytes;
    let n = varint::take(&mut rest)?;
    let xattrs = take_xattrs(&mut rest, n)?;
    if rest.is_empty() { Ok(xattrs) } else { Err(RowError::Length) }
}

fn is_sound_xattr(name: &[u8], value: &[u8]) -> bool {
    (1..=XATTR_NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(&0)
        && value.len() <= XATTR_VALUE_BYTES_MAX
}

fn take_xattrs(rest: &mut &[u8], n: u64) -> Result<Xattrs, RowError> {
    let n = usize::try_from(n).ok().filter(|n| *n > 0 && *n <= rest.len()).ok_or(RowError::Length)?;
    let mut xattrs: Xattrs = Vec::new();
    for _ in 0..n {
        let name = take_slice(rest)?.to_vec();
        let value = take_slice(rest)?.to_vec();
        if !is_sound_xattr(&name, &value) || xattrs.last().is_some_and(|last| last.0 >= name) {
            return Err(RowError::Xattrs);
        }
        xattrs.push((name, value));
    }
    Ok(xattrs)
}

fn take_slice<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], RowError> {
    let len = usize::try_from(varint::take(rest)?).map_err(|_| RowError::Length)?;
    let (head, tail) = rest.split_at_checked(len).ok_or(RowError::Length)?;
    *rest = tail;
    Ok(head)
}

fn take_u32(rest: &mut &[u8], what: &'static str) -> Result<u32, RowError> {
    u32::try_from(varint::take(rest)?).map_err(|_| RowError::Range(what))
}

/// Reads the table of a block with `n_entries` entries.
///
/// # Errors
/// [`RowError`]: an unknown version, another number of rows, or not the one encoding of sound rows.
pub fn decode_rows(bytes: &[u8], n_entries: usize) -> Result<Vec<Option<Row>>, RowError> {
    let (version, mut rest) = bytes.split_first().ok_or(RowError::Length)?;
    if ![VERSION, VERSION_BESIDE].contains(version) {
        return Err(RowError::Version(*version));
    }
    if varint::take(&mut rest)? != n_entries as u64 {
        return Err(RowError::Length);
    }
    let (kinds, mut rest) = rest.split_at_checked(n_entries).ok_or(RowError::Length)?;
    let flags: Vec<u8> = kinds.iter().copied().filter(|kind| *kind != 0).collect();
    if flags.is_empty() {
        return Err(RowError::Form("a table without rows"));
    }
    let mut rows = take_palette(&mut rest, &flags)?;
    take_columns(&mut rest, &flags, &mut rows, *version)?;
    if !rest.is_empty() {
        return Err(RowError::Length);
    }
    if *version == VERSION_BESIDE && !rows.iter().any(Row::has_both) {
        return Err(RowError::Form("version"));
    }
    let mut rows = rows.into_iter();
    Ok(kinds.iter().map(|kind| if *kind == 0 { None } else { rows.next() }).collect())
}

fn take_palette(rest: &mut &[u8], flags: &[u8]) -> Result<Vec<Row>, RowError> {
    let n = usize::try_from(varint::take(rest)?).map_err(|_| RowError::Length)?;
    if n > flags.len() {
        return Err(RowError::Form("palette"));
    }
    let mut palette = Vec::with_capacity(n);
    let mut seen = BTreeMap::new();
    for _ in 0..n {
        let mode = u16::try_from(varint::take(rest)?).ok().filter(|mode| *mode <= MODE_MAX);
        let mode = mode.ok_or(RowError::Range("mode"))?;
        let owner = (mode, take_u32(rest, "uid")?, take_u32(rest, "gid")?);
        if seen.insert(owner, ()).is_some() {
            return Err(RowError::Form("palette"));
        }
        palette.push(owner);
    }
    let mut rows = Vec::with_capacity(flags.len());
    let mut n_used = 0;
    for flag in flags {
        let kind = flag & KIND;
        let index = usize::try_from(varint::take(rest)?).map_err(|_| RowError::Form("palette"))?;
        let (mode, uid, gid) = *palette.get(index).ok_or(RowError::Form("palette"))?;
        // A colour is used for the first time in the order of the palette, and every colour is used.
        if kind == 0 || index > n_used {
            return Err(RowError::Form("palette"));
        }
        n_used = n_used.max(index + 1);
        rows.push(Row { kind, mode, uid, gid, nlink: 1, ..Row::default() });
    }
    if n_used == n { Ok(rows) } else { Err(RowError::Form("palette")) }
}

fn take_columns(rest: &mut &[u8], flags: &[u8], rows: &mut [Row], version: u8) -> Result<(), RowError> {
    take_deltas(rest, rows, |row, ino| row.ino = ino as u64)?;
    for row in rows.iter_mut() {
        row.size = varint::take(rest)?;
    }
    take_deltas(rest, rows, |row, mtime| row.mtime = mtime)?;
    for (row, flag) in rows.iter_mut().zip(flags) {
        row.ctime = row.mtime.wrapping_add(take_nonzero(rest, flag & HAS_CTIME != 0, "ctime")?);
    }
    for (row, flag) in rows.iter_mut().zip(flags) {
        row.btime = row.ctime.wrapping_sub(take_nonzero(rest, flag & HAS_BTIME != 0, "btime")?);
    }
    for (row, _) in rows.iter_mut().zip(flags).filter(|(_, flag)| **flag & HAS_NLINK != 0) {
        row.nlink = take_u32(rest, "nlink")?;
        if row.nlink == 1 {
            return Err(RowError::Form("nlink"));
        }
    }
    for (row, _) in rows.iter_mut().zip(flags).filter(|(_, flag)| **flag & HAS_RDEV != 0) {
        row.rdev = take_u32(rest, "rdev")?;
        if row.rdev == 0 {
            return Err(RowError::Form("rdev"));
        }
    }
    for (row, _) in rows.iter_mut().zip(flags).filter(|(_, flag)| **flag & HAS_XATTRS != 0) {
        take_row_xattrs(rest, row, version)?;
    }
    Ok(())
}

fn take_deltas(rest: &mut &[u8], rows: &mut [Row], set: impl Fn(&mut Row, i64)) -> Result<(), RowError> {
    let mut last = 0i64;
    for row in rows {
        last = last.wrapping_add(unzigzag(varint::take(rest)?));
        set(row, last);
    }
    Ok(())
}

fn take_nonzero(rest: &mut &[u8], is_there: bool, what: &'static str) -> Result<i64, RowError> {
    if !is_there {
        return Ok(0);
    }
    match varint::take(rest)? {
        0 => Err(RowError::Form(what)),
        n => Ok(unzigzag(n)),
    }
}

fn take_row_xattrs(rest: &mut &[u8], row: &mut Row, version: u8) -> Result<(), RowError> {
    let mut n = varint::take(rest)?;
    let mut bytes_max = XATTRS_INLINE_BYTES_MAX;
    if n == 0 {
        row.xattrs_block = Some(Box::new(decode_cid(take_slice(rest)?).ok_or(RowError::Xattrs)?));
        if version == VERSION {
            return Ok(());
        }
        n = varint::take(rest)?;
        if n == 0 {
            return Ok(());
        }
        bytes_max = XATTRS_BESIDE_BLOCK_BYTES_MAX;
    }
    let before = rest.len();
    row.xattrs = take_xattrs(rest, n)?;
    if before - rest.len() + 1 > bytes_max {
        return Err(RowError::Xattrs);
    }
    Ok(())
}
