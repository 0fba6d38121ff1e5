//! What a CID is: a file, a directory or a symlink; and what a path below it leads to.

use bytes::Bytes;
use cid::Cid;

use crate::block::{BlockSource, Codec};
use crate::dir_node::DirNode;
use crate::directory::Entry;
use crate::errors::{Malformed, ReadError};
use crate::file::FileNode;
use crate::list::lookup;
use crate::read::BlockNodes;
use crate::unixfs::{self, NodeType};

/// A decoded root block of any type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnixfsNode {
    /// A file (or a part of one).
    File(FileNode),
    /// A directory (or a shard of one).
    Directory(DirNode),
    /// A symlink with its target.
    Symlink(Bytes),
}

impl UnixfsNode {
    /// Reads a block as whatever UnixFS node it is.
    ///
    /// # Errors
    /// [`Malformed`]: not a UnixFS node, or one that breaks a rule.
    pub fn decode(cid: &Cid, bytes: &Bytes) -> Result<UnixfsNode, Malformed> {
        if Codec::of(cid) == Some(Codec::Raw) {
            return Ok(UnixfsNode::File(FileNode::decode(cid, bytes)?));
        }
        let (_, message) = unixfs::decode(cid, bytes)?;
        Ok(match message.node_type() {
            Some(NodeType::File | NodeType::Raw) => UnixfsNode::File(FileNode::decode(cid, bytes)?),
            Some(NodeType::Directory | NodeType::HamtShard) => UnixfsNode::Directory(DirNode::decode(bytes)?),
            Some(NodeType::Symlink) => UnixfsNode::Symlink(unixfs::symlink_target(cid, bytes)?),
            None => return Err(message.unwanted("file, directory or symlink")),
        })
    }

    /// Reads the node of a CID.
    ///
    /// # Errors
    /// [`ReadError`]: the block did not come, or is not a UnixFS node.
    pub fn read(source: &dyn BlockSource, cid: &Cid) -> Result<UnixfsNode, ReadError> {
        let bytes = source.get(cid)?;
        UnixfsNode::decode(cid, &bytes).map_err(|why| ReadError::damaged(cid, why))
    }
}

/// The entry a path of names leads to from the directory `root`; `None` for the empty path, which is `root` itself.
///
/// Symlinks are not followed.
///
/// # Errors
/// [`ReadError::NoEntry`] names the first name that is not there; [`ReadError::Damaged`] where a name is looked for in something that
/// is not a directory.
pub fn resolve<'p>(
    source: &dyn BlockSource,
    root: &Cid,
    path: impl IntoIterator<Item = &'p [u8]>,
) -> Result<Option<Entry>, ReadError> {
    let nodes = BlockNodes::new(source);
    let mut at: Option<Entry> = None;
    for name in path {
        let cid = at.as_ref().map_or(*root, |entry| entry.cid);
        let entry = lookup(&nodes, &cid, name)?;
        at = Some(entry.ok_or_else(|| ReadError::NoEntry { name: name.to_vec() })?);
    }
    Ok(at)
}
