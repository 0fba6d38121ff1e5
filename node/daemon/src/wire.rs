//! What the command and the daemon say to one another over the API socket (JSON, and record streams).

use serde::{Deserialize, Serialize};

use crate::exit::Code;

/// An answer that is an error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: String,
    pub(crate) code: Code,
}

/// `remora status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) peer: String,
    pub(crate) cluster: String,
    pub(crate) pid: u32,
    pub(crate) uptime_secs: u64,
    pub(crate) listen: Vec<String>,
    pub(crate) docker_plugin: Option<String>,
    pub(crate) members: usize,
    pub(crate) connected: usize,
    pub(crate) store: StoreStat,
    pub(crate) volumes: Vec<VolumeState>,
    /// Sentences an operator should read.
    pub(crate) warnings: Vec<String>,
}

/// Figures of the block store.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StoreStat {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) packs: u64,
    pub(crate) free_bytes: u64,
}

/// One member as this host sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) zone: String,
    pub(crate) roles: String,
    pub(crate) this_host: bool,
    pub(crate) connected: bool,
    pub(crate) rtt_us: Option<u64>,
    pub(crate) addresses: Vec<String>,
}

/// A volume as this host sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VolumeState {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) created: String,
    /// "quorum" or "local".
    pub(crate) durability: String,
    pub(crate) replicas: u8,
    pub(crate) size_limit: Option<u64>,
    /// Whether it has POSIX ACLs.
    #[serde(default)]
    pub(crate) acl: bool,
    /// Names of the hosts that keep it.
    pub(crate) keepers: Vec<String>,
    /// The host that writes it, with the time since when (RFC 3339).
    pub(crate) holder: Option<Holder>,
    /// Set while it is mounted on this host.
    pub(crate) here: Option<Here>,
    /// What this host has of it; set on its keepers, a few seconds after they heard of it.
    #[serde(default)]
    pub(crate) copy: Option<LocalCopy>,
}

/// What a keeper has of a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LocalCopy {
    /// The newest commit known here.
    pub(crate) seq: u64,
    /// All of it, up to the newest commit known here, is on this host's disk.
    pub(crate) complete: bool,
    /// Blocks that could not be had at the last attempt; none before the first one.
    pub(crate) missing_blocks: Option<u64>,
    /// Trees of checkpoints that this host made from its log, since the daemon began.
    #[serde(default)]
    pub(crate) trees_made: u64,
    /// Bytes of operations in them, which did not cross the network again.
    #[serde(default)]
    pub(crate) made_bytes: u64,
    /// Trees of checkpoints that came out different here, and were fetched; anything but 0 is a fault.
    #[serde(default)]
    pub(crate) trees_different: u64,
    /// Bytes of blocks that were fetched behind the log, since the daemon began.
    #[serde(default)]
    pub(crate) fetched_bytes: u64,
}

/// Who writes a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) host: String,
    pub(crate) since: String,
}

/// A volume mounted on this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Here {
    pub(crate) mounts: Vec<String>,
    pub(crate) term: u32,
    pub(crate) seq: u64,
    pub(crate) durable_seq: u64,
    pub(crate) log_bytes: u64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Commits the slowest keeper lacks.
    pub(crate) lag_commits: u64,
    /// Why the volume stepped down, if it did.
    pub(crate) failed: Option<String>,
    /// What to do about it.
    #[serde(default)]
    pub(crate) advice: Option<String>,
}

/// `remora volume create`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CreateVolume {
    pub(crate) name: String,
    pub(crate) replicas: Option<u8>,
    pub(crate) durability: Option<String>,
    pub(crate) size: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: Option<String>,
    /// Whether it has POSIX ACLs.
    #[serde(default)]
    pub(crate) acl: bool,
}

/// `remora volume mount`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountVolume {
    pub(crate) dir: String,
    pub(crate) read_only: bool,
}

/// `remora volume unmount`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UnmountDir {
    pub(crate) dir: String,
}

/// `remora ticket`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TicketWish {
    pub(crate) witness: bool,
    pub(crate) expires_secs: u64,
}

/// A join ticket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TicketLine {
    pub(crate) ticket: String,
}

/// One line of `remora ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) cid: String,
    pub(crate) kind: String,
    pub(crate) size: u64,
}

/// `remora stat`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeStat {
    pub(crate) cid: String,
    pub(crate) kind: String,
    /// Bytes of a file; entries of a directory.
    pub(crate) size: u64,
    /// Bytes of all blocks below and with it, as its links say.
    pub(crate) dag_bytes: u64,
    /// Whether the root block is on this host.
    pub(crate) local: bool,
}

/// A root that `remora add` made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Added {
    pub(crate) name: String,
    pub(crate) cid: String,
    pub(crate) size: u64,
}

/// What giving back space did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Collected {
    pub(crate) volumes_dropped: u64,
    pub(crate) packs_removed: u64,
    pub(crate) bytes_removed: u64,
    pub(crate) bytes_moved: u64,
    pub(crate) blocks_removed: u64,
    pub(crate) bytes_unused_left: u64,
    pub(crate) bytes_after: u64,
}

/// `remora store verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) damaged: Vec<String>,
}

/// A piece of a file tree on its way between command and daemon; each is framed by a `u32` length (little endian).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// What follows until the matching `Leave` is in this directory.
    Enter(Vec<u8>),
    /// Ends a directory.
    Leave,
    /// A file begins; its bytes follow as `Data`, then `End`.
    File(Vec<u8>),
    /// At most [`DATA_BYTES_MAX`] bytes.
    Data(Vec<u8>),
    /// Ends a file.
    End,
    /// A symlink: name and target.
    Symlink(Vec<u8>, Vec<u8>),
    /// The sender could not go on; the text is for the user.
    Failed(String),
}

/// The most bytes in one [`Record::Data`].
pub(crate) const DATA_BYTES_MAX: usize = 1 << 20;

/// The largest record on the wire.
const RECORD_BYTES_MAX: usize = DATA_BYTES_MAX + 4096;

impl Record {
    /// The frame for the wire.
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).unwrap_or_default();
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        frame
    }
}

/// Cuts records out of chunks of any size.
#[derive(Default)]
pub(crate) struct Deframer {
    buffer: Vec<u8>,
    start: usize,
}

impl Deframer {
    pub(crate) fn feed(&mut self, chunk: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole record; `None` until more is fed; an error if the stream is not one of records.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, String> {
        let rest = &self.buffer[self.start..];
        let Some(head) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(format!("a record of {length} bytes, at most {RECORD_BYTES_MAX} are allowed"));
        }
        let Some(body) = rest.get(4..4 + length) else { return Ok(None) };
        let record = postcard::from_bytes(body).map_err(|e| format!("a record that cannot be read: {e}"))?;
        self.start += 4 + length;
        Ok(Some(record))
    }

    /// Whether nothing is left over.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_any_cut_of_the_stream() {
        let records =
            vec![Record::Enter(b"d".to_vec()), Record::Data(vec![7; 5000]), Record::End, Record::Leave];
        let stream: Vec<u8> = records.iter().flat_map(Record::to_frame).collect();
        for step in [1, 3, 4096] {
            let (mut deframer, mut seen) = (Deframer::default(), Vec::new());
            for chunk in stream.chunks(step) {
                deframer.feed(chunk);
                while let Some(record) = deframer.next().unwrap() {
                    seen.push(record);
                }
            }
            assert_eq!(seen, records);
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn an_oversized_record_is_refused_before_it_is_held() {
        let mut deframer = Deframer::default();
        deframer.feed(&u32::MAX.to_le_bytes());
        assert!(deframer.next().is_err());
    }
}
