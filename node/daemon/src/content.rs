//! Immutable content: adding files as UnixFS, and reading what a CID names.

pub(crate) mod blocks;
pub(crate) mod add;
pub(crate) mod added;
pub(crate) mod browse;
pub(crate) mod send;
