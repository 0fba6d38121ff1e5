//! What a live state still reads from that its base tree may no longer hold.

use cid::Cid;

use crate::extent::ExtentSource;
use crate::state::State;

impl State {
    /// The blocks and files that changed ranges refer to, in no order, some of them several times. A copy made while a tree was
    /// derived refers to what the tree before it held. Takes time in proportion to the extents.
    pub(crate) fn referred(&self) -> Vec<Cid> {
        let extents = self.table.values().filter_map(|inode| inode.extents());
        let sources = extents.flat_map(|extents| extents.iter().map(|(_, extent)| &extent.source));
        let cid_of = |source: &ExtentSource| match source {
            ExtentSource::Block { cid, .. } | ExtentSource::File { cid, .. } => Some(**cid),
            ExtentSource::Inline { .. } | ExtentSource::Zero => None,
        };
        sources.filter_map(cid_of).collect()
    }
}
