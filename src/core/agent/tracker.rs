//! Claim tracker: terminal status, claims and work items, and the status that follows from them:
//! the terminal one if there is one, else busy while anything is claimed or worked on, else idle.

use serde_json::{Value, json};

use crate::core::limits::WORK_MAX;
use crate::core::time::Tick;
use crate::wire::api::AgentStatus;
use crate::wire::words::words;

words! {
    /// The four words of a provider's state. People see finer words, the wire fewer.
    Status {
        /// Ready, nothing to do.
        Idle = "idle",
        /// At least one work item or claim.
        Busy = "busy",
        /// Not running.
        Offline = "offline",
        /// Not running and it should be.
        Error = "error",
    }

    /// What a claim is on.
    ClaimKind {
        /// A claimable message.
        Message = "message",
        Task = "task",
        /// A command that is being carried out.
        Command = "command",
    }
}

impl Status {
    /// The word of the heartbeat frame: terminal ones travel as idle.
    pub fn semantic(self) -> AgentStatus {
        match self {
            Status::Busy => AgentStatus::Busy,
            Status::Idle | Status::Offline | Status::Error => AgentStatus::Idle,
        }
    }
}

/// One claim.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub kind: ClaimKind,
    pub id: String,
    /// Deadline on our own clock, if it has one.
    pub expires: Option<Tick>,
}

/// One piece of work, for example the provider's turn.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Work {
    /// `provider-turn`, `subagent` or another reason.
    pub kind: String,
    pub id: String,
    /// Text for people.
    pub label: Option<String>,
    /// A record with `providerState` and more.
    pub metadata: Value,
    /// What it is done as, where a post says so.
    pub role: Option<String>,
    /// The work item that it is a part of, where a post says so.
    pub parent_id: Option<String>,
    /// Posted at the control port: in which words, and when (wall clock, ms).
    pub posted: Option<(String, i64)>,
}

/// The reason that stands for the main turn.
pub const TURN: &str = "provider-turn";

/// Claims, work items and the terminal status.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    terminal: Option<Status>,
    claims: Vec<Claim>,
    work: Vec<Work>,
}

impl Tracker {
    /// The status that follows from all of it.
    pub fn status(&self) -> Status {
        match self.terminal {
            Some(terminal) => terminal,
            None if !self.work.is_empty() || !self.claims.is_empty() => Status::Busy,
            None => Status::Idle,
        }
    }

    /// Sets or clears the terminal status; claims and work stay. Returns whether it changed.
    pub fn set_terminal(&mut self, terminal: Option<Status>) -> bool {
        let changed = self.terminal != terminal;
        self.terminal = terminal;
        changed
    }

    /// Starts a claim, or replaces it in its place.
    pub fn start_claim(&mut self, claim: Claim) {
        match self.claims.iter_mut().find(|c| c.kind == claim.kind && c.id == claim.id) {
            Some(old) => *old = claim,
            None => self.claims.push(claim),
        }
    }

    /// Ends a claim; ending one that is not there does nothing.
    pub fn finish_claim(&mut self, kind: ClaimKind, id: &str) {
        self.claims.retain(|c| c.kind != kind || c.id != id);
    }

    /// Removes the claims whose deadline has come and returns them.
    pub fn sweep(&mut self, now: Tick) -> Vec<Claim> {
        let is_over =
            |end| if crate::planted::is("lease-off-by-one") { end < now } else { end <= now };
        let (gone, kept) = std::mem::take(&mut self.claims)
            .into_iter()
            .partition(|c| c.expires.is_some_and(is_over));
        self.claims = kept;
        gone
    }

    /// The earliest deadline of a claim.
    pub fn next_expiry(&self) -> Option<Tick> {
        self.claims.iter().filter_map(|c| c.expires).min()
    }

    /// Starts a work item, or replaces it in its place.
    pub fn start_work(&mut self, work: Work) {
        let is_full = self.work.len() >= WORK_MAX;
        match self.work.iter_mut().find(|w| w.kind == work.kind && w.id == work.id) {
            Some(old) => *old = work,
            None if is_full => {}
            None => self.work.push(work),
        }
    }

    /// Ends a work item. An end of the main turn ends all items of that kind, with or without id:
    /// providers report one turn in several ways, and in order.
    pub fn finish_work(&mut self, kind: &str, id: &str) {
        self.work.retain(|w| w.kind != kind || (kind != TURN && w.id != id));
    }

    /// Ends all work.
    pub fn clear_all_work(&mut self) {
        self.work.clear();
    }

    /// Ends all work of a kind.
    pub fn clear_work(&mut self, kind: &str) {
        self.work.retain(|w| w.kind != kind);
    }

    /// Distinct kinds, work first.
    pub fn reasons(&self) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        let kinds = self
            .work
            .iter()
            .map(|w| w.kind.as_str())
            .chain(self.claims.iter().map(|c| c.kind.as_str()));
        for kind in kinds {
            if !seen.iter().any(|s| s == kind) {
                seen.push(kind.to_string());
            }
        }
        seen
    }

    /// Work items as `activeWork` shows them.
    pub fn work_json(&self) -> Vec<Value> {
        let show = |w: &Work| {
            let mut shown =
                json!({"kind": w.kind, "id": w.id, "label": w.label, "metadata": w.metadata});
            for (name, told) in [("role", &w.role), ("parentId", &w.parent_id)] {
                if let Some(told) = told {
                    shown[name] = json!(told);
                }
            }
            shown
        };
        self.work.iter().map(show).collect()
    }

    /// Claims for `/status`; `left_ms` is the time that is left.
    pub fn claims_json(&self, now: Tick) -> Vec<Value> {
        let left = |c: &Claim| c.expires.map(|end| (end - now).as_millis() as u64);
        self.claims
            .iter()
            .map(|c| json!({"kind": c.kind.as_str(), "id": c.id, "leftMs": left(c)}))
            .collect()
    }

    /// Work items of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.work.iter().filter(|w| w.kind == kind).count()
    }

    /// The newest work that somebody has posted: in which words, and when.
    pub fn posted(&self) -> Option<&(String, i64)> {
        self.work.iter().filter_map(|w| w.posted.as_ref()).max_by_key(|(_, at)| *at)
    }

    /// `providerState` of the first main turn, if it is a record.
    pub fn provider_state(&self) -> Value {
        let state =
            self.work.iter().find(|w| w.kind == TURN).and_then(|w| w.metadata.get("providerState"));
        state.filter(|s| s.is_object()).cloned().unwrap_or(Value::Null)
    }

    /// Whether a task claim is held.
    pub fn holds(&self, kind: ClaimKind, id: &str) -> bool {
        self.claims.iter().any(|c| c.kind == kind && c.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(kind: &str, id: &str) -> Work {
        Work { kind: kind.into(), id: id.into(), ..Default::default() }
    }

    #[test]
    fn status_follows_from_claims_work_and_terminal() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.status(), Status::Idle);
        tracker.start_work(work(TURN, "t1"));
        tracker.start_work(work("subagent", "s1"));
        assert_eq!(tracker.status(), Status::Busy);
        assert!(tracker.set_terminal(Some(Status::Error)));
        assert_eq!(
            (tracker.status(), tracker.status().semantic()),
            (Status::Error, AgentStatus::Idle)
        );
        tracker.set_terminal(None);
        tracker.finish_work(TURN, "another id");
        assert_eq!(tracker.reasons(), ["subagent"]);
        tracker.finish_work("subagent", "s2");
        assert_eq!(tracker.status(), Status::Busy);
        tracker.finish_work("subagent", "s1");
        assert_eq!(tracker.status(), Status::Idle);
    }

    #[test]
    fn claims_lapse_at_their_deadline() {
        let mut tracker = Tracker::default();
        let claim = |id: &str, expires| Claim { kind: ClaimKind::Task, id: id.into(), expires };
        tracker.start_claim(claim("1", Some(Tick(10))));
        tracker.start_claim(claim("2", None));
        tracker.start_claim(claim("1", Some(Tick(20))));
        assert_eq!(tracker.sweep(Tick(19)).len(), 0);
        assert_eq!(tracker.next_expiry(), Some(Tick(20)));
        assert_eq!(tracker.sweep(Tick(20)).len(), 1);
        assert!(tracker.holds(ClaimKind::Task, "2") && !tracker.holds(ClaimKind::Task, "1"));
    }
}
