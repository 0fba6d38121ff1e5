//! `remora get`: a DAG becomes files and directories on disk.
//!
//! Content may come from anyone: names are checked to be names, nothing that exists is replaced, and symlinks are made
//! but never followed (a directory that is written into was made by this very run).

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use indicatif::ProgressBar;

use super::Global;
use crate::client::{escape, whole};
use crate::exit::{Code, Context, Failure};
use crate::wire::{Deframer, Record};

#[derive(Args)]
pub(crate) struct Get {
    /// CID, or CID/path/in/a/directory
    path: String,
    /// What to write [default: the last part of the path, in the current directory]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

impl Get {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let last = self.path.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.path).to_owned();
        let output = self.output.unwrap_or_else(|| PathBuf::from(last));
        if output.symlink_metadata().is_ok() {
            return Err(Failure::new(Code::Conflict, format!("{} exists already", output.display())));
        }
        let url = format!("/v1/dag/get?path={}", escape(&self.path));
        let mut body = global.client()?.send(Method::GET, &url, whole(Vec::new())).await?.into_body();
        let mut writer = Writer::new(output);
        let mut deframer = Deframer::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.doing(format_args!("read {}", self.path))?;
            if let Some(data) = frame.data_ref() {
                deframer.feed(data);
                while let Some(record) = deframer.next().map_err(Failure::failed)? {
                    writer.take(record)?;
                }
            }
        }
        writer.finish(deframer.is_empty())
    }
}

struct Writer {
    /// Directories that are open, outermost first.
    stack: Vec<PathBuf>,
    /// The name for the root, whatever the stream calls it.
    root: Option<PathBuf>,
    file: Option<(PathBuf, File)>,
    done: bool,
    bar: ProgressBar,
}

impl Writer {
    fn new(output: PathBuf) -> Self {
        Writer {
            stack: Vec::new(),
            root: Some(output),
            file: None,
            done: false,
            bar: ProgressBar::new_spinner(),
        }
    }

    fn place(&mut self, name: Vec<u8>) -> Result<PathBuf, Failure> {
        if let Some(root) = self.root.take() {
            return Ok(root);
        }
        let good =
            !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0);
        match self.stack.last() {
            Some(dir) if good => Ok(dir.join(std::ffi::OsString::from_vec(name))),
            Some(_) => Err(Failure::failed(format!("{:?} is no file name", String::from_utf8_lossy(&name)))),
            None => Err(Failure::failed("the daemon sent more than one root")),
        }
    }

    fn take(&mut self, record: Record) -> Result<(), Failure> {
        match record {
            Record::Enter(name) => {
                let path = self.place(name)?;
                std::fs::create_dir(&path).doing(format_args!("create {}", path.display()))?;
                self.stack.push(path);
            }
            Record::Leave => {
                self.stack.pop();
                self.done = self.stack.is_empty();
            }
            Record::File(name) => {
                let path = self.place(name)?;
                let file = File::create_new(&path).doing(format_args!("create {}", path.display()))?;
                self.file = Some((path, file));
            }
            Record::Data(data) => {
                let Some((path, file)) = &mut self.file else {
                    return Err(Failure::failed("the daemon sent bytes outside a file"));
                };
                file.write_all(&data).doing(format_args!("write {}", path.display()))?;
                self.bar.inc(data.len() as u64);
            }
            Record::End => {
                self.file = None;
                self.done = self.stack.is_empty();
            }
            Record::Symlink(name, target) => {
                let path = self.place(name)?;
                std::os::unix::fs::symlink(std::ffi::OsString::from_vec(target), &path)
                    .doing(format_args!("link {}", path.display()))?;
                self.done = self.stack.is_empty();
            }
            Record::Failed(text) => return Err(Failure::failed(text)),
        }
        Ok(())
    }

    fn finish(self, nothing_left: bool) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if self.done && nothing_left {
            return Ok(());
        }
        Err(Failure::failed("the daemon's answer was cut off: what was written is not complete"))
    }
}
