//! Placeholder root; modules follow.
