//! Containers move between two hosts with a real Docker engine each, and their data with them: `remora-testnet move`.
//!
//! What is compared is compared with something the volume had no part in: trees with their original on the machine's own disk,
//! databases with their own checks and with what they said before they moved.

mod pair;
mod words;
mod trees;
mod databases;
mod sharing;

use std::fmt::Display;

use anyhow::{Context, Result};

use crate::exe;
use crate::hosts::images::{self, Image};
use crate::moving::pair::Pair;
use crate::report::Report;

/// Everything a containers' user does, on two hosts; `short` leaves out the long loads. Leaves nothing behind.
///
/// # Errors
/// What did not hold, with the last words of both daemons; or what this machine lacks, with what to type.
pub fn run(short: bool) -> Result<()> {
    exe::check_fuse()?;
    let scale = Scale::of(short);
    let mut report = Report::new("Remora move: containers go from one host to another, their data with them");
    let mut images = None;
    report.step("images made of this machine's packages, without a registry", 2, |bar| {
        let busybox = images::busybox()?;
        bar.inc(1);
        let debian = images::debian()?;
        images = Some([busybox, debian]);
        anyhow::Ok("busybox; Debian with PostgreSQL 15, Redis, SQLite")
    })?;
    let images: [Image; 2] = images.context("the images are made")?;
    let mut pair = None;
    report.step("two hosts, a daemon and a Docker engine each", 2, |bar| {
        pair = Some(Pair::start(&images, &|| bar.inc(1))?);
        anyhow::Ok(format!("{} and {}", pair::X, pair::Y))
    })?;
    let mut pair = pair.context("the hosts are up")?;
    let moved = steps(&mut report, &pair, &images, &scale);
    let moved = moved.map_err(|e| e.context(pair.last_words()));
    moved?;
    report.step("engines and daemons stopped", 2, |bar| {
        pair.stop(&|| bar.inc(1))?;
        anyhow::Ok("all by themselves")
    })?;
    report.close();
    Ok(())
}

/// How much there is of everything.
struct Scale {
    files: u64,
    sqlite_transactions: u64,
    redis_keys: u64,
    pgbench_scale: u64,
    pgbench_seconds: u64,
    increments: u64,
}

impl Scale {
    fn of(short: bool) -> Scale {
        if short {
            Scale {
                files: 5000,
                sqlite_transactions: 200,
                redis_keys: 10_000,
                pgbench_scale: 1,
                pgbench_seconds: 5,
                increments: 100,
            }
        } else {
            Scale {
                files: 5000,
                sqlite_transactions: 1000,
                redis_keys: 100_000,
                pgbench_scale: 10,
                pgbench_seconds: 20,
                increments: 500,
            }
        }
    }
}

fn steps(report: &mut Report, pair: &Pair, images: &[Image; 2], scale: &Scale) -> Result<()> {
    let mut step = Steps { report, pair };
    step.take("a volume shows on the other host, with options and labels", words::shown_before_it_is_used)?;
    step.take("written on X, read on Y", words::written_and_read)?;
    step.take("an unknown option is refused with the list", words::unknown_option)?;
    step.take("run and rm on Y while X uses the volume", words::refused_while_held)?;
    step.take("a tree with one of everything, compared to the last attribute", |p| {
        trees::tree(p, scale.files)
    })?;
    step.take("copy-up from the image", |p| trees::copy_up(p, &images[0]))?;
    step.take("--volumes-from backup by tar, restored elsewhere", trees::backup)?;
    step.take("two containers of a host under one flock", |p| sharing::flock(p, scale.increments))?;
    step.take("docker cp, in and out of a running container", sharing::copy)?;
    step.take("SQLite", |p| databases::sqlite(p, scale.sqlite_transactions))?;
    step.take("Redis, append-only", |p| databases::redis(p, scale.redis_keys))?;
    step.take("PostgreSQL 15, pgbench", |p| {
        databases::postgres(p, scale.pgbench_scale, scale.pgbench_seconds)
    })
}

struct Steps<'a> {
    report: &'a mut Report,
    pair: &'a Pair,
}

impl Steps<'_> {
    fn take<T: Display>(&mut self, what: &str, work: impl FnOnce(&Pair) -> Result<T>) -> Result<()> {
        self.report.step(what, 1, |_| work(self.pair).with_context(|| what.to_owned()))
    }
}
