//! The parts of the state by themselves: extents against an array of bytes, the map of names against a map.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use remora_dag::block::{BlockSink, MemBlocks};
use remora_volume::extent::{ExtentSource, Extents};
use remora_volume::inomap::{Name, empty_map, names_of, update};
use serde_bytes::ByteBuf;

const LEN: usize = 200;

/// What a byte is: (source commit, its position), 0 for a hole, `None` as the base.
type Byte = Option<(u64, u64)>;

fn model_of(extents: &Extents) -> Vec<Byte> {
    let mut bytes = vec![None; LEN * 2];
    for part in extents.parts(0..2 * LEN as u64) {
        for i in 0..part.len {
            bytes[(part.start + i) as usize] = match part.source {
                None => None,
                Some(ExtentSource::Inline { seq, offset }) => Some((seq, offset + i)),
                Some(_) => Some((0, 0)),
            };
        }
    }
    bytes
}

proptest! {
    #[test]
    fn extents_show_the_newest_bytes(steps in vec((0..LEN, 1..60usize, 0..4u8, any::<bool>()), 0..60)) {
        let mut extents = Extents::default();
        let mut model: Vec<Byte> = vec![None; LEN * 2];
        let mut seqs = vec![0u64; LEN * 2];
        for (i, (start, len, kind, same_seq)) in steps.into_iter().enumerate() {
            let seq = if same_seq { 1000 } else { 1001 + i as u64 };
            let range = start as u64..(start + len) as u64;
            match kind {
                0 => extents.remove(range),
                1 => extents.insert(range.start, len as u64, seq, ExtentSource::Zero),
                _ => {
                    // Data of one commit that lies at the place it has in the file can merge.
                    let source = ExtentSource::Inline { seq, offset: start as u64 };
                    extents.insert(range.start, len as u64, seq, source);
                }
            }
            for at in start..start + len {
                model[at] = match kind {
                    0 => None,
                    1 => Some((0, 0)),
                    _ => Some((seq, at as u64)),
                };
                seqs[at] = seq;
            }
            let mut end = 0;
            for (start, extent) in extents.iter() {
                prop_assert!(start >= end && extent.len > 0, "extents do not overlap");
                end = start + extent.len;
                for at in start..end {
                    prop_assert!(extent.seq >= seqs[at as usize], "a seq is never older than its write");
                }
            }
        }
        prop_assert_eq!(model_of(&extents), model);
    }

    #[test]
    fn the_map_of_names_depends_on_its_content_alone(
        steps in vec(vec((0..7u8, 0..3000u64, 0..3usize), 1..40), 1..8),
    ) {
        let blocks = MemBlocks::new();
        let empty = empty_map();
        blocks.put(empty.clone()).unwrap();
        let (mut root, mut model) = (*empty.cid(), BTreeMap::new());
        for step in steps {
            let mut changes: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
            for (shift, n, n_names) in step {
                let ino = n.checked_shl(u32::from(shift) * 8).unwrap_or(n).max(2);
                let names = (0..n_names).map(|i| (n, ByteBuf::from(vec![b'a' + i as u8; 1 + i * 700])));
                changes.insert(ino, names.collect());
            }
            root = update(&blocks, &blocks, &root, &changes).unwrap();
            model.extend(changes);
            model.retain(|_, names: &mut Vec<Name>| !names.is_empty());
            let fresh = update(&blocks, &blocks, empty.cid(), &model).unwrap();
            prop_assert_eq!(root, fresh, "history does not show");
        }
        for (ino, names) in &model {
            prop_assert_eq!(&names_of(&blocks, &root, *ino).unwrap(), names);
        }
        prop_assert!(names_of(&blocks, &root, 1).unwrap().is_empty());
        prop_assert!(names_of(&blocks, &root, u64::MAX).unwrap().is_empty());
    }
}
