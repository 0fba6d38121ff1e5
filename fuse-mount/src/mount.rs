//! Mounting and unmounting.
