//! The adapter and mounts against the real kernel: takes `/dev/fuse` and root, and fails without them.

mod live {
    mod content;
    mod lifetime;
    mod names;
    mod scene;
}
