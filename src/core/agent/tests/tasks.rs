//! Interrupted tasks at the runner.

use super::*;
use crate::core::agent::effect::{Effect, HeartbeatCommand, StoreCommand};
use crate::core::agent::store::OutboxRow;
use crate::core::agent::store::RowKind;
use crate::core::commit::Commit;
use crate::core::ids::{BatchNumber, MessageId};

/// The place of a message of the first relay that was met.
fn place(id: u64) -> crate::core::ids::MessageRef {
    crate::core::ids::MessageRef { family: 1, id: MessageId(id), generation: 1 }
}

impl Bench {
    fn holds(&self, id: u64) -> bool {
        self.agent.turn.summary()["messages"].as_array().is_some_and(|ids| ids.contains(&json!(id)))
    }

    fn offer(&mut self, id: u64, task: u64) -> Vec<Effect> {
        let message = Message {
            id: MessageId(id),
            from: "user".into(),
            to: "a".into(),
            kind: "task".into(),
            body: "do it".into(),
            claimable: true,
            payload: json!({"taskId": task}).as_object().cloned().unwrap_or_default(),
            ..Default::default()
        };
        let data = serde_json::to_value(message).expect("plain data");
        let frame = RelayFrame::Event { seq: 100 + id, event: "message.new".into(), data, at: 0 };
        self.tell(Event::Bus(BusEvent::Framed(frame)))
    }

    /// Everything that is asked succeeds, and every row arrives, until nothing more happens. What
    /// was asked and reported.
    fn settle_all(
        &mut self,
        mut effects: Vec<Effect>,
        refuse: &[&str],
    ) -> (Vec<String>, Vec<OutboxRow>) {
        let (mut asked, mut reported) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let mut next = Vec::new();
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Heartbeat(HeartbeatCommand::Call { call, method, path, .. }) => {
                        let what = format!("{method} {path}");
                        let status =
                            if refuse.iter().any(|part| what.contains(part)) { 409 } else { 200 };
                        asked.push(what);
                        next.extend(self.tell(Event::Called {
                            call,
                            result: Ok((status, json!({"obligations": []}))),
                        }));
                    }
                    Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
                        for op in ops {
                            if let StoreOp::OutboxAppend(row) = op {
                                reported.push(row);
                            }
                        }
                        next.extend(self.commit());
                    }
                    Effect::Store(StoreCommand::FetchOutbox) => {
                        // As if the pump had taken everything.
                        next.extend(
                            self.tell(Event::Store(StoreEvent::OutboxRows {
                                rows: Ok(Vec::new()),
                            })),
                        );
                    }
                    _ => {}
                }
            }
            if next.is_empty() {
                break;
            }
            effects = next;
        }
        (asked, reported)
    }

    /// A task in its turn, at a relay without generations.
    fn in_task() -> Bench {
        Bench::in_task_at(&json!({}))
    }

    /// The same at a relay that says this of itself.
    fn in_task_at(server: &serde_json::Value) -> Bench {
        let mut bench = Bench::quiet();
        bench.agent.note_relay(server.as_object().expect("a record"), None);
        let effects = bench.offer(5, 9);
        bench.settle_all(effects, &[]);
        bench.session_event(SessionEvent::TurnStarted);
        assert!(bench.holds(5));
        bench
    }

    fn end(&mut self, end: TurnEnd, refuse: &[&str]) -> (Vec<String>, Vec<OutboxRow>) {
        let batch = self.agent.turn.summary()["batch"].as_u64();
        let effects = self.session_event(SessionEvent::TurnEnded {
            batch: batch.map(BatchNumber),
            end,
            text: "so far".into(),
        });
        self.settle_all(effects, refuse)
    }
}

fn reports(rows: &[OutboxRow]) -> Vec<(String, String)> {
    let word = |row: &OutboxRow| {
        let text = |field: &str| row.payload[field].as_str().unwrap_or_default().to_string();
        (text("status"), text("body"))
    };
    rows.iter()
        .filter(|row| row.kind == RowKind::TaskUpdate && row.payload["status"] != "in_progress")
        .map(word)
        .collect()
}

#[test]
fn an_interrupted_task_is_blocked_by_one_report_with_who_and_why() {
    for (kind, params, want) in [
        ("agent.interrupt", json!({"reason": "not now"}), "interrupted by user: not now"),
        ("agent.interrupt", json!({}), "interrupted by user"),
        (
            "agent.permissionDecision",
            json!({"approvalId": "x", "decision": "abort"}),
            "an approval was aborted by user",
        ),
        (
            "agent.permissionDecision",
            json!({"approvalId": "x", "decision": "deny"}),
            "the agent ended its turn as cancelled",
        ),
    ] {
        let mut bench = Bench::in_task();
        let params = params.as_object().cloned().unwrap_or_default();
        let command = Command {
            id: "c".into(),
            kind: kind.into(),
            target: "a".into(),
            issued_by: "user".into(),
            params,
            ..Default::default()
        };
        let effects = bench
            .tell(Event::Bus(BusEvent::Framed(RelayFrame::Command { id: "c".into(), command })));
        bench.settle_all(effects, &[]);
        let (_, rows) = bench.end(TurnEnd::Cancelled, &[]);
        assert_eq!(reports(&rows), [("blocked".to_string(), want.to_string())]);
        assert!(
            !rows.iter().any(|row| row.kind == RowKind::Message),
            "whoever goes on with the task answers: {rows:?}"
        );
        assert!(!bench.holds(5) && !bench.agent.inbox.knows(place(5)));
        // Offered again it is new, and another one than before for the provider and for its record.
        let effects = bench.offer(5, 9);
        let (asked, _) = bench.settle_all(effects, &[]);
        assert!(asked.iter().any(|what| what == "POST /api/messages/5/claim"), "{asked:?}");
        let trace = bench.agent.fingerprints().pop().expect("under way");
        assert!(
            trace.header.starts_with(
                "[relay message #5 from user]\n[agent-relay] You were given this task before"
            ),
            "{trace:?}"
        );
        let message = bench.agent.under_way().next().expect("under way").clone();
        let first = Message { payload: Default::default(), ..message.clone() };
        assert_ne!(
            super::super::prompt_text::key("a", &[&message]),
            super::super::prompt_text::key("a", &[&first])
        );
    }
}

#[test]
fn a_restart_is_no_interrupt() {
    let mut bench = Bench::in_task();
    let command = Command {
        id: "c".into(),
        kind: "agent.restart".into(),
        target: "a".into(),
        ..Default::default()
    };
    let effects =
        bench.tell(Event::Bus(BusEvent::Framed(RelayFrame::Command { id: "c".into(), command })));
    bench.settle_all(effects, &[]);
    let (_, rows) = bench.end(TurnEnd::Cancelled, &[]);
    assert_eq!(reports(&rows), []);
    assert!(bench.holds(5), "the record decides");
}

/// Only a relay that is known to offer a blocked task to nobody ends the claim; at others it is
/// kept, also over a restart.
#[test]
fn the_claim_is_kept_where_the_relay_would_offer_the_task_again() {
    let mut bench = Bench::in_task();
    bench.end(TurnEnd::Cancelled, &[]);
    let renew = |bench: &mut Bench, refuse: &[&str]| {
        bench.now.tick = bench.now.tick + CLAIM_RENEWAL_INTERVAL + Duration::from_secs(1);
        let effects = bench.agent.wake(bench.now);
        bench.settle_all(effects, refuse).0
    };
    for _ in 0..2 {
        assert!(renew(&mut bench, &[]).contains(&"POST /api/messages/5/claim/renew".to_string()));
    }
    // It ends by itself where the relay says that the task is blocked.
    assert!(
        renew(&mut bench, &["/claim/renew"])
            .contains(&"POST /api/messages/5/claim/renew".to_string())
    );
    assert!(!renew(&mut bench, &[]).iter().any(|what| what.contains("renew")));

    let mut bench = Bench::in_task_at(&json!({"generation": "g"}));
    bench.end(TurnEnd::Cancelled, &[]);
    assert!(!renew(&mut bench, &[]).iter().any(|what| what.contains("renew")));
}

#[test]
fn the_end_of_a_task_that_is_not_ours_any_more_is_not_reported() {
    for end in [TurnEnd::Completed, TurnEnd::Failed("x".into()), TurnEnd::Cancelled] {
        let mut bench = Bench::in_task();
        bench.now.tick = bench.now.tick + CLAIM_RENEWAL_INTERVAL + Duration::from_secs(1);
        let effects = bench.agent.wake(bench.now);
        bench.settle_all(effects, &["/claim/renew"]);
        let (_, rows) = bench.end(end, &[]);
        assert_eq!(reports(&rows), []);
    }
    let mut bench = Bench::in_task();
    let (_, rows) = bench.end(TurnEnd::Completed, &[]);
    assert_eq!(reports(&rows).iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>(), ["done"]);
}

/// A task that this agent has ended, as far as it knows, is offered again: the relay has refused
/// that end. It is claimed, but not before what was reported of it has arrived.
#[test]
fn a_settled_task_that_is_offered_again_is_claimed_behind_its_reports() {
    let mut bench = Bench::in_task();
    bench.end(TurnEnd::Completed, &[]);
    assert!(bench.agent.inbox.is_settled(place(5)));
    bench.agent.outbox.restore(1, 0);
    let mut effects = bench.offer(5, 9);
    effects.extend(bench.commit());
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Heartbeat(HeartbeatCommand::Call { path, .. }) if path.ends_with("/claim"))),
        "{effects:?}"
    );
    let (asked, _) = bench.settle_all(effects, &[]);
    assert!(asked.iter().any(|what| what == "POST /api/messages/5/claim"), "{asked:?}");
}
