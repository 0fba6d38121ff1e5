//! The test network: proves what Remora promises, on one machine, as root.
//!
//! Rigs ([`nodes`]: daemons side by side; [`hosts`]: whole hosts with their own Docker engine), workloads with a ledger of
//! what was acknowledged ([`ledger`], [`workload`]), checkers ([`compare`]), and the commands that put them together.

mod process;
mod postgres;
pub mod exe;
pub mod nodes;
pub mod hosts;
pub mod compare;
pub mod ledger;
pub mod workload;
pub mod report;
pub mod demo;
pub mod restart;
pub mod sizes;
pub mod moving;
pub mod hostile;
pub mod corruption;
pub mod faults;
pub mod posix;
pub mod faultdisk;
pub mod crash;
pub mod bench;
pub mod scale;
pub mod soak;
pub mod simulate;
