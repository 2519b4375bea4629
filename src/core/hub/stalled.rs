//! The store does not take changes: for a while, or for good.

use super::Hub;
use super::STOP_LIMIT;
use super::event::{After, Effect};
use crate::core::Cause;
use crate::core::limits::STORE_RETRY;
use crate::core::store::{StoreError, StoreKind};

impl Hub {
    /// The commit is tried again until it succeeds. Whoever waits for it hears at once that it may take long: the change
    /// stays queued, so it is not taken back, but nothing is called done that is not durable.
    pub(super) fn on_store_stalled(&mut self, cause: Cause) {
        if self.store_trouble.is_none() {
            self.log("error", format!("store cannot be written: {cause}; nothing new is accepted until it can"));
        }
        self.store_retry_at = Some(self.now.tick + cause.store_retry().unwrap_or(STORE_RETRY));
        let sentence = format!(
            "the hub cannot store anything for now ({cause}); this request waits in the hub and may still be carried out: \
             send it again under the same idempotency key, or look first"
        );
        self.store_trouble = Some(cause);
        self.refuse_waiting(&sentence);
    }

    /// Nothing that waits was acknowledged; what was is durable, and saved by whoever ends the hub.
    pub(super) fn on_store_broken(&mut self, error: StoreError) {
        if self.finished || matches!(&self.store_trouble, Some(Cause::Store(known)) if known.kind.retry().is_none()) {
            return;
        }
        self.log("error", format!("the hub stops: {error}"));
        self.refuse_waiting(&format!("the hub stops: {error}; nothing of this request was stored"));
        self.commits.clear();
        self.ops.clear();
        self.store_retry_at = None;
        self.store_trouble = Some(Cause::Store(error.clone()));
        self.out.push(Effect::Broken(error));
        self.stopping = true;
        self.stop_by.get_or_insert(self.now.tick + STOP_LIMIT);
    }

    /// Answers every request that waits for a commit; what the commit will bring about stays.
    fn refuse_waiting(&mut self, sentence: &str) {
        let mut tickets = Vec::new();
        for (_, _, waiting) in &mut self.commits {
            for item in std::mem::take(waiting) {
                match item {
                    After::Answer { ticket, .. } => tickets.push(ticket),
                    After::Sent { ticket, sent } => {
                        tickets.push(ticket);
                        waiting.push(After::Route { sent });
                    }
                    After::Batch { ticket, rows } => {
                        tickets.push(ticket);
                        waiting.extend(rows.into_iter().flatten().map(|sent| After::Route { sent }));
                    }
                    other => waiting.push(other),
                }
            }
        }
        for ticket in tickets {
            self.refuse(ticket, 503, "store_unavailable", sentence);
        }
    }

    /// A read that failed: damage ends the hub, all else only that read.
    pub(super) fn on_read_failed(&mut self, ticket: Option<u64>, error: StoreError) {
        let (status, code) = match error.kind {
            StoreKind::Failed => (500, "internal"),
            _ => (503, "store_unavailable"),
        };
        if let Some(ticket) = ticket {
            self.refuse(ticket, status, code, &error.text);
        }
        if error.kind.retry().is_none() {
            self.on_store_broken(error);
        }
    }

    /// While nothing is under way: a commit looks by itself.
    pub(super) fn look_at_store(&mut self) {
        if self.commits.is_empty() && self.vacuums.is_empty() && self.started.is_some() {
            self.out.push(Effect::LookAtStore);
        }
    }
}
