//! Names and component ids belong to whom they were first given.

use super::*;

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
    // Its own name is its own, with this token and with the next one.
    let own = json!({"id": "other", "role": "orchestrator", "instanceId": "i"});
    assert_eq!(bench.call("other", "POST", "/api/agents", own.clone()).0, 200);
    bench.hub.tokens.remove("#other");
    let next = TokenRecord { name: Some("other".into()), ..profile("orchestrator", None) };
    make_token(&mut bench, "next", next);
    assert_eq!(bench.call("next", "POST", "/api/agents", own.clone()).0, 200);
    assert_eq!(bench.call("boss", "POST", "/api/agents", own).0, 403);
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
