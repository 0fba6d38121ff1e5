//! The tree: an immutable file system, named by its CID.
//!
//! A tree block holds what its root directory cannot: the root's own attributes, the next inode number, where every
//! inode's names are, and the inodes that have none. Everything else is UnixFS below [`Tree::root`].

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, BlockSource, Codec, SourceError, check_cid};
use remora_dag::directory::build_dir;
use remora_dag::errors::WriteError;
use remora_dag::posix::Row;
use remora_dag::profile::Profile;
use remora_vfs::attr::{Ino, Kind, ROOT_INO, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::inomap::empty_map;
use crate::sinks::Collect;
use crate::wire::{Reader, put_bytes, put_cid, put_i64, put_u64};

/// The version of tree blocks this program writes and reads.
pub const TREE_VERSION: u64 = 1;

/// How many orphans one page holds at most: their rows are bounded by inline xattrs, so a page stays below 2 MiB.
pub const ORPHANS_PER_PAGE: usize = 1024;

/// What is in a tree, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Inodes, the root and orphans included.
    pub inodes: u64,
    /// Bytes of files that are not known to be holes.
    pub bytes: u64,
}

/// An inode that has lost its names and was still open.
#[derive(Clone, PartialEq, Debug)]
pub struct Orphan {
    /// Its attributes, `ino` among them.
    pub row: Row,
    /// Its content.
    pub cid: Cid,
    /// The bytes of the DAG below it.
    pub tsize: u64,
}

/// The root block of an immutable file system.
#[derive(Clone, PartialEq, Debug)]
pub struct Tree {
    /// How its content is cut and sharded.
    pub profile: Profile,
    /// The UnixFS directory that any IPFS client can read.
    pub root: Cid,
    /// The bytes of the DAG below the root directory.
    pub root_tsize: u64,
    /// The attributes of the root directory; a directory's `size` is the number of its entries.
    pub root_row: Row,
    /// The next inode number to give out.
    pub next_ino: Ino,
    /// The map from inode numbers to names (see [`crate::inomap`]).
    pub names: Cid,
    /// Pages of orphans, in order of their inode numbers.
    pub orphans: Vec<Cid>,
    /// What is in it.
    pub stats: Stats,
    /// The commit whose state this is; 0 for the first tree of a volume.
    pub made_from: u64,
}

/// Why bytes are not a tree, or a tree could not be read.
#[derive(Debug, Error)]
pub enum TreeError {
    /// A newer program made it.
    #[error("tree {cid} has version {version}, which is newer than this program")]
    Version {
        /// The tree.
        cid: Cid,
        /// Its version.
        version: u64,
    },
    /// Its bytes are no tree.
    #[error("tree {cid} is malformed: {why}")]
    Malformed {
        /// The tree.
        cid: Cid,
        /// What is wrong.
        why: String,
    },
    /// Its block did not come.
    #[error("read tree")]
    Source(#[from] SourceError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TreeRecord {
    v: u64,
    profile: String,
    root: Cid,
    tsize: u64,
    #[serde(with = "serde_bytes")]
    row: Vec<u8>,
    next_ino: u64,
    names: Cid,
    orphans: Vec<Cid>,
    stats: Stats,
    made_from: u64,
}

#[derive(Deserialize)]
struct VersionRecord {
    v: u64,
}

impl Tree {
    /// The block of this tree.
    #[must_use]
    pub fn to_block(&self) -> Block {
        let record = TreeRecord {
            v: TREE_VERSION,
            profile: self.profile.name().to_owned(),
            root: self.root,
            tsize: self.root_tsize,
            row: encode_row(&self.root_row),
            next_ino: self.next_ino,
            names: self.names,
            orphans: self.orphans.clone(),
            stats: self.stats,
            made_from: self.made_from,
        };
        // Encoding plain numbers, strings and links into memory has no way to fail.
        Block::seal(Codec::DagCbor, serde_ipld_dagcbor::to_vec(&record).unwrap_or_default().into())
    }

    /// Reads a tree block.
    ///
    /// # Errors
    /// [`TreeError::Version`], [`TreeError::Malformed`].
    pub fn decode(cid: &Cid, bytes: &[u8]) -> Result<Tree, TreeError> {
        let malformed = |why: &str| TreeError::Malformed { cid: *cid, why: why.to_owned() };
        let version: VersionRecord =
            serde_ipld_dagcbor::from_slice(bytes).map_err(|e| malformed(&e.to_string()))?;
        if version.v != TREE_VERSION {
            return Err(TreeError::Version { cid: *cid, version: version.v });
        }
        let record: TreeRecord =
            serde_ipld_dagcbor::from_slice(bytes).map_err(|e| malformed(&e.to_string()))?;
        let profile = record.profile.parse().map_err(|_| malformed("unknown profile"))?;
        let root_row = decode_row(&record.row).ok_or_else(|| malformed("root row"))?;
        if root_row.ino != ROOT_INO || root_row.kind != Kind::Directory as u8 {
            return Err(malformed("the root is not a directory"));
        }
        if check_cid(&record.root) != Ok(Codec::DagPb) || check_cid(&record.names) != Ok(Codec::DagCbor) {
            return Err(malformed("links of a wrong kind"));
        }
        Ok(Tree {
            profile,
            root: record.root,
            root_tsize: record.tsize,
            root_row,
            next_ino: record.next_ino,
            names: record.names,
            orphans: record.orphans,
            stats: record.stats,
            made_from: record.made_from,
        })
    }

    /// Fetches and reads a tree block.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn load(cid: &Cid, source: &dyn BlockSource) -> Result<Tree, TreeError> {
        Tree::decode(cid, &source.get(cid)?)
    }
}

/// The first tree of a volume, an empty root directory, with all its blocks; the last block is the tree itself.
///
/// The same arguments give the same tree on every host.
///
/// # Errors
/// None in practice: building an empty directory in memory has no way to fail.
pub fn genesis(uid: u32, gid: u32, mode: u16, time: Timestamp) -> Result<(Tree, Vec<Block>), WriteError> {
    let profile = Profile::V1_2025;
    let sink = Collect::default();
    let root = build_dir(profile, Vec::new(), &sink)?;
    let mut blocks = sink.into_blocks();
    let names = empty_map();
    let tree = Tree {
        profile,
        root: root.cid,
        root_tsize: root.tsize,
        root_row: Row {
            ino: ROOT_INO,
            kind: Kind::Directory as u8,
            mode: mode & 0o7777,
            uid,
            gid,
            size: 0,
            mtime: time.0,
            ctime: time.0,
            btime: time.0,
            nlink: 2,
            rdev: 0,
            xattrs: Vec::new(),
            xattrs_block: None,
        },
        next_ino: ROOT_INO + 1,
        names: *names.cid(),
        orphans: Vec::new(),
        stats: Stats { inodes: 1, bytes: 0 },
        made_from: 0,
    };
    blocks.push(names);
    blocks.push(tree.to_block());
    Ok((tree, blocks))
}

#[derive(Serialize, Deserialize)]
struct OrphanRecord(serde_bytes::ByteBuf, Cid, u64);

/// The blocks that hold these orphans, in order.
#[must_use]
pub fn orphan_pages(orphans: &[Orphan]) -> Vec<Block> {
    let page = |page: &[Orphan]| {
        let records: Vec<OrphanRecord> =
            page.iter().map(|o| OrphanRecord(encode_row(&o.row).into(), o.cid, o.tsize)).collect();
        Block::seal(Codec::DagCbor, serde_ipld_dagcbor::to_vec(&records).unwrap_or_default().into())
    };
    orphans.chunks(ORPHANS_PER_PAGE).map(page).collect()
}

/// The orphans in one page; `None` if it is not sound.
#[must_use]
pub fn decode_orphan_page(bytes: &Bytes) -> Option<Vec<Orphan>> {
    let records: Vec<OrphanRecord> = serde_ipld_dagcbor::from_slice(bytes).ok()?;
    records
        .into_iter()
        .map(|OrphanRecord(row, cid, tsize)| Some(Orphan { row: decode_row(&row)?, cid, tsize }))
        .collect()
}

fn encode_row(row: &Row) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_u64(&mut out, row.ino);
    out.push(row.kind);
    for n in [u64::from(row.mode), u64::from(row.uid), u64::from(row.gid), row.size] {
        put_u64(&mut out, n);
    }
    for time in [row.mtime, row.ctime, row.btime] {
        put_i64(&mut out, time);
    }
    put_u64(&mut out, u64::from(row.nlink));
    put_u64(&mut out, u64::from(row.rdev));
    out.push(u8::from(row.xattrs_block.is_some()));
    if let Some(cid) = &row.xattrs_block {
        put_cid(&mut out, cid);
    }
    for (name, value) in &row.xattrs {
        put_bytes(&mut out, name);
        put_bytes(&mut out, value);
    }
    out
}

fn decode_row(bytes: &[u8]) -> Option<Row> {
    let mut r = Reader::new(bytes);
    let (ino, kind, mode, uid, gid) = (r.u64()?, r.u8()?, r.u16()?, r.u32()?, r.u32()?);
    let (size, mtime, ctime, btime) = (r.u64()?, r.i64()?, r.i64()?, r.i64()?);
    let (nlink, rdev) = (r.u32()?, r.u32()?);
    let xattrs_block = if r.bool()? { Some(Box::new(r.cid()?)) } else { None };
    let mut xattrs = Vec::new();
    while !r.is_empty() {
        xattrs.push((r.bytes()?.to_vec(), r.bytes()?.to_vec()));
    }
    Some(Row { ino, kind, mode, uid, gid, size, mtime, ctime, btime, nlink, rdev, xattrs, xattrs_block })
}
