//! One bit of each kind of file of a daemon that is down: it starts and everything is there, or it says which file is wrong.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::hostile::disk::{FILES, Filled, MARK, VOLUMES, all_files, body, noise};
use crate::nodes::Node;
use crate::report::Report;

/// A kind of file: what it is called, and how its path ends or begins in the data directory.
const KINDS: [(&str, &str); 10] = [
    ("volume log", "volumes/*.seg"),
    ("volume ctl", "volumes/*ctl"),
    ("pack", "packs/*.pack"),
    ("registry", "registry/*.seg"),
    ("index tables", "index/tables*"),
    ("index mark", "index/mark*"),
    ("node.key", "node.key*"),
    ("cluster.key", "cluster.key*"),
    ("member.cert", "member.cert*"),
    ("config.toml", "config.toml*"),
];

pub(super) fn run(report: &mut Report, dir: &Path, rounds: u64, seed: u64) -> Result<()> {
    let filled = Filled::make(dir)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for (kind, pattern) in KINDS {
        report.step(&format!("{kind}: a bit turned while the daemon is down"), rounds, |bar| {
            let mut counts = [0u64; 3];
            for round in 0..rounds {
                let name = format!("{}-{round}", kind.replace(' ', "-"));
                let ended = one_round(&filled, dir, &name, pattern, &mut rng);
                counts[ended.with_context(|| name)? as usize] += 1;
                bar.inc(1);
            }
            let [harmless, told, refused] = counts;
            anyhow::Ok(format!(
                "{harmless} nothing lost, {told} told in words, {refused} refused to start, 0 wrong"
            ))
        })?;
    }
    Ok(())
}

/// How a start on a damaged file ended.
#[derive(Clone, Copy)]
enum Ended {
    /// Everything is there.
    Whole,
    /// Something is not, and the file is named.
    Told,
    /// The daemon did not start, and named the file.
    Refused,
}

fn one_round(filled: &Filled, dir: &Path, name: &str, pattern: &str, rng: &mut ChaCha8Rng) -> Result<Ended> {
    let mut node = filled.copy(dir, name)?;
    let damaged = turn_a_bit(node.data(), pattern, rng)?;
    let ended = look(&mut node, filled, &damaged)
        .with_context(|| format!("{}, bit {} of byte {}", damaged.file.display(), damaged.bit, damaged.at));
    node.stop()?;
    std::fs::remove_dir_all(node.data())?;
    ended
}

/// What was turned over.
struct Damaged {
    file: PathBuf,
    at: usize,
    bit: u32,
}

fn turn_a_bit(data: &Path, pattern: &str, rng: &mut ChaCha8Rng) -> Result<Damaged> {
    let (begin, end) = pattern.split_once('*').context("a pattern without a star")?;
    let mut found = all_files(data)?;
    found.retain(|path| {
        let relative = path.strip_prefix(data).unwrap_or(path).to_string_lossy();
        relative.starts_with(begin)
            && relative.ends_with(end)
            && path.metadata().is_ok_and(|meta| meta.len() > 0)
    });
    ensure!(!found.is_empty(), "no file is like {pattern}");
    let file = found.swap_remove(rng.random_range(0..found.len()));
    let mut bytes = std::fs::read(&file)?;
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    ensure!(!used.is_empty(), "{} is all zeros", file.display());
    let (at, bit) = (used[rng.random_range(0..used.len())], rng.random_range(0..8));
    bytes[at] ^= 1 << bit;
    std::fs::write(&file, bytes)?;
    Ok(Damaged { file, at, bit })
}

fn look(node: &mut Node, filled: &Filled, damaged: &Damaged) -> Result<Ended> {
    let name = damaged.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Err(error) = node.start() {
        let words = format!("{error:#}");
        ensure!(words.contains(&name), "it does not start and does not name {name}: {words}");
        return Ok(Ended::Refused);
    }
    let mut said = node.json(&["status"])?["warnings"].to_string();
    let mut n_lost = 0u32;
    for volume in VOLUMES {
        n_lost += look_at_volume(node, volume, &mut said)?;
    }
    let out = node.run(&["cat", &filled.cid])?;
    if out.status.success() {
        ensure!(out.stdout == noise(), "the added file shows WRONG BYTES");
    } else {
        ensure!(noise().starts_with(&out.stdout), "the added file shows WRONG BYTES");
        n_lost += 1;
    }
    if n_lost == 0 {
        return Ok(Ended::Whole);
    }
    let verified = node.run(&["store", "verify"])?;
    let names_blocks = !verified.status.success() && name.ends_with(".pack");
    ensure!(said.contains(&name) || names_blocks, "{n_lost} things are lost and nobody names {name}: {said}");
    Ok(Ended::Told)
}

/// Reads all of a volume; answers how much of it could not be had.
fn look_at_volume(node: &mut Node, volume: &str, said: &mut String) -> Result<u32> {
    let place = node.data().with_extension(format!("mnt-{volume}"));
    std::fs::create_dir_all(&place)?;
    let out = node.run(&["volume", "mount", volume, &place.display().to_string()])?;
    if !out.status.success() {
        said.push_str(&String::from_utf8_lossy(&out.stderr));
        return Ok(1);
    }
    let read = read_all(&place, volume);
    node.unmount(&place)?;
    read
}

fn read_all(place: &Path, volume: &str) -> Result<u32> {
    let mut n_lost = 0;
    for file in 0..FILES {
        let wanted =
            if volume == VOLUMES[0] && file == FILES / 2 { MARK.to_vec() } else { body(volume, file) };
        match std::fs::read(place.join(format!("f{file}"))) {
            Ok(found) => ensure!(found == wanted, "f{file} of {volume} shows WRONG BYTES"),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => n_lost += 1,
            Err(error) => bail!("f{file} of {volume}: {error}"),
        }
    }
    Ok(n_lost)
}
