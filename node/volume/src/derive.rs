//! Deriving a tree.
use cid::Cid;
use remora_vfs::attr::Ino;
use crate::state::rebase::Changed;
use crate::tree::Tree;
/// A tree that was derived, and how it differs from the base.
#[derive(Clone, PartialEq, Debug)]
pub struct Derived {
    /// The tree.
    pub tree: Tree,
    /// Its CID.
    pub tree_cid: Cid,
    /// The inodes whose content or row is not what it was, by number.
    pub changed: Vec<(Ino, Changed)>,
}
