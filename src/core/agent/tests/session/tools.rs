//! What the tools of a session say through the runner.

use super::*;

#[test]
fn a_message_of_a_tool_is_durable_before_it_is_answered_and_counts_as_the_answer() {
    for how in ["reply", "reaction"] {
        let mut bench = Bench::with_message();
        let request = match how {
            "reply" => ControlRequest::Message(
                json!({"to": "user", "body": "said by the tool", "replyTo": 1}),
            ),
            _ => ControlRequest::Reaction { message: MessageId(1), body: json!({"emoji": "ok"}) },
        };
        let effects = bench.control(request);
        assert_eq!(reply(&effects), None, "not before it is durable");
        let queued = rows(&effects);
        assert_eq!(
            (
                queued.len(),
                queued[0].payload["from"].as_str().or(queued[0].payload["agentId"].as_str())
            ),
            (1, Some("a"))
        );
        let (status, body) = reply(&bench.commit()).expect("answered");
        assert_eq!(
            (status, &body["queued"], &body["key"]),
            (202, &json!(true), &json!(queued[0].key))
        );
        assert!(rows(&bench.end_turn()).is_empty(), "{how}: nothing more is said");
    }
    // Without that, or where the words go to somebody else, the final text is the answer.
    for elsewhere in [
        json!({"to": "b", "body": "something else"}),
        json!({"to": "b", "body": "elsewhere", "replyTo": 1}),
    ] {
        let mut bench = Bench::with_message();
        bench.control(ControlRequest::Message(elsewhere));
        bench.commit();
        assert_eq!(rows(&bench.end_turn()).len(), 1);
    }
    // Nor does a tool take the place of that answer by its key.
    let mut bench = Bench::with_message();
    let squats = json!({"to": "b", "body": "x", "idempotencyKey": "reply:a:1"});
    assert_eq!(
        reply(&bench.control(ControlRequest::Message(squats))).map(|(status, _)| status),
        Some(422)
    );
}

#[test]
fn what_a_tool_has_answered_is_known_after_a_crash() {
    let mut bench = Bench::with_message();
    let effects = bench.control(ControlRequest::Message(
        json!({"to": "user", "body": "said", "replyTo": 1, "idempotencyKey": "k"}),
    ));
    assert_eq!(rows(&effects)[0].key, "k");
    let notes: Vec<(String, String)> = effects
        .iter()
        .filter_map(|effect| {
            if let Effect::Store(StoreCommand::Commit(Commit { ops, .. })) = effect {
                Some(ops)
            } else {
                None
            }
        })
        .flatten()
        .filter_map(|op| {
            if let StoreOp::PutMeta { key, value: Some(value) } = op {
                Some((key.clone(), value.clone()))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(notes.len(), 1, "{effects:?}");
    let mut bench = Bench::restored();
    bench.agent.restore_answered(&notes);
    let at = MessageRef { family: 1, id: MessageId(1), generation: 1 };
    assert!(bench.agent.has_answered(at));
    // A task that is given once more is not answered by what was said the first time.
    bench.agent.note_round(at);
    assert!(!bench.agent.has_answered(at));
}

#[test]
fn a_runner_takes_from_its_tools_only_what_a_hub_would_take() {
    let mut bench = Bench::ready();
    let long = "x".repeat(600_000);
    for (body, status) in [
        (json!(null), 400),
        (json!({"to": 5, "body": "x"}), 400),
        (json!({"body": "x"}), 400),
        (json!({"to": "label: ", "body": "x"}), 422),
        (json!({"to": "b", "body": "x", "from": "user"}), 403),
        (json!({"to": "b", "body": "x", "claimable": true}), 422),
        (json!({"to": "b", "body": long}), 413),
        (json!({"to": "b", "subject": "x".repeat(2000), "body": "x"}), 413),
        (json!({"to": "b", "body": "x", "payload": {"a": "y".repeat(1_100_000)}}), 413),
    ] {
        let effects = bench.control(ControlRequest::Message(body));
        assert_eq!(reply(&effects).map(|(status, _)| status), Some(status), "{effects:?}");
        assert!(rows(&effects).is_empty());
    }
    for (body, status) in [(json!({}), 400), (json!({"emoji": "x", "agentId": "b"}), 403)] {
        let effects = bench.control(ControlRequest::Reaction { message: MessageId(1), body });
        assert_eq!(reply(&effects).map(|(status, _)| status), Some(status));
    }
}

#[test]
fn a_number_of_two_generations_is_two_messages_for_the_tools() {
    let place = |number: u32| MessageRef { family: number, id: MessageId(12), generation: number };
    let generation = |number: u32, name: &str| Generation {
        number,
        family: number,
        name: name.into(),
        told: Some(name.into()),
        highest: MessageId(12),
    };
    let message = Message {
        id: MessageId(12),
        from: "web".into(),
        to: "a".into(),
        subject: Some("new".into()),
        ..Default::default()
    };
    let snapshot = Snapshot {
        generations: vec![generation(1, "old"), generation(2, "new")],
        settled: vec![Settled { at: place(1), read: true, ended: None, from: "user".into() }],
        unsettled: vec![Unsettled {
            at: place(2),
            message,
            state: crate::core::agent::store::InboxState::Confirmed,
            batch: BatchNumber(1),
        }],
        notes: vec![("relay".into(), "new".into())],
        ..Default::default()
    };
    let mut bench = Bench::restored();
    bench.agent = crate::core::agent::Agent::new(bench.agent.config.clone(), 1);
    bench.tell(Event::Store(StoreEvent::Restored(Box::new(snapshot))));
    let (status, body) =
        reply(&bench.control(ControlRequest::Given(MessageId(12)))).expect("answered");
    let told: Vec<(&str, &str)> = body["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| {
            (
                one["generation"].as_str().unwrap_or_default(),
                one["from"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!((status, told), (200, vec![("old", "user"), ("new", "web")]));
    assert_eq!(
        reply(&bench.control(ControlRequest::Given(MessageId(13)))).map(|(status, _)| status),
        Some(404)
    );
    // An answer says which one it means.
    for (told, number) in [(Some("old"), 1), (Some("new"), 2), (None, 2)] {
        let mut body = json!({"to": "user", "body": "x", "replyTo": 12});
        if let Some(told) = told {
            body["generation"] = json!(told);
        }
        let row = rows(&bench.control(ControlRequest::Message(body))).remove(0);
        assert_eq!(
            (row.generation, row.payload["generation"].as_str()),
            (number, Some(if number == 1 { "old" } else { "new" }))
        );
    }
}

#[test]
fn where_the_relay_has_no_generations_an_answer_names_none() {
    let mut bench = Bench::with_message();
    let effects =
        bench.control(ControlRequest::Message(json!({"to": "user", "body": "x", "replyTo": 1})));
    let row = rows(&effects).remove(0);
    assert!(row.payload.get("generation").is_none() && row.generation == 1, "{row:?}");
}
