//! `remora add`: files and directories become UnixFS DAGs in the daemon's store.
//!
//! The command reads the files, with the rights of whoever typed it, and streams them as records; the daemon chunks.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::{Global, render};
use crate::exit::{Context, Failure};
use crate::wire::{Added, DATA_BYTES_MAX, Record};

/// Records on their way to the daemon; enough to keep it busy, few enough to hold.
const RECORDS_IN_FLIGHT: usize = 8;

/// Directories within directories.
const DEPTH_MAX: usize = 256;

/// What the walk ends with when nobody takes its records any more.
const STOPPED: &str = "the daemon stopped taking the files";

#[derive(Args)]
pub(crate) struct Add {
    /// Files and directories; dot files are taken, symlinks are kept as symlinks
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// How content is cut into blocks; decides the CID
    #[arg(long, default_value = "unixfs-v1-2025", value_parser = ["unixfs-v1-2025", "unixfs-v0-2015", "kubo-v1-256k"])]
    profile: String,
    /// Print the root CIDs alone, one a line
    #[arg(short, long)]
    quiet: bool,
}

impl Add {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        for path in &self.paths {
            let added = self.add_one(global, path).await?;
            if global.json {
                render::json(&added)?;
            } else if self.quiet {
                render::line(&added.cid);
            } else {
                render::line(&format!("{}  {}", added.cid, render::printable(&added.name)));
            }
        }
        Ok(())
    }

    async fn add_one(&self, global: &Global, path: &Path) -> Result<Added, Failure> {
        let name = root_name(path)?;
        let bar = progress(&String::from_utf8_lossy(&name));
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(RECORDS_IN_FLIGHT);
        let walker = Walker { sender, bar: bar.clone() };
        let root = path.to_path_buf();
        let walk = tokio::task::spawn_blocking(move || walker.root(&root, name));
        let stream =
            futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|frame| (frame, r)) });
        let body = BodyExt::boxed(StreamBody::new(stream));
        let sent =
            global.client()?.send(Method::POST, &format!("/v1/dag/add?profile={}", self.profile), body).await;
        let walked = walk.await.doing("walk the files")?;
        bar.finish_and_clear();
        let sent = match (walked, sent) {
            (Ok(()), sent) => sent?,
            // Why the daemon stopped, it says itself.
            (Err(own), Err(said)) if own.text == STOPPED => return Err(said),
            // What went wrong on this side explains what the daemon then said.
            (Err(own), _) => return Err(own),
        };
        let body = sent.into_body().collect().await.doing("read the daemon's answer")?.to_bytes();
        serde_json::from_slice(&body).doing("read the daemon's answer")
    }
}

/// The last part of the path, also of `.` and `dir/`.
fn root_name(path: &Path) -> Result<Vec<u8>, Failure> {
    let resolved = match path.file_name() {
        Some(_) => path.to_path_buf(),
        None => path.canonicalize().doing(format_args!("resolve {}", path.display()))?,
    };
    Ok(resolved.file_name().map_or_else(|| b"root".to_vec(), |n| n.as_bytes().to_vec()))
}

fn progress(name: &str) -> ProgressBar {
    // indicatif draws on stderr, and only when that is a terminal.
    let bar = ProgressBar::new_spinner().with_message(render::printable(name));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {bytes} {binary_bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

struct Walker {
    sender: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    bar: ProgressBar,
}

impl Walker {
    fn root(&self, path: &Path, name: Vec<u8>) -> Result<(), Failure> {
        let result = self.node(path, name, 0);
        if let Err(failure) = &result {
            // The daemon must not take a cut stream for a whole tree.
            let _gone = self.emit(&Record::Failed(failure.text.clone()));
        }
        result
    }

    fn node(&self, path: &Path, name: Vec<u8>, depth: usize) -> Result<(), Failure> {
        if depth > DEPTH_MAX {
            return Err(Failure::failed(format!(
                "{}: more than {DEPTH_MAX} directories deep",
                path.display()
            )));
        }
        let kind =
            std::fs::symlink_metadata(path).doing(format_args!("look at {}", path.display()))?.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(path).doing(format_args!("read link {}", path.display()))?;
            self.emit(&Record::Symlink(name, target.into_os_string().into_vec()))
        } else if kind.is_dir() {
            self.directory(path, name, depth)
        } else if kind.is_file() {
            self.file(path, name)
        } else {
            Err(Failure::failed(format!(
                "{}: only files, directories and symlinks can be added",
                path.display()
            )))
        }
    }

    fn directory(&self, path: &Path, name: Vec<u8>, depth: usize) -> Result<(), Failure> {
        self.emit(&Record::Enter(name))?;
        let list =
            || std::fs::read_dir(path)?.map(|e| Ok(e?.file_name())).collect::<std::io::Result<Vec<_>>>();
        let mut names = list().doing(format_args!("list {}", path.display()))?;
        names.sort();
        for child in names {
            self.node(&path.join(&child), child.into_vec(), depth + 1)?;
        }
        self.emit(&Record::Leave)
    }

    fn file(&self, path: &Path, name: Vec<u8>) -> Result<(), Failure> {
        let mut file = File::open(path).doing(format_args!("open {}", path.display()))?;
        self.emit(&Record::File(name))?;
        loop {
            let mut data = Vec::with_capacity(DATA_BYTES_MAX);
            let limit = DATA_BYTES_MAX as u64;
            let n = (&mut file)
                .take(limit)
                .read_to_end(&mut data)
                .doing(format_args!("read {}", path.display()))?;
            if n == 0 {
                return self.emit(&Record::End);
            }
            self.bar.inc(n as u64);
            self.emit(&Record::Data(data))?;
        }
    }

    fn emit(&self, record: &Record) -> Result<(), Failure> {
        self.sender
            .blocking_send(Ok(Frame::data(Bytes::from(record.to_frame()))))
            .map_err(|_| Failure::failed(STOPPED))
    }
}
