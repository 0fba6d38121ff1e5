//! The adapter and mounts against the real kernel: takes `/dev/fuse` and root, and fails without them.

// The whole program is a test; clippy takes only functions marked as such for one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod live {
    mod acls;
    mod content;
    mod lifetime;
    mod names;
    mod scene;
}
