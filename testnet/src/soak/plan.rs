//! What happens in a round, from the seed alone.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// For everything random below.
    pub(super) seed: u64,
    pub(super) length: Duration,
    /// Whether loads pause between operations.
    pub(super) is_gentle: bool,
    /// By volume, by load: who works.
    pub(super) loads: Vec<Vec<bool>>,
    /// A node that is killed, and when.
    pub(super) kill: Option<(usize, Duration)>,
    pub(super) after: After,
}

/// What happens when a round's loads have ended and were judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    /// These volumes go to the next node.
    HandOff(Vec<bool>),
    /// A clean stop and start of this daemon.
    Restart(usize),
}

impl Plan {
    /// Round `number` of a run: `n_loads` is the number of loads by volume.
    pub(super) fn choose(run_seed: u64, number: u64, n_nodes: usize, n_loads: &[usize]) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(run_seed);
        rng.set_stream(number);
        let length = Duration::from_millis(rng.random_range(20_000..60_000));
        let loads = n_loads
            .iter()
            .map(|n| {
                let mut who: Vec<bool> = (0..*n).map(|_| rng.random_bool(0.6)).collect();
                who[rng.random_range(0..*n)] = true;
                who
            })
            .collect();
        let kill = rng
            .random_bool(0.4)
            .then(|| (rng.random_range(0..n_nodes), length.mul_f64(rng.random_range(0.2..0.9))));
        let after = match rng.random_range(0..10) {
            0..=4 => {
                let mut who: Vec<bool> = n_loads.iter().map(|_| rng.random_bool(0.5)).collect();
                let at = rng.random_range(0..who.len());
                who[at] = true;
                After::HandOff(who)
            }
            5..=6 => After::Restart(rng.random_range(0..n_nodes)),
            _ => After::Nothing,
        };
        Plan { seed: rng.random(), length, is_gentle: rng.random_ratio(11, 12), loads, kill, after }
    }

    /// The two rounds of the short form: everything once.
    pub(super) fn short(run_seed: u64, number: u64, n_loads: &[usize]) -> Plan {
        let loads = n_loads.iter().map(|n| vec![true; *n]).collect();
        let seed = run_seed.wrapping_add(number);
        if number == 1 {
            let after = After::HandOff(vec![true; n_loads.len()]);
            Plan { seed, length: Duration::from_secs(8), is_gentle: false, loads, kill: None, after }
        } else {
            let kill = Some((1, Duration::from_secs(5)));
            Plan {
                seed,
                length: Duration::from_secs(6),
                is_gentle: true,
                loads,
                kill,
                after: After::Restart(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_follows_from_the_seed() {
        assert_eq!(Plan::choose(7, 3, 2, &[3, 3]), Plan::choose(7, 3, 2, &[3, 3]));
        let plans: Vec<Plan> = (0..50).map(|n| Plan::choose(7, n, 2, &[3, 3])).collect();
        assert!(plans.iter().all(|p| p.loads.iter().all(|who| who.contains(&true))));
        assert!(plans.iter().any(|p| p.kill.is_some()) && plans.iter().any(|p| p.kill.is_none()));
        assert!(plans.iter().any(|p| matches!(p.after, After::HandOff(_))));
        assert!(plans.iter().any(|p| matches!(p.after, After::Restart(_))));
    }
}
