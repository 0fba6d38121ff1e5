//! The rules that a run must not break, checked from outside by one who sees every disk.

use std::collections::BTreeMap;

use remora_cluster::tip::{CommitId, Term, Tip};

use crate::simulate::host::Commit;

/// Everything the rules need to remember of a run.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// Who became writer in a term: host and the number of its attempt.
    winners: BTreeMap<Term, (usize, u64)>,
    /// Which commit carries a (term, number).
    commits: BTreeMap<(Term, u64), CommitId>,
    /// What was acknowledged to an application, by number.
    acked: BTreeMap<u64, Tip>,
    /// The chain of the newest writer, by number.
    newest_chain: Vec<CommitId>,
    newest_term: Term,
    /// The highest term each host told somebody that it promised.
    told: BTreeMap<usize, Term>,
    /// The first rule that was broken.
    pub(crate) violation: Option<String>,
}

impl Checker {
    /// Notes a broken rule; the first one stays.
    pub(crate) fn fail(&mut self, rule: String) {
        self.violation.get_or_insert(rule);
    }

    /// A commit was made or stored: one (term, number) is one commit.
    pub(crate) fn on_commit(&mut self, commit: &Commit) {
        let known = *self.commits.entry((commit.tip.term, commit.tip.seq)).or_insert(commit.tip.id);
        if known != commit.tip.id {
            self.fail(format!("two commits are number {} of term {}", commit.tip.seq, commit.tip.term));
        }
    }

    /// A host became the writer, with this log; `is_met` if every later candidate meets a keeper with its START on disk.
    pub(crate) fn on_won(&mut self, host: usize, attempt: u64, term: Term, log: &[Commit], is_met: bool) {
        let known = *self.winners.entry(term).or_insert((host, attempt));
        if known != (host, attempt) {
            self.fail(format!("term {term} has two writers: host {} and host {host}", known.0));
        }
        if !is_met {
            self.fail(format!(
                "host {host} serves in term {term} before its START is where every later candidate meets it"
            ));
        }
        let lost = self.acked.values().find(|tip| !holds(log, tip));
        if let Some(tip) = lost.copied() {
            self.fail(format!("the writer of term {term} lost commit {} of term {}", tip.seq, tip.term));
        }
        if term > self.newest_term {
            self.newest_term = term;
            self.newest_chain = log.iter().map(|commit| commit.tip.id).collect();
        }
    }

    /// An application was told that a commit is durable.
    pub(crate) fn on_acked(&mut self, commit: &Commit) {
        let tip = commit.tip;
        let known = *self.acked.entry(tip.seq).or_insert(tip);
        if known.id != tip.id {
            self.fail(format!(
                "commit {} was acknowledged twice, in terms {} and {}",
                tip.seq, known.term, tip.term
            ));
        }
        let is_in_newest = self.newest_chain.get(tip.seq as usize - 1) == Some(&tip.id);
        if tip.term < self.newest_term && !is_in_newest {
            self.fail(format!(
                "term {} acknowledged commit {} after term {} began",
                tip.term, tip.seq, self.newest_term
            ));
        }
    }

    /// A host tells somebody that it promised a term.
    pub(crate) fn on_promise_told(&mut self, host: usize, term: Term) {
        let told = self.told.entry(host).or_default();
        *told = (*told).max(term);
    }

    /// A host started again with this term on its disk.
    pub(crate) fn on_restart(&mut self, host: usize, term: Term) {
        let told = self.told.get(&host).copied().unwrap_or_default();
        if term < told {
            self.fail(format!("host {host} forgot its promise of term {told}: its disk says {term}"));
        }
    }

    /// The number of commits acknowledged.
    pub(crate) fn n_acked(&self) -> u64 {
        self.acked.len() as u64
    }
}

fn holds(log: &[Commit], tip: &Tip) -> bool {
    log.get(tip.seq as usize - 1).is_some_and(|commit| commit.tip == *tip)
}
