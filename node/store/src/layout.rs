//! Every name and version on disk, in one place.
//!
//! Other modules build no paths of their own. Names that are not recognised here are left alone.

use std::path::{Path, PathBuf};

/// Version of the file header and of every file kind that starts with one.
pub const FILE_VERSION: u16 = 1;
/// Version of a frame.
pub const FRAME_VERSION: u8 = 1;
/// Version of a control slot.
pub const SLOT_VERSION: u16 = 1;
/// Version of what the index holds; another one is wiped and rebuilt.
pub const INDEX_VERSION: u32 = 2;
/// Version of the trailer that closes a sealed pack.
pub const TRAILER_VERSION: u16 = 1;

/// The data directory and the places in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Names the places under `root`; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> DataDir {
        DataDir { root: root.into() }
    }

    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file whose lock says that a process owns this data directory.
    pub fn lock(&self) -> PathBuf {
        self.root.join("LOCK")
    }

    /// The node's private key.
    pub fn node_key(&self) -> PathBuf {
        self.root.join("node.key")
    }

    /// The operator's settings.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The file whose space is ours when the disk is full.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Where the packs of blocks are.
    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    /// Where the disposable index is.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// Where the registry's segments are.
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry")
    }

    /// Where the roots are that people added.
    pub fn added(&self) -> PathBuf {
        self.root.join("added")
    }

    /// Where all volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// One volume's directory, named by its id in hexadecimal (never by what a user typed).
    pub fn volume(&self, id: &[u8; 16]) -> VolumeDir {
        VolumeDir { root: self.volumes().join(hex(id)) }
    }
}

/// The places of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeDir {
    root: PathBuf,
}

impl VolumeDir {
    /// The volume's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The control slots.
    pub fn ctl(&self) -> PathBuf {
        self.root.join("ctl")
    }

    /// The segments of the commit log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The suffixes that lost.
    pub fn fork(&self) -> PathBuf {
        self.root.join("fork")
    }
}

/// The id in a volume directory's name, if it is one.
pub fn parse_volume_name(name: &str) -> Option<[u8; 16]> {
    if name.len() != 32 || !name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let value = u128::from_str_radix(name, 16).ok()?;
    Some(value.to_be_bytes())
}

/// The file name of a pack.
pub fn pack_name(number: u64) -> String {
    format!("{number:010}.pack")
}

/// The number in a pack's file name, if it is one.
pub fn parse_pack_name(name: &str) -> Option<u64> {
    parse_numbered(name, ".pack")
}

/// The file name of a log segment.
pub fn segment_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The number in a segment's file name, if it is one.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    parse_numbered(name, ".seg")
}

/// The file name of a saved suffix; `copy` tells apart suffixes that start at the same place.
pub fn fork_name(term: u32, seq: u64, copy: u32) -> String {
    if copy == 0 { format!("{term}-{seq}.seg") } else { format!("{term}-{seq}.{copy}.seg") }
}

/// The name of a file that is being made; such files are swept when their directory is opened.
pub fn unfinished_name(name: &str) -> String {
    format!("{name}{UNFINISHED}")
}

/// Whether a name is that of a file that was being made.
pub fn is_unfinished(name: &str) -> bool {
    name.ends_with(UNFINISHED)
}

/// A segment that was dropped and waits to be used again.
pub const SPARE_SEGMENT: &str = "spare";
/// The mark beside the index's tables that says how far they may be trusted.
pub const INDEX_MARK: &str = "mark";
/// The directory of the index's tables inside the index directory.
pub const INDEX_TABLES: &str = "tables";

const UNFINISHED: &str = ".tmp";

fn parse_numbered(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    if digits.len() < 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn hex(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}
