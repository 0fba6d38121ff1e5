//! A directory block that has been read: where its entries are, not what they say.
//!
//! Everything is checked once, when the block is decoded; names and CIDs stay in the block and are read out of it when an entry is
//! asked for. So a node costs little more memory than its block, and finding one entry makes one entry.
//!
//! What always holds: a decoded node holds no name that a file system must not see, and no name twice; what was read
//! when the block was decoded reads the same again.

use bytes::Bytes;

use crate::dagpb::{self, RawLink};
use crate::directory::{DirRoot, Entry};
use crate::errors::Malformed;
use crate::hamt::name_hash;
use crate::posix::{Row, decode_rows};
use crate::unixfs::{Data, HAMT_MURMUR3, NodeType};

/// Slots of a shard, at most.
const FANOUT_MAX: u64 = 1024;

/// What stands for the row of a slot that holds a shard.
const NO_ROW: u16 = u16::MAX;

const _: () = assert!(FANOUT_MAX < NO_ROW as u64, "every row has a number");

/// A decoded directory block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DirNode {
    /// A whole directory.
    Basic(BasicNode),
    /// A part of one.
    Shard(ShardNode),
}

/// The links of a block, in its order, and the rows of those that are entries.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Links {
    block: Bytes,
    /// Where each link is in the block, its length first.
    at: Box<[u32]>,
    rows: Box<[Option<Row>]>,
}

/// A directory in one block: its entries sorted by hash, then name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BasicNode {
    links: Links,
    /// Hash and link of each entry.
    order: Box<[(u64, u32)]>,
}

/// A HAMT shard: its slots by index, ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardNode {
    fanout: u64,
    links: Links,
    /// The index of each slot that is taken, and which row it has.
    slots: Box<[(u16, u16)]>,
}

/// What is in a slot of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Slot {
    /// An entry.
    Entry(Entry),
    /// A shard with all entries whose hashes lead here.
    Child(DirRoot),
}

impl DirNode {
    /// Reads and validates a directory block.
    ///
    /// # Errors
    /// [`Malformed`]: not a directory, or one that breaks a rule.
    pub fn decode(bytes: &Bytes) -> Result<DirNode, Malformed> {
        let mut at = Vec::new();
        let data = dagpb::split(bytes, &mut |place, link| {
            dagpb::decode_cid(link.cid).ok_or(dagpb::DagPbError::Hash)?;
            at.push(place);
            Ok(())
        })?;
        let message = Data::decode_message(data.ok_or(Malformed::Message)?)?;
        let links = Links { block: bytes.clone(), at: at.into(), rows: Box::default() };
        match message.node_type() {
            Some(NodeType::Directory) => BasicNode::decode(links, &message).map(DirNode::Basic),
            Some(NodeType::HamtShard) => ShardNode::decode(links, &message).map(DirNode::Shard),
            _ => Err(message.unwanted("directory")),
        }
    }

    /// About how many bytes of memory it takes beside its block.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        let (links, own) = match self {
            DirNode::Basic(node) => (&node.links, size_of_val(&*node.order)),
            DirNode::Shard(node) => (&node.links, size_of_val(&*node.slots)),
        };
        own + size_of_val(&*links.at) + size_of_val(&*links.rows)
    }
}

/// Whether a directory may hold this name.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn rows_of(message: &Data, n: usize) -> Result<Box<[Option<Row>]>, Malformed> {
    match &message.posix {
        Some(table) => Ok(decode_rows(table, n)?.into()),
        None => Ok(vec![None; n].into()),
    }
}

impl Links {
    fn raw(&self, link: usize) -> Option<RawLink<'_>> {
        let at = usize::try_from(*self.at.get(link)?).ok()?;
        RawLink::at(&self.block, at).ok()
    }

    /// The entry of a link; its name begins behind the first `skip` bytes.
    fn entry(&self, link: usize, row: usize, skip: usize) -> Option<Entry> {
        let raw = self.raw(link)?;
        let row = self.rows.get(row).cloned().flatten();
        Some(Entry {
            name: raw.name.get(skip..)?.to_vec(),
            cid: dagpb::decode_cid(raw.cid)?,
            tsize: raw.tsize,
            row,
        })
    }

    fn root(&self, link: usize) -> Option<DirRoot> {
        let raw = self.raw(link)?;
        Some(DirRoot { cid: dagpb::decode_cid(raw.cid)?, tsize: raw.tsize })
    }
}

impl BasicNode {
    fn decode(mut links: Links, message: &Data) -> Result<BasicNode, Malformed> {
        links.rows = rows_of(message, links.at.len())?;
        let name = |link: u32| links.raw(link as usize).map_or(&b""[..], |raw| raw.name);
        let mut order = Vec::with_capacity(links.at.len());
        for link in (0u32..).take(links.at.len()) {
            if !is_name(name(link)) {
                return Err(Malformed::Name);
            }
            order.push((name_hash(name(link)), link));
        }
        order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| name(a.1).cmp(name(b.1))));
        if order.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0 && name(a.1) == name(b.1))) {
            return Err(Malformed::Duplicate);
        }
        Ok(BasicNode { order: order.into(), links })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The place of the first entry that does not come before this hash and name.
    #[must_use]
    pub fn place_of(&self, hash: u64, name: &[u8]) -> usize {
        self.order.partition_point(|entry| entry.0 < hash || entry.0 == hash && self.name(entry) < name)
    }

    /// The entry of this name.
    #[must_use]
    pub fn find(&self, hash: u64, name: &[u8]) -> Option<Entry> {
        let place = self.place_of(hash, name);
        let found = self.order.get(place)?;
        if found.0 == hash && self.name(found) == name {
            self.entry(place).map(|(_, entry)| entry)
        } else {
            None
        }
    }

    /// The entry at a place with the hash of its name.
    #[must_use]
    pub fn entry(&self, place: usize) -> Option<(u64, Entry)> {
        let (hash, link) = *self.order.get(place)?;
        Some((hash, self.links.entry(link as usize, link as usize, 0)?))
    }

    /// All entries with the hashes of their names.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        (0..self.len()).filter_map(|place| self.entry(place))
    }

    fn name(&self, (_, link): &(u64, u32)) -> &[u8] {
        self.links.raw(*link as usize).map_or(&[], |raw| raw.name)
    }
}

impl ShardNode {
    fn decode(mut links: Links, message: &Data) -> Result<ShardNode, Malformed> {
        let fanout = message.fanout.unwrap_or_default();
        if !fanout.is_power_of_two() || !(8..=FANOUT_MAX).contains(&fanout) {
            return Err(Malformed::Fanout(fanout));
        }
        if message.hash_type != Some(HAMT_MURMUR3) {
            return Err(Malformed::Shard);
        }
        let taken = slots_taken(message.data.as_deref().unwrap_or_default(), fanout)?;
        if taken.len() != links.at.len() {
            return Err(Malformed::Shard);
        }
        let width = width_of(fanout);
        let (mut slots, mut n_rows) = (Vec::with_capacity(taken.len()), 0);
        for (link, index) in taken.into_iter().enumerate() {
            let name = links.raw(link).map_or(&b""[..], |raw| raw.name);
            let name = strip_index(name, index, width).ok_or(Malformed::Shard)?;
            if name.is_empty() {
                slots.push((index, NO_ROW));
            } else if is_name(name) {
                slots.push((index, n_rows));
                n_rows += 1;
            } else {
                return Err(Malformed::Name);
            }
        }
        links.rows = rows_of(message, usize::from(n_rows))?;
        Ok(ShardNode { fanout, slots: slots.into(), links })
    }

    /// The number of slots: a power of two, 8 to 1024.
    #[must_use]
    pub fn fanout(&self) -> u64 {
        self.fanout
    }

    /// How many bits of the hash a level takes.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.fanout.trailing_zeros()
    }

    /// How many slots are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The place of the first slot that is taken whose index is not below this.
    #[must_use]
    pub fn place_of(&self, index: u16) -> usize {
        self.slots.partition_point(|slot| slot.0 < index)
    }

    /// The slot at a place, with its index.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<(u16, Slot)> {
        let (index, row) = *self.slots.get(place)?;
        let slot = match row {
            NO_ROW => Slot::Child(self.links.root(place)?),
            row => Slot::Entry(self.links.entry(place, usize::from(row), width_of(self.fanout))?),
        };
        Some((index, slot))
    }

    /// What is in the slot of this index.
    #[must_use]
    pub fn slot(&self, index: u16) -> Option<Slot> {
        self.at(self.place_of(index)).filter(|(found, _)| *found == index).map(|(_, slot)| slot)
    }

    /// All slots that are taken, with their indices.
    pub fn slots(&self) -> impl Iterator<Item = (u16, Slot)> {
        (0..self.len()).filter_map(|place| self.at(place))
    }
}

/// How many digits an index has in the names of links.
fn width_of(fanout: u64) -> usize {
    (fanout - 1).max(1).ilog2() as usize / 4 + 1
}

/// A link's name without the index in front of it, in upper-case hexadecimal digits.
fn strip_index(name: &[u8], index: u16, width: usize) -> Option<&[u8]> {
    let (digits, rest) = name.split_at_checked(width)?;
    let digit = |place: usize| b"0123456789ABCDEF"[usize::from(index >> (4 * place) & 0xf)];
    digits.iter().rev().enumerate().all(|(place, byte)| *byte == digit(place)).then_some(rest)
}

/// The indices of the bits that are set in a big-endian bit field of at most `fanout` bits, ascending.
fn slots_taken(bits: &[u8], fanout: u64) -> Result<Vec<u16>, Malformed> {
    if bits.len() as u64 > fanout / 8 {
        return Err(Malformed::Shard);
    }
    let taken = bits.iter().rev().zip(0u16..).flat_map(|(byte, place)| {
        (0..8u16).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| place * 8 + bit)
    });
    Ok(taken.collect())
}
