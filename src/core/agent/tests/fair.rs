//! Whose messages go to the provider together, whose turn is next, and who is told what at its end.

use crate::core::agent::effect::{Effect, HeartbeatCommand, ProviderCommand, StoreCommand};
use crate::core::commit::Commit;
use std::collections::BTreeSet;

use super::*;
use crate::core::agent::store::RowKind;
use crate::core::agent::store::{Choice, OutboxRow};

/// A message: who sent it, what it says, and what kind it is.
#[derive(Clone)]
struct Sent {
    from: &'static str,
    change: fn(&mut Message),
}

fn sent(from: &'static str) -> Sent {
    Sent { from, change: |_| {} }
}

fn notice(from: &'static str) -> Sent {
    Sent { from, change: |message| message.reply_expected = Some(false) }
}

fn task(from: &'static str) -> Sent {
    let change = |message: &mut Message| {
        (message.kind, message.claimable) = ("task".into(), true);
        message.payload = json!({"taskId": 7}).as_object().cloned().unwrap_or_default();
    };
    Sent { from, change }
}

fn urgent(from: &'static str) -> Sent {
    let change = |message: &mut Message| {
        message.payload = json!({"urgent": true}).as_object().cloned().unwrap_or_default()
    };
    Sent { from, change }
}

/// One turn of the provider: the messages that it had, and what was said to whom because of it.
#[derive(Debug, Default, PartialEq)]
struct Turn {
    ids: Vec<u64>,
    replies: Vec<OutboxRow>,
}

/// Numbers in the headers of a text.
fn ids_in(text: &str) -> Vec<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix("[relay message #")?.split(' ').next()?.parse().ok())
        .collect()
}

impl Turn {
    /// To whom something was said, in answer to what, and whether it is an answer.
    fn told(&self) -> Vec<(String, u64, bool)> {
        let row = |row: &OutboxRow| {
            let text = |field: &str| row.payload[field].as_str().unwrap_or_default().to_string();
            (
                text("to"),
                row.payload["replyTo"].as_u64().unwrap_or(0),
                row.payload.pointer("/payload/answered") != Some(&json!(false)),
            )
        };
        self.replies.iter().map(row).collect()
    }
}

impl Bench {
    fn busy() -> Bench {
        let mut bench = Bench::quiet();
        bench.agent.config.session.takes_urgent = true;
        bench.signal(SessionEvent::TurnStarted);
        bench
    }

    /// A message comes over the bus and is on disk.
    fn arrive(&mut self, id: u64, sent: &Sent) -> Vec<Effect> {
        let mut message = Message {
            id: MessageId(id),
            from: sent.from.into(),
            to: "a".into(),
            kind: "chat".into(),
            body: format!("words of {} in {id}", sent.from),
            ..Default::default()
        };
        (sent.change)(&mut message);
        let data = serde_json::to_value(message).expect("plain data");
        let frame = RelayFrame::Event { seq: 100 + id, event: "message.new".into(), data, at: 0 };
        let effects = self.tell(Event::Bus(BusEvent::Framed(frame)));
        [effects, self.commit()].concat()
    }

    /// The turn that is under way ends; then every batch has its turn, which says what it was told,
    /// until nothing is left. The relay does not say which answers are owed.
    fn turns(&mut self) -> Vec<Turn> {
        let end =
            SessionEvent::TurnEnded { batch: None, end: TurnEnd::Completed, text: String::new() };
        let effects = self.signal(end);
        self.turns_after(effects)
    }

    fn turns_after(&mut self, mut effects: Vec<Effect>) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        let mut deliveries: Vec<Delivery> = Vec::new();
        loop {
            let mut next = Vec::new();
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Heartbeat(HeartbeatCommand::Call { call, path, .. }) => {
                        let status = if path.ends_with("reply-obligations") { 500 } else { 200 };
                        next.extend(
                            self.tell(Event::Called { call, result: Ok((status, json!({}))) }),
                        );
                    }
                    Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
                        let replies = ops.into_iter().filter_map(|op| match op {
                            StoreOp::OutboxAppend(row) if row.kind == RowKind::Message => Some(row),
                            _ => None,
                        });
                        turns
                            .iter_mut()
                            .last()
                            .unwrap_or(&mut Turn::default())
                            .replies
                            .extend(replies);
                        next.extend(self.commit());
                    }
                    Effect::Store(StoreCommand::FetchOutbox) => next.extend(
                        self.tell(Event::Store(StoreEvent::OutboxRows { rows: Ok(Vec::new()) })),
                    ),
                    Effect::Store(StoreCommand::FetchInbox(_)) => panic!("all of it is in memory"),
                    Effect::Provider(ProviderCommand::Verb {
                        verb: Verb::Deliver(delivery),
                        ..
                    }) => deliveries.push(delivery),
                    _ => {}
                }
            }
            effects = next;
            if !effects.is_empty() {
                continue;
            }
            let Some(delivery) = deliveries.pop() else { return turns };
            turns.push(Turn { ids: ids_in(&delivery.text), replies: Vec::new() });
            let Delivery { batch, key, text, .. } = delivery;
            effects = self.signal(SessionEvent::Accepted { batch, key, evidence: "seen".into() });
            effects.extend(self.signal(SessionEvent::TurnEnded {
                batch: Some(batch),
                end: TurnEnd::Completed,
                text,
            }));
        }
    }

    /// What becomes of messages that wait together.
    fn turns_of(all: &[Sent]) -> Vec<Turn> {
        let mut bench = Bench::busy();
        bench.agent.config.session.takes_urgent = false;
        for (at, sent) in all.iter().enumerate() {
            bench.arrive(at as u64 + 1, sent);
        }
        bench.turns()
    }
}

fn ids(turns: &[Turn]) -> Vec<Vec<u64>> {
    turns.iter().map(|turn| turn.ids.clone()).collect()
}

#[test]
fn a_thousand_messages_of_twenty_senders_are_twenty_turns() {
    const NAMES: [&str; 20] = [
        "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "s12", "s13",
        "s14", "s15", "s16", "s17", "s18", "user",
    ];
    let all: Vec<Sent> = (0..1000).map(|n| sent(NAMES[n * 7 % 20])).collect();
    let turns = Bench::turns_of(&all);
    assert_eq!(turns.len(), 20);
    let mut seen = BTreeSet::new();
    for turn in &turns {
        let senders: BTreeSet<&str> =
            turn.ids.iter().map(|id| all[*id as usize - 1].from).collect();
        assert_eq!((turn.ids.len(), senders.len()), (50, 1), "all of one sender");
        assert!(turn.ids.is_sorted(), "in order: {turn:?}");
        let [reply] = &turn.replies[..] else { panic!("one answer: {turn:?}") };
        assert_eq!(reply.payload["to"].as_str(), senders.first().copied());
        let body = reply.payload["body"].as_str().expect("a text");
        assert!(
            NAMES.iter().all(
                |name| senders.contains(name) || !body.contains(&format!("words of {name} in"))
            ),
            "{body}"
        );
        seen.extend(turn.ids.iter().copied());
    }
    assert_eq!(seen.len(), 1000);
    let first_of: Vec<u64> = turns.iter().map(|turn| turn.ids[0]).collect();
    assert_eq!(first_of, (1..=20).collect::<Vec<u64>>(), "whoever waits longest is next");
}

#[test]
fn batches_are_of_one_sender_and_one_kind() {
    let a = |n: usize| vec![sent("a"); n];
    for (what, all, wanted) in [
        ("one sender", a(3), vec![vec![1, 2, 3]]),
        (
            "two take turns",
            vec![sent("a"), sent("b"), sent("a"), sent("b")],
            vec![vec![1, 3], vec![2, 4]],
        ),
        (
            "a task is alone",
            vec![sent("a"), task("a"), sent("a"), task("a")],
            vec![vec![1], vec![2], vec![3], vec![4]],
        ),
        (
            "a task of another too",
            vec![task("a"), sent("b"), sent("a"), task("b")],
            vec![vec![1], vec![2], vec![3], vec![4]],
        ),
        (
            "what expects no answer goes together",
            vec![notice("a"), sent("b"), notice("c"), notice("b"), notice("a"), sent("a")],
            vec![vec![1, 3, 5], vec![2], vec![6], vec![4]],
        ),
        (
            "the order of each sender holds",
            vec![sent("a"), notice("a"), sent("a"), notice("b")],
            vec![vec![1], vec![2, 4], vec![3]],
        ),
    ] {
        assert_eq!(ids(&Bench::turns_of(&all)), wanted, "{what}");
    }
}

#[test]
fn a_batch_ends_at_its_characters() {
    let long = Sent { from: "a", change: |message| message.body = "x".repeat(3900) };
    let turns = Bench::turns_of(&[vec![long; 60], vec![sent("b")]].concat());
    let counts: Vec<usize> = turns.iter().map(|turn| turn.ids.len()).collect();
    assert_eq!(counts, [25, 1, 25, 10], "the other sender does not wait for all of them");
    let answers = turns
        .iter()
        .map(|turn| turn.replies[0].payload["body"].as_str().expect("text").chars().count());
    assert!(
        answers.into_iter().all(|chars| chars <= BATCH_CHARS_MAX + 200),
        "the summary line stands above"
    );
    assert!(
        !turns[0].replies[0].payload["body"].to_string().contains("cut after"),
        "nothing is cut for the others' sake"
    );
}

/// Somebody who sends more whenever his turn comes never keeps others waiting.
#[test]
fn nobody_starves() {
    let mut bench = Bench::busy();
    bench.agent.config.session.takes_urgent = false;
    let mut id = 0;
    let mut arrive = |bench: &mut Bench, from: &'static str| {
        id += 1;
        bench.arrive(id, &sent(from))
    };
    arrive(&mut bench, "a");
    arrive(&mut bench, "b");
    let mut effects = bench.signal(SessionEvent::TurnEnded {
        batch: None,
        end: TurnEnd::Completed,
        text: String::new(),
    });
    let mut order = Vec::new();
    for _ in 0..6 {
        effects.extend(bench.commit());
        let [delivery] = deliveries(&effects).try_into().expect("one batch at a time");
        order.push(
            delivery
                .text
                .split("from ")
                .nth(1)
                .and_then(|rest| rest.split(']').next())
                .unwrap_or_default()
                .to_string(),
        );
        // While it runs the one who has it sends more, twice.
        let more = order.last().map(|name| if name == "a" { "a" } else { "b" }).expect("pushed");
        arrive(&mut bench, more);
        arrive(&mut bench, more);
        bench.signal(SessionEvent::Accepted {
            batch: delivery.batch,
            key: delivery.key,
            evidence: "seen".into(),
        });
        bench.signal(SessionEvent::TurnEnded {
            batch: Some(delivery.batch),
            end: TurnEnd::Completed,
            text: "done".into(),
        });
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects = bench.agent.wake(bench.now);
    }
    assert_eq!(order, ["a", "b", "a", "b", "a", "b"]);
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
            bench.signal(SessionEvent::Accepted {
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
        let mut effects = bench.signal(end);
        effects.extend(bench.commit());
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects.extend(bench.agent.wake(bench.now));
        let done = effects.iter().find_map(|effect| match effect {
            Effect::Store(StoreCommand::Commit(Commit { ops, .. }))
                if ops.iter().any(|op| matches!(op, StoreOp::InboxSettle { .. })) =>
            {
                Some(ops.clone())
            }
            _ => None,
        });
        let ops = done.expect("settled");
        let settled = ops.iter().filter(|op| matches!(op, StoreOp::InboxSettle { .. })).count();
        assert_eq!(settled, joins.len() + 1, "all of it in one transaction");
        let replies = ops
            .into_iter()
            .filter_map(|op| if let StoreOp::OutboxAppend(row) = op { Some(row) } else { None })
            .collect();
        let turn = Turn { ids: Vec::new(), replies };
        let told: BTreeSet<String> = turn.told().into_iter().map(|(to, ..)| to).collect();
        assert_eq!(told, others.into_iter().chain([answered]).map(str::to_string).collect());
        for row in &turn.replies {
            let (to, body) = (
                row.payload["to"].as_str().expect("a name"),
                row.payload["body"].as_str().expect("a text"),
            );
            let is_answer = row.payload.pointer("/payload/answered") != Some(&json!(false));
            assert_eq!(
                (is_answer, body.contains("secret")),
                (to == answered, to == answered),
                "{row:?}"
            );
            assert_eq!(
                (row.payload["kind"].as_str(), row.payload["replyExpected"].as_bool()),
                (Some("chat"), Some(false))
            );
            assert!(
                body.lines().count() == 1 && (is_answer || body.contains("ask again")),
                "{body}"
            );
            assert_eq!(row.key, format!("reply:a:{}", row.payload["replyTo"]));
        }
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
        bench.signal(SessionEvent::TurnEnded {
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
        bench.signal(SessionEvent::Accepted {
            batch: delivery.batch,
            key: delivery.key,
            evidence: "seen".into(),
        });
        let mut effects = bench.signal(SessionEvent::TurnEnded {
            batch: Some(delivery.batch),
            end: end.clone(),
            text: text.into(),
        });
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects.extend(bench.commit());
        effects.extend(bench.agent.wake(bench.now));
        let rows = effects
            .into_iter()
            .filter_map(|effect| {
                if let Effect::Store(StoreCommand::Commit(Commit { ops, .. })) = effect {
                    Some(ops)
                } else {
                    None
                }
            })
            .flatten();
        let replies: Vec<OutboxRow> = rows
            .filter_map(|op| if let StoreOp::OutboxAppend(row) = op { Some(row) } else { None })
            .collect();
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

/// The store is asked for what is next, and its answer counts once.
#[test]
fn a_backlog_that_memory_cannot_hold_is_asked_for() {
    let mut bench = Bench::busy();
    bench.agent.config.session.takes_urgent = false;
    for id in 1..=INBOX_CACHED_MAX as u64 + 1 {
        bench.arrive(id, &sent("a"));
    }
    bench.arrive(5000, &sent("b"));
    let asked = |effects: &[Effect]| -> Vec<Choice> {
        effects
            .iter()
            .filter_map(|effect| {
                if let Effect::Store(StoreCommand::FetchInbox(choice)) = effect {
                    Some(choice.clone())
                } else {
                    None
                }
            })
            .collect()
    };
    let mut effects = bench.signal(SessionEvent::TurnEnded {
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
    let message = Message {
        id: MessageId(4999),
        from: "a".into(),
        to: "a".into(),
        kind: "chat".into(),
        ..Default::default()
    };
    let data = serde_json::to_value(message).expect("plain data");
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
    let row = |id: u64, from: &str| {
        let message = Message {
            id: MessageId(id),
            from: from.into(),
            to: "a".into(),
            kind: "chat".into(),
            ..Default::default()
        };
        crate::core::agent::store::InboxMessage {
            at: crate::core::ids::MessageRef { family: 1, id: MessageId(id), generation: 1 },
            message,
        }
    };
    // While the store is asked one more comes: what it says is not all.
    bench.arrive(5001, &sent("c"));
    let rows = vec![row(1, "a"), row(2, "a"), row(5000, "b")];
    let mut effects = bench.tell(Event::Store(StoreEvent::InboxRows { rows, more: false }));
    effects.extend(bench.commit());
    let [delivery] = deliveries(&effects).try_into().expect("one batch");
    assert_eq!(ids_in(&delivery.text), [1, 2]);
    let mut effects = bench.signal(SessionEvent::Accepted {
        batch: delivery.batch,
        key: delivery.key,
        evidence: "seen".into(),
    });
    effects.extend(bench.signal(SessionEvent::TurnEnded {
        batch: Some(delivery.batch),
        end: TurnEnd::Completed,
        text: "done".into(),
    }));
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    effects.extend(bench.agent.wake(bench.now));
    effects.extend(bench.commit());
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
    bench.signal(SessionEvent::Accepted {
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
