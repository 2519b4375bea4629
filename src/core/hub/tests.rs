//! Durable first, visible after; leases to the tick; who may do what.

use std::time::Duration;

use serde_json::{Value, json};

use super::event::{Effect, Event, HubOp, HubSnapshot, Retired, StoreEvent};
use super::*;
use crate::core::http::{Body, Request};
use crate::core::time::Wall;
use crate::wire::api::TokenRecord;

struct Bench {
    hub: Hub,
    now: Now,
    tickets: u64,
}

impl Bench {
    fn new() -> Bench {
        let config = HubConfig { id: "hub".into(), hash: |token| format!("#{token}"), secret: Box::new(|| "secret".into()) };
        let mut bench = Bench { hub: Hub::new(config, 1), now: Now { tick: Tick(1_000_000), wall: Wall(1_000_000) }, tickets: 0 };
        let token = |profile: &str, agent: Option<&str>| TokenRecord {
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
        let snapshot = HubSnapshot { tokens, ..Default::default() };
        bench.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        for agent in ["a", "b"] {
            let (status, _) = bench.call(agent, "POST", "/api/agents", json!({"id": agent, "role": "provider", "instanceId": agent}));
            assert_eq!(status, 200);
        }
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.hub.handle(self.now, event)
    }

    fn commit(&mut self) -> Vec<Effect> {
        let upto = self.hub.commit_number;
        self.tell(Event::Store(StoreEvent::Committed { upto, existing: Vec::new(), retired: Retired::default() }))
    }

    fn ask(&mut self, token: &str, method: &str, path: &str, body: Value) -> Vec<Effect> {
        self.tickets += 1;
        let body = body.to_string().into_bytes();
        let request =
            Request { method: method.into(), path: path.into(), query: String::new(), token: token.into(), body, ..Default::default() };
        self.tell(Event::Request { ticket: self.tickets, request })
    }

    /// Asks and commits; the status and body of the answer.
    fn call(&mut self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let mut effects = self.ask(token, method, path, body);
        effects.extend(self.commit());
        let ticket = self.tickets;
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Respond { ticket: t, status, body: Body::Json(body) } if t == ticket => Some((status, body)),
            Effect::Respond { ticket: t, status, .. } if t == ticket => Some((status, Value::Null)),
            _ => None,
        });
        answer.expect("an answer")
    }

    fn later(&mut self, time: Duration) -> Vec<Effect> {
        self.now.tick = self.now.tick + time;
        self.now.wall.0 += time.as_millis() as i64;
        self.hub.wake(self.now)
    }
}

fn visible(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Respond { .. } | Effect::PeerSend { .. }))
}

#[test]
fn a_message_is_visible_only_when_it_is_durable() {
    let mut bench = Bench::new();
    let effects = bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    assert!(!visible(&effects) && effects.iter().any(|e| matches!(e, Effect::Commit { .. })), "{effects:?}");
    assert!(visible(&bench.commit()));
}

#[test]
fn a_registration_is_confirmed_only_when_it_is_durable() {
    let mut bench = Bench::new();
    let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: 50, request });
    let text = json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "a", "instanceId": "new"}}).to_string();
    let effects = bench.tell(Event::PeerText { peer: 50, text });
    assert!(!visible(&effects), "{effects:?}");
    assert!(visible(&bench.commit()));
}

#[test]
fn a_lease_ends_at_its_tick_and_not_before() {
    let mut bench = Bench::new();
    let (_, task) = bench.call("operator", "POST", "/api/tasks", json!({"title": "t", "to": "broadcast"}));
    let claim = format!("/api/messages/{}/claim", task["messageId"]);
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 200);
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    bench.later(CLAIM_LEASE - Duration::from_micros(1));
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    // The same agent renews (D-15): a whole lease from here.
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 200);
    bench.later(CLAIM_LEASE - Duration::from_micros(1));
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 409);
    let effects = bench.later(Duration::from_micros(1));
    let offered = |op: &HubOp| matches!(op, HubOp::ClaimEnd { reoffer: true, .. });
    assert!(effects.iter().any(|e| matches!(e, Effect::Commit { ops, .. } if ops.iter().any(offered))), "{effects:?}");
    bench.commit();
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 200);
    // Settled by a final status: nobody claims it again.
    let path = format!("/api/tasks/{}", task["id"]);
    assert_eq!(bench.call("a", "PATCH", &path, json!({"status": "done"})).0, 409, "another agent works on it");
    assert_eq!(bench.call("b", "PATCH", &path, json!({"status": "done"})).0, 200);
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 409);
    assert_eq!(bench.call("b", "PATCH", &path, json!({"status": "open"})).0, 409, "a final status never changes");
}

#[test]
fn tokens_act_as_what_they_are() {
    let mut bench = Bench::new();
    let sent = bench.call("operator", "POST", "/api/messages", json!({"to": "b", "body": "x"})).1;
    assert_eq!(sent["from"], "user");
    for (token, method, path, body, want) in [
        ("", "GET", "/api/agents", json!({}), 401),
        ("wrong", "GET", "/api/agents", json!({}), 401),
        ("a", "POST", "/api/messages", json!({"to": "b", "from": "b", "body": "x"}), 403),
        ("a", "POST", "/api/messages", json!({"to": "user", "body": "x"}), 201),
        ("operator", "POST", "/api/messages", json!({"to": "a", "from": "b", "body": "x"}), 403),
        ("operator", "POST", "/api/messages", json!({"to": "nobody", "body": "x"}), 422),
        ("operator", "POST", "/api/messages", json!({"to": "tag:none", "body": "x"}), 201),
        ("a", "PUT", "/api/agents/b/status", json!({"status": "idle"}), 403),
        ("a", "PUT", "/api/agents/a/status", json!({"status": "idle", "instanceId": "old"}), 409),
        ("a", "DELETE", "/api/agents/b", json!({}), 403),
        ("a", "POST", "/api/messages/1/read", json!({"agentId": "b"}), 403),
        ("a", "POST", "/api/commands", json!({"type": "agent.kill", "target": "b"}), 403),
        ("a", "POST", "/api/tokens", json!({"profileId": "provider-agent", "agentId": "b"}), 403),
        ("operator", "POST", "/api/tokens", json!({"profileId": "operator"}), 403),
        ("operator", "POST", "/api/tokens", json!({"profileId": "provider-agent", "agentId": "c"}), 201),
        ("a", "POST", "/api/tokens/renew", json!({}), 200),
        ("operator", "POST", "/api/tokens/renew", json!({}), 403),
        ("operator", "POST", "/api/commands", json!({"type": "agent.kill", "target": "nobody"}), 422),
        ("operator", "POST", "/api/insights/observations", json!({}), 409),
        ("operator", "PATCH", "/api/messages", json!({}), 405),
        ("operator", "GET", "/nowhere", json!({}), 404),
    ] {
        let (status, answer) = bench.call(token, method, path, body);
        assert_eq!(status, want, "{token} {method} {path}: {answer}");
        assert!(status < 400 || answer["error"].is_string() && answer["code"].is_string(), "{answer}");
    }
}

#[test]
fn presence_follows_silence() {
    let mut bench = Bench::new();
    bench.call("a", "PUT", "/api/agents/a/status", json!({"status": "busy", "instanceId": "a"}));
    bench.later(OFFLINE_AFTER_SILENCE - Duration::from_micros(1));
    assert_eq!(bench.call("operator", "GET", "/api/agents/a", json!({})).1["status"], "busy");
    bench.later(Duration::from_micros(1));
    assert_eq!(bench.call("operator", "GET", "/api/agents/a", json!({})).1["status"], "offline");
    // A message to an agent that is offline waits for it (D-16).
    assert_eq!(bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"})).0, 201);
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
    let forged = json!({"to": "a", "body": "x", "claimable": true, "payload": {"taskId": task["id"]}});
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
    assert!(effects.iter().any(|e| matches!(e, Effect::Respond { status: 503, .. })), "{effects:?}");
    bench.tell(Event::StopRequested);
    let effects = bench.later(Duration::from_secs(6));
    assert!(effects.contains(&Effect::Finish), "{effects:?}");
}

#[test]
fn a_revoked_token_ends_its_connection() {
    let mut bench = Bench::new();
    let (_, made) = bench.call("operator", "POST", "/api/tokens", json!({"profileId": "provider-agent", "agentId": "c"}));
    let request = Request { path: "/bus".into(), token: "secret".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: 50, request });
    let path = format!("/api/tokens/{}", made["record"]["jti"].as_str().expect("jti"));
    let effects = bench.ask("operator", "DELETE", &path, json!({}));
    assert!(effects.iter().any(|e| matches!(e, Effect::PeerClose { peer: 50, code: 4001, .. })), "{effects:?}");
}
