//! The nodes, the volumes, and which node holds which volume.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::compare::{differences, manifest};
use crate::nodes::{Node, cluster};
use crate::soak::plan::{After, Plan};
use crate::soak::resources::Taken;
use crate::soak::turn::{Load, POLL, STOPPED, Turn};
use crate::soak::watch::Watch;

/// How long mounts may take to come back with their daemon.
const BACK_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the daemons are looked at while loads work.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Differences that are printed.
const SHOWN_MAX: usize = 12;

/// A volume and what works on it.
pub(super) struct Volume {
    pub(super) name: &'static str,
    holder: usize,
    dir: PathBuf,
    pub(super) loads: Vec<Box<dyn Load>>,
    /// Whether each load has ever worked: before that it has nothing there.
    has_worked: Vec<bool>,
}

/// Everything that is under test.
pub(super) struct Field {
    pub(super) nodes: Vec<Node>,
    pub(super) volumes: Vec<Volume>,
    /// The most each daemon took while loads worked.
    pub(super) peaks: Vec<Taken>,
}

/// What a load said in a round.
type Said = Mutex<Vec<String>>;

impl Field {
    /// Starts the nodes; no volume yet.
    pub(super) fn start(dir: &Path, names: &[&str]) -> Result<Field> {
        let nodes = cluster(dir, names)?;
        Ok(Field { peaks: vec![Taken::default(); nodes.len()], nodes, volumes: Vec::new() })
    }

    /// Makes a volume and mounts it on the first node.
    pub(super) fn add_volume(&mut self, name: &'static str, loads: Vec<Box<dyn Load>>) -> Result<()> {
        let node = self.nodes.first_mut().context("there is no node")?;
        node.ok(&["volume", "create", name])?;
        let dir = node.mount(name)?;
        let has_worked = vec![false; loads.len()];
        self.volumes.push(Volume { name, holder: 0, dir, loads, has_worked });
        Ok(())
    }

    /// Process ids of the daemons.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Node::pid).collect()
    }

    /// One round: loads, a kill if there is to be one, the judgement, and what comes after. Answers what was done.
    pub(super) fn round(&mut self, plan: &Plan, watch: &Watch) -> Result<Vec<String>> {
        let turns: Vec<Turn> =
            self.volumes.iter().map(|_| Turn::new(plan.seed, plan.length, plan.is_gentle)).collect();
        let said = Mutex::new(Vec::new());
        self.work(plan, &turns, &said, watch)?;
        let mut said = said.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if watch.is_interrupted() {
            bail!(STOPPED);
        }
        self.check(plan, &turns, &mut said)?;
        match &plan.after {
            After::Nothing => {}
            After::HandOff(who) => {
                for (at, _) in who.iter().enumerate().filter(|(_, goes)| **goes) {
                    said.push(self.hand_off(at)?);
                }
            }
            After::Restart(node) => said.push(self.restart(*node)?),
        }
        Ok(said)
    }

    fn work(&mut self, plan: &Plan, turns: &[Turn], said: &Said, watch: &Watch) -> Result<()> {
        let Field { nodes, volumes, peaks } = self;
        let holders: Vec<usize> = volumes.iter().map(|volume| volume.holder).collect();
        let dirs: Vec<PathBuf> = volumes.iter().map(|volume| volume.dir.clone()).collect();
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            for (at, volume) in volumes.iter_mut().enumerate() {
                let (turn, dir, name) = (&turns[at], volume.dir.clone(), volume.name);
                for (load, _) in volume.loads.iter_mut().zip(&plan.loads[at]).filter(|(_, works)| **works) {
                    let dir = dir.clone();
                    running.push((at, scope.spawn(move || work_one(load.as_mut(), name, &dir, turn, said))));
                }
            }
            let began = Instant::now();
            let mut kill = plan.kill;
            let mut looked = Instant::now();
            let mut failed = Ok(());
            while running.iter().any(|(_, thread)| !thread.is_finished()) {
                std::thread::sleep(POLL);
                let has_failed = running.iter().any(|(at, t)| t.is_finished() && !turns[*at].is_over());
                if watch.is_interrupted() || has_failed {
                    turns.iter().for_each(Turn::stop);
                    kill = None;
                }
                if looked.elapsed() >= LOOK_EVERY {
                    looked = Instant::now();
                    for (node, peak) in nodes.iter().zip(peaks.iter_mut()) {
                        *peak = peak.max(Taken::live(node).unwrap_or_default());
                    }
                }
                if let Some((victim, at)) = kill
                    && began.elapsed() >= at
                {
                    kill = None;
                    let killed: Vec<usize> = (0..dirs.len()).filter(|v| holders[*v] == victim).collect();
                    failed = kill_and_start(&mut nodes[victim], &killed, turns, &running, &dirs, said);
                    if failed.is_err() {
                        turns.iter().for_each(Turn::stop);
                    }
                }
            }
            judge(running, failed)
        })
    }

    fn check(&mut self, plan: &Plan, turns: &[Turn], said: &mut Vec<String>) -> Result<()> {
        for (at, volume) in self.volumes.iter_mut().enumerate() {
            let was_killed = turns[at].is_killed();
            let worked = plan.loads[at].iter().zip(&mut volume.has_worked);
            for (load, (works, has_worked)) in volume.loads.iter_mut().zip(worked) {
                *has_worked |= works;
                // After a kill also what nobody touched is looked at.
                if *works || (was_killed && *has_worked) {
                    let verdict = load.check(&volume.dir, was_killed).with_context(|| {
                        format!("{}, {}: what is there afterwards", volume.name, load.name())
                    })?;
                    said.push(format!("{}: {verdict}", load.name()));
                }
            }
        }
        Ok(())
    }

    fn hand_off(&mut self, at: usize) -> Result<String> {
        let n_nodes = self.nodes.len();
        let volume = &mut self.volumes[at];
        let before = manifest(&volume.dir, &|_| ())?;
        let next = (volume.holder + 1) % n_nodes;
        let began = Instant::now();
        self.nodes[volume.holder].unmount(&volume.dir).context("give a volume back")?;
        volume.dir = self.nodes[next].mount(volume.name).context("mount a volume on the next node")?;
        let took = began.elapsed();
        volume.holder = next;
        let after = manifest(&volume.dir, &|_| ())?;
        let lines = differences(&before, &after, SHOWN_MAX);
        let name = &self.nodes[next].name;
        ensure!(lines.is_empty(), "{} differs on {name}:\n  {}", volume.name, lines.join("\n  "));
        Ok(format!(
            "{} handed to {name} in {} ms, {} names equal",
            volume.name,
            took.as_millis(),
            after.len()
        ))
    }

    fn restart(&mut self, at: usize) -> Result<String> {
        let held: Vec<&Volume> = self.volumes.iter().filter(|volume| volume.holder == at).collect();
        let before = held.iter().map(|v| manifest(&v.dir, &|_| ())).collect::<Result<Vec<_>>>()?;
        let node = &mut self.nodes[at];
        node.stop()?;
        node.start()?;
        for (volume, before) in held.iter().zip(&before) {
            wait_until_back(&volume.dir)?;
            let lines = differences(before, &manifest(&volume.dir, &|_| ())?, SHOWN_MAX);
            ensure!(
                lines.is_empty(),
                "{} differs after a restart of {}:\n  {}",
                volume.name,
                node.name,
                lines.join("\n  ")
            );
        }
        Ok(format!("{} restarted with {} volumes", node.name, held.len()))
    }
}

fn work_one(load: &mut dyn Load, volume: &str, dir: &Path, turn: &Turn, said: &Said) -> Result<()> {
    let did = load.work(dir, turn).with_context(|| format!("{volume}, {}", load.name()))?;
    let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    said.push(format!("{}: {did}", load.name()));
    Ok(())
}

type Running<'a> = (usize, ScopedJoinHandle<'a, Result<()>>);

/// Joins everything; the first error that is not only a consequence of another is the error.
fn judge(running: Vec<Running<'_>>, failed: Result<()>) -> Result<()> {
    let mut errors: Vec<anyhow::Error> = failed.err().into_iter().collect();
    for (_, thread) in running {
        let result = thread.join().unwrap_or_else(|_| Err(anyhow!("a load panicked")));
        errors.extend(result.err());
    }
    errors.sort_by_key(|e| e.root_cause().to_string() == STOPPED);
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Kills a node under its loads, waits until they have noticed, starts it again, and waits for its mounts.
fn kill_and_start(
    node: &mut Node,
    volumes: &[usize],
    turns: &[Turn],
    running: &[Running<'_>],
    dirs: &[PathBuf],
    said: &Said,
) -> Result<()> {
    for at in volumes {
        turns[*at].kill();
    }
    node.kill()?;
    while running.iter().any(|(at, thread)| volumes.contains(at) && !thread.is_finished()) {
        std::thread::sleep(POLL);
    }
    let began = Instant::now();
    node.start()?;
    for at in volumes {
        wait_until_back(&dirs[*at])?;
    }
    let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    said.push(format!(
        "{} killed with {} volumes, back after {} ms",
        node.name,
        volumes.len(),
        began.elapsed().as_millis()
    ));
    Ok(())
}

/// Waits until a volume is mounted on `dir` and answers.
fn wait_until_back(dir: &Path) -> Result<()> {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    let began = Instant::now();
    loop {
        let kind = rustix::fs::statfs(dir).map(|s| s.f_type.cast_unsigned());
        if kind == Ok(FUSE_SUPER_MAGIC) && dir.read_dir().is_ok() {
            return Ok(());
        }
        ensure!(began.elapsed() < BACK_TIMEOUT, "{} did not come back", dir.display());
        std::thread::sleep(POLL);
    }
}
