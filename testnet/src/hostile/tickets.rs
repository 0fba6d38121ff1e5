//! Tickets that were used, have expired, or were garbled on their way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::hostile::{Cases, check_alive};
use crate::nodes::Node;

pub(super) fn run(cases: &mut Cases, dir: &Path) -> Result<()> {
    let mut founder = Node::init(dir, "founder")?;
    founder.start()?;
    let pid = founder.pid();
    let used = founder.ok(&["ticket"])?.trim().to_owned();
    let expired = founder.ok(&["ticket", "--expires", "1s"])?.trim().to_owned();
    join(&Node::place(dir, "first"), &used)?;
    let late = Node::place(dir, "late");
    let try_join =
        |ticket: &str| late.run(&["join", ticket, "--name", "late", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    cases.refused(
        "join with a used ticket",
        &try_join(&used)?,
        5,
        &["was used", "each ticket lets one host in"],
    )?;
    std::thread::sleep(Duration::from_millis(1100));
    cases.refused("join with an expired ticket", &try_join(&expired)?, 2, &["expired", "remora ticket"])?;
    let fresh = founder.ok(&["ticket"])?.trim().to_owned();
    for (what, text) in garbled(&fresh)? {
        cases.refused(&format!("join with a ticket {what}"), &try_join(&text)?, 2, &["ticket"])?;
    }
    let out = founder.run(&["ticket", "--expires", "0s"])?;
    cases.refused("ticket that lives 0 s", &out, 2, &["ticket lives"])?;
    let out = founder.run(&["ticket", "--expires", "1000d"])?;
    cases.refused("ticket that lives 1,000 days", &out, 2, &["ticket lives"])?;
    let members = founder.json(&["status"])?["members"].clone();
    ensure!(members.as_u64() == Some(2), "after one good join the cluster has {members} members");
    // What was refused left nothing in the way: the same directory joins with a good ticket.
    join(&late, &fresh)?;
    cases.row("the same host with a good ticket", "joined");
    check_alive(&founder, pid)?;
    let orphan = founder.ok(&["ticket"])?.trim().to_owned();
    founder.stop()?;
    let alone = Node::place(dir, "alone");
    let out = alone.run(&["join", &orphan, "--name", "alone", "--listen", "/ip4/127.0.0.1/tcp/0"])?;
    cases.refused("join while the issuer is away", &out, 8, &["does not answer"])
}

fn join(node: &Node, ticket: &str) -> Result<()> {
    node.ok(&["join", ticket, "--name", &node.name, "--listen", "/ip4/127.0.0.1/tcp/0"]).map(drop)
}

/// One wrong character, a part cut off, one of another kind, something else.
fn garbled(ticket: &str) -> Result<Vec<(&'static str, String)>> {
    let middle = ticket.len() / 2;
    let found = ticket.as_bytes().get(middle).context("the ticket is empty")?;
    let other = if *found == b'a' { "b" } else { "a" };
    let changed = [&ticket[..middle], other, &ticket[middle + 1..]].concat();
    ensure!(changed != ticket, "nothing was changed");
    Ok(vec![
        ("with one wrong character", changed),
        ("cut in half", ticket[..middle].to_owned()),
        ("that is 1 MiB long", ticket.repeat(400)),
        ("that is none", "please let me in".to_owned()),
        ("that is empty", String::new()),
    ])
}
