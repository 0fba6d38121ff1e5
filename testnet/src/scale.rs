//! `remora-testnet scale`: a volume with very many files, and one with a long log.
//!
//! Two shapes, the same number of files in directories of 1,000 and in a single one: made, listed, looked at, opened again after
//! a stop and after `kill -9`, moved to another node, removed; each beside the disk's own file system where that means
//! something. After every opening and the move, names and sizes of all files are compared with what was made.

mod figures;
mod opening;
mod shapes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::exe;
use crate::nodes::{Node, cluster};
use crate::report::seconds;
use crate::scale::figures::{Figures, Took, drop_kernel_names, forget_peak, kernel_inodes, timed};
use crate::scale::opening::{CLEAN_MAX, KILLED_MAX, open_again};
use crate::scale::shapes::Shape;

/// Files that are looked at or read at random.
const N_RANDOM: u64 = 20_000;

/// Files on the disk's own file system, at most: it is compared by the time of each, and a disk that discards takes long to remove many.
const N_NATIVE: u64 = 20_000;

/// How much of everything a run does.
pub struct Options {
    /// Files of each shape.
    pub files: u64,
    /// MiB of small writes in the log that is replayed.
    pub tail_mib: u64,
}

impl Options {
    /// The long form is what the goals are about; the short one takes less than a minute.
    #[must_use]
    pub fn new(is_short: bool, files: Option<u64>) -> Options {
        let (usual_files, tail_mib) = if is_short { (20_000, 128) } else { (1_000_000, 1024) };
        Options { files: files.unwrap_or(usual_files), tail_mib }
    }
}

/// Runs all of it.
pub fn run(options: &Options) -> Result<()> {
    exe::check_fuse()?;
    let mut figures = Figures::new();
    let dir_files = options.files.clamp(1, 1000);
    let shapes = [
        ("dirs", Shape { dirs: options.files / dir_files, dir_files }),
        ("one", Shape { dirs: 1, dir_files: options.files }),
    ];
    for (name, shape) in shapes {
        println!("{} files in {} directories", shape.files(), shape.dirs);
        figures.fact(name, &format!("{} directories of {} files", shape.dirs, shape.dir_files));
        let scratch = exe::scratch("scale")?;
        Life::begin(scratch.path(), name, shape)?.live(&mut figures)?;
    }
    println!("a log of {} MiB", options.tail_mib);
    let scratch = exe::scratch("scale")?;
    opening::measure(scratch.path(), options.tail_mib << 20, &mut figures)?;
    figures.close()
}

/// One volume, from its first file to its last.
struct Life {
    shape: Shape,
    scratch: PathBuf,
    native: PathBuf,
    /// The files on the volume.
    top: PathBuf,
    volume: String,
    x: Node,
}

impl Life {
    fn begin(scratch: &Path, name: &str, shape: Shape) -> Result<Life> {
        let mut x = cluster(scratch, &["x"])?.pop().context("one name makes one node")?;
        let volume = name.to_owned();
        x.ok(&["volume", "create", &volume])?;
        let top = x.mount(&volume)?.join("files");
        Ok(Life { shape, native: scratch.join("native"), scratch: scratch.to_owned(), top, volume, x })
    }

    fn live(mut self, figures: &mut Figures) -> Result<()> {
        let (shape, files) = (self.shape, self.shape.files());
        self.beside(figures, "made", files, &|shape, top| shape.make(top))?;
        drop_kernel_names()?;
        self.beside(figures, "names listed", files, &|shape, top| shape.list_names(top))?;
        drop_kernel_names()?;
        self.beside(figures, "listed with sizes", files, &|shape, top| shape.list_sizes(top))?;
        if let Some(n) = kernel_inodes() {
            figures.fact("inodes of FUSE in the kernel", &n.to_string());
        }
        drop_kernel_names()?;
        let n = N_RANDOM.min(files);
        self.beside(figures, "looked at, at random", n, &|shape, top| shape.stat(top, n, 1))?;
        self.beside(figures, "read, at random", n, &|shape, top| shape.read(top, n, 2))?;
        self.open_again(figures)?;
        let (mut y, top) = self.move_away(figures)?;
        let took = Took {
            n: files,
            volume: timed(|| shape.remove(&top))?,
            native: Some(self.each_native(files, &|shape, top| shape.remove(top))?),
        };
        figures.row("removed there", took, y.pid())?;
        y.stop()?;
        self.x.stop()
    }

    /// Does the same on the disk's own file system and on the volume.
    fn beside(
        &self,
        figures: &mut Figures,
        what: &str,
        n: u64,
        work: &dyn Fn(Shape, &Path) -> Result<()>,
    ) -> Result<()> {
        let native = self.each_native(n, work)?;
        forget_peak(self.pid()?)?;
        let volume = timed(|| work(self.shape, &self.top))?;
        figures.row(what, Took { n, volume, native: Some(native) }, self.x.pid())
    }

    /// The time of `n` things on the disk's own file system, which has fewer files: it is told from the time of each.
    fn each_native(&self, n: u64, work: &dyn Fn(Shape, &Path) -> Result<()>) -> Result<Duration> {
        let shape = self.shape.at_most(N_NATIVE);
        let took = timed(|| work(shape, &self.native))?;
        // What is done at random is done as often in both.
        let is_each = n == self.shape.files();
        Ok(if is_each { took.mul_f64(n as f64 / shape.files() as f64) } else { took })
    }

    fn pid(&self) -> Result<u32> {
        self.x.pid().context("the daemon is gone")
    }

    /// Stops the daemon and starts it again, then kills it and starts it again.
    fn open_again(&mut self, figures: &mut Figures) -> Result<()> {
        let (file, content) = self.shape.sample(&self.top);
        let files = self.shape.files();
        let stopped = timed(|| self.x.stop())?;
        figures.fact("stopped", &seconds(stopped));
        let took = open_again(&mut self.x, &file, &content)?;
        figures.against("opened after a stop", took, CLEAN_MAX, self.x.pid())?;
        let volume = timed(|| self.shape.list_sizes(&self.top))?;
        figures.row("listed with sizes after it", Took { n: files, volume, native: None }, self.x.pid())?;
        self.x.kill()?;
        let took = open_again(&mut self.x, &file, &content)?;
        figures.against("opened after kill -9", took, KILLED_MAX, self.x.pid())?;
        let volume = timed(|| self.shape.list_sizes(&self.top))?;
        figures.row("listed with sizes after it", Took { n: files, volume, native: None }, self.x.pid())
    }

    /// Moves the volume to a node that has never seen it. Answers the node and where the files are there.
    fn move_away(&mut self, figures: &mut Figures) -> Result<(Node, PathBuf)> {
        let mut y = Node::join(&self.scratch, "y", &self.x)?;
        y.start()?;
        for node in [&self.x, &y] {
            node.wait_until("the other node connected", |status| status["connected"].as_u64() == Some(1))?;
        }
        let blocks = |y: &Node| -> Result<u64> {
            y.json(&["store", "stat"])?["blocks"].as_u64().context("no count of blocks")
        };
        let mount = self.top.parent().context("the files are on a volume")?.to_owned();
        let began = Instant::now();
        self.x.unmount(&mount)?;
        let top = y.mount(&self.volume)?.join("files");
        let (file, content) = self.shape.sample(&top);
        let is_equal = std::fs::read(&file)? == content;
        let took = began.elapsed();
        anyhow::ensure!(is_equal, "{} is not what was written", file.display());
        figures.fact("blocks fetched for that", &blocks(&y)?.to_string());
        figures.row("moved to another node, and one file read", one(took), y.pid())?;
        let files = self.shape.files();
        let volume = timed(|| self.shape.list_sizes(&top))?;
        figures.row("listed with sizes there", Took { n: files, volume, native: None }, y.pid())?;
        figures.fact("blocks fetched for that", &blocks(&y)?.to_string());
        let n = N_RANDOM.min(files) / 20;
        let volume = timed(|| self.shape.read(&top, n, 3))?;
        figures.row("read there, at random", Took { n, volume, native: None }, y.pid())?;
        Ok((y, top))
    }
}

fn one(took: Duration) -> Took {
    Took { n: 1, volume: took, native: None }
}
