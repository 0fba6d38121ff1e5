//! Under the quorum rule a keeper's word is worth what is on its disk: blocks that commits refer to come before the acknowledgement.
//!
//! A backlog never stops a writer: what does not come in time is left for the next attempt, which finds the blocks that did come,
//! and the writer is answered often enough to keep its lease. What a majority has already is left to the work in the background.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cid::Cid;
use remora_cluster::config::Durability;
use remora_cluster::identity::PeerId;
use remora_dag::block::BlockSink;
use remora_store::fault::chain;
use remora_volume::commit::Commit;
use remora_volume::journal::blocks::BlockStore;

use crate::keepers::desk::Keepers;
use crate::keepers::kept::Kept;

/// No further block is asked for after this time; the writer's lease is 10 s from the sending of its request.
const ASK_TIME: Duration = Duration::from_millis(1500);

/// Blocks that have not come after this time are given up for this attempt.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Blocks that are fetched for one request at most: 64 MiB of full leaves.
const BLOCKS_MAX: usize = 64;

/// Brings the blocks that these commits of `from` refer to onto this disk; answers how many of the commits, from the first, may be
/// acknowledged.
///
/// *Errors*: nothing could be had, or the disk failed; none may be acknowledged.
pub(crate) fn ready(
    keepers: &Keepers,
    kept: &Kept,
    from: PeerId,
    commits: &[Commit],
    commit_seq: u64,
) -> Result<usize, String> {
    if kept.config().is_none_or(|config| config.durability != Durability::Quorum) {
        return Ok(commits.len());
    }
    let has = |cid: &Cid| keepers.blocks().store().keep(cid).map_err(|e| chain(&e));
    let plan = plan(commits, commit_seq, &has)?;
    if !plan.refers {
        return Ok(plan.n_commits);
    }
    if !plan.wanted.is_empty() {
        fetch(keepers, kept, from, plan.wanted.clone())?;
    }
    let commits = commits.get(..plan.n_commits).unwrap_or_default();
    let n = n_durable(commits, commit_seq, &has, &|| keepers.blocks().sync().map_err(|e| chain(&e)))?;
    if n > 0 || plan.wanted.iter().any(|cid| has(cid) == Ok(true)) {
        return Ok(n);
    }
    Err(format!("none of the {} blocks that its commits refer to could be had", plan.wanted.len()))
}

/// What is to be done for an Append.
struct Plan {
    /// The commits that are looked at.
    n_commits: usize,
    /// Whether any of them that is not committed refers to blocks.
    refers: bool,
    /// The blocks that are not here.
    wanted: Vec<Cid>,
}

fn plan(
    commits: &[Commit],
    commit_seq: u64,
    has: &dyn Fn(&Cid) -> Result<bool, String>,
) -> Result<Plan, String> {
    let mut plan = Plan { n_commits: 0, refers: false, wanted: Vec::new() };
    let mut seen = HashSet::new();
    for commit in commits {
        if plan.wanted.len() >= BLOCKS_MAX {
            break;
        }
        plan.n_commits += 1;
        if commit.header.seq <= commit_seq {
            continue;
        }
        for cid in &commit.data {
            plan.refers = true;
            if seen.insert(*cid) && !has(cid)? {
                plan.wanted.push(*cid);
            }
        }
    }
    // One commit alone may refer to more: what comes of it now need not come the next time.
    plan.wanted.truncate(BLOCKS_MAX);
    Ok(plan)
}

/// Commits, from the first, all of whose blocks are on this disk. They are counted first: what was given up on may still come, and a
/// block that comes after the sync began is here and not durable.
fn n_durable(
    commits: &[Commit],
    commit_seq: u64,
    has: &dyn Fn(&Cid) -> Result<bool, String>,
    sync: &dyn Fn() -> Result<(), String>,
) -> Result<usize, String> {
    let n = n_whole(commits, commit_seq, has)?;
    sync()?;
    Ok(n)
}

/// Commits, from the first, all of whose blocks are here.
fn n_whole(
    commits: &[Commit],
    commit_seq: u64,
    has: &dyn Fn(&Cid) -> Result<bool, String>,
) -> Result<usize, String> {
    for (n, commit) in commits.iter().enumerate() {
        if commit.header.seq <= commit_seq {
            continue;
        }
        for cid in &commit.data {
            if !has(cid)? {
                return Ok(n);
            }
        }
    }
    Ok(commits.len())
}

fn fetch(keepers: &Keepers, kept: &Kept, from: PeerId, wanted: Vec<Cid>) -> Result<(), String> {
    let Some(exchange) = keepers.blocks().exchange() else {
        return Err("the network does not run yet".into());
    };
    let mut first = vec![from];
    first.extend(kept.partners().into_iter().filter(|peer| *peer != from));
    let exchange = exchange.preferring(&first);
    let sink: Arc<dyn BlockSink> = Arc::clone(keepers.blocks()) as _;
    let began = Instant::now();
    let wanted = wanted.into_iter().take_while(move |_| began.elapsed() < ASK_TIME);
    let fetched = keepers
        .runtime()
        .block_on(async { tokio::time::timeout(TIME_MAX, exchange.fetch_many(wanted, sink)).await });
    match fetched {
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(e)) => Err(chain(&e)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use remora_cluster::tip::CommitId;
    use remora_vfs::attr::Timestamp;
    use remora_volume::commit::{CommitHeader, FLAG_END};

    use super::*;

    fn block(n: u8) -> Cid {
        CommitId([n; 32]).cid().unwrap()
    }

    fn commit(seq: u64, data: Vec<Cid>) -> Commit {
        let base = block(99);
        let time = Timestamp(1);
        let header = CommitHeader {
            volume: [7; 16],
            prev: [0; 32],
            term: 1,
            seq,
            base,
            base_seq: 0,
            flags: FLAG_END,
            time,
        };
        Commit::seal(header, b"ops", data).unwrap()
    }

    #[test]
    fn a_commit_is_acknowledged_only_if_all_its_blocks_came_before_the_sync() {
        let commits = [commit(1, vec![block(1)]), commit(2, vec![block(2)]), commit(3, vec![block(3)])];
        let here = RefCell::new(HashSet::from([block(1)]));
        let on_disk = RefCell::new(HashSet::new());
        let has = |cid: &Cid| Ok(here.borrow().contains(cid));
        let sync = || {
            *on_disk.borrow_mut() = here.borrow().clone();
            // What was asked for before, and given up, comes now.
            here.borrow_mut().extend([block(2), block(3)]);
            Ok(())
        };
        let n = n_durable(&commits, 0, &has, &sync).unwrap();
        assert!(
            commits[..n].iter().all(|commit| commit.data.iter().all(|cid| on_disk.borrow().contains(cid)))
        );
        assert_eq!(n, 1);
        assert_eq!(n_durable(&commits, 0, &has, &sync), Ok(3), "the next attempt finds them");
        assert_eq!(
            n_durable(&commits, 0, &has, &|| Err("the disk failed".into())),
            Err("the disk failed".into())
        );
    }
}
