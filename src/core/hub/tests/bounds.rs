//! Every free field has its bound, each time it is told.

use super::*;

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// The smallest text that is one byte too long is refused by a sentence that names field and limit;
/// what fits is taken.
#[test]
fn every_free_field_is_bounded_and_named() {
    let mut bench = Bench::new();
    let (field, name) = (FIELD_BYTES_MAX + 1, NAME_BYTES_MAX + 1);
    bench.call("operator", "POST", "/api/tasks", json!({"to": "a", "title": "t"}));
    for (token, method, path, body, named) in [
        ("a", "POST", "/api/messages", json!({"to": format!("label:{}", long(field))}), "to"),
        ("a", "POST", "/api/messages", json!({"to": "b", "subject": long(field)}), "subject"),
        ("a", "POST", "/api/messages", json!({"to": "b", "channel": long(field)}), "channel"),
        (
            "a",
            "POST",
            "/api/messages",
            json!({"to": "b", "idempotencyKey": long(field)}),
            "idempotencyKey",
        ),
        ("a", "POST", "/api/tasks", json!({"to": "b", "title": long(field)}), "title"),
        ("a", "POST", "/api/agents", json!({"id": "a", "machine": long(name)}), "machine"),
        ("a", "POST", "/api/agents", json!({"id": "a", "instanceId": long(name)}), "instanceId"),
        ("a", "POST", "/api/agents", json!({"id": "a", "componentId": long(name)}), "componentId"),
        (
            "a",
            "POST",
            "/api/agents",
            json!({"id": "a", "meta": {"m": long(META_BYTES_MAX)}}),
            "meta",
        ),
        (
            "a",
            "POST",
            "/api/agents/a/heartbeat",
            json!({"meta": {"m": long(META_BYTES_MAX)}}),
            "meta",
        ),
        ("a", "POST", "/api/messages/1/read", json!({"reason": long(field)}), "reason"),
        (
            "a",
            "PATCH",
            "/api/tasks/1",
            json!({"status": "in_progress", "body": long(TASK_NOTE_BYTES_MAX)}),
            "body",
        ),
        (
            "operator",
            "POST",
            "/api/commands",
            json!({"type": "t", "target": "a", "params": {"p": long(COMMAND_PART_BYTES_MAX)}}),
            "params",
        ),
    ] {
        let (status, answer) = bench.call(token, method, path, body);
        let text = answer["error"].as_str().unwrap_or_default();
        assert_eq!((status, answer["code"].as_str()), (422, Some("field_too_long")), "{answer}");
        assert!(text.contains(&format!("{named:?}")) && text.contains("bytes"), "{text}");
    }
    let tags: Vec<String> = (0..=LABELS_MAX).map(|number| format!("t{number}")).collect();
    let (status, answer) = bench.call("a", "POST", "/api/agents", json!({"id": "a", "tags": tags}));
    assert_eq!((status, answer["code"].as_str()), (422, Some("too_many_labels")), "{answer}");
    let body = json!({"to": "b", "subject": long(FIELD_BYTES_MAX), "body": "x"});
    assert_eq!(bench.call("a", "POST", "/api/messages", body).0, 201);
}

/// Names that are known grow no further than new ones, and many small parts no further than one.
#[test]
fn an_agents_meta_is_bounded_however_it_grows() {
    let mut bench = Bench::new();
    let names = |value: &str| -> Value {
        (0..100).map(|number| (format!("n{number}"), json!(value))).collect()
    };
    let body = json!({"meta": names("")});
    assert_eq!(bench.call("a", "POST", "/api/agents/a/heartbeat", body).0, 200);
    for part in 0..100 {
        let body = json!({"meta": {format!("n{part}"): long(META_BYTES_MAX / 4)}});
        assert_eq!(bench.call("a", "POST", "/api/agents/a/heartbeat", body).0, 200);
        let held = bench.hub.agents["a"].meta.values().map(|value| value.to_string().len());
        assert!(held.sum::<usize>() <= META_BYTES_MAX, "after part {part}");
    }
}

/// Notes of one task are bounded together; its end is always told.
#[test]
fn notes_of_a_task_are_bounded_together() {
    let mut bench = Bench::new();
    bench.call("operator", "POST", "/api/tasks", json!({"to": "a", "title": "t"}));
    let note = |status: &str| json!({"status": status, "body": long(TASK_NOTE_BYTES_MAX - 100)});
    let mut patch =
        |status: &str| bench.call("a", "PATCH", "/api/tasks/1", note(status)).1["code"].clone();
    let taken = (0..100).take_while(|_| patch("in_progress").is_null()).count();
    assert_eq!(taken, TASK_NOTES_BYTES_MAX / TASK_NOTE_BYTES_MAX + 1);
    assert_eq!(patch("in_progress"), "too_many_notes");
    assert_eq!(patch("done"), Value::Null);
}

/// What comes over the bus has the same bounds; its sender is told, and the connection stays.
#[test]
fn frames_are_bounded_like_calls() {
    let mut bench = Bench::new();
    let request = Request { path: "/bus".into(), token: "a".into(), ..Default::default() };
    bench.tell(Event::Upgrade { ticket: Ticket(50), request });
    let mut say = |frame: Value| -> Vec<Effect> {
        let mut effects = bench.tell(Event::PeerText { peer: PeerId(50), text: frame.to_string() });
        effects.extend(bench.commit());
        effects
    };
    let payload = json!({"role": "provider", "agentId": "a", "instanceId": "a"});
    say(json!({"type": "register", "id": "r", "payload": payload}));
    let big = json!({"m": long(META_BYTES_MAX)});
    for frame in [
        json!({"type": "heartbeat", "payload": {"status": "idle", "meta": big}}),
        json!({"type": "status", "payload": {"agentStatus": "idle", "meta": big}}),
        json!({"type": "register", "id": "r", "payload": {"role": "provider", "agentId": "a", "instanceId": "a", "meta": big}}),
        json!({"type": "subscribe", "id": "s", "payload": {"events": [long(NAME_BYTES_MAX + 1)]}}),
        json!({"type": "resume", "id": long(NAME_BYTES_MAX + 1), "payload": {}}),
    ] {
        let effects = say(frame);
        let told = effects.iter().any(|effect| {
            matches!(effect, Effect::Gate(GateCommand::PeerSend { text, .. })
                if text.contains("field_too_long"))
        });
        let closed =
            |effect: &Effect| matches!(effect, Effect::Gate(GateCommand::PeerClose { .. }));
        assert!(told && !effects.iter().any(closed), "{effects:?}");
    }
}

/// What a sender has waiting is bounded, told with the time of the next try, and named; others are
/// not concerned, and room comes back.
#[test]
fn what_waits_for_a_match_or_a_claim_is_bounded_by_sender() {
    let mut bench = Bench::new();
    let message = |number: usize| json!({"to": format!("label:l{number}"), "body": "x"});
    for number in 0..AGENT_UNRESOLVED_MAX {
        assert_eq!(bench.call("a", "POST", "/api/messages", message(number)).0, 201);
    }
    bench.later(Duration::from_secs(5));
    let (status, answer) = bench.call("a", "POST", "/api/messages", message(9999));
    assert_eq!((status, answer["code"].as_str()), (429, Some("too_many_unresolved")), "{answer}");
    assert_eq!(answer["retryAfter"], 60);
    assert_eq!(bench.call("b", "POST", "/api/messages", message(1)).0, 201);
    let to_somebody = json!({"to": "b", "body": "x"});
    assert_eq!(bench.call("a", "POST", "/api/messages", to_somebody).0, 201);
    let gate = crate::core::http::GateStats::default();
    let told = bench.hub.info(&gate, &json!({}));
    assert_eq!((&told["limitsMet"], &told["greediest"]["agent"]), (&json!(1), &json!("a")));
    let text = bench.hub.metrics_text(&gate, &json!({}));
    let line = "greediest_line{line=\"a\",agent=\"a\",limit=\"unresolved messages\"} 1";
    assert!(text.contains(line), "{text}");
    // They match somebody, or their time is over.
    bench.later(QUEUED_FOR + PING_INTERVAL * 2);
    assert_eq!(bench.call("a", "POST", "/api/messages", message(1)).0, 201);
    let task = |number: usize| json!({"to": "b", "title": format!("t{number}")});
    for number in 0..AGENT_OFFERS_MAX {
        if number % 1000 == 999 {
            bench.later(Duration::from_secs(5));
        }
        assert_eq!(bench.call("a", "POST", "/api/tasks", task(number)).0, 201, "{number}");
    }
    bench.later(Duration::from_secs(5));
    let (status, answer) = bench.call("a", "POST", "/api/tasks", task(1));
    assert_eq!((status, answer["code"].as_str()), (429, Some("too_many_open")), "{answer}");
    let done = json!({"status": "done"});
    assert_eq!(bench.call("b", "PATCH", "/api/tasks/7", done).0, 200);
    assert_eq!(bench.call("a", "POST", "/api/tasks", task(1)).0, 201);
}

/// What an agent stores in a day is bounded, however small or widely sent; renewals are one line.
#[test]
fn what_is_stored_in_a_day_is_bounded_by_line() {
    let mut bench = Bench::new();
    let actor = bench.hub.token_of("a").expect("a token");
    let most = AGENT_STORED_PER_DAY_MAX as usize;
    assert!(bench.hub.charge_stored(&actor, most - 600_000, 0).is_ok());
    let body = json!({"to": "b", "body": long(500_000)});
    assert_eq!(bench.call("a", "POST", "/api/messages", body.clone()).0, 201);
    let refused = bench.call("a", "POST", "/api/messages", body.clone());
    assert_eq!((refused.0, refused.1["code"].as_str()), (429, Some("stored_too_much")));
    let wait = refused.1["retryAfter"].as_u64().expect("seconds");
    assert!(wait > 23 * 3600 && wait <= 24 * 3600, "{wait}");
    assert_eq!(bench.call("b", "POST", "/api/messages", json!({"to": "a", "body": "x"})).0, 201);
    bench.later(Duration::from_secs(wait));
    assert_eq!(bench.call("a", "POST", "/api/messages", body).0, 201);
}

/// Whoever asks the reader for lists without end waits behind itself: another one's question is
/// with the reader after a few of them, and a person's before that.
#[test]
fn questions_to_the_reader_take_turns() {
    let mut bench = Bench::new();
    let list = |bench: &mut Bench, token: &str| bench.ask(token, "GET", "/api/messages", json!({}));
    let asked = |effects: &[Effect]| -> Vec<crate::core::ids::ReadNumber> {
        let number = |effect: &Effect| match effect {
            Effect::Read { number, .. } => Some(*number),
            _ => None,
        };
        effects.iter().filter_map(number).collect()
    };
    let mut open = std::collections::VecDeque::new();
    for _ in 0..500 {
        open.extend(asked(&list(&mut bench, "a")));
    }
    assert_eq!(open.len(), READS_AT_ONCE_MAX);
    let before = bench.hub.reads.len();
    assert!(asked(&list(&mut bench, "b")).is_empty() && before == READS_AT_ONCE_MAX);
    let ticket = Ticket(bench.tickets);
    let mut answered = 0;
    loop {
        let number = open.pop_front().expect("one is open");
        let answer = super::super::event::ReadAnswer::Json(json!({"messages": []}));
        let effects = bench.tell(Event::Store(StoreEvent::Read { number, answer }));
        answered += 1;
        open.extend(asked(&effects));
        let is_answer = |effect: &Effect| matches!(effect, Effect::Gate(GateCommand::Respond { ticket: t, .. }) if *t == ticket);
        if effects.iter().any(is_answer) {
            break;
        }
    }
    assert!(answered <= 2 * READS_AT_ONCE_MAX, "after {answered} answers");
}

/// What costs more than a request counts for more: lists of many, missed events, renewals.
#[test]
fn costly_requests_count_for_more() {
    let mut bench = Bench::new();
    let renewals = (0..AGENT_RATE.1)
        .take_while(|_| {
            let token = "a";
            bench.call(token, "POST", "/api/tokens/renew", json!({})).0 != 429
        })
        .count() as u64;
    assert!(renewals <= AGENT_RATE.1 / RENEWAL_REQUESTS + 1, "{renewals}");
    for number in 0..1000 {
        let id = format!("n{number}");
        bench.call("operator", "POST", "/api/agents", json!({"id": id, "role": "provider"}));
    }
    let lists = (0..AGENT_RATE.1)
        .take_while(|_| bench.call("b", "GET", "/api/agents", json!({})).0 != 429)
        .count() as u64;
    assert!(lists < AGENT_RATE.1 / 15, "{lists}");
}
