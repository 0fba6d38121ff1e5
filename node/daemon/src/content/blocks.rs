//! Blocks of this node: its own store first, its peers for what is not there.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cid::Cid;
use remora_dag::block::{Block, BlockSink, BlockSource, SinkError, SourceError};
use remora_net::exchange::{BlockProvider, Exchange};
use remora_store::blocks::touches::Protection;
use remora_store::blocks::{Blocks, BlocksError};
use remora_volume::journal::blocks::BlockStore;

/// The local store, with the exchange behind it once the network runs.
pub(crate) struct NodeBlocks {
    store: Arc<Blocks>,
    exchange: OnceLock<Exchange>,
}

impl NodeBlocks {
    pub(crate) fn new(store: Arc<Blocks>) -> Arc<Self> {
        Arc::new(NodeBlocks { store, exchange: OnceLock::new() })
    }

    /// From here on what is missing is asked of peers.
    pub(crate) fn connect(&self, exchange: Exchange) {
        let _first_wins = self.exchange.set(exchange);
    }

    pub(crate) fn store(&self) -> &Arc<Blocks> {
        &self.store
    }

    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        self.exchange.get()
    }

    fn local(&self, cid: &Cid) -> Result<Option<Bytes>, SourceError> {
        Blocks::get(&self.store, cid).map_err(|e| unread(cid, e))
    }

    /// Asks peers for a block that is not here (or is damaged here), and keeps what comes.
    fn fetch(&self, cid: &Cid, why: SourceError) -> Result<Bytes, SourceError> {
        let Some(exchange) = self.exchange.get() else { return Err(why) };
        let block = exchange.fetch_blocking(*cid).map_err(|e| match e.into_source_error(cid) {
            // What is damaged here and nowhere else is damaged, not missing.
            SourceError::NotFound { .. } => why,
            other => other,
        })?;
        let bytes = block.bytes().clone();
        // Not being able to keep it (a full disk) is no reason not to show it.
        if let Err(e) = self.put(block) {
            tracing::warn!(%cid, error = %e, "a fetched block could not be kept");
        }
        Ok(bytes)
    }
}

impl BlockSource for NodeBlocks {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        match self.local(cid) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => self.fetch(cid, SourceError::NotFound { cid: *cid }),
            Err(e @ SourceError::Corrupt { .. }) => self.fetch(cid, e),
            Err(e) => Err(e),
        }
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        match Blocks::get_range(&self.store, cid, offset, len).map_err(|e| unread(cid, e)) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => {
                let whole = self.fetch(cid, SourceError::NotFound { cid: *cid })?;
                Ok(remora_dag::block::slice_of(&whole, offset, len))
            }
            Err(e @ SourceError::Corrupt { .. }) => {
                let whole = self.fetch(cid, e)?;
                Ok(remora_dag::block::slice_of(&whole, offset, len))
            }
            Err(e) => Err(e),
        }
    }
}

impl BlockSink for NodeBlocks {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        let (cid, bytes) = block.into_parts();
        Blocks::put(&self.store, &cid, &bytes).map_err(|e| unwritten(&cid, e))
    }
}

impl BlockStore for NodeBlocks {
    fn sync(&self) -> io::Result<()> {
        self.store.sync().map_err(io::Error::other)
    }

    fn protect(&self) -> Option<Protection> {
        Some(self.store.protect())
    }

    fn relieve(&self) -> bool {
        self.store.relieve()
    }
}

/// What peers are served from: this host's own store, nothing fetched on their behalf.
pub(crate) struct Served(pub(crate) Arc<Blocks>);

impl BlockProvider for Served {
    fn block(&self, cid: &Cid) -> Option<Bytes> {
        match Blocks::get(&self.0, cid) {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(%cid, error = %e, "a block that a peer wants cannot be read");
                None
            }
        }
    }
}

fn unread(cid: &Cid, error: BlocksError) -> SourceError {
    match error {
        BlocksError::Corrupt { .. } => SourceError::Corrupt { cid: *cid },
        BlocksError::Unsupported { .. } => SourceError::NotFound { cid: *cid },
        other => SourceError::Io { cid: *cid, source: Arc::new(io::Error::other(other)) },
    }
}

fn unwritten(cid: &Cid, error: BlocksError) -> SinkError {
    match error {
        BlocksError::Full { .. } => SinkError::Full { cid: *cid },
        other => SinkError::Io { cid: *cid, source: Arc::new(io::Error::other(other)) },
    }
}
