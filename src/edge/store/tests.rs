use serde_json::json;

use super::*;
use crate::core::agent::store::{Generation, InboxState, Settled, TaskEnd};
use crate::core::ids::{BatchNumber, MessageId, MessageRef, TaskId};
use crate::wire::api::Message;

fn row(kind: &str, size: usize) -> StoreOp {
    let payload = json!({"body": "x".repeat(size)});
    StoreOp::OutboxAppend(OutboxRow {
        kind: kind.into(),
        key: "k".into(),
        occurred_at: 1,
        payload,
        generation: 0,
    })
}

fn kinds(store: &Store) -> Vec<String> {
    store.outbox().expect("reads").into_iter().map(|batch| batch.row.kind.to_string()).collect()
}

#[test]
fn the_bound_drops_the_mirror_first_and_counts_it() {
    let mut store = Store::in_memory().expect("memory");
    store.outbox_bytes_max = 10_000;
    let mut dropped = BTreeMap::new();
    for n in 0..20 {
        let kind = ["message", "session-message", "insight"][n % 3];
        for (kind, rows) in store.commit_ops(&[row(kind, 900)]).expect("commits") {
            *dropped.entry(kind).or_insert(0) += rows;
        }
    }
    assert!(store.counters.bytes <= 10_000);
    let left = kinds(&store);
    assert_eq!(
        left.iter().filter(|kind| *kind == "message").count(),
        7,
        "no reply is dropped while there is a mirror: {left:?}"
    );
    assert_eq!(dropped.get("session-message"), Some(&7));
    assert_eq!(store.counters.rows as usize, left.len());
}

#[test]
fn order_holds_and_poisoned_rows_are_passed_by() {
    let mut store = Store::in_memory().expect("memory");
    store
        .commit(&[
            Commit { number: 0, ops: vec![row("a", 1), row("b", 1)] },
            Commit { number: 1, ops: vec![row("c", 1)] },
        ])
        .expect("commits");
    assert_eq!(kinds(&store), ["a", "b", "c"]);
    store
        .commit_ops(&[
            StoreOp::OutboxPoison { seq: 1, reason: "no".into() },
            StoreOp::OutboxDelete(vec![2]),
        ])
        .expect("commits");
    assert_eq!(kinds(&store), ["c"]);
    assert_eq!((store.counters.rows, store.counters.poisoned), (1, 1));
    let snapshot = store.snapshot().expect("reads");
    assert_eq!((snapshot.outbox_pending, snapshot.outbox_poisoned), (1, 1));
}

#[test]
fn a_failed_commit_changes_nothing() {
    let mut store = Store::in_memory().expect("memory");
    store.commit_ops(&[row("a", 1)]).expect("commits");
    store.db.execute_batch("PRAGMA max_page_count = 1").expect("sets");
    let before = store.rows().expect("reads");
    assert!(store.commit_ops(&[row("b", 900_000)]).is_err());
    assert_eq!((store.rows().expect("reads"), store.counters.rows), (before, 1));
    store.db.execute_batch("PRAGMA max_page_count = 100000").expect("sets");
    store.commit_ops(&[row("b", 900_000)]).expect("commits again");
    assert_eq!(store.counters.rows, 2);
}

fn at(generation: u32, id: u64) -> MessageRef {
    MessageRef { family: generation, id: MessageId(id), generation }
}

fn put(generation: u32, id: u64) -> StoreOp {
    StoreOp::InboxPut(InboxMessage {
        at: at(generation, id),
        message: Message {
            id: MessageId(id),
            from: "x".into(),
            body: format!("m{id}"),
            ..Default::default()
        },
    })
}

#[test]
fn messages_go_through_their_states() {
    let mut store = Store::in_memory().expect("memory");
    let mark = |id, state| StoreOp::InboxMark {
        at: at(1, id),
        state,
        batch: BatchNumber(4),
        evidence: "seen".into(),
    };
    store.commit_ops(&[put(1, 3), put(1, 1), put(1, 2), put(1, 2)]).expect("commits");
    let (rows, more) = store.inbox(&Choice::InOrder).expect("reads");
    assert_eq!(
        (rows.iter().map(|row| row.at).collect::<Vec<_>>(), more),
        (vec![at(1, 1), at(1, 2), at(1, 3)], false)
    );
    let ended = Some(TaskEnd { task: TaskId(9), status: "done".into() });
    let settle = StoreOp::InboxSettle { at: at(1, 3), read: false, ended: ended.clone() };
    let ops = vec![mark(1, InboxState::Delivering), mark(2, InboxState::Confirmed), settle];
    store.commit_ops(&ops).expect("commits");
    let snapshot = store.snapshot().expect("reads");
    let unsettled: Vec<_> =
        snapshot.unsettled.iter().map(|row| (row.at.id, row.state, row.batch)).collect();
    assert_eq!(
        unsettled,
        [
            (MessageId(1), InboxState::Delivering, BatchNumber(4)),
            (MessageId(2), InboxState::Confirmed, BatchNumber(4))
        ]
    );
    assert_eq!(
        (snapshot.waiting.len(), snapshot.settled),
        (0, vec![Settled { at: at(1, 3), read: false, ended: ended.clone(), from: "x".into() }])
    );
    // A settled message does not come back by a repeated put, and how its task ended is not
    // forgotten when it is read.
    let read = StoreOp::InboxSettle { at: at(1, 3), read: true, ended: None };
    store.commit_ops(&[put(1, 3), StoreOp::InboxForget { at: at(1, 1) }, read]).expect("commits");
    assert_eq!(store.inbox(&Choice::InOrder).expect("reads").0.len(), 0);
    assert_eq!(
        store.snapshot().expect("reads").settled,
        [Settled { at: at(1, 3), read: true, ended, from: "x".into() }]
    );
}

#[test]
fn the_same_id_of_two_generations_is_two_messages() {
    let mut store = Store::in_memory().expect("memory");
    let known = |number: u32, name: &str| {
        StoreOp::GenerationPut(Generation {
            number,
            family: number,
            name: name.into(),
            told: Some(name.into()),
            highest: MessageId(0),
        })
    };
    store
        .commit_ops(&[known(1, "old"), put(1, 7), put(1, 8), known(2, "new"), put(2, 7)])
        .expect("commits");
    store
        .commit_ops(&[StoreOp::InboxSettle { at: at(1, 7), read: true, ended: None }])
        .expect("commits");
    let waiting: Vec<MessageRef> =
        store.inbox(&Choice::InOrder).expect("reads").0.iter().map(|row| row.at).collect();
    assert_eq!(waiting, [at(1, 8), at(2, 7)], "what an earlier relay gave comes first");
    let generations: Vec<_> = store
        .snapshot()
        .expect("reads")
        .generations
        .into_iter()
        .map(|g| (g.number, g.name, g.highest))
        .collect();
    assert_eq!(
        generations,
        [(1, "old".to_string(), MessageId(8)), (2, "new".to_string(), MessageId(7))]
    );
    // One that nothing belongs to any more goes with the next one that is noted.
    let done =
        [(1, 7), (1, 8)].map(|(generation, id)| StoreOp::InboxForget { at: at(generation, id) });
    store.commit_ops(&[&done[..], &[known(3, "newest")]].concat()).expect("commits");
    let left: Vec<u32> =
        store.snapshot().expect("reads").generations.iter().map(|g| g.number).collect();
    assert_eq!(left, [2, 3]);
}

#[test]
fn rows_of_an_older_file_belong_to_the_relay_that_was_noted() {
    let dir = std::env::temp_dir().join(format!("agent-relay-runner-store-{}", std::process::id()));
    let path = dir.join("store.sqlite");
    {
        let db = open_database(&path, &SCHEMAS[..1]).expect("opens").db;
        db.execute_batch(
            "INSERT INTO notes VALUES ('relay', 'hub-1'); INSERT INTO inbox (id, doc, state) VALUES (5, '{\"id\": 5}', 0);
             INSERT INTO inbox (id, state, told, settled) VALUES (4, 3, 0, 1);
             INSERT INTO outbox (kind, class, key, occurred_at, payload) VALUES
               ('message', 0, 'reply:a:4', 1, '{\"replyTo\": 4}'), ('session-message', 2, 'k', 1, '{}');",
        )
        .expect("fills");
    }
    let snapshot = Store::open(&path, 1 << 20).expect("opens").snapshot().expect("reads");
    let generation = Generation {
        number: 1,
        family: 1,
        name: "hub-1".into(),
        told: None,
        highest: MessageId(5),
    };
    assert_eq!(snapshot.generations, [generation]);
    assert_eq!(snapshot.waiting.iter().map(|row| row.at).collect::<Vec<_>>(), [at(1, 5)]);
    assert_eq!(
        snapshot.settled,
        [Settled { at: at(1, 4), read: false, ended: None, from: String::new() }]
    );
    let rows = Store::open(&path, 1 << 20).expect("opens").outbox().expect("reads");
    assert_eq!(rows.iter().map(|row| row.row.generation).collect::<Vec<_>>(), [1, 0]);
    std::fs::remove_dir_all(&dir).expect("clean up");
}
