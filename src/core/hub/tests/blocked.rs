//! Interrupted tasks, and agents that only poll.

use super::*;
use crate::core::hub::event::{StoredAgent, StoredClaim, StoredOffer};

fn task_for(bench: &mut Bench, sender: &str, to: &str) -> (u64, String, String) {
    let (status, task) = bench.call(sender, "POST", "/api/tasks", json!({"title": "t", "to": to}));
    assert_eq!(status, 201, "{task}");
    (
        task["messageId"].as_u64().expect("an id"),
        format!("/api/messages/{}/claim", task["messageId"]),
        format!("/api/tasks/{}", task["id"]),
    )
}

fn waits_for(bench: &Bench, agent: &str, message: u64) -> bool {
    bench.hub.queues.get(agent).is_some_and(|queue| queue.ids.contains(&MessageId(message)))
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["code"].as_str().unwrap_or_default())
}

/// Claimed and then blocked by its claimer.
fn blocked(sender: &str) -> (Bench, u64, String, String) {
    let mut bench = Bench::new();
    let (message, claim, path) = task_for(&mut bench, sender, "broadcast");
    assert_eq!(bench.call("a", "POST", &claim, json!({})).0, 200);
    let runner = json!({"status": "blocked", "agentId": "a", "body": "interrupted by user", "metadata": {"completedBy": "runner"}});
    assert_eq!(bench.call("a", "PATCH", &path, runner).0, 200);
    (bench, message, claim, path)
}

#[test]
fn a_blocked_task_is_offered_to_nobody() {
    let (mut bench, message, claim, path) = blocked("operator");
    assert!(!waits_for(&bench, "a", message) && !waits_for(&bench, "b", message));
    for agent in ["a", "b"] {
        assert_eq!(code(&bench.call(agent, "POST", &claim, json!({}))), (409, "blocked"));
        assert_eq!(
            code(&bench.call(agent, "POST", &format!("{claim}/renew"), json!({}))),
            (409, "blocked")
        );
    }
    // Neither the end of a lease, nor the claimer's, nor a repeated report, nor a newcomer changes
    // that.
    bench.later(CLAIM_LEASE * 2);
    bench.commit();
    assert_eq!(
        bench
            .call(
                "a",
                "PATCH",
                &path,
                json!({"status": "blocked", "metadata": {"completedBy": "runner"}})
            )
            .0,
        200
    );
    assert_eq!(bench.call("operator", "DELETE", "/api/agents/a", json!({})).0, 204);
    assert_eq!(
        bench
            .call(
                "a",
                "POST",
                "/api/agents",
                json!({"id": "a", "role": "provider", "instanceId": "a2"})
            )
            .0,
        200
    );
    assert!(!waits_for(&bench, "a", message) && !waits_for(&bench, "b", message));
    assert_eq!(code(&bench.call("b", "POST", &claim, json!({}))), (409, "blocked"));
    // Opened again it is unread for everybody, and the first claim wins.
    assert_eq!(
        bench.call("operator", "PATCH", &path, json!({"status": "open", "agentId": "user"})).0,
        200
    );
    assert!(waits_for(&bench, "a", message) && waits_for(&bench, "b", message));
    // A late word of the former claimer hides it from nobody, and a late report withholds it from
    // nobody.
    assert_eq!(
        bench
            .call("a", "POST", &format!("/api/messages/{message}/read"), json!({"agentId": "a"}))
            .0,
        204
    );
    assert!(waits_for(&bench, "a", message));
    assert_eq!(
        code(&bench.call("a", "PATCH", &path, json!({"status": "blocked"}))),
        (409, "not_claimed")
    );
    assert_eq!(bench.call("b", "POST", &claim, json!({})).0, 200);
    assert_eq!(code(&bench.call("a", "POST", &claim, json!({}))), (409, "already_claimed"));
    assert_eq!(bench.call("b", "PATCH", &path, json!({"status": "done"})).0, 200);
}

#[test]
fn only_a_person_or_the_sender_moves_a_blocked_task() {
    let runner = |status: &str| json!({"status": status, "agentId": "a", "metadata": {"completedBy": "runner"}});
    for (sender, who, change, want) in [
        ("operator", "a", runner("done"), (409, "blocked")),
        ("operator", "a", json!({"status": "done"}), (409, "blocked")),
        ("operator", "a", json!({"status": "in_progress"}), (409, "blocked")),
        ("operator", "a", json!({"status": "open"}), (409, "blocked")),
        ("operator", "b", json!({"status": "open"}), (409, "blocked")),
        ("operator", "b", json!({"status": "cancelled"}), (409, "blocked")),
        ("operator", "operator", json!({"status": "in_progress"}), (409, "blocked")),
        ("operator", "operator", json!({"status": "claimed"}), (409, "blocked")),
        ("operator", "operator", runner("done"), (409, "blocked")),
        ("operator", "operator", json!({"status": "open"}), (200, "")),
        ("operator", "operator", json!({"status": "cancelled"}), (200, "")),
        ("operator", "operator", json!({"status": "done"}), (200, "")),
        ("b", "b", json!({"status": "open"}), (200, "")),
        ("b", "b", json!({"status": "failed"}), (200, "")),
        ("b", "b", json!({"status": "in_progress"}), (409, "blocked")),
        ("b", "a", json!({"status": "open"}), (409, "blocked")),
    ] {
        let (mut bench, message, _, path) = blocked(sender);
        let answer = bench.call(who, "PATCH", &path, change.clone());
        assert_eq!(code(&answer), want, "{who} says {change} of a task of {sender}");
        assert_eq!(waits_for(&bench, "a", message), want.0 == 200 && change["status"] == "open");
    }
}

/// Also what an older hub left claimed although it was blocked.
#[test]
fn a_restart_of_the_hub_keeps_a_task_blocked() {
    for claim in
        [None, Some(StoredClaim { agent: "a".into(), expires_at: 2_000_000, is_read: true })]
    {
        let mut bench = Bench::new();
        let stored = |id: &str| StoredAgent { id: id.into(), ..Default::default() };
        let snapshot = HubSnapshot {
            last_message: MessageId(7),
            last_task: TaskId(3),
            agents: vec![stored("a"), stored("b")],
            unacknowledged: if claim.is_some() {
                vec![("b".into(), vec![MessageId(7)])]
            } else {
                Vec::new()
            },
            offers: vec![StoredOffer {
                message: MessageId(7),
                task: Some(TaskId(3)),
                recipients: vec!["a".into(), "b".into()],
                claim,
            }],
            tasks: vec![super::StoredTask {
                id: TaskId(3),
                message: MessageId(7),
                status: "blocked".into(),
                sender: "user".into(),
                restored: false,
            }],
            tokens: bench
                .hub
                .tokens
                .iter()
                .map(|(hash, record)| (hash.clone(), (**record).clone()))
                .collect(),
            ..Default::default()
        };
        let config = HubConfig {
            id: "hub".into(),
            hash: |token| format!("#{token}"),
            secret: Box::new(|| "secret".into()),
        };
        bench.hub = Hub::new(config, 2);
        bench.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
        bench.commit();
        assert!(!waits_for(&bench, "a", 7) && !waits_for(&bench, "b", 7));
        assert!(bench.hub.next_claim_end().is_none(), "no lease is left that would offer it again");
        assert_eq!(
            code(&bench.call("b", "POST", "/api/messages/7/claim", json!({}))),
            (409, "blocked")
        );
        assert_eq!(
            bench.call("operator", "PATCH", "/api/tasks/3", json!({"status": "open"})).0,
            200
        );
        assert_eq!(bench.call("b", "POST", "/api/messages/7/claim", json!({})).0, 200);
    }
}

/// A status that comes by calls does what a status frame does: word, record, and one event for each
/// change.
#[test]
fn a_status_over_http_is_a_status() {
    let mut bench = Bench::new();
    let meta = |word: &str| json!({"status": word, "pendingApprovals": [{"approvalId": "x"}]});
    let ready = |meta: Value| json!({"ready": true, "instanceId": "a", "meta": meta});
    assert_eq!(bench.call("a", "PUT", "/api/agents/a/ready", ready(meta("blocked"))).0, 200);
    let told = bench.hub.seq;
    assert_eq!(bench.call("a", "PUT", "/api/agents/a/ready", ready(meta("blocked"))).0, 200);
    assert_eq!(bench.hub.seq, told, "nothing has changed");
    let card = bench.call("operator", "GET", "/api/agents/a", json!({})).1;
    assert_eq!(
        (
            card["meta"]["status"].as_str(),
            card["meta"]["pendingApprovals"][0]["approvalId"].as_str()
        ),
        (Some("blocked"), Some("x"))
    );
    let failed = json!({"status": "error", "terminalStatus": "error"});
    assert_eq!(
        bench
            .call(
                "a",
                "POST",
                "/api/agents/a/heartbeat",
                json!({"instanceId": "a", "meta": failed})
            )
            .0,
        200
    );
    assert!(bench.hub.seq > told);
    assert_eq!(bench.call("a", "PUT", "/api/agents/a/ready", ready(meta("idle"))).0, 200);
    let card = bench.call("operator", "GET", "/api/agents/a", json!({})).1;
    assert!(card["meta"].get("terminalStatus").is_none(), "its absence tells too: {card}");
}
