//! Durable first, visible after; leases to the tick; who may do what.

mod blocked;
mod bounds;
mod deliveries;
mod ended;
mod loops;
mod rights;
mod shared;
mod tokens;

use crate::core::commit::Commit;
use crate::core::http::GateCommand;
use crate::core::hub::event::StoreCommand;
use std::time::Duration;

use serde_json::{Value, json};

use super::event::{Effect, Event, HubOp, HubSnapshot, Retired, StoreEvent};
use super::*;
use crate::core::http::{Body, Request};
use crate::core::ids::{MessageId, PeerId, TaskId, Ticket};
use crate::core::time::Wall;
use crate::wire::api::TokenRecord;

pub(super) struct Bench {
    hub: Hub,
    now: Now,
    tickets: u64,
}

impl Bench {
    pub(super) fn new() -> Bench {
        Bench::with(HubSnapshot::default())
    }

    /// On these data, with tokens for an operator and for `a` and `b`, who are registered.
    fn with(snapshot: HubSnapshot) -> Bench {
        let config = HubConfig {
            id: "hub".into(),
            hash: |token| format!("#{token}"),
            secret: Box::new(|| "secret".into()),
        };
        let mut bench = Bench {
            hub: Hub::new(config, 1),
            now: Now { tick: Tick(1_000_000), wall: Wall(1_000_000) },
            tickets: 0,
        };
        let token = |profile: &str, agent: Option<&str>| TokenRecord {
            jti: agent.unwrap_or(profile).into(),
            profile_id: profile.into(),
            agent_id: agent.map(str::to_string),
            scopes: scopes_of(profile).iter().map(|scope| scope.to_string()).collect(),
            ..Default::default()
        };
        let tokens = vec![
            ("#operator".to_string(), token("operator", None)),
            ("#a".to_string(), token("provider-agent", Some("a"))),
            ("#b".to_string(), token("provider-agent", Some("b"))),
        ];
        let snapshot = HubSnapshot { tokens, ..snapshot };
        bench.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        for agent in ["a", "b"] {
            let (status, _) = bench.call(
                agent,
                "POST",
                "/api/agents",
                json!({"id": agent, "role": "provider", "instanceId": agent}),
            );
            assert_eq!(status, 200);
        }
        bench
    }

    pub(super) fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.hub.handle(self.now, event)
    }

    pub(super) fn commit(&mut self) -> Vec<Effect> {
        let upto = self.hub.commits.newest();
        self.tell(Event::Store(StoreEvent::Committed {
            upto,
            existing: Vec::new(),
            unattached: Vec::new(),
            unseen: Vec::new(),
            retired: Retired::default(),
        }))
    }

    pub(super) fn ask(
        &mut self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Vec<Effect> {
        self.tickets += 1;
        let body = body.to_string().into_bytes();
        let request = Request {
            method: method.into(),
            path: path.into(),
            query: String::new(),
            token: token.into(),
            body,
            ..Default::default()
        };
        self.tell(Event::Request { ticket: Ticket(self.tickets), request })
    }

    /// Asks and commits; the status and body of the answer.
    fn call(&mut self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let mut effects = self.ask(token, method, path, body);
        effects.extend(self.commit());
        let ticket = Ticket(self.tickets);
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Gate(GateCommand::Respond { ticket: t, status, body }) if t == ticket => {
                Some((status, body.to_json()))
            }
            _ => None,
        });
        answer.expect("an answer")
    }

    pub(super) fn later(&mut self, time: Duration) -> Vec<Effect> {
        self.now.tick = self.now.tick + time;
        self.now.wall.0 += time.as_millis() as i64;
        self.hub.wake(self.now)
    }
}

fn visible(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Gate(GateCommand::Respond { .. }) | Effect::Gate(GateCommand::PeerSend { .. })
        )
    })
}

#[test]
fn a_message_is_visible_only_when_it_is_durable() {
    let mut bench = Bench::new();
    let effects = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    assert!(
        !visible(&effects)
            && effects
                .iter()
                .any(|e| matches!(e, Effect::Store(StoreCommand::Commit(Commit { .. })))),
        "{effects:?}"
    );
    assert!(visible(&bench.commit()));
}

#[test]
fn a_registration_is_confirmed_only_when_it_is_durable() {
    let mut bench = Bench::new();
    let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: Ticket(50), request });
    let text = json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "a", "instanceId": "new"}}).to_string();
    let effects = bench.tell(Event::PeerText { peer: PeerId(50), text });
    assert!(!visible(&effects), "{effects:?}");
    assert!(visible(&bench.commit()));
}

#[test]
fn a_lease_ends_at_its_tick_and_not_before() {
    let mut bench = Bench::new();
    let (_, task) =
        bench.call("operator", "POST", "/api/tasks", json!({"title": "t", "to": "broadcast"}));
    let claim = format!("/api/messages/{}/claim", task["messageId"]);
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 200);
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    bench.later(CLAIM_LEASE - Duration::from_micros(1));
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    // The same agent renews: a whole lease from here.
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 200);
    bench.later(CLAIM_LEASE - Duration::from_micros(1));
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    let effects = bench.later(Duration::from_micros(1));
    let offered = |op: &HubOp| matches!(op, HubOp::ClaimEnd { reoffer: true, .. });
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(offered))),
        "{effects:?}"
    );
    bench.commit();
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 200);
    // Settled by a final status: nobody claims it again.
    let path = format!("/api/tasks/{}", task["id"]);
    assert_eq!(
        bench.call("a", "PATCH", &path, json!({"status": "done"})).0,
        409,
        "another agent works on it"
    );
    assert_eq!(bench.call("b", "PATCH", &path, json!({"status": "done"})).0, 200);
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 409);
    assert_eq!(
        bench.call("b", "PATCH", &path, json!({"status": "open"})).0,
        409,
        "a final status never changes"
    );
}

#[test]
fn presence_follows_silence() {
    let mut bench = Bench::new();
    bench.call("a", "PUT", "/api/agents/a/status", json!({"status": "busy", "instanceId": "a"}));
    bench.later(OFFLINE_AFTER_SILENCE - Duration::from_micros(1));
    assert_eq!(bench.call("operator", "GET", "/api/agents/a", json!({})).1["status"], "busy");
    bench.later(Duration::from_micros(1));
    assert_eq!(bench.call("operator", "GET", "/api/agents/a", json!({})).1["status"], "offline");
    // A message to an agent that is offline waits for it.
    assert_eq!(
        bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"})).0,
        201
    );
}

#[test]
fn a_task_is_claimed_and_ended_only_by_those_it_was_offered_to() {
    let mut bench = Bench::new();
    let (_, task) = bench.call("operator", "POST", "/api/tasks", json!({"title": "t", "to": "b"}));
    let claim = format!("/api/messages/{}/claim", task["messageId"]);
    let path = format!("/api/tasks/{}", task["id"]);
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 403);
    assert_eq!(bench.call("a", "PATCH", &path, json!({"status": "done"})).0, 403);
    // A message that only pretends to carry that task does not bind it.
    let forged =
        json!({"to": "a", "body": "x", "claimable": true, "payload": {"taskId": task["id"]}});
    let (_, message) = bench.call("a", "POST", "/api/messages", forged);
    assert!(message["payload"].get("taskId").is_none(), "{message}");
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 200);
    assert_eq!(bench.call("b", "PATCH", &path, json!({"status": "done"})).0, 200);
}

#[test]
fn a_full_disk_is_said_at_once_and_does_not_keep_the_hub_from_ending() {
    let mut bench = Bench::new();
    bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    bench.tell(Event::Store(StoreEvent::Stalled(Cause::Failed("disk full".into()))));
    let effects = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "y"}));
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Gate(GateCommand::Respond { status: 503, .. }))),
        "{effects:?}"
    );
    bench.tell(Event::StopRequested);
    let effects = bench.later(Duration::from_secs(6));
    assert!(effects.contains(&Effect::Finish), "{effects:?}");
}

#[test]
fn events_are_streamed_from_where_the_reader_was() {
    let mut bench = Bench::new();
    let sent = |effects: &[Effect], peer: PeerId| -> Vec<String> {
        let texts = effects.iter().filter_map(|effect| match effect {
            Effect::Gate(GateCommand::PeerSend { peer: p, text }) if *p == peer => {
                Some(text.to_string())
            }
            _ => None,
        });
        texts.collect()
    };
    // The reader of an agent's token hears what concerns that agent.
    for (ticket, token) in [(Ticket(70), "operator"), (Ticket(71), "b")] {
        let request = Request {
            method: "GET".into(),
            path: "/api/events".into(),
            token: token.into(),
            ..Default::default()
        };
        let effects = bench.tell(Event::Request { ticket, request });
        assert_eq!(effects.first(), Some(&Effect::Gate(GateCommand::Accept { ticket })));
    }
    let mut effects =
        bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "line\nbreak"}));
    effects.extend(bench.commit());
    let heard = sent(&effects, PeerId(70));
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(
        heard[0].starts_with("id: ")
            && heard[0].contains("\nevent: message.new\ndata: {")
            && heard[0].ends_with("}\n\n"),
        "{heard:?}"
    );
    assert_eq!(
        heard[0].trim_end().lines().count(),
        3,
        "a line break of a body does not break the event"
    );
    assert!(sent(&effects, PeerId(71)).is_empty());
    // Who comes back names the last event that it has seen.
    let seen = heard[0].lines().next().expect("id").trim_start_matches("id: ").to_string();
    bench.ask("a", "PUT", "/api/agents/a/status", json!({"status": "busy"}));
    bench.tell(Event::PeerClosed { peer: PeerId(70) });
    let request = Request {
        method: "GET".into(),
        path: "/api/events".into(),
        token: "operator".into(),
        last_event_id: seen,
        ..Default::default()
    };
    let missed = sent(&bench.tell(Event::Request { ticket: Ticket(72), request }), PeerId(72));
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert!(missed[0].contains("event: agent.status"), "{missed:?}");
}

/// A status needs no commit; told at once it would come before the message that was sent earlier.
#[test]
fn what_needs_no_commit_does_not_overtake_one_that_is_under_way() {
    let mut bench = Bench::new();
    let events = Request {
        method: "GET".into(),
        path: "/api/events".into(),
        token: "operator".into(),
        ..Default::default()
    };
    bench.tell(Event::Request { ticket: Ticket(70), request: events });
    let mut early = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    early.extend(bench.ask("a", "PUT", "/api/agents/a/status", json!({"status": "busy"})));
    let told = |effects: &[Effect]| -> Vec<String> {
        let names = effects.iter().filter_map(|effect| match effect {
            Effect::Gate(GateCommand::PeerSend { text, .. }) => {
                text.lines().find_map(|line| line.strip_prefix("event: ")).map(str::to_string)
            }
            _ => None,
        });
        names.collect()
    };
    assert_eq!(told(&early), [""; 0], "{early:?}");
    assert_eq!(told(&bench.commit()), ["message.new", "agent.status"]);
}

#[test]
fn how_the_hub_is_is_told_to_people_only() {
    let mut bench = Bench::new();
    assert_eq!(bench.call("a", "GET", "/metrics", Value::Null).0, 403);
    assert_eq!(bench.call("a", "GET", "/api/tokens", Value::Null).0, 403);
    assert_eq!(bench.call("operator", "POST", "/api/hub/vacuum", Value::Null).0, 403);
    let (status, tokens) = bench.call("operator", "GET", "/api/tokens", Value::Null);
    assert_eq!(
        (status, tokens["tokens"].as_array().map(Vec::len)),
        (200, Some(2)),
        "agents' tokens, without secrets: {tokens}"
    );
    let effects = bench.ask("operator", "GET", "/metrics", Value::Null);
    let Some(Effect::Read { number, .. }) = effects.first() else { panic!("{effects:?}") };
    let answer = event::ReadAnswer::Json(json!({"bytes": 4096, "freeBytes": 0}));
    let effects = bench.tell(Event::Store(StoreEvent::Read { number: *number, answer }));
    let Some(Effect::Gate(GateCommand::Respond {
        status: 200, body: Body::Text(kind, text), ..
    })) = effects.first()
    else {
        panic!("{effects:?}")
    };
    assert!(kind.starts_with("text/plain"));
    // Every line is a comment or a name with a number.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect(line);
        assert!(name.starts_with("agent_relay_hub_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for wanted in [
        "agent_relay_hub_agents 2",
        "agent_relay_hub_store_bytes 4096",
        "agent_relay_hub_requests_total{status=\"4xx\"} 3",
    ] {
        assert!(text.lines().any(|line| line == wanted), "{wanted} in {text}");
    }
}

#[test]
fn a_hub_that_stops_says_so_and_keeps_what_it_took() {
    let mut bench = Bench::new();
    let request = Request {
        method: "GET".into(),
        path: "/api/events".into(),
        token: "operator".into(),
        ..Default::default()
    };
    bench.tell(Event::Request { ticket: Ticket(90), request });
    let taken = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    assert!(!visible(&taken));
    assert!(
        !bench.tell(Event::StopRequested).contains(&Effect::Finish),
        "what was taken is stored first"
    );
    let refused = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "y"}));
    assert!(
        refused.iter().any(|e| matches!(e, Effect::Gate(GateCommand::Respond { status: 503, .. }))),
        "{refused:?}"
    );
    let last = bench.commit();
    assert!(
        last.iter().any(|e| matches!(e, Effect::Gate(GateCommand::Respond { status: 201, .. }))),
        "{last:?}"
    );
    assert!(
        last.iter()
            .any(|e| matches!(e, Effect::Gate(GateCommand::PeerClose { peer: PeerId(90), .. })))
            && last.last() == Some(&Effect::Finish),
        "{last:?}"
    );
}

/// A copy was put back, and the hub ended in order before anything was accepted: nothing in the
/// store is of the new generation.
#[test]
fn ids_never_fall_back_into_an_older_generation() {
    use super::generations::{DataState, Mark, OrderlyEnd, StoredGeneration};
    let generation = |name: &str, first: u64| StoredGeneration {
        name: name.into(),
        first_message: MessageId(first),
        first_task: TaskId(first),
        follows_message: MessageId(first / 20),
        follows_task: TaskId(0),
    };
    let data = DataState {
        generations: vec![generation("g1", 1), generation("g2", 257)],
        messages_end: MessageId(512),
        tasks_end: TaskId(320),
        starts: 2,
        copied: false,
    };
    let mark = Mark {
        generation: "g2".into(),
        message_block_end: MessageId(512),
        task_block_end: TaskId(320),
        starts: 2,
        orderly_end: Some(OrderlyEnd { last_message_id: MessageId(12), last_task_id: TaskId(0) }),
        revoked: Vec::new(),
    };
    let mut bench = Bench::with(HubSnapshot {
        data,
        mark: Some(mark),
        last_message: MessageId(12),
        ..Default::default()
    });
    let (_, task) = bench.call("operator", "POST", "/api/tasks", json!({"title": "t", "to": "a"}));
    assert_eq!((task["id"].as_u64(), task["messageId"].as_u64()), (Some(257), Some(257)), "{task}");
    let done = json!({"status": "done", "generation": task["generation"]});
    assert_eq!(bench.call("operator", "PATCH", &format!("/api/tasks/{}", task["id"]), done).0, 200);
}
