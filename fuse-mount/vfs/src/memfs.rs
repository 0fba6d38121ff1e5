//! An in-memory file system.
