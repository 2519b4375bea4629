//! What each sender and each token line has at the hub: messages that match nobody yet, claimable
//! messages that are not settled, and bytes that were stored today. Whoever meets a limit is told
//! which one, and when to come again.

use std::collections::HashMap;
use std::time::Duration;

use super::rights::{is_runtime, line_of};
use super::{Hub, Refusal};
use crate::core::limits::*;
use crate::core::time::Tick;
use crate::wire::api::TokenRecord;

/// Bytes that a stored thing costs beside its texts.
const ROW_BYTES: usize = 512;
/// Bytes that each recipient of a message costs.
const RECIPIENT_BYTES: usize = 256;
/// Seconds until a sender may come again whose messages wait for others.
const AGAIN_AFTER: u64 = 60;

/// What a line has stored since its day began.
#[derive(Debug, Clone, Copy)]
struct Stored {
    since: Tick,
    bytes: u64,
}

/// All accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Messages that match nobody yet, by sender.
    pub unresolved: Counts,
    /// Claimable messages that are not settled, by sender.
    pub offers: Counts,
    stored: HashMap<String, Stored>,
    /// Seconds until the one who has met a limit just now may come again, for the answer.
    pub retry_after: Option<u64>,
}

/// Numbers by name.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<String, usize>);

impl Counts {
    pub fn of(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn add(&mut self, name: &str) {
        match self.0.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(name.to_string(), 1)),
        }
    }

    pub fn remove(&mut self, name: &str) {
        if let Some(count) = self.0.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(name);
            }
        }
    }

    /// Counts anew: what was counted and never came is forgotten.
    pub fn count<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        self.0.clear();
        names.for_each(|name| self.add(name));
    }
}

impl Accounts {
    /// Charges bytes to the day of a line; the seconds that are left of the day where they are too
    /// many.
    fn store(&mut self, now: Tick, token: &TokenRecord, bytes: usize) -> Result<(), u64> {
        let most = if is_runtime(&token.profile_id) {
            AGENT_STORED_PER_DAY_MAX
        } else {
            PEOPLE_STORED_PER_DAY_MAX
        };
        let line = line_of(token);
        if !self.stored.contains_key(line) {
            self.stored.insert(line.to_string(), Stored { since: now, bytes: 0 });
        }
        let Some(stored) = self.stored.get_mut(line) else { return Ok(()) };
        if now - stored.since >= DAY {
            *stored = Stored { since: now, bytes: 0 };
        }
        if stored.bytes + bytes as u64 > most && !crate::planted::is("endless-store") {
            return Err((DAY - (now - stored.since)).as_secs_f64().ceil() as u64);
        }
        stored.bytes += bytes as u64;
        Ok(())
    }

    /// Days that are over say nothing any more.
    pub fn forget_old(&mut self, now: Tick) {
        self.stored.retain(|_, stored| now - stored.since < DAY);
    }
}

/// A day of an account.
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Hub {
    /// Charges what is to be stored to the day of its line.
    pub(super) fn charge_stored(
        &mut self,
        actor: &TokenRecord,
        bytes: usize,
        recipients: usize,
    ) -> Result<(), Refusal> {
        let bytes = bytes + ROW_BYTES + RECIPIENT_BYTES * recipients;
        let Err(left) = self.accounts.store(self.now.tick, actor, bytes) else { return Ok(()) };
        let text = format!(
            "one token and its renewals may store so many bytes a day; there is room again in {} min",
            left.div_ceil(60)
        );
        Err(self.limit_met(actor, "stored bytes", left, ("stored_too_much", text)))
    }

    /// A message that matches nobody, or that somebody has to claim, waits for long: one sender has
    /// so many of them.
    pub(super) fn check_waiting(
        &mut self,
        actor: &TokenRecord,
        from: &str,
        claimable: bool,
        matches_nobody: bool,
    ) -> Result<(), Refusal> {
        if crate::planted::is("endless-waiting") {
            return Ok(());
        }
        let is_agent = is_runtime(&actor.profile_id);
        let unresolved = if is_agent { AGENT_UNRESOLVED_MAX } else { PEOPLE_UNRESOLVED_MAX };
        let offers = if is_agent { AGENT_OFFERS_MAX } else { PEOPLE_OFFERS_MAX };
        let is_full = self.unresolved.len() >= UNRESOLVED_MAX;
        if matches_nobody && (self.accounts.unresolved.of(from) >= unresolved || is_full) {
            let text = format!("{unresolved} messages of one sender may wait for a match");
            let told = ("too_many_unresolved", text);
            return Err(self.limit_met(actor, "unresolved messages", AGAIN_AFTER, told));
        }
        if claimable && self.accounts.offers.of(from) >= offers {
            let text = format!("{offers} tasks and claimable messages of one sender may be open");
            return Err(self.limit_met(actor, "open tasks", AGAIN_AFTER, ("too_many_open", text)));
        }
        Ok(())
    }

    /// Counts what waits anew, from what there is.
    pub(super) fn recount(&mut self) {
        self.accounts.unresolved.count(self.unresolved.iter().map(|it| it.sender.as_str()));
        self.accounts.offers.count(self.offers.values().map(|offer| offer.sender.as_str()));
        self.accounts.forget_old(self.now.tick);
    }

    fn limit_met(
        &mut self,
        actor: &TokenRecord,
        limit: &'static str,
        seconds: u64,
        (code, text): (&'static str, String),
    ) -> Refusal {
        self.note_limit_met(actor, limit);
        self.accounts.retry_after = Some(seconds);
        (429, code, text)
    }
}
