//! What a volume may look like after a crash, told by the in-memory file system: requests, pictures of a tree, and the
//! history that a recovered tree has to be a part of.

#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod drawn;
pub mod history;
pub mod picture;
pub mod request;
