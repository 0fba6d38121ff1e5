//! `remora`: the daemon on every host, and the command that talks to it.
//!
//! This crate wires; it owns no rules. [`cli`] turns words into requests, `api` turns requests into calls, `run` starts
//! everything in order and stops it in reverse. It is a library only so that the test network can be one program with it.

mod allocator;
mod exit;
mod paths;
mod config;
mod wire;
mod client;
mod content;
mod members;
mod keepers;
mod volumes;
mod garbage;
mod engine;
mod api;
mod run;
pub mod cli;
