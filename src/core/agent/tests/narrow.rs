//! An agent that only direct messages, labels and policies reach.

use super::*;
use crate::core::agent::effect::{BusCommand, Effect, HeartbeatCommand, StoreCommand};
use crate::core::commit::Commit;

fn narrow() -> Bench {
    let mut bench = Bench::quiet();
    bench.agent.config.identity.broad_targets = false;
    bench.agent.config.identity.label = Some("web".into());
    bench
}

/// What became of a message for that target which the relay resolved to this agent: stored, and
/// with which reason told as read.
fn fate_of(bench: &mut Bench, id: u64, to: &str) -> (bool, Option<String>) {
    let message = Message {
        id: MessageId(id),
        from: "user".into(),
        to: to.into(),
        kind: "chat".into(),
        body: "do it".into(),
        resolved_to_agent: Some("a".into()),
        ..Default::default()
    };
    let data = serde_json::to_value(message).expect("plain data");
    fate_of_frame(
        bench,
        id,
        to,
        |data| {
            let frame =
                RelayFrame::Event { seq: 100 + id, event: "message.new".into(), data, at: 0 };
            BusEvent::Framed(frame)
        },
        data,
    )
}

/// The same for a frame however it is read.
fn fate_of_frame(
    bench: &mut Bench,
    id: u64,
    to: &str,
    framed: impl Fn(serde_json::Value) -> BusEvent,
    data: serde_json::Value,
) -> (bool, Option<String>) {
    let effects = bench.tell(Event::Bus(framed(data)));
    let put = |op: &StoreOp| matches!(op, StoreOp::InboxPut(row) if row.at.id == MessageId(id));
    let stored =
        effects.iter().any(|effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(put)));
    let mut all = effects;
    all.extend(bench.commit());
    assert!(all.iter().any(is_ack), "{to} is acknowledged either way");
    let mut declined = None;
    while let Some((call, path, body)) = all.iter().find_map(|effect| match effect {
        Effect::Heartbeat(HeartbeatCommand::Call { call, path, body, .. }) => {
            Some((*call, path.clone(), body.clone()))
        }
        _ => None,
    }) {
        if path == format!("/api/messages/{id}/read") {
            declined = body.and_then(|body| body["reason"].as_str().map(str::to_string));
        }
        all = bench.tell(Event::Called { call, result: Ok((200, json!({"obligations": []}))) });
    }
    (stored, declined)
}

#[test]
fn a_narrow_agent_declines_what_is_meant_for_all() {
    let mut bench = narrow();
    for (id, to) in [(1, "broadcast"), (2, "tag:acp"), (3, "cap:code")] {
        let (stored, declined) = fate_of(&mut bench, id, to);
        assert_eq!(
            (stored, declined.as_deref()),
            (false, Some("this agent takes no messages for broadcast, tag: or cap:")),
            "{to}"
        );
    }
    for (id, to) in [(4, "a"), (5, "label:web"), (6, "policy:p")] {
        assert_eq!(fate_of(&mut bench, id, to), (true, None), "{to}");
    }
    let mut broad = Bench::quiet();
    assert_eq!(fate_of(&mut broad, 1, "broadcast"), (true, None));
}

#[test]
fn a_narrow_agent_says_so_in_every_registration() {
    for (mut bench, says) in [(narrow(), Some(json!(false))), (Bench::quiet(), None)] {
        // The bus is away: the relay is told over HTTP that this agent is there.
        bench.agent.relay_link.known_instance = false;
        let mut effects = bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
        let mut metas = Vec::new();
        for _ in 0..20 {
            let mut next = Vec::new();
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Heartbeat(HeartbeatCommand::Call { call, path, body, .. }) => {
                        if path == "/api/agents" {
                            metas.push((
                                "http",
                                body.unwrap_or_default()["meta"]["broadTargets"].clone(),
                            ));
                        }
                        next.extend(
                            bench.tell(Event::Called { call, result: Ok((200, json!({}))) }),
                        );
                    }
                    Effect::Bus(BusCommand::Connect(_)) if metas.is_empty() => {
                        next.extend(bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline(
                            "nobody listens".into(),
                        )))));
                    }
                    Effect::Bus(BusCommand::Connect(_)) => {
                        next.extend(bench.tell(Event::Bus(BusEvent::Connected)))
                    }
                    other => {
                        if let Some(ClientFrame::Register { registration, .. }) = frame_of(&other) {
                            metas.push((
                                "bus",
                                registration.meta.get("broadTargets").cloned().unwrap_or_default(),
                            ));
                        }
                    }
                }
            }
            bench.now.tick =
                bench.agent.next_deadline().unwrap_or(bench.now.tick).max(bench.now.tick);
            next.extend(bench.agent.wake(bench.now));
            effects = next;
        }
        metas.dedup();
        let said = says.unwrap_or_default();
        assert_eq!(metas, [("http", said.clone()), ("bus", said)]);
    }
}

/// What cannot be read as a whole is declined with the reason and acknowledged, or it would come
/// again and again and fill the window.
#[test]
fn a_message_that_cannot_be_read_is_declined_with_its_reason() {
    let mut bench = Bench::quiet();
    for id in 1..=40 {
        let data = json!({"id": id, "from": "user", "to": "a", "body": "x"});
        let why = "it is nested too deeply to be read";
        let framed = |data: serde_json::Value| {
            let event = "message.new".to_string();
            let frame = RelayFrame::Event { seq: 100 + id, event, data, at: 0 };
            BusEvent::FramedInPart(frame, why.into())
        };
        let (stored, declined) = fate_of_frame(&mut bench, id, "a", framed, data);
        assert_eq!((stored, declined.as_deref()), (false, Some(why)));
    }
    assert!(fate_of(&mut bench, 41, "a").0, "others are taken");
}

/// A status that is refused for its record goes once more without it: the word counts.
#[test]
fn a_status_that_is_refused_goes_without_its_record() {
    let mut bench = Bench::quiet();
    for code in ["field_too_long", "too_deep", "too_many_members"] {
        let message = "too much".to_string();
        let frame = RelayFrame::Error { id: None, code: code.into(), message, retryable: false };
        let effects = bench.tell(Event::Bus(BusEvent::Framed(frame)));
        let bare = |effect: &Effect| {
            matches!(effect, Effect::Bus(BusCommand::Send(text))
                if text.contains("agentStatus") && text.contains("\"meta\":null"))
        };
        assert_eq!(effects.iter().filter(|effect| bare(effect)).count(), 1, "{effects:?}");
    }
}
