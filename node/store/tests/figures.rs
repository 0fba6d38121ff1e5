//! Prints figures; run alone, in release: `cargo test --release -p remora-store --test figures -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use remora_dag::block::{Block, Codec};
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::{Disk, OpenMode, RealDisk};
use remora_store::file_header::FileKind;
use remora_store::frame::{FrameKind, FrameMeta};
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogOptions};

fn micros(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let at = |q: f64| samples[((samples.len() - 1) as f64 * q) as usize];
    format!("p50 {:.1} us, p90 {:.1} us, p99 {:.1} us", at(0.5), at(0.9), at(0.99))
}

fn timed(n: usize, mut act: impl FnMut(usize)) -> Vec<f64> {
    (0..n)
        .map(|i| {
            let start = Instant::now();
            act(i);
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

fn raw_syncs(dir: &Path) -> impl FnMut(usize) + use<> {
    let file = RealDisk.open(&dir.join("raw"), OpenMode::CreateNew).unwrap();
    file.pwrite(0, &[&vec![0; 64 << 20]]).unwrap();
    file.sync_data().unwrap();
    let page = vec![7; 4096];
    move |i| {
        file.pwrite(i as u64 * 4096, &[&page]).unwrap();
        file.sync_data().unwrap();
    }
}

fn log_syncs(dir: &Path) -> impl FnMut(usize) + use<> {
    let options =
        LogOptions { segment_bytes_first: 64 << 20, ..LogOptions::new(FileKind::VolumeLog, [1; 16]) };
    let (log, _) = Log::open(Arc::new(RealDisk), &dir.join("log"), options, &mut |_| Ok(())).unwrap();
    let page = vec![7; 4096];
    move |i| {
        let meta =
            FrameMeta { kind: FrameKind::COMMIT, term: 1, seq: i as u64 + 1, codec: 0x71, digest: [0; 32] };
        log.append(&meta, &[&page]).unwrap();
        log.sync().unwrap();
    }
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let base = std::env::var_os("REMORA_FIGURES_DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).unwrap();
    let (mut raw, mut log) = (raw_syncs(dir.path()), log_syncs(dir.path()));
    let (mut raws, mut logs) = (Vec::new(), Vec::new());
    for round in 0..20 {
        raws.extend(timed(100, |i| raw(round * 100 + i)));
        logs.extend(timed(100, |i| log(round * 100 + i)));
    }
    println!("raw 4 KiB pwrite + fdatasync, preallocated: {}", micros(raws));
    println!("log 4 KiB append + sync:                    {}", micros(logs));
    put_and_get(dir.path());
}

fn put_and_get(dir: &Path) {
    let n = 512_usize;
    let blocks: Vec<Block> = (0..n)
        .map(|i| {
            let mut bytes = vec![i as u8; 1 << 20];
            bytes[..8].copy_from_slice(&i.to_le_bytes());
            Block::seal(Codec::Raw, Bytes::from(bytes))
        })
        .collect();
    let rate = |start: Instant| n as f64 / start.elapsed().as_secs_f64();
    let raw = RealDisk.open(&dir.join("raw_blocks"), OpenMode::CreateNew).unwrap();
    let start = Instant::now();
    for (i, block) in blocks.iter().enumerate() {
        raw.pwrite((i as u64) << 20, &[block.bytes()]).unwrap();
    }
    println!("raw 1 MiB pwrite:  {:.0} MiB/s", rate(start));
    let start = Instant::now();
    raw.sync_data().unwrap();
    println!("raw sync of those: {:.0} MiB/s", rate(start));
    let options = BlocksOptions::new(IndexKind::Sled(dir.join("index")));
    let store = Blocks::open(Arc::new(RealDisk), &dir.join("packs"), options).unwrap();
    let start = Instant::now();
    for block in &blocks {
        store.put(block.cid(), block.bytes()).unwrap();
    }
    println!("put 1 MiB:         {:.0} MiB/s", rate(start));
    let start = Instant::now();
    store.sync().unwrap();
    println!("sync of those:     {:.0} MiB/s", rate(start));
    let start = Instant::now();
    for block in &blocks {
        assert_eq!(store.get(block.cid()).unwrap().unwrap().len(), 1 << 20);
    }
    println!("get 1 MiB, hashed: {:.0} MiB/s", rate(start));
    let ranges = timed(2000, |i| {
        let block = &blocks[i * 7 % n];
        store.get_range(block.cid(), (i as u64 * 4096) % (1 << 20), 4096).unwrap().unwrap();
    });
    println!("get_range 4 KiB:   {}", micros(ranges));
    let small: Vec<Block> =
        (0..20_000_u64).map(|i| Block::seal(Codec::Raw, Bytes::from(i.to_le_bytes().repeat(32)))).collect();
    let start = Instant::now();
    for block in &small {
        store.put(block.cid(), block.bytes()).unwrap();
    }
    println!("put 256 B:         {:.0} blocks/s", small.len() as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    store.close().unwrap();
    println!("close:             {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let options = BlocksOptions::new(IndexKind::Sled(dir.join("index")));
    let start = Instant::now();
    drop(Blocks::open(Arc::new(RealDisk), &dir.join("packs"), options).unwrap());
    println!("open after close:  {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
}
