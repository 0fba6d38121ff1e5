//! Notifications to the kernel: what it must forget.
