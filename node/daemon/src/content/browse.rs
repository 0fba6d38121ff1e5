//! What a path like `CID/a/b` names, and what is in it.

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{BlockSource, Codec};
use remora_dag::directory::Entry;
use remora_dag::errors::ReadError;
use remora_dag::file::FileNode;
use remora_dag::list::{Position, list_after, lookup};
use remora_dag::read::{BlockNodes, file_size};
use remora_dag::unixfs::{NodeType, decode};
use remora_store::fault::chain;

use crate::exit::{Code, Failure};
use crate::wire::{Listed, NodeStat};

/// Entries listed at a time.
const LIST_STEP: usize = 4096;

/// The most entries one `ls` prints; a larger directory is for `get` or a mount.
const LIST_MAX: usize = 2_000_000;

/// What a node is for a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
        }
    }
}

/// Follows a path from its CID. Symlinks are not followed: they are content.
pub(crate) fn resolve(blocks: &dyn BlockSource, path: &str) -> Result<Cid, Failure> {
    let path = path.strip_prefix("/ipfs/").unwrap_or(path);
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    let first = parts.next().unwrap_or_default();
    let mut cid = Cid::try_from(first).map_err(|e| Failure::usage(format!("{first:?} is no CID: {e}")))?;
    let nodes = BlockNodes::new(blocks);
    for part in parts {
        if kind(blocks, &cid)? != Kind::Directory {
            return Err(Failure::not_found(format!("{path}: what comes before {part:?} is no directory")));
        }
        let entry = lookup(&nodes, &cid, part.as_bytes()).map_err(read)?;
        cid = entry.map(|e| e.cid).ok_or_else(|| Failure::not_found(format!("{path}: no entry {part:?}")))?;
    }
    Ok(cid)
}

/// What the node is; fetches its block.
pub(crate) fn kind(blocks: &dyn BlockSource, cid: &Cid) -> Result<Kind, Failure> {
    if Codec::of(cid) == Some(Codec::Raw) {
        return Ok(Kind::File);
    }
    let bytes = blocks.get(cid).map_err(|e| read(e.into()))?;
    kind_of(cid, &bytes)
}

fn kind_of(cid: &Cid, bytes: &Bytes) -> Result<Kind, Failure> {
    if Codec::of(cid) != Some(Codec::DagPb) {
        return Err(Failure::usage(format!("{cid} is no UnixFS node")));
    }
    let (_, data) = decode(cid, bytes).map_err(|e| unsound(cid, &e))?;
    match data.node_type() {
        Some(NodeType::Directory | NodeType::HamtShard) => Ok(Kind::Directory),
        Some(NodeType::Symlink) => Ok(Kind::Symlink),
        Some(NodeType::File | NodeType::Raw) => Ok(Kind::File),
        _ => Err(Failure::usage(format!("{cid} is a UnixFS node of a kind that cannot be shown"))),
    }
}

fn unsound(cid: &Cid, error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Damaged, format!("{cid} is no sound UnixFS node: {}", chain(error)))
}

/// Every entry of a directory, sorted by name.
pub(crate) fn entries(blocks: &dyn BlockSource, cid: &Cid) -> Result<Vec<Entry>, Failure> {
    let nodes = BlockNodes::new(blocks);
    let mut found: Vec<Entry> = Vec::new();
    let mut after: Option<Position> = None;
    loop {
        let step = list_after(&nodes, cid, after.as_ref(), LIST_STEP).map_err(read)?;
        let Some((hash, last)) = step.last() else { break };
        after = Some(Position { hash: *hash, name: last.name.clone() });
        found.extend(step.into_iter().map(|(_, entry)| entry));
        if found.len() > LIST_MAX {
            return Err(Failure::failed(format!("more than {LIST_MAX} entries: use `remora get`")));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The entries of a directory with what they are; a file lists itself.
pub(crate) fn list(blocks: &dyn BlockSource, path: &str) -> Result<Vec<Listed>, Failure> {
    let cid = resolve(blocks, path)?;
    if kind(blocks, &cid)? != Kind::Directory {
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path).to_owned();
        return Ok(vec![listed(blocks, name, &cid)?]);
    }
    entries(blocks, &cid)?
        .into_iter()
        .map(|entry| listed(blocks, String::from_utf8_lossy(&entry.name).into_owned(), &entry.cid))
        .collect()
}

/// One entry; fetches its block, once.
fn listed(blocks: &dyn BlockSource, name: String, cid: &Cid) -> Result<Listed, Failure> {
    let bytes = blocks.get(cid).map_err(|e| read(e.into()))?;
    let is_raw = Codec::of(cid) == Some(Codec::Raw);
    let kind = if is_raw { Kind::File } else { kind_of(cid, &bytes)? };
    let size = match kind {
        Kind::File if is_raw => bytes.len() as u64,
        Kind::File => FileNode::decode(cid, &bytes).map_err(|e| unsound(cid, &e))?.size(),
        Kind::Directory | Kind::Symlink => 0,
    };
    Ok(Listed { name, cid: cid.to_string(), kind: kind.name().to_owned(), size })
}

/// What a path names.
pub(crate) fn stat(
    blocks: &dyn BlockSource,
    path: &str,
    is_local: impl Fn(&Cid) -> bool,
) -> Result<NodeStat, Failure> {
    let cid = resolve(blocks, path)?;
    let local = is_local(&cid);
    let bytes = blocks.get(&cid).map_err(|e| read(e.into()))?;
    let (kind, below) = if Codec::of(&cid) == Some(Codec::Raw) {
        (Kind::File, 0)
    } else {
        let kind = kind_of(&cid, &bytes)?;
        let links = decode(&cid, &bytes).map(|(links, _)| links).unwrap_or_default();
        (kind, links.iter().fold(0u64, |sum, link| sum.saturating_add(link.tsize)))
    };
    let size = match kind {
        Kind::File => file_size(blocks, &cid).map_err(read)?,
        Kind::Directory => entries(blocks, &cid)?.len() as u64,
        Kind::Symlink => 0,
    };
    let dag_bytes = below.saturating_add(bytes.len() as u64);
    Ok(NodeStat { cid: cid.to_string(), kind: kind.name().to_owned(), size, dag_bytes, local })
}

/// An error of the DAG, for a user.
pub(crate) fn read(error: ReadError) -> Failure {
    use remora_dag::block::SourceError;
    let (code, hint) = match &error {
        ReadError::NoEntry { .. } => (Code::NotFound, ""),
        ReadError::Source(SourceError::NotFound { .. }) => {
            (Code::NotFound, " on this host or any connected member")
        }
        ReadError::Source(SourceError::Timeout { .. }) => (Code::Unreachable, ""),
        ReadError::Source(SourceError::Corrupt { .. }) => (
            Code::Damaged,
            " on this host, and no connected member has it: `remora store verify` lists what else is",
        ),
        ReadError::Damaged(_) => (Code::Damaged, ""),
        ReadError::Source(SourceError::Io { .. }) => (Code::Failed, ""),
    };
    Failure::new(code, format!("{}{hint}", chain(&error)))
}
