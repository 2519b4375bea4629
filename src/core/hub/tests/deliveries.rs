//! What is delivered, and to which instance of an agent.

use super::*;

#[test]
fn what_retention_took_is_not_delivered_any_more() {
    let mut bench = Bench::new();
    for body in ["one", "two"] {
        bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": body}));
    }
    let effects = bench.later(RETENTION_FIRST);
    let op = effects.iter().find_map(|effect| match effect {
        Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
            ops.iter().find(|op| matches!(op, HubOp::Retain { .. }))
        }
        _ => None,
    });
    let now = bench.now.wall.0;
    let (session, other) =
        (now - SESSION_KEPT.as_millis() as i64, now - MESSAGES_KEPT.as_millis() as i64);
    assert_eq!(
        op,
        Some(&HubOp::Retain { session_before: session, before: other, limit: RETENTION_BATCH })
    );
    let retired = Retired {
        count: 1,
        unacknowledged: vec![("a".into(), MessageId(1))],
        more: true,
        ..Default::default()
    };
    let upto = bench.hub.commits.newest();
    bench.tell(Event::Store(StoreEvent::Committed {
        upto,
        existing: Vec::new(),
        unattached: Vec::new(),
        unseen: Vec::new(),
        retired,
    }));
    assert_eq!(bench.hub.queues["a"].ids.iter().copied().collect::<Vec<_>>(), [MessageId(2)]);
    let effects = bench.later(RETENTION_AGAIN);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { .. })))),
        "more is taken away soon"
    );
}

#[test]
fn a_message_that_the_store_lost_does_not_hold_up_the_next() {
    let mut bench = Bench::new();
    for body in ["one", "two", "three"] {
        bench.call("operator", "POST", "/api/messages", json!({"to": "a", "body": body}));
    }
    let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: Ticket(50), request });
    let text = json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "a", "instanceId": "a"}}).to_string();
    bench.tell(Event::PeerText { peer: PeerId(50), text });
    let effects = bench.commit();
    let read = effects.iter().find_map(|effect| match effect {
        Effect::Read { number, query: event::Query::Deliver { ids, .. } } => {
            Some((*number, ids.clone()))
        }
        _ => None,
    });
    let (number, ids) = read.expect("a read");
    assert_eq!(ids, [1, 2, 3].map(MessageId));
    let message =
        crate::wire::api::Message { id: MessageId(3), to: "a".into(), ..Default::default() };
    let answer = event::ReadAnswer::Messages(vec![message]);
    let effects = bench.tell(Event::Store(StoreEvent::Read { number, answer }));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Gate(GateCommand::PeerSend { .. }))),
        "{effects:?}"
    );
    assert_eq!(bench.hub.queues["a"].ids.iter().copied().collect::<Vec<_>>(), [MessageId(3)]);
}

#[test]
fn a_registration_that_was_on_its_way_when_its_process_died_drives_nobody_out() {
    let mut bench = Bench::new();
    let mut register = |ticket: Ticket, instance: &str, boot: &str, ticks: u64| {
        let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
        bench.tell(Event::Upgrade { ticket, request });
        let start = json!({"processStart": {"boot": boot, "ticks": ticks}});
        let payload =
            json!({"role": "provider", "agentId": "a", "instanceId": instance, "meta": start});
        let text = json!({"type": "register", "id": "r", "payload": payload}).to_string();
        let mut effects = bench.tell(Event::PeerText { peer: ticket.peer(), text });
        effects.extend(bench.commit());
        effects.iter().any(|e| matches!(e, Effect::Gate(GateCommand::PeerSend { peer, text }) if *peer == ticket.peer() && text.contains("\"registered\"")))
    };
    assert!(register(Ticket(60), "young", "boot", 20));
    assert!(
        !register(Ticket(61), "old", "boot", 10),
        "the older process is told that it is superseded"
    );
    assert!(register(Ticket(62), "younger", "boot", 30));
    assert!(
        register(Ticket(63), "elsewhere", "another boot", 1),
        "nothing is known about other machines: the newer registration wins"
    );
}

/// An acknowledgement makes no commit where another comes soon, and is not forgotten where none
/// does.
#[test]
fn acknowledgements_go_to_the_disk_with_the_next_commit_or_soon() {
    let acked = |effects: &[Effect]| -> usize {
        let commits = effects.iter().filter_map(|effect| match effect {
            Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => Some(ops),
            _ => None,
        });
        commits.flatten().filter(|op| matches!(op, HubOp::Acked { .. })).count()
    };
    for way in ["another commit", "soon", "the end"] {
        let mut bench = Bench::new();
        let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
        bench.tell(Event::Upgrade { ticket: Ticket(50), request });
        let text = json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "a", "instanceId": "a"}}).to_string();
        bench.tell(Event::PeerText { peer: PeerId(50), text });
        bench.commit();
        bench.ask("operator", "POST", "/api/messages", json!({"to": "a", "body": "x"}));
        let effects = bench.commit();
        let frame = effects.iter().find_map(|effect| match effect {
            Effect::Gate(GateCommand::PeerSend { text, .. }) if text.contains("message.new") => {
                let frame: Value = serde_json::from_str(text).expect("a frame");
                Some(frame["id"].as_str().expect("an id").to_string())
            }
            _ => None,
        });
        let ack = json!({"type": "ack", "payload": {"frameId": frame.expect("a frame")}});
        let effects = bench.tell(Event::PeerText { peer: PeerId(50), text: ack.to_string() });
        assert_eq!(acked(&effects), 0, "nobody waits for it");
        let effects = match way {
            "another commit" => {
                bench.ask("operator", "POST", "/api/messages", json!({"to": "b", "body": "y"}))
            }
            "soon" => bench.later(LATE_ACKS_TIME),
            _ => bench.tell(Event::StopRequested),
        };
        assert_eq!(acked(&effects), 1, "{way}");
    }
}
