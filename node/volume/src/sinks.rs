//! A sink that keeps what it is given, in order: for trees that are built before anybody can store them.

use std::sync::{Mutex, PoisonError};

use remora_dag::block::{Block, BlockSink, SinkError};

/// Collects blocks.
#[derive(Debug, Default)]
pub(crate) struct Collect {
    blocks: Mutex<Vec<Block>>,
}

impl Collect {
    pub(crate) fn into_blocks(self) -> Vec<Block> {
        self.blocks.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockSink for Collect {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).push(block);
        Ok(())
    }
}
