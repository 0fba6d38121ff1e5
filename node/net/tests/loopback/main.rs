//! Hosts on loopback, over real TCP: what a member, a stranger and an attacker can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod blocks;
mod hosts;
mod membership;
mod requests;
mod strangers;
