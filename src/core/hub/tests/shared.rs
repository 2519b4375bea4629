//! What many readers get is one buffer.

use std::collections::BTreeSet;

use super::*;

/// Readers of each kind.
const READERS: u64 = 300;

#[test]
fn readers_of_one_event_share_its_text() {
    let mut bench = Bench::new();
    for number in 0..READERS {
        let events = Request {
            method: "GET".into(),
            path: "/api/events".into(),
            token: "operator".into(),
            ..Default::default()
        };
        bench.tell(Event::Request { ticket: Ticket(1000 + number), request: events });
        let bus = Request { path: "/bus".into(), token: "operator".into(), ..Default::default() };
        bench.tell(Event::Upgrade { ticket: Ticket(5000 + number), request: bus });
        for text in [
            json!({"type": "register", "id": "r", "payload": {"role": "channel", "instanceId": "i", "componentId": "c"}}),
            json!({"type": "subscribe", "id": "s", "payload": {"events": ["*"]}}),
        ] {
            bench.tell(Event::PeerText { peer: PeerId(5000 + number), text: text.to_string() });
        }
        bench.commit();
    }
    let body = json!({"to": "a", "body": "x".repeat(100_000)});
    let card = json!({"status": "busy", "instanceId": "a", "meta": {"note": "y".repeat(100_000)}});
    for (token, method, path, body, event) in [
        ("operator", "POST", "/api/messages", body, "message.new"),
        ("a", "PUT", "/api/agents/a/status", card, "agent.status"),
    ] {
        let mut effects = bench.ask(token, method, path, body);
        effects.extend(bench.commit());
        let texts: Vec<&std::sync::Arc<str>> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Gate(GateCommand::PeerSend { text, .. }) if text.contains(event) => {
                    Some(text)
                }
                _ => None,
            })
            .collect();
        let buffers: BTreeSet<*const u8> = texts.iter().map(|text| text.as_ptr()).collect();
        assert_eq!(texts.len() as u64, 2 * READERS, "{event}");
        assert_eq!(buffers.len(), 2, "{event}: a frame and a server-sent event");
    }
}
