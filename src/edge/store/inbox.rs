//! Reads what waits for the provider: in order, or sender by sender.
//!
//! Table `senders` holds the place of the oldest waiting message of each sender, so that neither
//! the next sender nor the messages are searched for among those of others.

use rusqlite::{Connection, Row, Rows, params};

use crate::core::agent::store::{Choice, InboxMessage};
use crate::core::ids::MessageRef;
use crate::core::limits::*;

/// Fills table `senders` from what stands in the inbox.
macro_rules! count_senders {
    () => {
        "INSERT INTO senders (sender, family, id, generation)
           SELECT sender, family, id, generation FROM
             (SELECT sender, family, id, generation, row_number() OVER (PARTITION BY sender ORDER BY family, id, generation) AS place
              FROM inbox WHERE state = 0)
           WHERE place = 1;"
    };
}
pub(in crate::edge) use count_senders;

/// Version 3: who sent what waits.
pub(super) const SCHEMA: &str = concat!(
    "ALTER TABLE inbox ADD COLUMN sender TEXT NOT NULL DEFAULT '';
     UPDATE inbox SET sender = coalesce(json_extract(doc, '$.from'), '') WHERE json_valid(doc);
     CREATE INDEX inbox_senders ON inbox(sender, family, id, generation) WHERE state = 0;
     CREATE TABLE senders (
       sender TEXT PRIMARY KEY, family INTEGER NOT NULL, id INTEGER NOT NULL, generation INTEGER NOT NULL) WITHOUT ROWID;
     CREATE INDEX senders_oldest ON senders(family, id, generation);",
    count_senders!()
);

/// All senders, beginning with the one of whom the oldest waits.
const SENDERS: &str = "SELECT sender FROM senders ORDER BY family, id, generation";
/// What waits of one sender.
const OF_SENDER: &str = "SELECT family, id, generation, doc FROM inbox WHERE sender = ?1 AND state = 0 ORDER BY family, id, generation LIMIT ?2";
/// What waits of all.
const IN_ORDER: &str = "SELECT family, id, generation, doc FROM inbox WHERE state = 0 ORDER BY family, id, generation LIMIT ?1";
/// Notes the oldest waiting message of one sender, if there is one.
const SENDER_WAITS: &str = "INSERT OR REPLACE INTO senders (sender, family, id, generation)
   SELECT sender, family, id, generation FROM inbox WHERE sender = ?1 AND state = 0 ORDER BY family, id, generation LIMIT 1";
/// No message of this sender waits.
const SENDER_IS_DONE: &str = "DELETE FROM senders WHERE sender = ?1";

/// Columns family, id and generation, in this order.
pub(super) fn place_of(row: &Row<'_>) -> rusqlite::Result<MessageRef> {
    Ok(MessageRef { family: row.get(0)?, id: row.get(1)?, generation: row.get(2)? })
}

/// Something of this sender began or ended to wait.
pub(super) fn note_sender(db: &Connection, sender: &str) -> rusqlite::Result<()> {
    if db.prepare_cached(SENDER_WAITS)?.execute([sender])? == 0 {
        db.prepare_cached(SENDER_IS_DONE)?.execute([sender])?;
    }
    Ok(())
}

/// As much of what waits as memory takes.
#[derive(Default)]
struct Window {
    rows: Vec<InboxMessage>,
    count: usize,
    bytes: usize,
    cut: bool,
}

impl Window {
    fn is_full(&self, count_max: usize, bytes_max: usize) -> bool {
        self.count >= count_max || self.bytes >= bytes_max
    }

    /// Columns family, id, generation and doc.
    fn fill(
        &mut self,
        mut rows: Rows<'_>,
        count_max: usize,
        bytes_max: usize,
    ) -> rusqlite::Result<()> {
        while let Some(row) = rows.next()? {
            if self.is_full(count_max, bytes_max) {
                self.cut = true;
                break;
            }
            let doc: String = row.get(3)?;
            (self.count, self.bytes) = (self.count + 1, self.bytes + doc.len());
            if let Ok(message) = serde_json::from_str(&doc) {
                self.rows.push(InboxMessage { at: place_of(row)?, message });
            }
        }
        Ok(())
    }

    /// The oldest messages of one sender, at most half of what memory takes, so that others are
    /// seen beside them.
    fn fill_from(&mut self, db: &Connection, sender: &str) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(OF_SENDER)?;
        let count_max = INBOX_CACHED_MAX.min(self.count + INBOX_CACHED_MAX / 2);
        let bytes_max = INBOX_CACHED_BYTES_MAX.min(self.bytes + INBOX_CACHED_BYTES_MAX / 2);
        self.fill(
            statement.query(params![sender, INBOX_CACHED_MAX as i64 + 1])?,
            count_max,
            bytes_max,
        )
    }
}

/// Waiting messages, and whether there are more.
pub(super) fn read(
    db: &Connection,
    choice: &Choice,
) -> rusqlite::Result<(Vec<InboxMessage>, bool)> {
    let mut window = Window::default();
    match choice {
        Choice::InOrder => {
            let mut statement = db.prepare_cached(IN_ORDER)?;
            window.fill(
                statement.query([INBOX_CACHED_MAX as i64 + 1])?,
                INBOX_CACHED_MAX,
                INBOX_CACHED_BYTES_MAX,
            )?;
        }
        Choice::BySender { last } => {
            for of_last in [false, true] {
                let mut statement = db.prepare_cached(SENDERS)?;
                let mut senders = statement.query([])?;
                while let Some(row) = senders.next()? {
                    let sender = row.get_ref(0)?.as_str()?;
                    if last.iter().any(|name| name == sender) != of_last {
                        continue;
                    }
                    if window.is_full(INBOX_CACHED_MAX, INBOX_CACHED_BYTES_MAX) {
                        window.cut = true;
                        break;
                    }
                    window.fill_from(db, sender)?;
                }
            }
        }
    }
    Ok((window.rows, window.cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::agent::store::{InboxState, StoreOp};
    use crate::core::ids::{BatchNumber, MessageId};
    use crate::edge::database::open_database;
    use crate::edge::store::{SCHEMAS, Store};
    use crate::wire::api::Message;

    fn at(id: u64) -> MessageRef {
        MessageRef { family: 1, id: MessageId(id), generation: 1 }
    }

    fn put(id: u64, from: &str, body: &str) -> StoreOp {
        let message = Message {
            id: MessageId(id),
            from: from.into(),
            body: body.into(),
            ..Default::default()
        };
        StoreOp::InboxPut(InboxMessage { at: at(id), message })
    }

    fn mark(id: u64, state: InboxState) -> StoreOp {
        StoreOp::InboxMark { at: at(id), state, batch: BatchNumber(1), evidence: String::new() }
    }

    fn store_with(ops: Vec<StoreOp>) -> Store {
        let mut store = Store::in_memory().expect("memory");
        store.commit_ops(&ops).expect("commits");
        store
    }

    fn by_sender(last: &[&str]) -> Choice {
        Choice::BySender { last: last.iter().map(|name| name.to_string()).collect() }
    }

    /// Senders in the order in which they are read, with how many messages of each and the first of
    /// them.
    fn read_senders(store: &Store, choice: &Choice) -> (Vec<(String, usize, u64)>, bool) {
        let (rows, more) = store.inbox(choice).expect("reads");
        let mut senders: Vec<(String, usize, u64)> = Vec::new();
        for InboxMessage { at, message } in rows {
            match senders.iter_mut().find(|(name, ..)| *name == message.from) {
                Some((_, count, _)) => *count += 1,
                None => senders.push((message.from, 1, at.id.0)),
            }
        }
        (senders, more)
    }

    fn row(name: &str, count: usize, first: u64) -> (String, usize, u64) {
        (name.into(), count, first)
    }

    #[test]
    fn whoever_waits_is_seen_behind_any_backlog_of_another() {
        let mut ops: Vec<StoreOp> = (1..=5000).map(|id| put(id, "a", "x")).collect();
        ops.extend([put(5001, "b", "x"), put(5002, "c", "x"), put(5003, "b", "x")]);
        let store = store_with(ops);
        let half = INBOX_CACHED_MAX / 2;
        assert_eq!(
            read_senders(&store, &by_sender(&["a"])),
            (vec![row("b", 2, 5001), row("c", 1, 5002), row("a", half, 1)], true)
        );
        assert_eq!(
            read_senders(&store, &by_sender(&[])),
            (vec![row("a", half, 1), row("b", 2, 5001), row("c", 1, 5002)], true)
        );
        assert_eq!(read_senders(&store, &by_sender(&["b", "c"])).0[0], row("a", half, 1));
        assert_eq!(
            read_senders(&store, &Choice::InOrder),
            (vec![row("a", INBOX_CACHED_MAX, 1)], true)
        );
        let few = store_with(vec![put(3, "a", "x"), put(1, "b", "x"), put(2, "a", "x")]);
        assert_eq!(
            read_senders(&few, &by_sender(&["b"])),
            (vec![row("a", 2, 2), row("b", 1, 1)], false)
        );
        assert_eq!(
            read_senders(&few, &Choice::InOrder),
            (vec![row("b", 1, 1), row("a", 2, 2)], false)
        );
    }

    #[test]
    fn large_messages_of_one_leave_room_for_others() {
        let large = "x".repeat(256 << 10);
        let mut ops: Vec<StoreOp> = (1..=40).map(|id| put(id, "a", &large)).collect();
        ops.push(put(41, "b", "x"));
        let (senders, more) = read_senders(&store_with(ops), &by_sender(&[]));
        assert_eq!((senders.len(), more), (2, true));
        assert_eq!(senders[1], row("b", 1, 41));
        assert!(
            (8..=9).contains(&senders[0].1),
            "half of what memory takes, and no more: {senders:?}"
        );
        // One that is larger than all of it is read all the same.
        let huge = "x".repeat(INBOX_CACHED_BYTES_MAX + 1);
        let store = store_with(vec![put(1, "a", &huge), put(2, "b", "x")]);
        assert_eq!(read_senders(&store, &by_sender(&[])), (vec![row("a", 1, 1)], true));
        assert_eq!(
            read_senders(&store, &by_sender(&["a"])),
            (vec![row("b", 1, 2), row("a", 1, 1)], false)
        );
    }

    #[test]
    fn the_oldest_of_a_sender_follows_every_move() {
        let mut store = store_with(vec![put(5, "a", "x"), put(2, "b", "x"), put(3, "a", "x")]);
        let senders = |store: &Store| -> Vec<(String, u64)> {
            let mut all = store
                .db
                .prepare("SELECT sender, id FROM senders ORDER BY sender")
                .expect("a table");
            let rows = all
                .query_map([], |row| Ok((row.get(0)?, row.get::<_, MessageId>(1)?.0)))
                .expect("reads");
            rows.collect::<Result<_, _>>().expect("rows")
        };
        type Move<'a> = (Vec<StoreOp>, &'a [(&'a str, u64)]);
        let moves: [Move; 8] = [
            (vec![], &[("a", 3), ("b", 2)]),
            (vec![mark(3, InboxState::Delivering)], &[("a", 5), ("b", 2)]),
            (vec![put(1, "a", "offered late")], &[("a", 1), ("b", 2)]),
            (
                vec![mark(3, InboxState::Received), StoreOp::InboxForget { at: at(1) }],
                &[("a", 3), ("b", 2)],
            ),
            (vec![mark(2, InboxState::Confirmed)], &[("a", 3)]),
            (
                vec![
                    StoreOp::InboxSettle { at: at(2), read: true, ended: None },
                    put(2, "b", "again"),
                ],
                &[("a", 3)],
            ),
            (vec![StoreOp::InboxSettle { at: at(3), read: false, ended: None }], &[("a", 5)]),
            (vec![StoreOp::InboxForget { at: at(5) }], &[]),
        ];
        for (number, (ops, wanted)) in moves.into_iter().enumerate() {
            store.commit_ops(&ops).expect("commits");
            let wanted: Vec<(String, u64)> =
                wanted.iter().map(|(name, id)| (name.to_string(), *id)).collect();
            assert_eq!(senders(&store), wanted, "move {number}");
        }
    }

    /// What a statement reads is found by an index, and nothing is sorted: its cost does not depend
    /// on what waits.
    #[test]
    fn no_statement_looks_through_what_waits() {
        let store = store_with(vec![put(1, "a", "x")]);
        for (statement, wanted) in [
            (SENDERS, "SCAN senders USING COVERING INDEX senders_oldest"),
            (OF_SENDER, "SEARCH inbox USING INDEX inbox_senders (sender=?)"),
            (IN_ORDER, "SCAN inbox USING INDEX inbox_received"),
            (SENDER_WAITS, "SEARCH inbox USING COVERING INDEX inbox_senders (sender=?)"),
            (SENDER_IS_DONE, "SEARCH senders USING PRIMARY KEY (sender=?)"),
        ] {
            let mut plan =
                store.db.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).expect("plans");
            let steps: Vec<String> =
                plan.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>().expect("steps");
            assert_eq!(steps, [wanted], "{statement}");
        }
    }

    #[test]
    fn senders_of_an_older_file_are_known() {
        let dir = std::env::temp_dir().join(format!("agent-relay-senders-{}", std::process::id()));
        let path = dir.join("store.sqlite");
        {
            let db = open_database(&path, &SCHEMAS[..2]).expect("opens").db;
            db.execute_batch(
                r#"INSERT INTO generations (number, family, name) VALUES (1, 1, 'hub');
                   INSERT INTO inbox (generation, id, family, doc, state) VALUES
                     (1, 4, 1, '{"id": 4, "from": "a"}', 0), (1, 5, 1, '{"id": 5, "from": "b"}', 0), (1, 6, 1, '{"id": 6, "from": "a"}', 0),
                     (1, 2, 1, '{"id": 2, "from": "b"}', 1), (1, 1, 1, NULL, 3);"#,
            )
            .expect("fills");
        }
        let mut store = Store::open(&path, 1 << 20).expect("opens");
        assert_eq!(
            read_senders(&store, &by_sender(&["a"])),
            (vec![row("b", 1, 5), row("a", 2, 4)], false)
        );
        store.commit_ops(&[mark(2, InboxState::Received)]).expect("commits");
        assert_eq!(
            read_senders(&store, &by_sender(&[])),
            (vec![row("b", 2, 2), row("a", 2, 4)], false)
        );
        assert!(
            dir.join("store.sqlite.before-3").exists(),
            "the older file is kept until the first orderly end"
        );
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
