//! Whom a policy means, and what a narrow agent gets.

use super::*;

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
