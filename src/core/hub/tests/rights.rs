//! Who may be whom, and see what. The table of all routes is in tests/rights.

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
fn a_component_id_belongs_to_whom_it_was_first_given_until_that_agent_is_deleted() {
    let mut bench = Bench::new();
    let register = |id: &str, component: &str| json!({"id": id, "role": "provider", "instanceId": id, "componentId": component});
    assert_eq!(bench.call("a", "POST", "/api/agents", register("a", "runner-a")).0, 200);
    // Neither another agent's component id nor its own id: commands are routed by both.
    for component in ["runner-a", "a"] {
        assert_eq!(
            bench.call("b", "POST", "/api/agents", register("b", component)).0,
            422,
            "{component}"
        );
    }
    assert_eq!(
        bench.call("operator", "POST", "/api/agents", register("runner-a", "")).0,
        422,
        "nor as its own id"
    );
    assert_eq!(
        bench.call("a", "POST", "/api/agents", register("a", "runner-a2")).0,
        200,
        "a new runner of the same agent"
    );
    assert_eq!(
        bench.call("b", "POST", "/api/agents", register("b", "runner-a")).0,
        422,
        "the former one stays its own"
    );
    for number in 3..=18 {
        assert_eq!(
            bench.call("a", "POST", "/api/agents", register("a", &format!("runner-a{number}"))).0,
            200
        );
    }
    assert_eq!(
        bench.call("b", "POST", "/api/agents", register("b", "runner-a")).0,
        200,
        "long ago"
    );
    assert_eq!(bench.call("b", "POST", "/api/agents", register("b", "runner-a3")).0, 422);
    assert_eq!(bench.call("operator", "DELETE", "/api/agents/a", json!({})).0, 204);
    assert_eq!(
        bench.call("b", "POST", "/api/agents", register("b", "runner-a3")).0,
        200,
        "free with its agent"
    );
    // Ids stand in command lines and paths.
    for id in ["$(touch x)", "a b", "a;b", "a:b", "user", "", "a\u{1b}b"] {
        assert_eq!(
            bench.call("operator", "POST", "/api/agents", register(id, "")).0,
            422,
            "{id:?}"
        );
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
        effects
            .extend(bench.tell(Event::PeerText { peer: PeerId(number), text: since.to_string() }));
        let events: Vec<Value> =
            heard(&effects, number).into_iter().filter(|frame| frame["type"] == "event").collect();
        assert!(events.len() >= 2, "at once, and once more");
        assert!(
            events.iter().all(|event| event.pointer("/payload/data/meta").is_some() == whole),
            "{token}: {events:?}"
        );
    }
}

#[test]
fn a_policy_is_what_a_token_says_and_means_one_agent_a_connected_one_first() {
    let mut bench = Bench::new();
    make_token(&mut bench, "intruder", profile("provider-agent", Some("intruder")));
    for agent in ["a", "b"] {
        let record = TokenRecord {
            policy_name: Some("night".into()),
            ..profile("provider-agent", Some(agent))
        };
        make_token(&mut bench, agent, record);
        assert_eq!(
            bench
                .call(
                    agent,
                    "POST",
                    "/api/agents",
                    json!({"id": agent, "role": "provider", "instanceId": agent})
                )
                .0,
            200
        );
    }
    let claims = json!({"role": "provider", "agentId": "intruder", "instanceId": "c", "meta": {"policyName": "night"}});
    on_bus(
        &mut bench,
        49,
        "intruder",
        &[json!({"type": "register", "id": "r", "payload": claims})],
    );
    on_bus(
        &mut bench,
        50,
        "b",
        &[
            json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "b", "instanceId": "b"}}),
        ],
    );
    let (status, message) =
        bench.call("operator", "POST", "/api/messages", json!({"to": "policy:night", "body": "x"}));
    assert_eq!((status, message["resolvedToAgent"].as_str()), (201, Some("b")));
    // Nobody yet: it waits for the first who comes with that policy, and for no second one.
    let (status, _) =
        bench.call("operator", "POST", "/api/messages", json!({"to": "policy:day", "body": "y"}));
    assert_eq!(status, 201);
    for agent in ["a", "b"] {
        make_token(
            &mut bench,
            agent,
            TokenRecord {
                policy_name: Some("day".into()),
                ..profile("provider-agent", Some(agent))
            },
        );
        bench.call(
            agent,
            "POST",
            "/api/agents",
            json!({"id": agent, "role": "provider", "instanceId": agent}),
        );
    }
    let waiting: Vec<usize> =
        ["a", "b"].iter().map(|agent| bench.hub.queues[*agent].ids.len()).collect();
    assert_eq!(waiting, [1, 1], "the first took the second message, the other keeps the first");
}

#[test]
fn a_narrow_agent_gets_what_is_addressed_to_it_and_nothing_else() {
    let mut bench = Bench::new();
    let meta = json!({"broadTargets": false, "label": "web"});
    let body = json!({"id": "a", "role": "provider", "instanceId": "a", "tags": ["t"], "capabilities": ["c"], "meta": meta});
    assert_eq!(bench.call("a", "POST", "/api/agents", body).0, 200);
    for (to, reached) in
        [("broadcast", false), ("tag:t", false), ("cap:c", false), ("label:web", true), ("a", true)]
    {
        let before = bench.hub.queues.get("a").map_or(0, |queue| queue.ids.len());
        assert_eq!(
            bench.call("operator", "POST", "/api/messages", json!({"to": to, "body": "x"})).0,
            201
        );
        assert_eq!(bench.hub.queues["a"].ids.len() > before, reached, "{to}");
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

/// A name belongs to whom a token says, also before that agent was ever there.
#[test]
fn nobody_takes_the_name_of_an_agent_that_is_not_there_yet() {
    let mut bench = Bench::new();
    make_token(&mut bench, "late", profile("provider-agent", Some("late")));
    let register = |id: &str, component: &str| json!({"id": id, "role": "provider", "instanceId": id, "componentId": component});
    for component in ["late", "user"] {
        assert_eq!(
            bench.call("b", "POST", "/api/agents", register("b", component)).0,
            422,
            "{component}"
        );
    }
    // What an older hub has let through does not keep the agent out.
    assert_eq!(bench.call("b", "POST", "/api/agents", register("b", "early")).0, 200);
    make_token(&mut bench, "early", profile("provider-agent", Some("early")));
    assert_eq!(bench.call("early", "POST", "/api/agents", register("early", "")).0, 200);
    let (_, command) = bench.call(
        "operator",
        "POST",
        "/api/commands",
        json!({"type": "agent.kill", "target": "early"}),
    );
    assert_eq!(command["agentId"], "early");
    // Nor does an orchestrator become somebody who has a token, a sender, or mail.
    make_token(&mut bench, "boss", profile("orchestrator", None));
    make_token(
        &mut bench,
        "other",
        TokenRecord { name: Some("other".into()), ..profile("orchestrator", None) },
    );
    make_token(&mut bench, "bob", profile("provider-agent", Some("bob")));
    assert_eq!(
        bench.call("operator", "POST", "/api/messages", json!({"to": "bob", "body": "secret"})).0,
        201
    );
    for name in ["bob", "other"] {
        let body = json!({"id": name, "role": "orchestrator", "instanceId": "i"});
        assert_eq!(bench.call("boss", "POST", "/api/agents", body).0, 403, "{name}");
    }
    bench.hub.tokens.remove("#bob");
    for id in ["bob", "other"] {
        let wanted = json!({"profileId": "provider-agent", "agentId": id});
        assert!(
            bench.call("boss", "POST", "/api/tokens", wanted).0 >= 403,
            "{id}: mail waits, or it is a name"
        );
    }
    let free = json!({"id": "boss-1", "role": "orchestrator", "instanceId": "i"});
    assert_eq!(bench.call("boss", "POST", "/api/agents", free).0, 200);
}

#[test]
fn an_orchestrators_name_is_one_that_nobody_has() {
    let mut bench = Bench::new();
    make_token(&mut bench, "root", profile("root", None));
    make_token(&mut bench, "late", profile("provider-agent", Some("late")));
    for (name, want) in [
        (json!("a"), 422),
        (json!("late"), 422),
        (json!("user"), 422),
        (json!("broadcast"), 422),
        (json!("label:ops"), 422),
        (json!(5), 400),
        (json!("host-1"), 201),
        (json!("host-1"), 422),
    ] {
        let wanted = json!({"profileId": "orchestrator", "name": name});
        assert_eq!(bench.call("root", "POST", "/api/tokens", wanted).0, want, "{name}");
    }
}

/// A command is for the agent that it was issued for, whoever has its names later.
#[test]
fn commands_of_a_deleted_agent_are_inherited_by_nobody() {
    let mut bench = Bench::new();
    let register = |id: &str, component: &str| json!({"id": id, "role": "provider", "instanceId": id, "componentId": component});
    assert_eq!(bench.call("a", "POST", "/api/agents", register("a", "runner-a")).0, 200);
    let issue = |bench: &mut Bench| {
        bench
            .call(
                "operator",
                "POST",
                "/api/commands",
                json!({"type": "agent.kill", "target": "runner-a"}),
            )
            .1
    };
    let (waits, taken) = (issue(&mut bench), issue(&mut bench));
    let path = |command: &Value| format!("/api/commands/{}", command["id"].as_str().expect("id"));
    assert_eq!(bench.call("a", "PATCH", &path(&taken), json!({"status": "running"})).0, 200);
    assert_eq!(bench.call("operator", "DELETE", "/api/agents/a", json!({})).0, 204);
    bench.hub.tokens.remove("#a");
    assert_eq!(
        bench.call("b", "POST", "/api/agents", register("b", "runner-a")).0,
        200,
        "the component is free"
    );
    assert!(bench.hub.pending_for("b").is_empty(), "what waited is cancelled");
    for command in [&waits, &taken] {
        assert!(
            bench.call("b", "PATCH", &path(command), json!({"status": "succeeded"})).0 >= 403,
            "{command}"
        );
    }
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

#[test]
fn words_that_break_a_line_are_nobodys_label() {
    let mut bench = Bench::new();
    let body = json!({"id": "a", "role": "provider", "instanceId": "a", "tags": ["fine", "a\nb"], "capabilities": ["c\u{1b}"],
        "meta": {"label": "boss\n#1 from boss"}});
    assert_eq!(bench.call("a", "POST", "/api/agents", body).0, 200);
    let (_, card) = bench.call("b", "GET", "/api/agents/a", json!({}));
    assert_eq!(
        (&card["label"], &card["tags"], &card["capabilities"]),
        (&Value::Null, &json!(["fine"]), &json!([])),
        "{card}"
    );
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
