//! From a stream of records to a UnixFS tree; durable before its CID is told.

use remora_dag::block::BlockSink;
use remora_dag::directory::{Entry, build_dir};
use remora_dag::errors::WriteError;
use remora_dag::file::{FileBuilder, FileRoot};
use remora_dag::profile::Profile;
use remora_dag::unixfs::symlink_node;
use remora_store::fault::chain;
use remora_volume::journal::blocks::BlockStore;

use crate::exit::{Code, Context, Failure};
use crate::wire::{Added, Record};

/// Directories within directories that a stream may open.
const DEPTH_MAX: usize = 512;

/// Takes records until the root is complete, and answers it.
///
/// *Durability*: every block of the tree is on this host's disk when it returns.
pub(crate) fn add(
    records: &mut dyn FnMut() -> Result<Option<Record>, Failure>,
    blocks: &dyn BlockStore,
    profile: Profile,
) -> Result<Added, Failure> {
    let mut tree = Tree { profile, blocks, open: Vec::new() };
    let root = loop {
        let Some(record) = records()? else {
            return Err(Failure::failed("the stream of files was cut off; nothing was added"));
        };
        if let Some(root) = tree.take(record, records)? {
            break root;
        }
    };
    if records()?.is_some() {
        return Err(Failure::usage("more than one root in one stream"));
    }
    blocks.sync().doing("make the blocks durable")?;
    let name = String::from_utf8_lossy(&root.name).into_owned();
    Ok(Added { name, cid: root.cid.to_string(), size: root.tsize })
}

struct Tree<'a> {
    profile: Profile,
    blocks: &'a dyn BlockStore,
    open: Vec<(Vec<u8>, Vec<Entry>)>,
}

impl Tree<'_> {
    /// Takes one record; answers the root once it is complete.
    fn take(
        &mut self,
        record: Record,
        records: &mut dyn FnMut() -> Result<Option<Record>, Failure>,
    ) -> Result<Option<Entry>, Failure> {
        match record {
            Record::Enter(_) if self.open.len() >= DEPTH_MAX => {
                Err(Failure::usage(format!("more than {DEPTH_MAX} directories deep")))
            }
            Record::Enter(name) => {
                self.open.push((name, Vec::new()));
                Ok(None)
            }
            Record::Leave => {
                let (name, entries) = self.open.pop().ok_or_else(out_of_place)?;
                let root = build_dir(self.profile, entries, self.blocks).map_err(written)?;
                Ok(self.place(Entry { name, cid: root.cid, tsize: root.tsize, row: None }))
            }
            Record::File(name) => {
                let root = self.file(records)?;
                Ok(self.place(Entry { name, cid: root.cid, tsize: root.tsize, row: None }))
            }
            Record::Symlink(name, target) => {
                // A profile decides the CID's version, so the node is sealed by it.
                let block = self.profile.seal_node(symlink_node(&target));
                let (cid, tsize) = (*block.cid(), block.bytes().len() as u64);
                self.blocks.put(block).map_err(|e| written(e.into()))?;
                Ok(self.place(Entry { name, cid, tsize, row: None }))
            }
            Record::Failed(why) => Err(Failure::failed(why)),
            Record::Data(_) | Record::End => Err(out_of_place()),
        }
    }

    fn file(
        &self,
        records: &mut dyn FnMut() -> Result<Option<Record>, Failure>,
    ) -> Result<FileRoot, Failure> {
        let sink: &dyn BlockSink = self.blocks;
        let mut builder = FileBuilder::new(self.profile, sink);
        loop {
            match records()? {
                Some(Record::Data(data)) => builder.write_bytes(data.into()).map_err(written)?,
                Some(Record::End) => return builder.finish().map_err(written),
                Some(Record::Failed(why)) => return Err(Failure::failed(why)),
                Some(_) => return Err(out_of_place()),
                None => return Err(Failure::failed("the stream of files was cut off; nothing was added")),
            }
        }
    }

    fn place(&mut self, entry: Entry) -> Option<Entry> {
        match self.open.last_mut() {
            Some((_, entries)) => {
                entries.push(entry);
                None
            }
            None => Some(entry),
        }
    }
}

fn out_of_place() -> Failure {
    Failure::usage("the stream of files is not in order")
}

fn written(error: WriteError) -> Failure {
    let code = match &error {
        WriteError::Name { .. } | WriteError::Duplicate { .. } => Code::Usage,
        _ => Code::Failed,
    };
    Failure::new(code, format!("store the files: {}", chain(&error)))
}
