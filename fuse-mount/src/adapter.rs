//! A kernel-facing adapter: FUSE requests in, calls of the file system trait out.
