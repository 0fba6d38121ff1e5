//! Root CIDs that at least two other implementations agree on.

// A test may fail where it stands.
#![allow(clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use std::collections::BTreeMap;

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use remora_dag::block::{Block, BlockSink, Codec, MemBlocks};
use remora_dag::dagpb::Node;
use remora_dag::directory::{DirRoot, Entry, build_dir};
use remora_dag::file::{FileBuilder, FileRoot};
use remora_dag::import::TreeBuilder;
use remora_dag::profile::Profile;
use remora_dag::read::FileReader;
use remora_dag::unixfs::{Data, NodeType, UnixTime, symlink_node};
use sha2::{Digest, Sha256};

fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("data/unixfs.json")).unwrap()
}

fn drand(seed: &str, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    ChaCha20Rng::from_seed(Sha256::digest(seed).into()).fill_bytes(&mut bytes);
    bytes
}

/// A sink that keeps nothing: vectors are about names of bytes.
struct Forget;

impl BlockSink for Forget {
    fn put(&self, _: Block) -> Result<(), remora_dag::block::SinkError> {
        Ok(())
    }
}

fn key_of(profile: Profile) -> &'static str {
    match profile {
        Profile::KuboV1_256k => "kubo-cidv1-256k",
        other => other.name(),
    }
}

fn file(profile: Profile, bytes: &[u8]) -> FileRoot {
    let mut builder = FileBuilder::new(profile, &Forget);
    builder.write(bytes).unwrap();
    builder.finish().unwrap()
}

fn file_entry(profile: Profile, name: &str, bytes: &[u8]) -> Entry {
    let root = file(profile, bytes);
    Entry { name: name.into(), cid: root.cid, tsize: root.tsize, row: None }
}

fn numbered(profile: Profile, n: usize) -> DirRoot {
    let entries =
        (0..n).map(|i| file_entry(profile, &format!("f{i:05}.txt"), format!("f{i:05}\n").as_bytes()));
    build_dir(profile, entries, &Forget).unwrap()
}

fn kubo_v0_basic(profile: Profile) -> DirRoot {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
    let letters = drand("hamt-unixfs-v0-2015", 1 << 20);
    let entries = letters.chunks(30).take(4096).map(|name| {
        let name = name.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % 39])).collect::<String>();
        file_entry(profile, &name, b"x")
    });
    build_dir(profile, entries, &Forget).unwrap()
}

fn tree(profile: Profile, names: &serde_json::Value) -> DirRoot {
    let mut tree = TreeBuilder::new(profile, &Forget);
    let add = |tree: &mut TreeBuilder<'_>, name: &str, bytes: &[u8]| {
        tree.file(name.as_bytes(), &file(profile, bytes), None);
    };
    tree.enter(b"empty_dir", None).unwrap();
    tree.leave().unwrap();
    add(&mut tree, "a.txt", b"hello a\n");
    add(&mut tree, "empty.txt", b"");
    add(&mut tree, "big.bin", &drand("golden/tree/big.bin", 3_145_735));
    tree.enter(b"sub", None).unwrap();
    add(&mut tree, "b.txt", b"hello b\n");
    add(&mut tree, "dup_of_a.txt", b"hello a\n");
    tree.enter(b"deep", None).unwrap();
    tree.enter(b"er", None).unwrap();
    add(&mut tree, "c.bin", &drand("golden/tree/c.bin", 307_200));
    for _ in 0..3 {
        tree.leave().unwrap();
    }
    tree.enter(b"names", None).unwrap();
    for name in names.as_array().unwrap() {
        let name = name.as_str().unwrap();
        add(&mut tree, name, format!("content of {name}").as_bytes());
    }
    tree.finish().unwrap()
}

#[test]
fn files_have_the_agreed_cids_in_every_profile() {
    let vectors = vectors();
    for (name, input) in vectors["recipe"]["files"].as_object().unwrap() {
        let bytes = match input["literal"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => {
                drand(input["seed"].as_str().unwrap(), input["size"].as_u64().unwrap().try_into().unwrap())
            }
        };
        for profile in Profile::ALL {
            let wanted = &vectors["values"][key_of(profile)][format!("files/{name}")];
            let found = file(profile, &bytes);
            assert_eq!(found.cid.to_string(), wanted.as_str().unwrap(), "{name} under {profile}");
            assert_eq!(found.size, bytes.len() as u64);
        }
    }
}

#[test]
fn directories_have_the_agreed_cids_in_every_profile() {
    let vectors = vectors();
    let names = &vectors["recipe"]["dirs"]["names"];
    for profile in Profile::ALL {
        let found: BTreeMap<&str, DirRoot> = [
            ("dirs/tree", tree(profile, names)),
            ("dirs/dir2000", numbered(profile, 2000)),
            ("dirs/dir5400", numbered(profile, 5400)),
            ("dirs/emptydir", build_dir(profile, [], &Forget).unwrap()),
            ("dirs/kubo_v0_basic", kubo_v0_basic(profile)),
        ]
        .into();
        for (name, wanted) in vectors["values"][key_of(profile)].as_object().unwrap() {
            if name.starts_with("dirs/") {
                let found = found[name.as_str()];
                assert_eq!(found.cid.to_string(), wanted.as_str().unwrap(), "{name} under {profile}");
            }
        }
    }
}

#[test]
fn every_profile_has_all_twenty_inputs() {
    let vectors = vectors();
    for profile in Profile::ALL {
        assert_eq!(vectors["values"][key_of(profile)].as_object().unwrap().len(), 20);
    }
}

#[test]
fn symlinks_have_the_agreed_cids() {
    let vectors = vectors();
    for (profile, key) in [(Profile::V0_2015, "v0"), (Profile::KuboV1_256k, "cid-version=1")] {
        let mut tree = TreeBuilder::new(profile, &Forget);
        tree.enter(b"foo", None).unwrap();
        tree.file(b"baz", &file(profile, b"some text\n"), None);
        tree.leave().unwrap();
        tree.enter(b"bar", None).unwrap();
        tree.symlink(b"baz", b"files/foo/baz", None).unwrap();
        tree.leave().unwrap();
        tree.symlink(b"bad", b"files/does/not/exist", None).unwrap();
        let root = tree.finish().unwrap();
        assert_eq!(root.cid.to_string(), vectors["symlink_tree"][key].as_str().unwrap(), "{key}");
    }
}

#[test]
fn unixfs_1_5_metadata_is_written_as_others_write_it() {
    let vectors = vectors();
    let check = |name: &str, mode: Option<u32>, seconds: Option<i64>, nanos: Option<u32>| {
        let mtime = seconds.map(|seconds| UnixTime { seconds: Some(seconds), nanos });
        let message = if name.starts_with("symlink") {
            let node = Node::decode(&symlink_node(b"nothing")).unwrap();
            let plain: Data = prost::Message::decode(node.data.unwrap()).unwrap();
            Data { mode, mtime, ..plain }
        } else {
            Data { filesize: Some(0), mode, mtime, ..Data::of(NodeType::File) }
        };
        let node = Node { links: Vec::new(), data: Some(message.to_bytes()) }.encode();
        let found = Block::seal_v0(node).cid().to_string();
        assert_eq!(found, vectors["mode_mtime"][name].as_str().unwrap(), "{name}");
    };
    check("file mode 0640", Some(0o640), None, None);
    check("file mtime 1604320482", None, Some(1_604_320_482), None);
    check("file mode 0640 mtime 1604320482", Some(0o640), Some(1_604_320_482), None);
    check("file mode 0764", Some(0o764), None, None);
    check("file mtime 1603539720", None, Some(1_603_539_720), None);
    check("file mtime 1603539720 nsecs 54321", None, Some(1_603_539_720), Some(54321));
    check("file mode 0764 mtime 1603539720 nsecs 54321", Some(0o764), Some(1_603_539_720), Some(54321));
    check("symlink \"nothing\" mtime 1604320482", None, Some(1_604_320_482), None);
    check("symlink \"nothing\" mtime 1603539720", None, Some(1_603_539_720), None);
    check("symlink \"nothing\" mtime 1603539720 nsecs 54321", None, Some(1_603_539_720), Some(54321));
}

#[test]
fn what_was_written_is_read_back_in_every_profile() {
    let bytes = drand("read back", 3 * 1024 * 1024 + 77);
    for profile in Profile::ALL {
        let blocks = MemBlocks::new();
        let mut builder = FileBuilder::new(profile, &blocks);
        builder.write_bytes(Bytes::from(bytes.clone())).unwrap();
        let root = builder.finish().unwrap();
        let mut back = Vec::new();
        std::io::Read::read_to_end(&mut FileReader::open(&blocks, &root.cid).unwrap(), &mut back).unwrap();
        assert!(back == bytes, "{profile}");
        assert_eq!(Codec::of(&root.cid), Some(Codec::DagPb));
    }
}
