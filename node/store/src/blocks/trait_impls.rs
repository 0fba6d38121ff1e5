//! The blocks of this host as a source and a sink of the dag.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, BlockSink, BlockSource, SinkError, SourceError};

use crate::blocks::{Blocks, BlocksError};

impl BlockSource for Blocks {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        found(cid, Blocks::get(self, cid))
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        found(cid, Blocks::get_range(self, cid, offset, len))
    }
}

impl BlockSink for Blocks {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        let cid = *block.cid();
        Blocks::put(self, &cid, block.bytes()).map_err(|error| match error {
            BlocksError::Full { .. } => SinkError::Full { cid },
            other => SinkError::Io { cid, source: Arc::new(io::Error::other(other)) },
        })
    }
}

fn found(cid: &Cid, answer: Result<Option<Bytes>, BlocksError>) -> Result<Bytes, SourceError> {
    match answer {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) | Err(BlocksError::Unsupported { .. }) => Err(SourceError::NotFound { cid: *cid }),
        Err(BlocksError::Corrupt { .. }) => Err(SourceError::Corrupt { cid: *cid }),
        Err(other) => Err(SourceError::Io { cid: *cid, source: Arc::new(io::Error::other(other)) }),
    }
}
