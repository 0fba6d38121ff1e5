//! A damaged log is healed from another keeper: the commits it lost are fetched, and proved by those that it still has.
//!
//! A commit names the one before it, so what can be read behind the damage proves what was lost, whoever brings it. The healed log
//! is the one that it was, with everything this host ever acknowledged: it may vote again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remora_cluster::identity::PeerId;
use remora_cluster::message::{COMMIT_BYTES_MAX, Message};
use remora_cluster::tip::{CommitId, Tip};
use remora_store::fault::chain as cause;
use remora_store::frame::FrameMeta;
use remora_volume::commit::Commit;

use crate::keepers::chain::{frame_of, tip_of};
use crate::keepers::desk::Keepers;
use crate::keepers::kept::Kept;

/// How often damaged logs are looked after.
pub(crate) const EVERY: Duration = Duration::from_secs(3);

/// Bytes of commits that are held in memory for one log at most.
const LOST_BYTES_MAX: usize = 1 << 30;

/// Looks after damaged logs once.
pub(crate) fn round(keepers: &Arc<Keepers>) {
    for kept in keepers.all().into_iter().filter(|kept| kept.log().is_read_only()) {
        for peer in kept.partners() {
            match heal(keepers, &kept, peer) {
                Ok(n) => {
                    let from = keepers.members().name_of(&peer);
                    tracing::info!(volume = %kept.id(), commits = n, from, "a damaged log is healed");
                    break;
                }
                Err(why) => {
                    tracing::debug!(volume = %kept.id(), from = %peer, why, "a damaged log is not healed");
                }
            }
        }
    }
}

/// Fetches from `peer` what the log lost, and opens it anew; answers how many commits came.
fn heal(keepers: &Arc<Keepers>, kept: &Arc<Kept>, peer: PeerId) -> Result<usize, String> {
    let behind = kept.log().behind_damage().map_err(|e| cause(&e))?;
    let (last, digest) = behind.last_key_value().ok_or("too much of it is gone")?;
    let commits = fetch(keepers, kept, peer, *last)?;
    check(kept.durable_tip(), &commits, digest)?;
    let n = commits.len();
    kept.log().heal(&mut commits.into_iter().map(frame)).map_err(|e| cause(&e))?;
    keepers.reopen(&kept.id()).map_err(|failure| failure.text)?;
    Ok(n)
}

fn fetch(keepers: &Keepers, kept: &Kept, peer: PeerId, last: u64) -> Result<Vec<Commit>, String> {
    let mut commits: Vec<Commit> = Vec::new();
    let (mut after, mut bytes) = (kept.durable_tip(), 0);
    while after.seq < last {
        let bytes_max = u32::try_from(COMMIT_BYTES_MAX).unwrap_or(u32::MAX);
        let answer = keepers.ask(kept.id(), peer, Message::FetchLog { after, bytes_max });
        let Some(Message::LogChunk(chunk)) = answer else { return Err("it sent no chain".into()) };
        if chunk.checkpoint.is_some() {
            return Err("it has dropped that part of the chain".into());
        }
        let before = commits.len();
        for part in chunk.commits {
            let commit = Commit::decode(Bytes::from(part.into_vec())).map_err(|e| cause(&e))?;
            if commit.header.seq != after.seq + 1 || commit.header.seq > last {
                break;
            }
            bytes += commit.bytes.len();
            after = tip_of(&commit);
            commits.push(commit);
        }
        if commits.len() == before || bytes > LOST_BYTES_MAX {
            return Err(format!("{bytes} bytes of commits do not lead to commit {last}"));
        }
    }
    Ok(commits)
}

/// Each commit names the one before it, the first one the end of what is whole, and the last one is one that was here.
fn check(whole: Tip, commits: &[Commit], digest: &[u8; 32]) -> Result<(), String> {
    let is_joined =
        whole.seq == 0 || commits.first().is_some_and(|first| CommitId(first.header.prev) == whole.id);
    let is_chain = commits.windows(2).all(|pair| pair[1].header.prev == pair[0].digest);
    let is_ours = commits.last().is_some_and(|last| last.digest == *digest);
    if is_joined && is_chain && is_ours { Ok(()) } else { Err("it is on another chain".into()) }
}

fn frame(commit: Commit) -> (FrameMeta, Vec<u8>) {
    (frame_of(&commit), commit.bytes.to_vec())
}
