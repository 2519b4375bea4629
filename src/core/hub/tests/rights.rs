//! Who may be whom, and see what. The table of all routes is in tests/rights.

mod names;
mod targets;

use super::*;
use crate::core::commit::Commit;
use crate::core::http::GateCommand;
use crate::core::hub::event::StoreCommand;

/// A connection of this token that has sent these frames; the texts that it got.
fn on_bus(bench: &mut Bench, number: u64, token: &str, frames: &[Value]) -> Vec<Value> {
    let request = Request { path: "/bus".into(), token: token.into(), ..Default::default() };
    let mut effects = bench.tell(Event::Upgrade { ticket: Ticket(number), request });
    for frame in frames {
        effects
            .extend(bench.tell(Event::PeerText { peer: PeerId(number), text: frame.to_string() }));
        effects.extend(bench.commit());
    }
    heard(&effects, number)
}

fn heard(effects: &[Effect], number: u64) -> Vec<Value> {
    let text = |effect: &Effect| match effect {
        Effect::Gate(GateCommand::PeerSend { peer, text }) if *peer == PeerId(number) => {
            serde_json::from_str(text).ok()
        }
        _ => None,
    };
    effects.iter().filter_map(text).collect()
}

/// Whether all events that a peer hears have a field in their card, or all have not.
fn cards_have(effects: &[Effect], number: u64, field: &str, wanted: bool) -> bool {
    let place = format!("/payload/data/{field}");
    let mut events = heard(effects, number);
    events.retain(|frame| frame["type"] == "event");
    !events.is_empty() && events.iter().all(|event| event.pointer(&place).is_some() == wanted)
}

fn register(role: &str, agent: Option<&str>, component: &str) -> Value {
    json!({"type": "register", "id": "r", "payload": {"role": role, "agentId": agent, "instanceId": "i", "componentId": component}})
}

fn make_token(bench: &mut Bench, token: &str, record: TokenRecord) {
    bench
        .hub
        .tokens
        .insert(format!("#{token}"), Arc::new(TokenRecord { jti: token.into(), ..record }));
}

fn profile(name: &str, agent: Option<&str>) -> TokenRecord {
    let scopes = scopes_of(name).iter().map(|scope| scope.to_string()).collect();
    TokenRecord {
        profile_id: name.into(),
        agent_id: agent.map(str::to_string),
        scopes,
        ..Default::default()
    }
}

#[test]
fn the_role_comes_from_the_token_and_what_is_too_much_leaves_the_connection_open() {
    let mut bench = Bench::new();
    make_token(&mut bench, "boss", profile("orchestrator", None));
    let rows = [
        ("a", register("orchestrator", Some("a"), "x"), Some("forbidden")),
        ("a", register("provider", Some("b"), "x"), Some("forbidden")),
        ("a", register("integration", Some("a"), "x"), Some("forbidden")),
        ("a", register("channel", Some("b"), "x"), Some("forbidden")),
        ("a", register("provider", Some("a"), "x"), None),
        ("operator", register("orchestrator", Some("o"), "y"), Some("forbidden")),
        ("operator", register("integration", None, "y"), None),
        ("boss", register("provider", Some("o"), "z"), Some("forbidden")),
        ("boss", register("orchestrator", Some("o"), "z"), None),
    ];
    for (number, (token, frame, code)) in (100..).zip(rows) {
        let got = on_bus(&mut bench, number, token, std::slice::from_ref(&frame));
        let refused = got
            .iter()
            .find(|frame| frame["type"] == "error")
            .and_then(|error| error["payload"]["code"].as_str());
        assert_eq!(refused, code, "{token} {frame}");
        assert!(
            bench.hub.peers.contains_key(&PeerId(number)),
            "the connection stays: {token} {frame}"
        );
    }
    // One connection is one agent.
    let frames =
        [register("provider", Some("first"), ""), register("provider", Some("second"), "")];
    let got = on_bus(&mut bench, 200, "operator", &frames);
    assert_eq!(got.last().expect("answers")["payload"]["code"], "forbidden", "{got:?}");
    assert!(
        !bench.hub.agents.contains_key("second")
            && bench.hub.agents["first"].peer == Some(PeerId(200))
    );
}

/// A command for a runner reaches its runner, and only whoever it was for tells how it went.
#[test]
fn nobody_gets_or_ends_the_commands_of_another_agent() {
    let mut bench = Bench::new();
    on_bus(&mut bench, 50, "a", &[register("provider", Some("a"), "runner-a")]);
    on_bus(
        &mut bench,
        51,
        "b",
        &[
            register("orchestrator", Some("b"), "runner-a"),
            register("provider", Some("b"), "runner-b"),
        ],
    );
    let body = json!({"type": "agent.kill", "target": "runner-a", "params": {"secret": 1}});
    let mut effects = bench.ask("operator", "POST", "/api/commands", body);
    effects.extend(bench.commit());
    assert_eq!((heard(&effects, 50).len(), heard(&effects, 51).len()), (1, 0), "{effects:?}");
    let id = heard(&effects, 50)[0]["id"].as_str().expect("id").to_string();
    let update = json!({"type": "command.update", "id": "u", "payload": {"commandId": id, "status": "succeeded"}});
    let effects = bench.tell(Event::PeerText { peer: PeerId(51), text: update.to_string() });
    assert_eq!(heard(&effects, 51)[0]["payload"]["code"], "forbidden");
    assert_eq!(
        bench.call("b", "PATCH", &format!("/api/commands/{id}"), json!({"status": "failed"})).0,
        403
    );
    assert_eq!(
        bench.call("a", "PATCH", &format!("/api/commands/{id}"), json!({"status": "running"})).0,
        200
    );
}

#[test]
fn an_orchestrator_reports_only_the_commands_of_what_it_registered() {
    let mut bench = Bench::new();
    make_token(&mut bench, "one", profile("orchestrator", None));
    make_token(&mut bench, "two", profile("orchestrator", None));
    let body =
        json!({"id": "o1", "role": "orchestrator", "instanceId": "o", "componentId": "orch-1"});
    assert_eq!(bench.call("one", "POST", "/api/agents", body).0, 200);
    let (_, command) = bench.call(
        "operator",
        "POST",
        "/api/commands",
        json!({"type": "agent.spawn", "target": "orch-1"}),
    );
    let path = format!("/api/commands/{}", command["id"].as_str().expect("id"));
    assert_eq!(bench.call("two", "PATCH", &path, json!({"status": "succeeded"})).0, 403);
    assert_eq!(bench.call("one", "PATCH", &path, json!({"status": "succeeded"})).0, 200);
}

#[test]
fn others_see_of_an_agent_what_they_need_to_write_to_it() {
    let mut bench = Bench::new();
    make_token(
        &mut bench,
        "child",
        TokenRecord {
            spawned_by: Some("parent".into()),
            ..profile("provider-agent", Some("child"))
        },
    );
    let mut parent = profile("provider-agent", Some("parent"));
    parent.scopes.push("approve:spawned".into());
    make_token(&mut bench, "parent", parent);
    make_token(
        &mut bench,
        "reader",
        TokenRecord { scopes: vec!["message:read".into()], ..profile("operator", None) },
    );
    let meta = json!({"pendingApprovals": [{"approvalId": "p1", "input": {"command": "rm"}}], "cwd": "/secret"});
    for agent in ["a", "child"] {
        let body = json!({"id": agent, "role": "provider", "instanceId": agent, "meta": meta, "tags": ["t"]});
        assert_eq!(bench.call(agent, "POST", "/api/agents", body).0, 200);
    }
    for (token, agent, whole) in [
        ("a", "a", true),
        ("b", "a", false),
        ("operator", "a", true),
        ("reader", "a", false),
        ("parent", "a", false),
        ("parent", "child", true),
        ("b", "child", false),
    ] {
        let (_, card) = bench.call(token, "GET", &format!("/api/agents/{agent}"), json!({}));
        let (_, list) = bench.call(token, "GET", "/api/agents", json!({}));
        let listed = list["agents"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|card| card["id"] == agent)
            .expect("listed");
        assert_eq!(*listed, card);
        assert_eq!(
            card.get("meta").is_some() && card.get("instanceId").is_some(),
            whole,
            "{token} looks at {agent}: {card}"
        );
        assert!(card["tags"] == json!(["t"]) && card["status"] == "idle", "{card}");
    }
    // The same on the bus, at once and for whoever was away.
    let subscribe =
        json!({"type": "subscribe", "id": "s", "payload": {"events": ["agent.status"]}});
    let since = json!({"type": "resume", "id": "w", "payload": {"since": 0}});
    for (number, token, whole) in [(60, "operator", true), (61, "reader", false)] {
        on_bus(&mut bench, number, token, &[register("channel", None, ""), subscribe.clone()]);
        let busy = if whole { "busy" } else { "idle" };
        let body = json!({"status": busy, "instanceId": "a"});
        let mut effects = bench.ask("a", "PUT", "/api/agents/a/status", body);
        effects.extend(bench.commit());
        let again = bench.tell(Event::PeerText { peer: PeerId(number), text: since.to_string() });
        // What an agent says of itself is not kept.
        for (effects, meta) in [(effects, whole), (again, false)] {
            assert!(cards_have(&effects, number, "meta", meta), "{token}: {effects:?}");
            assert!(cards_have(&effects, number, "instanceId", whole), "{token}: {effects:?}");
        }
    }
}

#[test]
fn who_may_send_can_be_answered() {
    let mut bench = Bench::new();
    let send = |bench: &mut Bench, token: &str, to: &str| {
        bench.call(token, "POST", "/api/messages", json!({"to": to, "body": "x"})).0
    };
    make_token(&mut bench, "script", profile("provider-agent", Some("script")));
    assert_eq!(send(&mut bench, "a", "script"), 201, "a live token makes a mailbox");
    assert_eq!(send(&mut bench, "script", "a"), 201);
    bench.hub.tokens.remove("#script");
    assert_eq!(send(&mut bench, "a", "script"), 201, "and so does what it has sent");
    assert_eq!(send(&mut bench, "a", "nobody"), 422);
    let snapshot = HubSnapshot { senders: vec!["gone".into()], ..Default::default() };
    assert_eq!(send(&mut Bench::with(snapshot), "a", "gone"), 201, "also over a restart");
}

#[test]
fn a_line_of_renewals_has_two_tokens_and_one_rate() {
    let mut bench = Bench::new();
    let mut number = 0;
    bench.hub.config.secret = Box::new(move || {
        number += 1;
        format!("s{number}")
    });
    bench.call(
        "operator",
        "POST",
        "/api/tokens",
        json!({"profileId": "provider-agent", "agentId": "a", "policyName": "night"}),
    );
    for renewal in 1..20 {
        let (status, answer) =
            bench.call(&format!("s{renewal}"), "POST", "/api/tokens/renew", Value::Null);
        assert_eq!((status, answer["record"]["policyName"].as_str()), (200, Some("night")));
        bench.later(Duration::from_secs(1));
    }
    let live: Vec<u16> = (1..=20)
        .map(|n| bench.call(&format!("s{n}"), "GET", "/api/tokens/self", Value::Null).0)
        .collect();
    assert_eq!(live.iter().filter(|status| **status == 200).count(), 2, "{live:?}");
    assert!(live[18] == 200 && live[19] == 200, "the newest and the one before");
    let taken = (0..10_000).take_while(|n| {
        bench.call(if n % 2 == 0 { "s19" } else { "s20" }, "GET", "/api/agents", Value::Null).0
            == 200
    });
    assert!(taken.count() as u64 <= AGENT_RATE.1);
}

#[test]
fn scopes_decide_about_tokens_too() {
    let mut bench = Bench::new();
    make_token(
        &mut bench,
        "narrow",
        TokenRecord { scopes: vec!["message:read".into()], ..profile("operator", None) },
    );
    make_token(
        &mut bench,
        "boss",
        TokenRecord { name: Some("boss".into()), ..profile("orchestrator", None) },
    );
    let new = |agent: &str| json!({"profileId": "provider-agent", "agentId": agent});
    assert_eq!(bench.call("narrow", "POST", "/api/tokens", new("x")).0, 403);
    assert_eq!(bench.call("narrow", "GET", "/api/tokens", json!({})).0, 403);
    assert_eq!(bench.call("narrow", "DELETE", "/api/tokens/a", json!({})).0, 403);
    // An orchestrator has to do with its own agents only.
    let (status, made) = bench.call("boss", "POST", "/api/tokens", new("child"));
    assert_eq!((status, made["record"]["spawnedBy"].as_str()), (201, Some("boss")));
    assert_eq!(
        bench.call("boss", "POST", "/api/tokens", new("child")).0,
        201,
        "once more for the same one"
    );
    assert_eq!(bench.call("boss", "POST", "/api/tokens", new("a")).0, 403);
    assert_eq!(bench.call("boss", "DELETE", "/api/tokens/a", json!({})).0, 403);
    let (_, list) = bench.call("boss", "GET", "/api/tokens", json!({}));
    assert!(
        list["tokens"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|record| record["spawnedBy"] == "boss"),
        "{list}"
    );
    assert_eq!(bench.call("boss", "POST", "/api/tokens", json!({"profileId": "operator"})).0, 403);
    assert_eq!(bench.call("operator", "GET", "/api/tokens", json!({})).0, 200);
}

/// The bus gives no more than HTTP: mail needs the right to read, commands the right to report.
#[test]
fn scopes_decide_on_the_bus_too() {
    for (scopes, mail, commands) in [
        (&["agent:self"][..], false, false),
        (&["agent:self", "message:read"], true, false),
        (&["agent:self", "command:update"], false, true),
    ] {
        let mut bench = Bench::new();
        let scopes: Vec<String> = scopes.iter().map(|scope| scope.to_string()).collect();
        make_token(
            &mut bench,
            "narrow",
            TokenRecord { scopes: scopes.clone(), ..profile("provider-agent", Some("a")) },
        );
        on_bus(&mut bench, 50, "narrow", &[register("provider", Some("a"), "")]);
        let mut effects =
            bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
        effects.extend(bench.commit());
        effects.extend(bench.ask(
            "operator",
            "POST",
            "/api/commands",
            json!({"type": "agent.kill", "target": "a"}),
        ));
        effects.extend(bench.commit());
        let got: Vec<Value> = heard(&effects, 50);
        assert_eq!(got.iter().any(|frame| frame["type"] == "event"), mail, "{scopes:?}: {got:?}");
        assert_eq!(
            got.iter().any(|frame| frame["type"] == "command"),
            commands,
            "{scopes:?}: {got:?}"
        );
    }
}

#[test]
fn a_connection_that_is_an_agent_stays_that_until_it_ends() {
    let mut bench = Bench::new();
    let frames = [
        register("provider", Some("a"), ""),
        register("channel", Some("a"), ""),
        register("channel", None, ""),
    ];
    let got = on_bus(&mut bench, 50, "a", &frames);
    assert_eq!(
        got.iter().filter(|frame| frame["payload"]["code"] == "forbidden").count(),
        2,
        "{got:?}"
    );
    bench.tell(Event::PeerClosed { peer: PeerId(50) });
    assert!(bench.hub.agents["a"].peer.is_none());
}

#[test]
fn a_line_ends_by_the_id_that_its_maker_knows_and_keeps_its_life() {
    let mut bench = Bench::new();
    let mut number = 0;
    bench.hub.config.secret = Box::new(move || {
        number += 1;
        format!("s{number}")
    });
    let (_, made) = bench.call(
        "operator",
        "POST",
        "/api/tokens",
        json!({"profileId": "provider-agent", "agentId": "a", "ttlSeconds": 3600}),
    );
    let jti = made["record"]["jti"].as_str().expect("id").to_string();
    let life = |answer: &Value| {
        answer["record"]["expiresAt"].as_i64().unwrap_or(0)
            - answer["record"]["issuedAt"].as_i64().unwrap_or(0)
    };
    // The first answer got lost: the same token renews once more.
    assert_eq!(life(&bench.call("s1", "POST", "/api/tokens/renew", Value::Null).1), 3600);
    assert_eq!(life(&bench.call("s1", "POST", "/api/tokens/renew", Value::Null).1), 3600);
    assert_eq!(life(&bench.call("s3", "POST", "/api/tokens/renew", Value::Null).1), 3600);
    let mut effects = bench.ask("operator", "DELETE", &format!("/api/tokens/{jti}"), json!({}));
    effects.extend(bench.commit());
    assert_eq!(bench.call("s4", "GET", "/api/tokens/self", Value::Null).0, 401);
    // Whatever of the line comes back with a copy is revoked as well: the line is noted, not only
    // those of it that were left.
    let revoked = |op: &HubOp| matches!(op, HubOp::TokenRevoke { jti: noted, .. } if *noted == jti);
    let is_noted = |effect: &Effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(revoked));
    assert!(effects.iter().any(is_noted), "{effects:?}");
}

/// A person looks after an agent's mail only with the right to act as one, and says nothing in its
/// name.
#[test]
fn a_person_with_one_scope_acts_as_no_agent() {
    let mut bench = Bench::new();
    bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
    bench.call("operator", "POST", "/api/tasks", json!({"to": "a", "title": "t"}));
    for (scope, path, body, want) in [
        ("message:send", "/api/messages/1/reactions", json!({"agentId": "a", "emoji": "+"}), 403),
        ("message:read", "/api/messages/1/read", json!({"agentId": "a"}), 403),
        ("message:claim", "/api/messages/2/claim", json!({"agentId": "ghost"}), 403),
    ] {
        make_token(
            &mut bench,
            "one",
            TokenRecord { scopes: vec![scope.into()], ..profile("operator", None) },
        );
        assert_eq!(bench.call("one", "POST", path, body).0, want, "{scope}");
    }
    assert_eq!(
        bench.call("operator", "POST", "/api/messages/2/claim", json!({"agentId": "ghost"})).0,
        404
    );
    assert_eq!(
        bench.call("operator", "POST", "/api/messages/1/read", json!({"agentId": "a"})).0,
        204
    );
    assert_eq!(
        bench
            .call(
                "operator",
                "POST",
                "/api/messages/1/reactions",
                json!({"agentId": "a", "emoji": "+"})
            )
            .0,
        403
    );
}
