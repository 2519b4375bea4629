//! The store does not take changes: for a while, or for good.

use super::Hub;
use super::STOP_LIMIT;
use super::event::{After, Effect};
use super::timer::Timer;
use crate::core::Cause;
use crate::core::hub::event::StoreCommand;
use crate::core::ids::Ticket;
use crate::core::store::{StoreError, StoreKind};
use crate::wire::control::LogLevel;

impl Hub {
    /// The commit is tried again until it succeeds. Whoever waits for it hears at once that it may
    /// take long: the change stays queued, so it is not taken back, but nothing is called done that
    /// is not durable.
    pub(super) fn on_store_stalled(&mut self, cause: Cause) {
        let sentence = format!(
            "the hub cannot store anything for now ({cause}); this request waits in the hub and may still be carried out: \
             send it again under the same idempotency key, or look first"
        );
        let news =
            format!("store cannot be written: {cause}; nothing new is accepted until it can");
        if self.commits.on_stalled(self.now.tick, cause) {
            self.log(LogLevel::Error, news);
        }
        self.refuse_waiting(&sentence);
    }

    /// Nothing that waits was acknowledged; what was is durable, and saved by whoever ends the hub.
    pub(super) fn on_store_broken(&mut self, error: StoreError) {
        let is_known =
            self.commits.trouble().is_some_and(|known| known.cause.store_retry().is_none());
        if self.finished || is_known {
            return;
        }
        self.log(LogLevel::Error, format!("the hub stops: {error}"));
        self.refuse_waiting(&format!("the hub stops: {error}; nothing of this request was stored"));
        self.commits.abandon();
        self.commits.on_broken(self.now.tick, Cause::Store(error.clone()));
        self.out.push(Effect::Broken(error));
        self.stopping = true;
        self.timers.set_once(Timer::StopLimit, self.now.tick + STOP_LIMIT);
    }

    /// Answers every request that waits for a commit; what the commit will bring about stays.
    fn refuse_waiting(&mut self, sentence: &str) {
        let mut tickets = Vec::new();
        for waiting in self.commits.waiting() {
            for item in std::mem::take(waiting) {
                match item {
                    After::Answer { ticket, .. } => tickets.push(ticket),
                    After::AcceptedMessage { ticket, sent } => {
                        tickets.push(ticket);
                        waiting.push(After::Route { sent });
                    }
                    After::Batch { ticket, rows } => {
                        tickets.push(ticket);
                        waiting
                            .extend(rows.into_iter().flatten().map(|sent| After::Route { sent }));
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
    pub(super) fn on_read_failed(&mut self, ticket: Option<Ticket>, error: StoreError) {
        let (status, code) = match error.kind {
            StoreKind::Failed => (500, "internal"),
            StoreKind::Full
            | StoreKind::Busy
            | StoreKind::Corrupt
            | StoreKind::Gone
            | StoreKind::Denied
            | StoreKind::TooNew => (503, "store_unavailable"),
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
        if self.commits.is_idle() && self.vacuums.is_empty() && self.started.is_some() {
            self.out.push(Effect::Store(StoreCommand::Look));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::event::{Event, ReadAnswer, StoreEvent};
    use super::super::tests::Bench;
    use super::*;
    use crate::core::http::{Body, GateCommand};
    use crate::core::limits::PING_INTERVAL;

    fn trouble(kind: StoreKind) -> StoreError {
        StoreError::new(kind, "the hub's store", "it says so")
    }

    fn answers(effects: &[Effect]) -> Vec<(u16, String)> {
        let answer = |effect: &Effect| match effect {
            Effect::Gate(GateCommand::Respond { status, body: Body::Json(body), .. }) => {
                Some((*status, body.to_string()))
            }
            Effect::Gate(GateCommand::Respond { status, .. }) => Some((*status, String::new())),
            _ => None,
        };
        effects.iter().filter_map(answer).collect()
    }

    #[test]
    fn who_waits_for_a_full_disk_hears_so_at_once_and_only_once() {
        let mut bench = Bench::new();
        bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
        let batch = json!({"messages": [{"to": "a", "body": "y"}, {"to": "a", "body": "z"}]});
        bench.ask("operator", "POST", "/api/messages/batch", batch);
        bench.ask("operator", "POST", "/api/tasks", json!({"title": "t", "to": "a"}));
        let heard = answers(
            &bench.tell(Event::Store(StoreEvent::Stalled(trouble(StoreKind::Full).into()))),
        );
        assert_eq!(heard.len(), 3, "{heard:?}");
        assert!(
            heard
                .iter()
                .all(|(status, text)| *status == 503 && text.contains("may still be carried out")),
            "{heard:?}"
        );
        let effects = bench.later(Duration::from_millis(500));
        assert!(effects.contains(&Effect::Store(StoreCommand::Retry)), "{effects:?}");
        assert_eq!(answers(&bench.commit()), [], "no second answer; what was asked is there");
        let effects = bench.ask("operator", "GET", "/api/hub", json!({}));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Read { .. })), "{effects:?}");
    }

    #[test]
    fn what_does_not_heal_by_itself_is_tried_rarely_and_damage_never() {
        for (kind, soon, late) in [
            (StoreKind::Busy, true, true),
            (StoreKind::Denied, false, true),
            (StoreKind::Failed, false, true),
        ] {
            let mut bench = Bench::new();
            bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
            bench.tell(Event::Store(StoreEvent::Stalled(trouble(kind).into())));
            let retried = bench
                .later(Duration::from_millis(500))
                .contains(&Effect::Store(StoreCommand::Retry));
            let again = retried
                || bench
                    .later(Duration::from_millis(4500))
                    .contains(&Effect::Store(StoreCommand::Retry));
            assert_eq!((retried, again), (soon, late), "{kind:?}");
        }
        for kind in [StoreKind::Corrupt, StoreKind::Gone] {
            let mut bench = Bench::new();
            bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
            let effects = bench.tell(Event::Store(StoreEvent::Stalled(trouble(kind).into())));
            assert_eq!(
                answers(&effects).iter().map(|(status, _)| *status).collect::<Vec<_>>(),
                [503],
                "{effects:?}"
            );
            assert!(
                effects.contains(&Effect::Broken(trouble(kind)))
                    && effects.last() == Some(&Effect::Finish),
                "{effects:?}"
            );
        }
    }

    #[test]
    fn a_read_over_damage_ends_the_hub_and_another_failed_read_does_not() {
        for (kind, status, ends) in [
            (StoreKind::Corrupt, 503, true),
            (StoreKind::Busy, 503, false),
            (StoreKind::Failed, 500, false),
        ] {
            let mut bench = Bench::new();
            let effects = bench.ask("operator", "GET", "/api/messages/1", json!({}));
            let number = effects.iter().find_map(|effect| match effect {
                Effect::Read { number, .. } => Some(*number),
                _ => None,
            });
            let answer = ReadAnswer::Failed(trouble(kind));
            let effects = bench.tell(Event::Store(StoreEvent::Read {
                number: number.unwrap_or_default(),
                answer,
            }));
            assert_eq!(
                answers(&effects).first().map(|(status, _)| *status),
                Some(status),
                "{effects:?}"
            );
            assert_eq!(effects.contains(&Effect::Finish), ends, "{kind:?}: {effects:?}");
        }
    }

    #[test]
    fn the_file_is_looked_at_with_the_sweep_while_nothing_is_under_way() {
        let mut bench = Bench::new();
        bench.commit();
        assert!(bench.later(PING_INTERVAL).contains(&Effect::Store(StoreCommand::Look)));
        bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
        assert!(
            !bench.later(PING_INTERVAL).contains(&Effect::Store(StoreCommand::Look)),
            "the commit looks by itself"
        );
    }
}
