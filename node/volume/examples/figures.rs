//! What a volume costs over the disk under it: `cargo run --release -p remora-volume --example figures -- DIR`.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use remora_dag::block::BlockSink;
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::{Disk, RealDisk};
use remora_store::file_header::FileKind;
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogOptions};
use remora_vfs::attr::{Ino, NewNode, ROOT_INO, Timestamp};
use remora_vfs::filesystem::{Caller, Filesystem};
use remora_volume::commit::digest_in;
use remora_volume::tree::genesis;
use remora_volume::volume::Volume;
use remora_volume::volume::options::{Base, VolumeOptions};

type Answer<T> = Result<T, Box<dyn std::error::Error>>;

const ROUNDS: u64 = 2000;
const NOW: Timestamp = Timestamp(1);
const CALLER: Caller = Caller { uid: 0, gid: 0 };

fn main() -> Answer<()> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("name a directory")?);
    std::fs::create_dir_all(&dir)?;
    let volume = Arc::new(open(&dir)?);
    for round in 0..3u64 {
        let raw = p50(&mut raw_commits(&dir)?);
        let ours = p50(&mut commits(&volume, format!("commits{round}").as_bytes())?);
        println!("4 KiB write and sync, p50: raw {raw:.1} us, volume {ours:.1} us");
    }
    group(&volume)?;
    creates(&volume)?;
    bulk(&volume)?;
    let start = Instant::now();
    let (tree, upto) = volume.checkpoint()?;
    println!("checkpoint up to {upto}: {:.0} ms, {tree}", start.elapsed().as_secs_f64() * 1e3);
    volume.close()?;
    Ok(())
}

fn open(dir: &Path) -> Answer<Volume> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let index = IndexKind::Sled(dir.join("index"));
    let blocks = Arc::new(Blocks::open(disk.clone(), &dir.join("packs"), BlocksOptions::new(index))?);
    let (tree, made) = genesis(0, 0, 0o755, NOW)?;
    made.into_iter().try_for_each(|block| BlockSink::put(&*blocks, block))?;
    blocks.sync()?;
    let tree = *tree.to_block().cid();
    let digest = digest_in(&tree).ok_or("a tree is named by sha2-256")?;
    let options = LogOptions::new(FileKind::VolumeLog, [1; 16]);
    let (log, _) = Log::open(disk, &dir.join("log"), options, &mut |_| Ok(()))?;
    let base = Base { tree, seq: 0, term: 0, digest };
    Ok(Volume::open(VolumeOptions::new([1; 16], 1, Arc::new(log), blocks, base))?)
}

fn make(volume: &Volume, name: &[u8]) -> Answer<Ino> {
    Ok(volume.make(CALLER, ROOT_INO, name, &NewNode::File, 0o644, NOW)?.ino)
}

fn sync(volume: &Volume, ino: Ino) -> Answer<()> {
    let (sender, receiver) = sync_channel(1);
    volume.fsync(
        ino,
        true,
        Box::new(move |reply| {
            let _ = sender.send(reply);
        }),
    );
    Ok(receiver.recv()??)
}

fn p50(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn raw_commits(dir: &Path) -> Answer<Vec<f64>> {
    let path = dir.join("raw");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    file.write_all_at(&vec![0; 4096 * ROUNDS as usize], 0)?;
    file.sync_all()?;
    let page = [7; 4096];
    (0..ROUNDS)
        .map(|i| {
            let start = Instant::now();
            file.write_all_at(&page, i * 4096)?;
            file.sync_data()?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn commits(volume: &Volume, name: &[u8]) -> Answer<Vec<f64>> {
    let ino = make(volume, name)?;
    let page = [7; 4096];
    (0..ROUNDS)
        .map(|i| {
            let start = Instant::now();
            volume.write(ino, i * 4096, &page, NOW)?;
            sync(volume, ino)?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn group(volume: &Arc<Volume>) -> Answer<()> {
    let before = volume.tip().seq;
    let start = Instant::now();
    let threads: Vec<_> = (0..8u8)
        .map(|i| {
            let volume = volume.clone();
            std::thread::spawn(move || {
                commits(&volume, &[b'g', b'0' + i]).map(drop).map_err(|error| error.to_string())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a writer panicked")??;
    }
    let n = (8 * ROUNDS) as f64;
    let n_commits = volume.tip().seq - before;
    println!("8 writers: {:.0} fsync/s in {n_commits} commits", n / start.elapsed().as_secs_f64());
    Ok(())
}

fn creates(volume: &Volume) -> Answer<()> {
    let n = 100_000;
    let start = Instant::now();
    for i in 0..n {
        make(volume, format!("file-{i}").as_bytes())?;
    }
    println!("create: {:.0}/s", f64::from(n) / start.elapsed().as_secs_f64());
    Ok(())
}

fn bulk(volume: &Volume) -> Answer<()> {
    let ino = make(volume, b"bulk")?;
    let mut chunk = vec![3u8; 1 << 20];
    let start = Instant::now();
    for i in 0..512u64 {
        chunk[..8].copy_from_slice(&i.to_le_bytes());
        for (part, bytes) in chunk.chunks(128 << 10).enumerate() {
            volume.write(ino, (i << 20) + ((part as u64) << 17), bytes, NOW)?;
        }
    }
    sync(volume, ino)?;
    println!("512 MiB in writes of 128 KiB, synced: {:.0} MiB/s", 512.0 / start.elapsed().as_secs_f64());
    Ok(())
}
