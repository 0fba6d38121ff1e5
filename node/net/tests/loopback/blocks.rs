//! The exchange of blocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cid::Cid;
use futures::future::join_all;
use remora_cluster::identity::PeerId;
use remora_dag::block::{Block, BlockSink, BlockSource, Codec, MemBlocks};
use remora_net::block_frames::HaveBuilder;
use remora_net::exchange::{Exchange, FetchError, Providers};
use remora_net::identity::Identity;

use crate::hosts::{Blocks, Host, friends};

fn block(seed: usize, len: usize) -> Block {
    let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(seed + 7) ^ seed).to_le_bytes()[0]).collect();
    let mut bytes = bytes;
    bytes.extend_from_slice(&seed.to_le_bytes());
    Block::seal(Codec::Raw, bytes.into())
}

fn asking(host: &Host, peers: &[PeerId]) -> Exchange {
    let peers = peers.to_vec();
    let providers: Providers = Arc::new(move |_| peers.clone());
    Exchange::new(host.net.clone(), providers)
}

fn holding(host: &Host, blocks: &[Block]) -> Arc<MemBlocks> {
    let store = Arc::new(MemBlocks::new());
    for block in blocks {
        store.put(block.clone()).unwrap();
    }
    host.say_blocks(Blocks::Honest(store.clone()));
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_block_is_rejected_and_fetched_from_another() {
    let hosts = friends(3).await;
    let wanted = block(1, 5000);
    let mut forged = HaveBuilder::new(u32::MAX);
    forged.push(Some(&Bytes::from_static(b"not what you asked for")));
    hosts[1].say_blocks(Blocks::Forged(forged.finish()));
    holding(&hosts[2], std::slice::from_ref(&wanted));
    let exchange = asking(&hosts[0], &[hosts[1].id(), hosts[2].id()]);
    assert_eq!(exchange.fetch(*wanted.cid()).await.unwrap(), wanted);
    assert_eq!(hosts[1].rules.block_requests.load(Ordering::Relaxed), 1);

    // From now on the liar is asked last.
    let more: Vec<Block> = (10..20).map(|seed| block(seed, 100)).collect();
    holding(&hosts[2], &more);
    for block in &more {
        assert_eq!(exchange.fetch(*block.cid()).await.unwrap(), *block);
    }
    assert_eq!(hosts[1].rules.block_requests.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_instead_of_blocks_is_no_answer() {
    let hosts = friends(2).await;
    let exchange = asking(&hosts[0], &[hosts[1].id()]);
    let nonsense: [&[u8]; 5] = [b"", b"\x01", b"\x02\0", b"\x01\x01\xff\xff\xff\xff", b"\x01\x07"];
    for (seed, bytes) in nonsense.into_iter().enumerate() {
        hosts[1].say_blocks(Blocks::Forged(Bytes::from_static(bytes)));
        let result = exchange.fetch(*block(seed, 10).cid()).await;
        assert!(matches!(result, Err(FetchError::NotFound { asked: 1, .. })), "{bytes:?}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_wants_are_one_request() {
    let hosts = friends(2).await;
    let wanted = block(3, 100_000);
    holding(&hosts[1], std::slice::from_ref(&wanted));
    let exchange = asking(&hosts[0], &[hosts[1].id()]);
    let fetches = (0..100).map(|_| exchange.fetch(*wanted.cid()));
    for result in join_all(fetches).await {
        assert_eq!(result.unwrap(), wanted);
    }
    let requests = hosts[1].rules.block_requests.load(Ordering::Relaxed);
    // One in nearly all runs; the last of a hundred may come after the first was answered.
    assert!(requests < 10, "{requests} requests for one block");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_blocks_arrive_and_the_missing_are_named() {
    let hosts = friends(3).await;
    let lengths = |seed: usize| if seed.is_multiple_of(50) { 1 << 20 } else { seed };
    let all: Vec<Block> = (0..600).map(|seed| block(seed, lengths(seed))).collect();
    holding(&hosts[1], &all[..400]);
    holding(&hosts[2], &all[300..590]);
    let sink = Arc::new(MemBlocks::new());
    let exchange = asking(&hosts[0], &[hosts[1].id(), hosts[2].id()]);
    let fetched = exchange.fetch_many(all.iter().map(|block| *block.cid()), sink.clone()).await.unwrap();
    assert_eq!(fetched.n_blocks, 590);
    assert_eq!(sink.len(), 590);
    let mut missing: Vec<Cid> = fetched.missing.iter().map(|(cid, _)| *cid).collect();
    let mut expected: Vec<Cid> = all[590..].iter().map(|block| *block.cid()).collect();
    missing.sort();
    expected.sort();
    assert_eq!(missing, expected);
    for block in &all[..590] {
        assert_eq!(sink.get(block.cid()).unwrap(), block.bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_may_block_fetches_too() {
    let hosts = friends(2).await;
    let wanted = block(4, 1 << 20);
    holding(&hosts[1], std::slice::from_ref(&wanted));
    let exchange = asking(&hosts[0], &[hosts[1].id()]);
    let cid = *wanted.cid();
    let thread = std::thread::spawn(move || (exchange.fetch_blocking(cid), exchange));
    let (result, exchange) = tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
    assert_eq!(result.unwrap(), wanted);
    hosts[0].net.stop().await;
    let after = tokio::task::spawn_blocking(move || exchange.fetch_blocking(cid)).await.unwrap();
    assert!(matches!(after, Err(FetchError::Stopped)), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preferred_are_asked_first_and_the_unreachable_are_passed_over() {
    let hosts = friends(3).await;
    let wanted = block(5, 1000);
    holding(&hosts[1], std::slice::from_ref(&wanted));
    holding(&hosts[2], std::slice::from_ref(&wanted));
    let away = Identity::generate().peer_id();
    let exchange = asking(&hosts[0], &[hosts[1].id()]).preferring(&[away, hosts[2].id()]);
    assert_eq!(exchange.fetch(*wanted.cid()).await.unwrap(), wanted);
    assert_eq!(hosts[1].rules.block_requests.load(Ordering::Relaxed), 0);
    assert_eq!(hosts[2].rules.block_requests.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_nobody_has_is_said_to_be_missing() {
    let hosts = friends(3).await;
    let exchange = asking(&hosts[0], &[hosts[1].id(), hosts[2].id()]);
    let result = exchange.fetch(*block(6, 10).cid()).await;
    assert!(matches!(result, Err(FetchError::NotFound { asked: 2, .. })), "{result:?}");
    let result = asking(&hosts[0], &[]).fetch(*block(6, 10).cid()).await;
    assert!(matches!(result, Err(FetchError::NoProvider { .. })), "{result:?}");
    let result = asking(&hosts[0], &[hosts[0].id()]).fetch(*block(6, 10).cid()).await;
    assert!(matches!(result, Err(FetchError::NoProvider { .. })), "nobody asks itself: {result:?}");
}

/// Prints a figure and asserts none: `cargo test --release -p remora-net --test loopback -- --ignored --nocapture speed`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a quiet machine"]
async fn speed_of_many_blocks_over_loopback() {
    let hosts = friends(2).await;
    let all: Vec<Block> = (0..512).map(|seed| block(seed, (1 << 20) - 8)).collect();
    holding(&hosts[1], &all);
    let exchange = asking(&hosts[0], &[hosts[1].id()]);
    let sink = Arc::new(MemBlocks::new());
    let started = std::time::Instant::now();
    let fetched = exchange.fetch_many(all.iter().map(|block| *block.cid()), sink).await.unwrap();
    let mib = fetched.bytes >> 20;
    println!("{mib} MiB in {:?}", started.elapsed());
}
