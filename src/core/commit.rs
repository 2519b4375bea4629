//! Durable before visible: the commit rule of every machine.
//!
//! What an event makes durable is one commit, and every effect that tells of it waits until that
//! commit is on disk. A commit that fails is tried again until it succeeds or the process dies, so
//! a machine may think ahead of the disk while nobody outside ever sees it. How far ahead is its
//! credit.

use std::collections::VecDeque;
use std::time::Duration;

use super::Cause;
use super::limits::{COMMITS_IN_FLIGHT_MAX, STORE_RETRY};
use super::time::Tick;

/// What a machine has decided and the disk does not know yet: operations of the event at hand,
/// commits that are under way, and what waits behind each. `Op` is a change of the store, `After`
/// whatever becomes visible once it is durable.
///
/// A machine calls [`CommitQueue::write`] and [`CommitQueue::defer`] while it handles an event,
/// then [`CommitQueue::close`] exactly once; for every answer of the store it takes
/// [`CommitQueue::next_durable`] until there is none.
#[derive(Debug)]
pub struct CommitQueue<Op, After> {
    /// Of earlier events; they go first.
    late: Vec<Op>,
    ops: Vec<Op>,
    after: Vec<After>,
    in_flight: VecDeque<InFlight<After>>,
    newest: u64,
    trouble: Option<Trouble>,
    retry_at: Option<Tick>,
}

#[derive(Debug)]
struct InFlight<After> {
    number: u64,
    since: Tick,
    after: Vec<After>,
}

/// Why the store does not take changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// What it said last.
    pub cause: Cause,
    /// When it began.
    pub since: Tick,
}

/// One transaction for the store.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names say it
pub struct Commit<Op> {
    pub number: u64,
    pub ops: Vec<Op>,
}

/// What follows from an event that is over.
#[derive(Debug, PartialEq)]
pub struct Closed<Op, After> {
    /// To be ordered from the store, if anything changed.
    pub commit: Option<Commit<Op>>,
    /// What needs to wait for nothing: all that it tells is durable.
    pub visible: Vec<After>,
}

/// A commit that is on disk.
#[derive(Debug, PartialEq)]
pub struct Durable<After> {
    /// From the order to the answer.
    pub took: Duration,
    /// What may become visible now.
    pub after: Vec<After>,
}

impl<Op, After> Default for CommitQueue<Op, After> {
    fn default() -> Self {
        CommitQueue {
            late: Vec::new(),
            ops: Vec::new(),
            after: Vec::new(),
            in_flight: VecDeque::new(),
            newest: 0,
            trouble: None,
            retry_at: None,
        }
    }
}

impl<Op, After> CommitQueue<Op, After> {
    /// The event at hand changes something durable.
    pub fn write(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// The event at hand changes something of which nobody is told that it is durable: it goes to
    /// the disk with the next commit, in the order in which it was written. Whoever writes so has
    /// to [`CommitQueue::hurry`] where no commit comes.
    pub fn write_late(&mut self, op: Op) {
        self.late.push(op);
    }

    /// Changes that wait for the next commit.
    pub fn late(&self) -> usize {
        self.late.len()
    }

    /// What waits for the next commit waits no longer: the event at hand makes one.
    pub fn hurry(&mut self) {
        self.take_late();
    }

    /// Puts what was written earlier before what the event at hand writes.
    fn take_late(&mut self) {
        if !self.late.is_empty() {
            let written = std::mem::take(&mut self.ops);
            self.ops = std::mem::take(&mut self.late);
            self.ops.extend(written);
        }
    }

    /// To become visible once everything that was written until the end of this event is durable.
    pub fn defer(&mut self, after: After) {
        self.after.push(after);
    }

    /// [`CommitQueue::defer`] for several, or for one that there may be.
    pub fn defer_all(&mut self, after: impl IntoIterator<Item = After>) {
        self.after.extend(after);
    }

    /// Ends the event at hand. Where it wrote nothing, what it deferred waits for the newest commit
    /// under way: it may tell of what an earlier event wrote.
    pub fn close(&mut self, now: Tick) -> Closed<Op, After> {
        if !self.ops.is_empty() && crate::planted::is("visible-before-durable") {
            let visible = std::mem::take(&mut self.after);
            return Closed { commit: self.commit(now), visible };
        }
        let commit = self.commit(now);
        let mut visible = self.take_after();
        let overtakes = crate::planted::is("overtaken-commit");
        if let Some(newest) = self.in_flight.back_mut().filter(|_| !overtakes) {
            newest.after.append(&mut visible);
        }
        Closed { commit, visible }
    }

    /// The commit for what was written so far, with everything that was deferred so far behind it.
    ///
    /// # Panics
    /// If too many are under way: then a lane was served without credit.
    pub fn commit(&mut self, now: Tick) -> Option<Commit<Op>> {
        if self.ops.is_empty() {
            return None;
        }
        let has_room = self.in_flight.len() < COMMITS_IN_FLIGHT_MAX;
        assert!(has_room, "a lane was served without credit");
        self.take_late();
        self.newest += 1;
        let after = std::mem::take(&mut self.after);
        self.in_flight.push_back(InFlight { number: self.newest, since: now, after });
        Some(Commit { number: self.newest, ops: std::mem::take(&mut self.ops) })
    }

    /// What was deferred since the last commit; for whoever knows that it tells of durable things
    /// only.
    pub fn take_after(&mut self) -> Vec<After> {
        std::mem::take(&mut self.after)
    }

    /// The store has answered: it takes changes. Whether it did not before.
    pub fn on_accepted(&mut self) -> bool {
        self.retry_at = None;
        self.trouble.take().is_some()
    }

    /// The oldest commit under way, if it is durable now that the store has everything up to this
    /// number.
    pub fn next_durable(&mut self, upto: u64, now: Tick) -> Option<Durable<After>> {
        self.in_flight.front().filter(|oldest| oldest.number <= upto)?;
        let InFlight { since, after, .. } = self.in_flight.pop_front()?;
        Some(Durable { took: now - since, after })
    }

    /// The store does not take changes for now: it is asked again at [`CommitQueue::retry_at`].
    /// Whether that is news.
    pub fn on_stalled(&mut self, now: Tick, cause: Cause) -> bool {
        self.retry_at = Some(now + cause.store_retry().unwrap_or(STORE_RETRY));
        let known = self.trouble.take();
        let since = known.as_ref().map_or(now, |known| known.since);
        self.trouble = Some(Trouble { cause, since });
        known.is_none()
    }

    /// The store will never take changes again. What waits stays unseen, unless it is let go of by
    /// [`CommitQueue::abandon`].
    pub fn on_broken(&mut self, now: Tick, cause: Cause) {
        self.retry_at = None;
        self.trouble = Some(Trouble { cause, since: now });
    }

    /// Forgets every change that is not durable, and what waits behind those that are under way.
    pub fn abandon(&mut self) {
        self.in_flight.clear();
        self.late.clear();
        self.ops.clear();
    }

    /// What waits, commit by commit, for whoever has to answer some of it sooner.
    pub fn waiting(&mut self) -> impl Iterator<Item = &mut Vec<After>> {
        self.in_flight.iter_mut().map(|commit| &mut commit.after)
    }

    /// Why the store does not take changes, while it does not.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When to ask the store again.
    pub fn retry_at(&self) -> Option<Tick> {
        self.retry_at
    }

    /// The store is being asked again now.
    pub fn forget_retry(&mut self) {
        self.retry_at = None;
    }

    /// Whether there is room for a commit while `reserve` more stay free for others.
    pub fn has_credit(&self, reserve: usize) -> bool {
        self.in_flight.len() + reserve < COMMITS_IN_FLIGHT_MAX
    }

    /// Commits that are under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Everything is durable, also what the event at hand wrote so far.
    pub fn is_durable(&self) -> bool {
        self.is_idle() && self.ops.is_empty() && self.late.is_empty()
    }

    /// The number of the newest commit, 0 if there was none; that of the event at hand is the next
    /// one.
    pub fn newest(&self) -> u64 {
        self.newest
    }
}

#[cfg(test)]
mod tests;
