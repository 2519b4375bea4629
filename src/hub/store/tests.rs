use super::super::read::rows_of_recipient;
use serde_json::Value;

use super::*;
use crate::core::hub::event::StoredTask;
use crate::wire::api::Task;
use serde_json::json;

fn put(store: &mut HubStore, id: u64, kind: &str, to: &str, created_at: i64) {
    let message = Message {
        id: MessageId(id),
        from: "x".into(),
        to: to.into(),
        kind: kind.into(),
        body: "b".into(),
        created_at,
        ..Default::default()
    };
    let op = HubOp::MessagePut {
        message: message.into(),
        recipients: vec![to.into()],
        key: Some(format!("k{id}")),
        sees_all: true,
    };
    store.commit_ops(&[op]).expect("memory");
}

fn retain(store: &mut HubStore, session_before: i64, before: i64, limit: u64) -> Retired {
    store.commit_ops(&[HubOp::Retain { session_before, before, limit }]).expect("memory").retired
}

fn ids(store: &HubStore) -> Vec<i64> {
    let mut statement = store.db.prepare("SELECT id FROM messages ORDER BY id").expect("prepares");
    statement
        .query_map([], |row| row.get(0))
        .expect("asks")
        .collect::<Result<_, _>>()
        .expect("reads")
}

#[test]
fn old_messages_go_by_class_a_few_at_a_time() {
    let mut store = HubStore::in_memory().expect("memory");
    for id in 1..=10 {
        let (kind, to) = if id % 2 == 0 { ("session", "user") } else { ("chat", "a") };
        put(&mut store, id, kind, to, id as i64 * 10);
    }
    // Session messages older than 90, others older than 40.
    let retired = retain(&mut store, 90, 40, 200);
    assert_eq!(ids(&store), [5, 7, 9, 10]);
    assert_eq!((retired.count, retired.more), (6, false));
    assert_eq!(
        retired.unacknowledged,
        [("a".to_string(), MessageId(1)), ("a".to_string(), MessageId(3))]
    );
    // The newest id stays for ever: what follows counts on from it.
    let retired = retain(&mut store, 1000, 1000, 2);
    assert_eq!((ids(&store), retired.more), (vec![9, 10], true));
    retain(&mut store, 1000, 1000, 200);
    assert_eq!(ids(&store), [10]);
    let left: i64 = store
        .db
        .query_row("SELECT count(*) FROM recipients", [], |row| row.get(0))
        .expect("counts");
    assert_eq!(left, 1);
    assert_eq!(store.snapshot().expect("reads").last_message, MessageId(10));
}

#[test]
fn what_somebody_holds_stays_and_what_nobody_wants_goes() {
    let mut store = HubStore::in_memory().expect("memory");
    for id in [1, 2] {
        let message = Message {
            id: MessageId(id),
            from: "x".into(),
            to: "a".into(),
            claimable: true,
            ..Default::default()
        };
        store
            .commit_ops(&[HubOp::MessagePut {
                message: message.into(),
                recipients: vec!["a".into()],
                key: None,
                sees_all: true,
            }])
            .expect("memory");
    }
    store
        .commit_ops(&[HubOp::ClaimPut { message: MessageId(1), agent: "a".into(), expires_at: 5 }])
        .expect("memory");
    put(&mut store, 3, "chat", "a", 0);
    put(&mut store, 4, "chat", "a", 0);
    let retired = retain(&mut store, 100, 100, 200);
    assert_eq!((ids(&store), retired.offers), (vec![1, 4], vec![MessageId(2)]));
    store
        .commit_ops(&[HubOp::ClaimEnd { message: MessageId(1), reoffer: false, at: 5 }])
        .expect("memory");
    retain(&mut store, 100, 100, 200);
    assert_eq!(ids(&store), [4]);
}

/// Nobody is offered it, nobody owes anything for it, no retention takes it away; opened again it
/// is unread for all.
/// A store with one offered message, 1, of x to a and b, and its task 1.
fn store_with_an_offer() -> HubStore {
    let mut store = HubStore::in_memory().expect("memory");
    let message = Message {
        id: MessageId(1),
        from: "x".into(),
        to: "tag:t".into(),
        kind: "task".into(),
        claimable: true,
        payload: serde_json::json!({"taskId": 1}).as_object().cloned().unwrap_or_default(),
        ..Default::default()
    };
    let task = Task {
        id: TaskId(1),
        status: "open".into(),
        message_id: MessageId(1),
        ..Default::default()
    };
    let recipients = vec!["a".to_string(), "b".to_string()];
    store
        .commit_ops(&[
            HubOp::MessagePut { message: message.into(), recipients, key: None, sees_all: true },
            HubOp::TaskPut(task),
        ])
        .expect("memory");
    store
}

fn count_obligations(store: &HubStore) -> i64 {
    let count = store.db.query_row("SELECT count(*) FROM obligations", [], |row| row.get(0));
    count.expect("counts")
}

#[test]
fn a_held_offer_stays_and_comes_back_unread() {
    let mut store = store_with_an_offer();
    let id = MessageId(1);
    let mark = |status: &str| HubOp::TaskMark {
        id: TaskId(1),
        status: status.into(),
        agent: None,
        entry: Value::Null,
        at: 5,
    };
    let work = [
        HubOp::ClaimPut { message: id, agent: "a".into(), expires_at: 50 },
        HubOp::Acked { message: id, recipient: "a".into() },
        HubOp::Read { message: id, recipient: "a".into(), at: 3, reason: None },
    ];
    store.commit_ops(&work).expect("memory");
    assert_eq!(count_obligations(&store), 1);
    let held = [mark("blocked"), HubOp::OfferHeld { message: id, at: 5 }];
    store.commit_ops(&held).expect("memory");
    put(&mut store, 2, "chat", "a", 0);
    for _ in 0..2 {
        let snapshot = store.snapshot().expect("reads");
        assert!(
            snapshot.unacknowledged.iter().all(|(_, ids)| !ids.contains(&id)),
            "{:?}",
            snapshot.unacknowledged
        );
        assert_eq!((snapshot.offers[0].message, snapshot.offers[0].claim.clone()), (id, None));
        let task = StoredTask {
            id: TaskId(1),
            message: id,
            status: "blocked".into(),
            sender: "x".into(),
            restored: false,
        };
        assert_eq!(snapshot.tasks, [task]);
        assert_eq!(count_obligations(&store), 0);
        put(&mut store, 3, "chat", "a", 0);
        assert_eq!(retain(&mut store, 100, 100, 200).offers, Vec::<MessageId>::new());
    }
    let open = [mark("open"), HubOp::ClaimEnd { message: id, reoffer: true, at: 7 }];
    store.commit_ops(&open).expect("memory");
    let snapshot = store.snapshot().expect("reads");
    for recipient in ["a", "b"] {
        let mut queues = snapshot.unacknowledged.iter();
        assert!(queues.any(|(who, ids)| who == recipient && ids.contains(&id)), "{recipient}");
    }
}

#[test]
fn polls_use_an_index_and_see_the_right_rows() {
    let mut store = HubStore::in_memory().expect("memory");
    for (id, kind, to) in
        [(1, "chat", "user"), (2, "session", "user"), (3, "chat", "a"), (4, "chat", "user")]
    {
        put(&mut store, id, kind, to, 0);
    }
    let ask = |recipient: &str, mirror: bool, unread: bool| -> Vec<u64> {
        let (recipient, since, limit) = (recipient.to_string(), 0, 10);
        let query = if unread {
            Query::Unread { recipient, since: MessageId(since), limit, mirror }
        } else {
            Query::Inbox { recipient, since: MessageId(since), limit, mirror }
        };
        let ReadAnswer::Json(answer) = store.answer(&query) else { panic!() };
        answer["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .filter_map(|message| message["id"].as_u64())
            .collect()
    };
    for unread in [true, false] {
        assert_eq!(ask("user", true, unread), [1, 2, 4]);
        assert_eq!(ask("user", false, unread), [1, 4]);
        assert_eq!(ask("a", true, unread), [3]);
    }
    for (recipient, mirror, unread, index) in [
        ("user", true, true, "recipients_user_unread"),
        ("user", false, true, "recipients_unread_mail"),
        ("a", false, true, "recipients_unread_mail"),
        ("user", false, false, "recipients_user_mail"),
        ("user", true, false, "PRIMARY KEY"),
        ("a", false, false, "PRIMARY KEY"),
    ] {
        let rows = rows_of_recipient(recipient, mirror, unread);
        let sql = format!("EXPLAIN QUERY PLAN SELECT m.doc {rows} ORDER BY r.message LIMIT ?3");
        let mut statement = store.db.prepare(&sql).expect("prepares");
        let plan: Vec<String> = statement
            .query_map(params![recipient, 0, 10], |row| row.get(3))
            .expect("asks")
            .collect::<Result<_, _>>()
            .expect("reads");
        let plan = plan.join("; ");
        assert!(
            plan.contains(index) && !plan.contains("SCAN") && !plan.contains("TEMP B-TREE"),
            "{recipient} {mirror} {unread}: {plan}"
        );
    }
}

#[test]
fn a_vacuum_gives_everything_back_in_steps() {
    let dir = std::env::temp_dir().join(format!("agent-relay-vacuum-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let mut store = HubStore::open(&dir.join("hub.sqlite")).expect("opens");
    for id in 1..=400 {
        let body = "x".repeat(20_000);
        let message = Message {
            id: MessageId(id),
            from: "x".into(),
            to: "user".into(),
            kind: "chat".into(),
            body,
            created_at: 0,
            ..Default::default()
        };
        store
            .commit_ops(&[HubOp::MessagePut {
                message: message.into(),
                recipients: vec!["user".into()],
                key: None,
                sees_all: true,
            }])
            .expect("commits");
    }
    while retain(&mut store, 100, 100, 200).more {}
    let (bytes, free) = sizes(&store.db).expect("sizes");
    assert!(free > bytes / 2, "{free} of {bytes}");
    assert!(store.vacuum_step().expect("a step"), "it takes more than one");
    let (before, after) = store.vacuum().expect("vacuums");
    assert!(
        after < bytes / 4 && before > after && sizes(&store.db).expect("sizes").1 == 0,
        "{before} {after}"
    );
    std::fs::remove_dir_all(&dir).expect("clean up");
}

/// Whoever names the id of a message that it cannot see answers nothing; what it says is kept.
#[test]
fn an_answer_hangs_only_on_what_its_sender_can_see() {
    for (from, sees_all, reply, answers) in [
        ("boss", false, Some(1), json!([1])),
        ("worker", false, Some(1), json!([1])),
        ("stranger", false, None, json!([])),
        ("user", true, Some(1), json!([1, 2])),
        ("bridge", true, Some(1), json!([1, 2])),
    ] {
        let mut store = HubStore::in_memory().expect("memory");
        let message = |id: u64, from: &str, to: &str| Message {
            id: MessageId(id),
            from: from.into(),
            to: to.into(),
            kind: "chat".into(),
            body: "b".into(),
            ..Default::default()
        };
        let put = |message: Message, to: &str| HubOp::MessagePut {
            message: message.into(),
            recipients: vec![to.into()],
            key: None,
            sees_all,
        };
        let mut answer = message(3, from, "boss");
        answer.reply_to = Some(MessageId(1));
        answer.payload.insert("answers".into(), json!([1, 2, 99, "x"]));
        let ops = vec![
            put(message(1, "boss", "worker"), "worker"),
            put(message(2, "else", "other"), "other"),
            put(answer, "boss"),
        ];
        let committed = store.commit_ops(&ops).expect("memory");
        let stored = committed.unattached.first().expect("two of the answered are unknown");
        assert_eq!(
            (stored.reply_to.map(|id| id.0), &stored.payload["answers"]),
            (reply, &answers),
            "{from}"
        );
        let ReadAnswer::Json(kept) =
            store.answer(&Query::Message { id: MessageId(3), viewer: None })
        else {
            panic!("kept")
        };
        assert_eq!(
            (kept["replyTo"].as_u64(), &kept["payload"]["answers"]),
            (reply, &answers),
            "{from}"
        );
        let ReadAnswer::Json(thread) =
            store.answer(&Query::Thread { id: MessageId(1), viewer: None })
        else {
            panic!("a thread")
        };
        assert_eq!(
            thread["messages"].as_array().map(Vec::len),
            Some(1 + usize::from(reply.is_some())),
            "{from}"
        );
    }
}

#[test]
fn an_older_operators_token_keeps_all_scopes_if_it_had_all() {
    let dir = std::env::temp_dir().join(format!("agent-relay-hub-scopes-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("hub.sqlite");
    let before: Vec<&str> = crate::core::hub::scopes_of("operator")
        .iter()
        .copied()
        .filter(|s| !matches!(*s, "insight:write" | "token:issue"))
        .collect();
    {
        let db = open_database(&path, &SCHEMAS[..4]).expect("opens").db;
        for (hash, profile, scopes) in [
            ("full", "operator", before.clone()),
            ("other-order", "operator", before.iter().rev().copied().collect()),
            ("narrow", "operator", before[1..].to_vec()),
            ("twice", "operator", vec!["spawn"; before.len()]),
            ("agent", "provider-agent", before.clone()),
        ] {
            let record = json!({"jti": hash, "profileId": profile, "scopes": scopes}).to_string();
            db.execute("INSERT INTO tokens (hash, record) VALUES (?1, ?2)", [hash, &record])
                .expect("fills");
        }
    }
    let tokens = HubStore::open(&path).expect("opens").snapshot().expect("reads").tokens;
    for (hash, record) in tokens {
        let more = record
            .scopes
            .iter()
            .filter(|scope| matches!(scope.as_str(), "insight:write" | "token:issue"))
            .count();
        let full = hash == "full" || hash == "other-order";
        assert_eq!(more, if full { 2 } else { 0 }, "{hash}: {:?}", record.scopes);
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn an_older_file_is_brought_up_to_date() {
    let dir = std::env::temp_dir().join(format!("agent-relay-hub-store-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let path = dir.join("hub.sqlite");
    {
        let db = open_database(&path, &SCHEMAS[..1]).expect("opens").db;
        db.execute_batch(
            "INSERT INTO messages (id, doc, sender, kind, target, thread, wants_reply, claimable, created_at)
             VALUES (1, '{}', 'a', 'session', 'user', 1, 0, 0, 0), (2, '{}', 'a', 'chat', 'user', 2, 0, 0, 0);
             INSERT INTO recipients (recipient, message, session) VALUES ('user', 1, 1), ('user', 2, 1);",
        )
        .expect("fills");
    }
    let store = HubStore::open(&path).expect("opens");
    let mirror: i64 = store
        .db
        .query_row("SELECT sum(mirror * message) FROM recipients", [], |row| row.get(0))
        .expect("reads");
    assert_eq!(mirror, 1, "only the session message is mirror");
    let copy = dir.join("copy.sqlite");
    assert!(backup(&path, &copy).expect("copies") > 0);
    let original = store.rows().expect("reads");
    let copied = HubStore::open(&copy).expect("opens");
    assert!(
        copied.snapshot().expect("reads").data.copied
            && !store.snapshot().expect("reads").data.copied
    );
    let rows: Vec<String> = copied
        .rows()
        .expect("reads")
        .into_iter()
        .filter(|row| !row.starts_with("facts: "))
        .collect();
    assert_eq!(rows, original);
    let Err(Trouble::Use(text)) = backup(&path, &copy) else { panic!("the file exists") };
    assert!(text.contains("exists already"));
    std::fs::remove_dir_all(&dir).expect("clean up");
}
