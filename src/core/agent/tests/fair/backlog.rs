//! A backlog that memory cannot hold: the store is asked what is next.

use super::*;
use crate::core::agent::store::InboxMessage;
use crate::core::ids::MessageRef;

/// What the store is asked for.
fn asked(effects: &[Effect]) -> Vec<Choice> {
    let choice = |effect: &Effect| match effect {
        Effect::Store(StoreCommand::FetchInbox(choice)) => Some(choice.clone()),
        _ => None,
    };
    effects.iter().filter_map(choice).collect()
}

/// A message that the store gives.
fn row(id: u64, from: &str) -> InboxMessage {
    let id = MessageId(id);
    let (from, to, kind) = (from.into(), "a".into(), "chat".into());
    let message = Message { id, from, to, kind, ..Default::default() };
    InboxMessage { at: MessageRef { family: 1, id, generation: 1 }, message }
}

/// The provider takes a batch and ends its turn; nobody says in time which answers are owed.
fn finish(bench: &mut Bench, delivery: Delivery) -> Vec<Effect> {
    let Delivery { batch, key, .. } = delivery;
    let mut effects =
        bench.session_event(SessionEvent::Accepted { batch, key, evidence: "seen".into() });
    effects.extend(bench.session_event(SessionEvent::TurnEnded {
        batch: Some(batch),
        end: TurnEnd::Completed,
        text: "done".into(),
    }));
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    effects.extend(bench.agent.wake(bench.now));
    effects.extend(bench.commit());
    effects
}

/// The store is asked for what is next, and its answer counts once.
#[test]
fn a_backlog_that_memory_cannot_hold_is_asked_for() {
    let mut bench = Bench::busy();
    bench.agent.config.session.takes_urgent = false;
    for id in 1..=INBOX_CACHED_MAX as u64 + 1 {
        bench.arrive(id, &sent("a"));
    }
    bench.arrive(5000, &sent("b"));
    let mut effects = bench.session_event(SessionEvent::TurnEnded {
        batch: None,
        end: TurnEnd::Completed,
        text: String::new(),
    });
    effects.extend(bench.commit());
    assert_eq!(
        (asked(&effects), deliveries(&effects).len()),
        (vec![Choice::BySender { last: Vec::new() }], 0)
    );
    // It could not be read: it is asked again later, not at once and for ever.
    let effects = bench.tell(Event::Store(StoreEvent::InboxRows { rows: Vec::new(), more: true }));
    assert_eq!((asked(&effects).len(), deliveries(&effects).len()), (0, 0));
    bench.now.tick = bench.now.tick + DELIVERY_RETRY;
    // The question stands behind what the same event makes durable: the answer knows of it.
    let data = serde_json::to_value(row(4999, "a").message).expect("plain data");
    let frame = RelayFrame::Event { seq: 9, event: "message.new".into(), data, at: 0 };
    let effects = bench.tell(Event::Bus(BusEvent::Framed(frame)));
    assert!(
        asked(&effects).is_empty()
            && effects
                .iter()
                .any(|effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { .. })))),
        "{effects:?}"
    );
    assert_eq!(asked(&bench.commit()).len(), 1);
    // While the store is asked one more comes: what it says is not all.
    bench.arrive(5001, &sent("c"));
    let rows = vec![row(1, "a"), row(2, "a"), row(5000, "b")];
    let mut effects = bench.tell(Event::Store(StoreEvent::InboxRows { rows, more: false }));
    effects.extend(bench.commit());
    let [delivery] = deliveries(&effects).try_into().expect("one batch");
    assert_eq!(ids_in(&delivery.text), [1, 2]);
    let effects = finish(&mut bench, delivery);
    assert_eq!(
        (asked(&effects), deliveries(&effects).len()),
        (vec![Choice::BySender { last: vec!["a".into()] }], 0)
    );
    bench.tell(Event::Store(StoreEvent::InboxRows {
        rows: vec![row(5000, "b"), row(5001, "c")],
        more: false,
    }));
    let [delivery] = deliveries(&bench.commit()).try_into().expect("one batch");
    assert_eq!(ids_in(&delivery.text), [5000]);
    // Now all of it is in memory again.
    let effects = bench.arrive(5002, &sent("d"));
    assert!(
        asked(&effects).is_empty() && bench.agent.inbox.counts() == (2, false, 2),
        "{:?}",
        bench.agent.inbox.counts()
    );
}

/// An urgent message joins the turn although memory is full of others.
#[test]
fn an_urgent_message_is_seen_behind_a_backlog() {
    let mut bench = Bench::quiet();
    bench.agent.config.session.takes_urgent = true;
    let [delivery] = deliveries(&bench.arrive(1, &sent("a"))).try_into().expect("a turn");
    bench.session_event(SessionEvent::Accepted {
        batch: delivery.batch,
        key: delivery.key,
        evidence: "seen".into(),
    });
    for id in 2..=INBOX_CACHED_MAX as u64 + 10 {
        bench.arrive(id, &sent("a"));
    }
    let [joins] = deliveries(&bench.arrive(6000, &urgent("b"))).try_into().expect("it joins");
    assert_eq!((ids_in(&joins.text), joins.urgent), (vec![6000], true));
}
