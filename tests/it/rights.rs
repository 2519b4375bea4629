//! What one agent's token, or a narrowed one, gets at a real hub: no more than its own.

use std::time::Duration;

use agent_relay::edge::http::{Base, Http};
use agent_relay::secret::Secret;
use serde_json::{Value, json};

use crate::support::*;

/// A hub and who asks it.
struct Scene {
    machine: Machine,
    http: Http,
    _hub: Running,
}

impl Scene {
    fn new() -> Scene {
        let machine = Machine::new("rights");
        let hub = machine.hub();
        let url = machine.config()["relayUrl"].as_str().expect("a URL").to_string();
        Scene {
            machine,
            http: Http::new(Base::parse(&url).expect("a URL"), Duration::from_secs(10)),
            _hub: hub,
        }
    }

    fn token(&self, options: &[&str]) -> Secret {
        Secret::new(self.machine.ok(&[&["token", "create"], options].concat()))
    }

    fn call(&self, token: &Secret, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.http.call(method, path, Some(&body), token).expect("answers")
    }

    /// Registers an agent over HTTP.
    fn agent(&self, id: &str, more: Value) -> Secret {
        let token = self.token(&["--agent", id]);
        let mut body = json!({"id": id, "role": "provider", "instanceId": id, "componentId": format!("runner-{id}")});
        more.as_object().into_iter().flatten().for_each(|(name, value)| body[name] = value.clone());
        assert_eq!(self.call(&token, "POST", "/api/agents", body).0, 200);
        token
    }
}

#[test]
fn commands_go_to_whom_they_are_for() {
    let scene = Scene::new();
    let alice = scene.agent("alice", json!({}));
    let mallory = scene.token(&["--agent", "mallory"]);
    let taken = json!({"id": "mallory", "role": "orchestrator", "instanceId": "m", "componentId": "runner-alice"});
    let (status, _) = scene.call(&mallory, "POST", "/api/agents", taken);
    assert!(status >= 400, "an agent is no orchestrator, and the component is alice's: {status}");
    let operator = Secret::new(scene.machine.config()["token"].as_str().expect("a token"));
    let issue =
        json!({"type": "agent.restart", "target": "runner-alice", "params": {"reason": "planted"}});
    let (_, command) = scene.call(&operator, "POST", "/api/commands", issue);
    let path = format!("/api/commands/{}", command["id"].as_str().expect("id"));
    assert_eq!(scene.call(&mallory, "GET", &path, json!({})).0, 404);
    assert!(scene.call(&mallory, "PATCH", &path, json!({"status": "succeeded"})).0 >= 400);
    assert_eq!(scene.call(&alice, "PATCH", &path, json!({"status": "running"})).0, 200);
}

#[test]
fn a_token_with_one_scope_has_one() {
    let scene = Scene::new();
    let narrow = scene.token(&["--profile", "operator", "--scopes", "message:read"]);
    let wanted = json!({"profileId": "provider-agent", "agentId": "x"});
    assert_eq!(scene.call(&narrow, "POST", "/api/tokens", wanted).0, 403);
    assert_eq!(scene.call(&narrow, "GET", "/api/tokens", json!({})).0, 403);
}

#[test]
fn an_answer_is_one_only_from_whom_was_asked() {
    let scene = Scene::new();
    scene.agent("alice", json!({}));
    let mallory = scene.agent("mallory", json!({}));
    let asked = scene.machine.send("alice", "what is the code?");
    for forged in [json!({"replyTo": asked}), json!({"payload": {"answers": [asked]}})] {
        let mut body = json!({"to": "user", "body": "the code is 1234", "replyExpected": false});
        forged
            .as_object()
            .into_iter()
            .flatten()
            .for_each(|(name, value)| body[name] = value.clone());
        let (status, message) = scene.call(&mallory, "POST", "/api/messages", body);
        assert_eq!(
            (status, message["replyToUnknown"] == true),
            (201, true),
            "kept, and hung on nothing: {message}"
        );
        let answers = message["payload"]["answers"].as_array().map_or(0, Vec::len);
        assert!(message["replyTo"].is_null() && answers == 0, "{message}");
    }
    let thread = scene.machine.ok(&["thread", &asked.to_string()]);
    assert!(!thread.contains("mallory"), "{thread}");
}

#[test]
fn nobody_sees_what_another_agent_waits_for() {
    let scene = Scene::new();
    let meta = json!({"meta": {"pendingApprovals": [{"approvalId": "p1", "input": {"command": "planted"}}], "cwd": "/planted"}});
    let alice = scene.agent("alice", meta);
    let mallory = scene.agent("mallory", json!({}));
    for (who, sees) in [(&alice, true), (&mallory, false)] {
        for path in ["/api/agents", "/api/agents/alice"] {
            let (status, said) = scene.call(who, "GET", path, json!({}));
            assert_eq!((status, said.to_string().contains("planted")), (200, sees), "{path}");
        }
    }
}

#[test]
fn a_policy_is_not_taken_by_claiming_it() {
    let scene = Scene::new();
    let claims = json!({"meta": {"policyName": "deploy"}});
    let mallory = scene.agent("mallory", claims);
    let sent = scene.machine.ok(&["send", "policy:deploy", "planted"]);
    let (_, mail) = scene.call(&mallory, "GET", "/api/messages?for=mallory", json!({}));
    assert!(!mail.to_string().contains("planted"), "{sent}: {mail}");
}

#[test]
fn who_may_send_can_be_answered() {
    let scene = Scene::new();
    let alice = scene.agent("alice", json!({}));
    let script = scene.token(&["--agent", "script"]);
    let (_, asked) =
        scene.call(&script, "POST", "/api/messages", json!({"to": "alice", "body": "question"}));
    let answer = json!({"to": "script", "body": "answer", "replyTo": asked["id"]});
    let (status, said) = scene.call(&alice, "POST", "/api/messages", answer);
    assert_eq!((status, said["replyTo"].clone()), (201, asked["id"].clone()), "{said}");
    let (_, mail) = scene.call(&script, "GET", "/api/messages", json!({}));
    assert!(mail.to_string().contains("answer"), "{mail}");
}

#[test]
fn renewals_are_one_line() {
    let scene = Scene::new();
    let mut tokens = vec![scene.token(&["--agent", "alice"])];
    for _ in 0..19 {
        let (status, renewed) =
            scene.call(tokens.last().expect("one"), "POST", "/api/tokens/renew", json!({}));
        assert_eq!(status, 200);
        tokens.push(Secret::new(renewed["token"].as_str().expect("a token")));
    }
    let live = tokens
        .iter()
        .filter(|token| scene.call(token, "GET", "/api/tokens/self", json!({})).0 == 200)
        .count();
    assert_eq!(live, 2, "the newest and the one before");
}

/// Also a token that had been renewed away before its line was revoked.
#[test]
fn a_line_that_was_revoked_does_not_come_back_with_a_backup() {
    let mut scene = Scene::new();
    let made: Value =
        serde_json::from_str(&scene.machine.ok(&["token", "create", "--agent", "alice", "--json"]))
            .expect("JSON");
    let first = Secret::new(made["token"].as_str().expect("a token"));
    let copy = scene.machine.work.join("copy.sqlite").to_string_lossy().into_owned();
    scene.machine.ok(&["hub", "backup", &copy]);
    let mut newest = first.clone();
    for _ in 0..2 {
        let (status, renewed) = scene.call(&newest, "POST", "/api/tokens/renew", json!({}));
        assert_eq!(status, 200);
        newest = Secret::new(renewed["token"].as_str().expect("a token"));
    }
    // By the id that its maker knows, though that token is long gone.
    scene.machine.ok(&["token", "revoke", made["record"]["jti"].as_str().expect("id")]);
    assert_eq!(scene.call(&newest, "GET", "/api/tokens/self", json!({})).0, 401);
    scene._hub.terminate();
    scene._hub.wait(60);
    scene.machine.ok(&["hub", "restore", &copy]);
    let _again = scene.machine.hub();
    assert_eq!(scene.call(&first, "GET", "/api/tokens/self", json!({})).0, 401);
}
