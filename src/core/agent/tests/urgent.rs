//! Messages of people and urgent ones: what joins a turn, and what travels apart.

use super::*;

#[test]
fn an_urgent_message_joins_the_turn_and_outlives_it() {
    let mut bench = Bench::ready();
    bench.agent.config.session.takes_urgent = true;
    bench.message(1);
    bench.commit();
    bench.session_event(SessionEvent::Accepted {
        batch: BatchNumber(1),
        key: key_of_first(),
        evidence: "seen".into(),
    });
    bench.commit();
    let mut payload = serde_json::Map::new();
    payload.insert("urgent".into(), json!(true));
    let urgent = Message {
        id: MessageId(2),
        from: "user".into(),
        to: "a".into(),
        kind: "chat".into(),
        body: "now".into(),
        payload,
        ..Default::default()
    };
    let data = serde_json::to_value(urgent).expect("plain data");
    bench.tell(Event::Bus(BusEvent::Framed(RelayFrame::Event {
        seq: 102,
        event: "message.new".into(),
        data,
        at: 0,
    })));
    let effects = bench.commit();
    let [delivery] = deliveries(&effects).try_into().expect("it joins");
    assert!(delivery.urgent && delivery.batch == BatchNumber(1));
    // The turn ends before it was taken: it is the next turn, and is answered by that.
    bench.session_event(SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Completed,
        text: "first".into(),
    });
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    bench.agent.wake(bench.now);
    bench.commit();
    bench.session_event(SessionEvent::TurnStarted);
    bench.session_event(SessionEvent::Accepted {
        batch: BatchNumber(1),
        key: delivery.key,
        evidence: "seen".into(),
    });
    bench.commit();
    bench.session_event(SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Completed,
        text: "second".into(),
    });
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    let effects = bench.agent.wake(bench.now);
    let replied = effects.iter().any(|effect| match effect {
        Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
            ops.iter().any(|op| matches!(op, StoreOp::OutboxAppend(row) if row.key == "reply:a:2" && row.payload["body"] == "second"))
        }
        _ => false,
    });
    assert!(replied, "{effects:?}");
}

#[test]
fn words_of_people_and_of_agents_travel_apart() {
    let mut bench = Bench::ready();
    bench.agent.config.session.split_by_sender = true;
    bench.session_event(SessionEvent::TurnStarted);
    for (id, from) in [(1, "user"), (2, "user"), (3, "web"), (4, "user")] {
        let message = Message {
            id: MessageId(id),
            from: from.into(),
            to: "a".into(),
            kind: "chat".into(),
            body: "do it".into(),
            ..Default::default()
        };
        let data = serde_json::to_value(message).expect("plain data");
        bench.tell(Event::Bus(BusEvent::Framed(RelayFrame::Event {
            seq: 100 + id,
            event: "message.new".into(),
            data,
            at: 0,
        })));
    }
    bench.commit();
    bench.session_event(SessionEvent::TurnEnded {
        batch: None,
        end: TurnEnd::Completed,
        text: String::new(),
    });
    let effects = bench.commit();
    let [first] = deliveries(&effects).try_into().expect("one batch");
    assert!(
        first.person && first.text.contains("#2") && !first.text.contains("#3"),
        "{}",
        first.text
    );
}
