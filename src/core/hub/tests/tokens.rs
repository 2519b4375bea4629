//! Tokens act as what they are, and end their connections and renewals with them.

use super::*;

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
        (
            "operator",
            "POST",
            "/api/tokens",
            json!({"profileId": "provider-agent", "agentId": "c"}),
            201,
        ),
        ("a", "POST", "/api/tokens/renew", json!({}), 200),
        ("operator", "POST", "/api/tokens/renew", json!({}), 403),
        (
            "operator",
            "POST",
            "/api/commands",
            json!({"type": "agent.kill", "target": "nobody"}),
            422,
        ),
        ("operator", "POST", "/api/insights/observations", json!({}), 409),
        ("operator", "PATCH", "/api/messages", json!({}), 405),
        ("operator", "GET", "/nowhere", json!({}), 404),
    ] {
        let (status, answer) = bench.call(token, method, path, body);
        assert_eq!(status, want, "{token} {method} {path}: {answer}");
        assert!(
            status < 400 || answer["error"].is_string() && answer["code"].is_string(),
            "{answer}"
        );
    }
}

#[test]
fn a_revoked_token_ends_its_connection() {
    let mut bench = Bench::new();
    let (_, made) = bench.call(
        "operator",
        "POST",
        "/api/tokens",
        json!({"profileId": "provider-agent", "agentId": "c"}),
    );
    let request = Request { path: "/bus".into(), token: "secret".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: Ticket(50), request });
    let path = format!("/api/tokens/{}", made["record"]["jti"].as_str().expect("jti"));
    let effects = bench.ask("operator", "DELETE", &path, json!({}));
    assert!(
        effects.iter().any(|e| matches!(
            e,
            Effect::Gate(GateCommand::PeerClose { peer: PeerId(50), code: 4001, .. })
        )),
        "{effects:?}"
    );
}

#[test]
fn wrong_types_are_errors_not_wider_rights() {
    let mut bench = Bench::new();
    for (body, want) in [
        (json!({"profileId": "provider-agent", "agentId": "x", "ttlSeconds": "60"}), 400),
        (json!({"profileId": "provider-agent", "agentId": "x", "scopes": "message:read"}), 400),
        (json!({"profileId": "provider-agent", "agentId": "x", "scopes": ["message:reed"]}), 422),
        (json!({"profileId": "provider-agent", "agentId": "x", "scopes": ["admin"]}), 422),
        (json!({"profileId": "provider-agent", "agentId": "x y"}), 422),
        (
            json!({"profileId": "provider-agent", "agentId": "x", "scopes": ["message:read"], "ttlSeconds": 60}),
            201,
        ),
    ] {
        assert_eq!(bench.call("operator", "POST", "/api/tokens", body.clone()).0, want, "{body}");
    }
    for (part, body) in [
        ("label", json!({"lable": "x"})),
        ("label", json!({"label": 5})),
        ("label", json!({"label": "a\nb"})),
        ("ready", json!({"ready": "no"})),
        ("status", json!({})),
    ] {
        assert_eq!(
            bench.call("a", "PUT", &format!("/api/agents/a/{part}"), body.clone()).0,
            400,
            "{part} {body}"
        );
    }
}

#[test]
fn a_connection_ends_with_its_token() {
    let mut bench = Bench::new();
    let end = bench.now.wall.0 / 1000 + 2;
    let record = TokenRecord {
        jti: "short".into(),
        expires_at: Some(end),
        ..(*bench.hub.tokens["#a"]).clone()
    };
    bench.hub.tokens.insert("#short".into(), Arc::new(record));
    let request = Request {
        method: "GET".into(),
        path: "/api/events".into(),
        token: "short".into(),
        ..Default::default()
    };
    bench.tell(Event::Request { ticket: Ticket(80), request });
    let left = bench.hub.next_deadline().expect("a deadline") - bench.now.tick;
    assert!(left <= Duration::from_secs(2), "{left:?}");
    let effects = bench.later(Duration::from_millis(2100));
    assert!(
        effects.iter().any(|effect| matches!(
            effect,
            Effect::Gate(GateCommand::PeerClose { peer: PeerId(80), .. })
        )),
        "{effects:?}"
    );
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::PeerSend { text, .. }) if text.starts_with("event: error"))),
        "{effects:?}"
    );
}

#[test]
fn a_revoked_token_takes_its_renewals_along() {
    let mut bench = Bench::new();
    let mut number = 0;
    bench.hub.config.secret = Box::new(move || {
        number += 1;
        format!("s{number}")
    });
    let (_, first) = bench.call(
        "operator",
        "POST",
        "/api/tokens",
        json!({"profileId": "provider-agent", "agentId": "a"}),
    );
    let token = |answer: &Value| answer["token"].as_str().expect("token").to_string();
    let (_, second) = bench.call(&token(&first), "POST", "/api/tokens/renew", Value::Null);
    let (_, third) = bench.call(&token(&second), "POST", "/api/tokens/renew", Value::Null);
    assert_eq!(bench.call(&token(&third), "GET", "/api/tokens/self", Value::Null).0, 200);
    let jti = second["record"]["jti"].as_str().expect("id");
    assert_eq!(bench.call("operator", "DELETE", &format!("/api/tokens/{jti}"), Value::Null).0, 204);
    for answer in [&first, &second, &third] {
        assert_eq!(bench.call(&token(answer), "GET", "/api/tokens/self", Value::Null).0, 401);
    }
    assert_eq!(
        bench.call("a", "GET", "/api/tokens/self", Value::Null).0,
        200,
        "others of the same agent stay"
    );
}
