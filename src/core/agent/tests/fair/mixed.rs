//! Turns and batches of several senders: one is answered, the others are told to ask again.

use super::*;

/// The one commit that settles messages.
fn settling_commit(effects: &[Effect]) -> Vec<StoreOp> {
    let settles = |op: &StoreOp| matches!(op, StoreOp::InboxSettle { .. });
    let commit = effects.iter().find_map(|effect| match effect {
        Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(settles) => {
            Some(ops.clone())
        }
        _ => None,
    });
    commit.expect("settled")
}

fn replies_in(ops: impl IntoIterator<Item = StoreOp>) -> Vec<OutboxRow> {
    let reply = |op| if let StoreOp::OutboxAppend(row) = op { Some(row) } else { None };
    ops.into_iter().filter_map(reply).collect()
}

/// A line that gives the words of the turn to whom it answers, and to nobody else.
fn assert_is_for(row: &OutboxRow, answered: &str) {
    let (to, body) = (
        row.payload["to"].as_str().expect("a name"),
        row.payload["body"].as_str().expect("a text"),
    );
    let is_answer = row.payload.pointer("/payload/answered") != Some(&json!(false));
    assert_eq!((is_answer, body.contains("secret")), (to == answered, to == answered), "{row:?}");
    assert_eq!(
        (row.payload["kind"].as_str(), row.payload["replyExpected"].as_bool()),
        (Some("chat"), Some(false))
    );
    assert!(body.lines().count() == 1 && (is_answer || body.contains("ask again")), "{body}");
    assert_eq!(row.key, format!("reply:a:{}", row.payload["replyTo"]));
}

/// A message that is urgent joins the turn of another sender; what the turn says goes to one of
/// them.
#[test]
fn a_mixed_turn_answers_one_and_tells_the_others() {
    for (first, joins, answered, others) in [
        (sent("a"), vec![urgent("b"), urgent("c"), urgent("b")], "a", vec!["b", "c"]),
        (
            sent("a"),
            vec![urgent("b"), urgent("user:ann"), urgent("user")],
            "user:ann",
            vec!["a", "b", "user"],
        ),
        (sent("user"), vec![urgent("a")], "user", vec!["a"]),
        (notice("a"), vec![urgent("b"), urgent("c")], "b", vec!["c"]),
        (notice("user"), vec![urgent("b")], "b", vec![]),
    ] {
        let mut bench = Bench::quiet();
        bench.agent.config.session.takes_urgent = true;
        let mut effects = bench.arrive(1, &first);
        for (at, urgent) in joins.iter().enumerate() {
            effects.extend(bench.arrive(at as u64 + 2, urgent));
        }
        let all = deliveries(&effects);
        assert!(
            all.len() == joins.len() + 1 && all[1..].iter().all(|delivery| delivery.urgent),
            "{all:?}"
        );
        for delivery in &all {
            bench.session_event(SessionEvent::Accepted {
                batch: delivery.batch,
                key: delivery.key.clone(),
                evidence: "seen".into(),
            });
        }
        let end = SessionEvent::TurnEnded {
            batch: Some(all[0].batch),
            end: TurnEnd::Completed,
            text: "the secret of somebody".into(),
        };
        let mut effects = bench.session_event(end);
        effects.extend(bench.commit());
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects.extend(bench.agent.wake(bench.now));
        let ops = settling_commit(&effects);
        let settled = ops.iter().filter(|op| matches!(op, StoreOp::InboxSettle { .. })).count();
        assert_eq!(settled, joins.len() + 1, "all of it in one transaction");
        let replies = replies_in(ops);
        let turn = Turn { ids: Vec::new(), replies };
        let told: BTreeSet<String> = turn.told().into_iter().map(|(to, ..)| to).collect();
        assert_eq!(told, others.into_iter().chain([answered]).map(str::to_string).collect());
        turn.replies.iter().for_each(|row| assert_is_for(row, answered));
        assert_eq!(turn.replies.len(), told.len(), "one line for each sender");
    }
}

/// What an older version put into one batch is answered to one; that nothing was said may be told
/// to all.
#[test]
fn a_mixed_batch_of_an_older_version_is_answered_to_one() {
    for (end, text, told) in [
        (
            TurnEnd::Completed,
            "the secret",
            vec![("b", 2, false), ("user", 3, true), ("a", 4, false)],
        ),
        (
            TurnEnd::Failed("of a: secret".into()),
            "",
            vec![("b", 2, false), ("user", 3, true), ("a", 4, false)],
        ),
        (
            TurnEnd::Cancelled,
            "the secret",
            vec![("b", 2, false), ("user", 3, true), ("a", 4, false)],
        ),
        (TurnEnd::Cancelled, "", vec![("b", 2, true), ("user", 3, true), ("a", 4, true)]),
        (TurnEnd::Completed, " \n", vec![("b", 2, true), ("user", 3, true), ("a", 4, true)]),
    ] {
        let mut bench = Bench::busy();
        // As it was before: where the agent answers itself batches are mixed.
        bench.agent.config.reply_mode = ReplyMode::Explicit;
        for (at, from) in ["a", "b", "user", "a"].into_iter().enumerate() {
            bench.agent.config.session.takes_urgent = false;
            bench.arrive(at as u64 + 1, &sent(from));
        }
        bench.session_event(SessionEvent::TurnEnded {
            batch: None,
            end: TurnEnd::Completed,
            text: String::new(),
        });
        let [delivery] = deliveries(&bench.commit()).try_into().expect("one batch");
        assert_eq!(
            ids_in(&delivery.text),
            [1, 2, 3, 4],
            "where the agent answers itself all goes together, in order"
        );
        bench.agent.config.reply_mode = ReplyMode::Auto;
        bench.session_event(SessionEvent::Accepted {
            batch: delivery.batch,
            key: delivery.key,
            evidence: "seen".into(),
        });
        let mut effects = bench.session_event(SessionEvent::TurnEnded {
            batch: Some(delivery.batch),
            end: end.clone(),
            text: text.into(),
        });
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects.extend(bench.commit());
        effects.extend(bench.agent.wake(bench.now));
        let commits = effects.into_iter().filter_map(|effect| match effect {
            Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => Some(ops),
            _ => None,
        });
        let replies = replies_in(commits.flatten());
        let words = |row: &OutboxRow| {
            row.payload["to"] != "user" && row.payload["body"].to_string().contains("secret")
        };
        assert!(!replies.iter().any(words), "{replies:?}");
        let mut all = Turn { ids: Vec::new(), replies }.told();
        all.sort_by_key(|(_, id, _)| *id);
        let told: Vec<(String, u64, bool)> =
            told.into_iter().map(|(name, id, is)| (name.to_string(), id, is)).collect();
        assert_eq!(all, told, "{end:?}");
    }
}
