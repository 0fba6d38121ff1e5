//! Operations: one encoding each, and nothing that is read from a log makes us panic.
#![allow(clippy::unwrap_used)]

use cid::Cid;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use remora_dag::block::{Codec, cid_of};
use remora_vfs::attr::{Kind, Timestamp};
use remora_volume::op::{Op, OpError, decode_all};

/// An operation with its borrowed parts owned.
#[derive(Clone, Debug)]
struct Parts {
    code: u8,
    numbers: [u32; 8],
    name: Vec<u8>,
    other: Vec<u8>,
    time: i64,
}

fn parts() -> impl Strategy<Value = Parts> {
    (1..18u8, any::<[u32; 8]>(), vec(any::<u8>(), 0..40), vec(any::<u8>(), 1..300), any::<i64>())
        .prop_map(|(code, numbers, name, other, time)| Parts { code, numbers, name, other, time })
}

fn raw(bytes: &[u8]) -> Cid {
    cid_of(Codec::Raw, bytes)
}

fn op(parts: &Parts) -> Op<'_> {
    let n = |i: usize| u64::from(parts.numbers[i]) << (i * 4);
    let (ino, parent, time) = (n(0), n(1), Timestamp(parts.time));
    let (name, other) = (parts.name.as_slice(), parts.other.as_slice());
    let option = |i: usize| parts.numbers[i].is_multiple_of(2).then_some(parts.numbers[i]);
    match parts.code {
        1 => Op::Make {
            parent,
            name,
            ino,
            kind: Kind::from_u8((parts.numbers[2] % 7 + 1) as u8).unwrap(),
            mode: (parts.numbers[3] % 4096) as u16,
            uid: parts.numbers[4],
            gid: parts.numbers[5],
            rdev: parts.numbers[6],
            target: other,
            time,
        },
        2 => Op::Link { ino, parent, name, time },
        3 => Op::Unlink { parent, name, ino, time },
        4 => Op::Rmdir { parent, name, ino, time },
        5 => Op::Rename {
            from_parent: parent,
            from_name: name,
            to_parent: n(2),
            to_name: other,
            ino,
            replaced: option(3).map(u64::from),
            exchange: parts.numbers[4].is_multiple_of(2),
            time,
        },
        6 => Op::SetAttr {
            ino,
            mode: option(1).map(|n| n as u16),
            uid: option(2),
            gid: option(3),
            size: option(4).map(u64::from),
            mtime: option(5).map(|n| Timestamp(i64::from(n) - 77)),
            ctime: time,
        },
        7 => Op::SetXattr { ino, name, value: other, time },
        8 => Op::RemoveXattr { ino, name, time },
        9 => Op::Write { ino, offset: n(7), data: other, time },
        10 => Op::WriteRef { ino, offset: n(7), len: other.len() as u64, cid: raw(other), time },
        11 => Op::Zero { ino, offset: n(1), len: n(2), size: n(3), time },
        12 => Op::Clone { src: ino, src_offset: n(1), dst: n(2), dst_offset: n(3), len: n(4).max(1), time },
        13 => Op::Drop { ino },
        14 => Op::Checkpoint { tree: cid_of(Codec::DagCbor, other), upto_seq: n(1) },
        15 => Op::Start { term: n(1), writer: other },
        16 => Op::Members { bytes: other },
        _ => Op::Snapshot { name },
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(all in vec(parts(), 0..20)) {
        let mut bytes = Vec::new();
        let mut offsets = Vec::new();
        for parts in &all {
            offsets.push(op(parts).encode(&mut bytes).data_offset);
        }
        let decoded: Vec<_> = decode_all(&bytes).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(decoded.len(), all.len());
        for (((decoded, at), parts), offset) in decoded.iter().zip(&all).zip(offsets) {
            prop_assert_eq!(decoded, &op(parts));
            prop_assert_eq!(*at, offset);
            if let Op::Write { data, .. } = decoded {
                prop_assert_eq!(*data, &bytes[offset..offset + data.len()]);
            }
        }
    }

    #[test]
    fn an_operation_has_one_encoding(bytes in prop_oneof![
        vec(any::<u8>(), 0..200),
        (parts(), any::<u8>(), any::<usize>()).prop_map(|(parts, byte, at)| {
            let mut bytes = Vec::new();
            op(&parts).encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes
        }),
    ]) {
        let mut again = Vec::new();
        let mut is_whole = true;
        for decoded in decode_all(&bytes) {
            match decoded {
                Ok((op, _)) => drop(op.encode(&mut again)),
                Err(_) => is_whole = false,
            }
        }
        prop_assert_eq!(&bytes[..again.len()], again.as_slice());
        prop_assert_eq!(is_whole, again.len() == bytes.len());
    }
}

#[test]
fn an_unknown_operation_is_refused_by_name() {
    let mut bytes = Vec::new();
    Op::Drop { ino: 7 }.encode(&mut bytes);
    bytes.extend_from_slice(&[200, 1, 2, 3]);
    let answers: Vec<_> = decode_all(&bytes).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1], Err(OpError::Unknown { code: 200, at: 2 }));
}
