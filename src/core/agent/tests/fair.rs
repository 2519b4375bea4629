//! Whose messages go to the provider together, whose turn is next, and who is told what at its end.

mod backlog;
mod mixed;

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
        bench.session_event(SessionEvent::TurnStarted);
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
        let effects = self.session_event(end);
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
            effects =
                self.session_event(SessionEvent::Accepted { batch, key, evidence: "seen".into() });
            effects.extend(self.session_event(SessionEvent::TurnEnded {
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

/// Somebody who sends more whenever their turn comes never keeps others waiting.
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
    let mut effects = bench.session_event(SessionEvent::TurnEnded {
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
        bench.session_event(SessionEvent::Accepted {
            batch: delivery.batch,
            key: delivery.key,
            evidence: "seen".into(),
        });
        bench.session_event(SessionEvent::TurnEnded {
            batch: Some(delivery.batch),
            end: TurnEnd::Completed,
            text: "done".into(),
        });
        bench.now.tick = bench.now.tick + Duration::from_secs(6);
        effects = bench.agent.wake(bench.now);
    }
    assert_eq!(order, ["a", "b", "a", "b", "a", "b"]);
}
