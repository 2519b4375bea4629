//! Thread `store`: the agent's SQLite file. The only owner; one commit for everything that is
//! queued (group commit without timers), WAL, synchronous FULL. Every statement is O(1) in the
//! backlog.

pub(super) mod inbox;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::core::Cause;
use crate::core::agent::effect::StoreCommand;
use crate::core::agent::event::{Event, StoreEvent};
use crate::core::agent::store::{
    Choice, Generation, InboxMessage, InboxState, OutboxRow, ProviderRecord, QueuedRow, Settled,
    Snapshot, StoreOp, TaskEnd, Unsettled,
};
use crate::core::ids::{BatchNumber, MessageId, ProcessRef, TaskId};
use crate::core::limits::*;
use crate::core::store::{StoreError, StoreKind};
use crate::edge::aside::{put_back, suspect};
use crate::edge::database::{
    Check, NamedFile, drop_copies, error_of, give_back, open_database, quick_check_at_start,
    rows_of,
};
use crate::os;
use crate::wire::api::Command;
use inbox::{note_sender, place_of};

/// Most commits in one transaction.
const GROUP_MAX: usize = 256;
/// Rows that are dropped at once when the bound is reached.
const DROP_BLOCK: u64 = 64;

/// Steps from nothing to the newest version.
pub(super) const SCHEMAS: &[&str] = &[FIRST, GENERATIONS, inbox::SCHEMA];

/// Version 1.
const FIRST: &str = "
CREATE TABLE IF NOT EXISTS inbox (
  id INTEGER PRIMARY KEY, doc TEXT, state INTEGER NOT NULL, batch INTEGER NOT NULL DEFAULT 0,
  evidence TEXT NOT NULL DEFAULT '', told INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS inbox_received ON inbox(id) WHERE state = 0;
CREATE INDEX IF NOT EXISTS inbox_active ON inbox(id) WHERE state IN (1, 2);
CREATE INDEX IF NOT EXISTS inbox_settled ON inbox(settled) WHERE state = 3;
CREATE TABLE IF NOT EXISTS commands (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL, reported INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, class INTEGER NOT NULL, key TEXT NOT NULL,
  occurred_at INTEGER NOT NULL, payload TEXT NOT NULL, poisoned TEXT);
CREATE INDEX IF NOT EXISTS outbox_head ON outbox(seq) WHERE poisoned IS NULL;
CREATE INDEX IF NOT EXISTS outbox_poisoned ON outbox(seq) WHERE poisoned IS NOT NULL;
CREATE INDEX IF NOT EXISTS outbox_victims ON outbox(class, seq) WHERE poisoned IS NULL;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS provider (
  one INTEGER PRIMARY KEY CHECK (one = 1), pid INTEGER, start INTEGER, provider_session TEXT, session TEXT);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Version 2: rows are kept by generation and id. What was there belongs to the relay that was
/// noted then.
const GENERATIONS: &str = "
CREATE TABLE generations (number INTEGER PRIMARY KEY, family INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, told TEXT);
INSERT INTO generations (number, family, name)
  SELECT 1, 1, coalesce((SELECT value FROM notes WHERE key = 'relay'), '') WHERE EXISTS (SELECT 1 FROM inbox)
    OR EXISTS (SELECT 1 FROM outbox) OR EXISTS (SELECT 1 FROM notes WHERE key = 'relay');
ALTER TABLE inbox RENAME TO inbox_by_id;
DROP INDEX inbox_received;
DROP INDEX inbox_active;
DROP INDEX inbox_settled;
CREATE TABLE inbox (
  generation INTEGER NOT NULL, id INTEGER NOT NULL, family INTEGER NOT NULL, doc TEXT, state INTEGER NOT NULL,
  batch INTEGER NOT NULL DEFAULT 0, evidence TEXT NOT NULL DEFAULT '', told INTEGER NOT NULL DEFAULT 0,
  settled INTEGER NOT NULL DEFAULT 0, task INTEGER, ended TEXT);
CREATE UNIQUE INDEX inbox_place ON inbox(generation, id);
CREATE INDEX inbox_received ON inbox(family, id, generation) WHERE state = 0;
CREATE INDEX inbox_active ON inbox(family, id, generation) WHERE state IN (1, 2);
CREATE INDEX inbox_settled ON inbox(settled) WHERE state = 3;
INSERT INTO inbox (generation, id, family, doc, state, batch, evidence, told, settled)
  SELECT 1, id, 1, doc, state, batch, evidence, told, settled FROM inbox_by_id;
DROP TABLE inbox_by_id;
ALTER TABLE outbox ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET generation = 1 WHERE kind = 'task-update' OR json_extract(payload, '$.replyTo') IS NOT NULL;
";

/// The open file.
pub struct Store {
    db: Connection,
    place: NamedFile,
    outbox_bytes_max: u64,
    rows: u64,
    poisoned: u64,
    bytes: u64,
    settled: i64,
    deletions: u64,
}

/// An operating error as the state thread branches on it.
fn cause_of(error: rusqlite::Error) -> Cause {
    error_of("the runner's store", &error).into()
}

impl Store {
    /// Opens or makes the file.
    pub fn open(path: &Path, outbox_bytes_max: u64) -> Result<Store, StoreError> {
        let db = open_database(path, SCHEMAS)?.db;
        let mut store = Store {
            db,
            place: NamedFile::of(path),
            outbox_bytes_max,
            rows: 0,
            poisoned: 0,
            bytes: 0,
            settled: 0,
            deletions: 0,
        };
        store.read_counters().map_err(|error| {
            error_of(format!("cannot read the store {}", path.display()), &error)
        })?;
        Ok(store)
    }

    /// A store without a file, for the simulation: it has exactly what was committed.
    pub fn in_memory() -> rusqlite::Result<Store> {
        let db = Connection::open_in_memory()?;
        SCHEMAS.iter().try_for_each(|schema| db.execute_batch(schema))?;
        let place = NamedFile::default();
        Ok(Store {
            db,
            place,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            rows: 0,
            poisoned: 0,
            bytes: 0,
            settled: 0,
            deletions: 0,
        })
    }

    /// Every row of every table, for comparisons in tests.
    pub fn rows(&self) -> rusqlite::Result<Vec<String>> {
        rows_of(&self.db)
    }

    fn read_counters(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare("SELECT name, value FROM counters")?;
        let counters: BTreeMap<String, i64> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let value = |name: &str| counters.get(name).copied().unwrap_or(0);
        let (rows, poisoned, bytes, settled) =
            (value("rows"), value("poisoned"), value("bytes"), value("settled"));
        drop(statement);
        (self.rows, self.poisoned, self.bytes, self.settled) =
            (rows as u64, poisoned as u64, bytes as u64, settled);
        Ok(())
    }

    /// Looks at every page before the store is used, for at most so long.
    pub fn check(&self, budget: Duration) -> Result<Check, StoreError> {
        quick_check_at_start(&self.db, budget)
    }

    /// All that an agent starts from.
    pub fn snapshot(&self) -> rusqlite::Result<Snapshot> {
        let (waiting, more_waiting) = self.inbox(&Choice::InOrder)?;
        let mut statement = self
            .db
            .prepare("SELECT family, id, generation, doc, state, batch FROM inbox WHERE state IN (1, 2) ORDER BY family, id, generation")?;
        let unsettled = statement
            .query_map([], |row| {
                Ok((
                    place_of(row)?,
                    row.get::<_, String>(3)?,
                    row.get::<_, i64>(4)?,
                    row.get::<_, i64>(5)?,
                ))
            })?
            .filter_map(|row| row.ok())
            .filter_map(|(at, doc, state, batch)| {
                let state = if state == 2 { InboxState::Confirmed } else { InboxState::Delivering };
                Some(Unsettled {
                    at,
                    message: serde_json::from_str(&doc).ok()?,
                    state,
                    batch: BatchNumber(batch as u64),
                })
            })
            .collect();
        let mut statement = self.db.prepare(
            "SELECT family, id, generation, told, task, ended, sender FROM inbox WHERE state = 3 ORDER BY settled DESC LIMIT ?1",
        )?;
        let mut settled: Vec<Settled> = statement
            .query_map([SETTLED_IDS_MAX as i64], |row| {
                let task: Option<TaskId> = row.get(4)?;
                let status: Option<String> = row.get(5)?;
                let ended =
                    task.zip(status).map(|(task, status)| TaskEnd { task, status: status.into() });
                Ok(Settled { at: place_of(row)?, read: row.get(3)?, ended, from: row.get(6)? })
            })?
            .collect::<Result<_, _>>()?;
        settled.reverse();
        let mut statement = self.db.prepare(
            "SELECT number, family, name, told, coalesce((SELECT max(id) FROM inbox WHERE generation = number), 0)
             FROM generations ORDER BY number",
        )?;
        let generations = statement
            .query_map([], |row| {
                let (number, family, highest): (i64, i64, MessageId) =
                    (row.get(0)?, row.get(1)?, row.get(4)?);
                Ok(Generation {
                    number: number as u32,
                    family: family as u32,
                    name: row.get(2)?,
                    told: row.get(3)?,
                    highest,
                })
            })?
            .collect::<Result<_, _>>()?;
        let mut statement = self.db.prepare("SELECT doc, reported FROM commands ORDER BY seq")?;
        let commands = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?
            .filter_map(|row| row.ok())
            .filter_map(|(doc, reported)| {
                Some((serde_json::from_str::<Command>(&doc).ok()?, reported))
            })
            .collect();
        let provider = self
            .db
            .query_row("SELECT pid, start, provider_session, session FROM provider", [], |row| {
                Ok(ProviderRecord {
                    process: ProcessRef {
                        pid: row.get::<_, i64>(0)? as u32,
                        start: row.get::<_, i64>(1)? as u64,
                    },
                    provider_session: row.get(2)?,
                    session: row.get(3)?,
                })
            })
            .optional()?;
        let mut statement = self.db.prepare("SELECT key, value FROM notes")?;
        let notes = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Snapshot {
            generations,
            waiting,
            more_waiting,
            unsettled,
            settled,
            commands,
            outbox_pending: self.rows,
            outbox_poisoned: self.poisoned,
            provider,
            notes,
        })
    }

    /// Waiting messages, as many as memory takes, and whether there are more.
    pub fn inbox(&self, choice: &Choice) -> rusqlite::Result<(Vec<InboxMessage>, bool)> {
        inbox::read(&self.db, choice)
    }

    /// The head of the outbox, as much as one exchange takes.
    pub fn outbox(&self) -> rusqlite::Result<Vec<QueuedRow>> {
        const HEAD: &str = "SELECT seq, kind, key, occurred_at, payload, generation FROM outbox WHERE poisoned IS NULL ORDER BY seq LIMIT ?1";
        let mut statement = if crate::planted::is("lost-row") {
            self.db.prepare_cached(&HEAD.replace("IS NULL", "IS NULL AND seq % 7 <> 3"))?
        } else {
            self.db.prepare_cached(HEAD)?
        };
        let mut rows = statement.query([PUMP_ROWS_MAX as i64])?;
        let (mut head, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let payload: String = row.get(4)?;
            bytes += payload.len();
            if bytes > PUMP_BYTES_MAX && !head.is_empty() {
                break;
            }
            let payload = serde_json::from_str(&payload).unwrap_or_default();
            let generation = row.get(5)?;
            let kind = row.get::<_, String>(1)?.into();
            let outbox =
                OutboxRow { kind, key: row.get(2)?, occurred_at: row.get(3)?, payload, generation };
            head.push(QueuedRow { seq: row.get::<_, i64>(0)? as u64, row: outbox });
        }
        Ok(head)
    }

    /// Makes groups of changes durable in one transaction; tells what the bound dropped. On an
    /// error nothing changed.
    pub fn commit(
        &mut self,
        groups: &[(u64, Vec<StoreOp>)],
    ) -> rusqlite::Result<Vec<(String, u64)>> {
        let before = (self.rows, self.poisoned, self.bytes, self.settled);
        let result = self.try_commit(groups);
        if result.is_err() {
            (self.rows, self.poisoned, self.bytes, self.settled) = before;
        }
        result
    }

    fn try_commit(
        &mut self,
        groups: &[(u64, Vec<StoreOp>)],
    ) -> rusqlite::Result<Vec<(String, u64)>> {
        let before = (self.rows, self.poisoned, self.bytes, self.settled);
        let free = os::free_bytes(self.place.path()).unwrap_or(u64::MAX);
        let transaction =
            self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut counts = Counts {
            rows: self.rows,
            poisoned: self.poisoned,
            bytes: self.bytes,
            settled: self.settled,
            deleted: 0,
        };
        for op in groups.iter().flat_map(|(_, ops)| ops) {
            apply(&transaction, op, &mut counts)?;
        }
        let bound = self.outbox_bytes_max.min(free / 10 + before.2);
        let dropped = enforce_bound(&transaction, &mut counts, bound)?;
        if (counts.rows, counts.poisoned, counts.bytes, counts.settled) != before {
            let mut statement = transaction
                .prepare_cached("INSERT OR REPLACE INTO counters (name, value) VALUES (?1, ?2)")?;
            for (name, value) in [
                ("rows", counts.rows as i64),
                ("poisoned", counts.poisoned as i64),
                ("bytes", counts.bytes as i64),
                ("settled", counts.settled),
            ] {
                statement.execute(params![name, value])?;
            }
        }
        transaction.commit()?;
        (self.rows, self.poisoned, self.bytes, self.settled) =
            (counts.rows, counts.poisoned, counts.bytes, counts.settled);
        self.deletions += counts.deleted;
        if self.deletions > 4096 {
            self.deletions = 0;
            // A little at a time: freed pages go back to the disk after a long backlog.
            let _ = give_back(&self.db, 512);
        }
        Ok(dropped)
    }
}

struct Counts {
    rows: u64,
    poisoned: u64,
    bytes: u64,
    settled: i64,
    deleted: u64,
}

fn apply(db: &Transaction<'_>, op: &StoreOp, counts: &mut Counts) -> rusqlite::Result<()> {
    match op {
        StoreOp::GenerationPut(generation) => put_generation(db, generation)?,
        StoreOp::InboxPut(InboxMessage { at, message }) => {
            let doc = serde_json::to_string(message).expect("plain data");
            db.prepare_cached("INSERT OR IGNORE INTO inbox (generation, id, family, doc, state, sender) VALUES (?1, ?2, ?3, ?4, 0, ?5)")?
                .execute(params![at.generation, at.id, at.family, doc, message.from])?;
            note_sender(db, &message.from)?;
        }
        StoreOp::InboxMark { at, state, batch, evidence } => {
            let state = match state {
                InboxState::Received => 0,
                InboxState::Delivering => 1,
                InboxState::Confirmed => 2,
            };
            let mut statement = db.prepare_cached(
                "UPDATE inbox SET state = ?3, batch = ?4, evidence = ?5 WHERE generation = ?1 AND id = ?2 RETURNING sender",
            )?;
            moved(
                db,
                &mut statement,
                params![at.generation, at.id, state, batch.0 as i64, evidence],
            )?;
        }
        StoreOp::InboxSettle { at, read, ended } => {
            counts.settled += 1;
            let (task, status) = ended.as_ref().map(|end| (end.task, end.status.as_str())).unzip();
            let mut statement = db.prepare_cached(
                "INSERT INTO inbox (generation, id, family, state, told, settled, task, ended) VALUES (?1, ?2, ?3, 3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (generation, id) DO UPDATE SET doc = NULL, state = 3, told = ?4, task = coalesce(?6, task), ended = coalesce(?7, ended),
                   settled = CASE settled WHEN 0 THEN ?5 ELSE settled END RETURNING sender",
            )?;
            moved(
                db,
                &mut statement,
                params![at.generation, at.id, at.family, read, counts.settled, task, status],
            )?;
        }
        StoreOp::InboxForget { at } => {
            counts.deleted += 1;
            let mut statement = db.prepare_cached(
                "DELETE FROM inbox WHERE generation = ?1 AND id = ?2 RETURNING sender",
            )?;
            moved(db, &mut statement, params![at.generation, at.id])?;
        }
        StoreOp::CommandPut(command) => {
            let doc = serde_json::to_string(command).expect("plain data");
            db.prepare_cached("INSERT OR IGNORE INTO commands (id, doc) VALUES (?1, ?2)")?
                .execute(params![command.id, doc])?;
        }
        StoreOp::CommandMark { id, status, result, error, reported } => {
            let mut statement = db.prepare_cached("SELECT doc FROM commands WHERE id = ?1")?;
            let doc: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
            if let Some(mut command) =
                doc.and_then(|doc| serde_json::from_str::<Command>(&doc).ok())
            {
                command.status = status.clone();
                command.result = result.clone();
                command.error = error.clone();
                let doc = serde_json::to_string(&command).expect("plain data");
                db.prepare_cached("UPDATE commands SET doc = ?2, reported = ?3 WHERE id = ?1")?
                    .execute(params![id, doc, reported])?;
            }
        }
        StoreOp::CommandForget { id } => {
            db.prepare_cached("DELETE FROM commands WHERE id = ?1")?.execute([id])?;
        }
        StoreOp::OutboxAppend(row) => {
            let payload = row.payload.to_string();
            counts.rows += 1;
            counts.bytes += payload.len() as u64;
            db.prepare_cached("INSERT INTO outbox (kind, class, key, occurred_at, payload, generation) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![row.kind.as_str(), row.kind.class(), row.key, row.occurred_at, payload, row.generation])?;
        }
        StoreOp::OutboxDelete(seqs) => {
            let mut statement = db.prepare_cached(
                "DELETE FROM outbox WHERE seq = ?1 RETURNING length(CAST(payload AS BLOB))",
            )?;
            for seq in seqs {
                if let Some(bytes) =
                    statement.query_row([*seq as i64], |row| row.get::<_, i64>(0)).optional()?
                {
                    counts.rows = counts.rows.saturating_sub(1);
                    counts.bytes = counts.bytes.saturating_sub(bytes as u64);
                    counts.deleted += 1;
                }
            }
        }
        StoreOp::OutboxPoison { seq, reason } => {
            let mut statement = db.prepare_cached(
                "UPDATE outbox SET poisoned = ?2 WHERE seq = ?1 AND poisoned IS NULL",
            )?;
            if statement.execute(params![*seq as i64, reason])? > 0 {
                counts.rows = counts.rows.saturating_sub(1);
                counts.poisoned += 1;
            }
        }
        StoreOp::ProviderPut(record) => {
            db.prepare_cached("INSERT OR REPLACE INTO provider (one, pid, start, provider_session, session) VALUES (1, ?1, ?2, ?3, ?4)")?
                .execute(params![record.process.pid as i64, record.process.start as i64, record.provider_session, record.session])?;
        }
        StoreOp::PutMeta { key, value: Some(value) } => {
            db.prepare_cached("INSERT OR REPLACE INTO notes (key, value) VALUES (?1, ?2)")?
                .execute(params![key, value])?;
        }
        StoreOp::PutMeta { key, value: None } => {
            db.prepare_cached("DELETE FROM notes WHERE key = ?1")?.execute([key])?;
        }
    }
    Ok(())
}

/// Changes a row of the inbox, by a statement that returns its sender.
fn moved(
    db: &Transaction<'_>,
    statement: &mut rusqlite::Statement<'_>,
    params: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<()> {
    let sender: Option<String> = statement.query_row(params, |row| row.get(0)).optional()?;
    sender.map_or(Ok(()), |sender| note_sender(db, &sender))
}

/// Notes a generation and removes those that no row belongs to.
fn put_generation(db: &Transaction<'_>, generation: &Generation) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM generations WHERE number NOT IN (SELECT generation FROM inbox UNION SELECT generation FROM outbox)
           AND name <> coalesce((SELECT value FROM notes WHERE key = 'relay'), '')",
    )?
    .execute([])?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO generations (number, family, name, told) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![generation.number, generation.family, generation.name, generation.told])
    .map(|_| ())
}

/// Over the bound: poisoned rows go first, then the highest class (mirror), oldest first, in
/// blocks.
fn enforce_bound(
    db: &Transaction<'_>,
    counts: &mut Counts,
    bound: u64,
) -> rusqlite::Result<Vec<(String, u64)>> {
    let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
    while counts.bytes > bound && counts.poisoned > 0 {
        let mut delete = db.prepare_cached(
            "DELETE FROM outbox WHERE seq = (SELECT seq FROM outbox WHERE poisoned IS NOT NULL ORDER BY seq LIMIT 1)
             RETURNING length(CAST(payload AS BLOB))",
        )?;
        let Some(bytes) = delete.query_row([], |row| row.get::<_, i64>(0)).optional()? else {
            break;
        };
        counts.poisoned -= 1;
        counts.bytes = counts.bytes.saturating_sub(bytes as u64);
        counts.deleted += 1;
    }
    while counts.bytes > bound {
        let mut victims = db.prepare_cached(
            "SELECT seq FROM outbox WHERE poisoned IS NULL ORDER BY class DESC, seq LIMIT ?1",
        )?;
        let seqs: Vec<i64> =
            victims.query_map([DROP_BLOCK as i64], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if seqs.is_empty() {
            break;
        }
        let mut delete = db.prepare_cached(
            "DELETE FROM outbox WHERE seq = ?1 RETURNING kind, length(CAST(payload AS BLOB))",
        )?;
        for seq in seqs {
            if counts.bytes <= bound {
                break;
            }
            let (kind, bytes): (String, i64) =
                delete.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            counts.rows = counts.rows.saturating_sub(1);
            counts.bytes = counts.bytes.saturating_sub(bytes as u64);
            counts.deleted += 1;
            *dropped.entry(kind).or_default() += 1;
        }
    }
    Ok(dropped.into_iter().collect())
}

/// The next start looks at the file.
fn damage(event: &StoreEvent) -> bool {
    let cause = match event {
        StoreEvent::Broken(error) => return error.kind == StoreKind::Corrupt,
        StoreEvent::Stalled(cause) | StoreEvent::OutboxRows { rows: Err(cause) } => cause,
        _ => return false,
    };
    matches!(cause, Cause::Store(error) if error.kind == StoreKind::Corrupt)
}

/// The thread; ends when nobody gives orders any more.
pub fn run(mut store: Store, orders: Receiver<StoreCommand>, lane: Sender<Event>) {
    let path = store.place.path().to_path_buf();
    let send = |event: StoreEvent| {
        if damage(&event) {
            suspect(&path);
        }
        lane.send(Event::Store(event)).is_ok()
    };
    match store.snapshot() {
        Ok(snapshot) => send(StoreEvent::Restored(Box::new(snapshot))),
        Err(error) => {
            send(StoreEvent::Broken(error_of("the runner's store", &error)));
            return orders.iter().for_each(drop);
        }
    };
    let mut broken = false;
    let mut stalled: Vec<(u64, Vec<StoreOp>)> = Vec::new();
    while let Ok(first) = orders.recv() {
        let (mut retry, mut fetches) = (false, Vec::new());
        let mut next = Some(first);
        let was_stalled = !stalled.is_empty();
        while let Some(order) = next.take() {
            match order {
                StoreCommand::Commit(commit) => stalled.push((commit.number, commit.ops)),
                StoreCommand::Retry => retry = true,
                fetch => fetches.push(fetch),
            }
            if stalled.len() < GROUP_MAX {
                next = orders.try_recv().ok();
            }
        }
        if !stalled.is_empty() && (retry || !was_stalled) {
            let upto = stalled.last().map(|(number, _)| *number).unwrap_or_default();
            os::crash_point("before-commit");
            match store.commit(&stalled) {
                Ok(dropped) => {
                    os::crash_point("after-commit");
                    stalled.clear();
                    // What went into a file that nobody will find again is not called durable.
                    let gone = store
                        .place
                        .look()
                        .map(|moved| put_back(&store.db, store.place.path(), moved));
                    broken |= gone.is_some();
                    if !send(
                        gone.map_or(StoreEvent::Committed { upto, dropped }, StoreEvent::Broken),
                    ) {
                        break;
                    }
                }
                Err(error) => {
                    if !send(StoreEvent::Stalled(cause_of(error))) {
                        break;
                    }
                }
            }
        }
        for fetch in fetches {
            let event = match fetch {
                StoreCommand::FetchInbox(choice) => match store.inbox(&choice) {
                    Ok((rows, more)) => StoreEvent::InboxRows { rows, more },
                    Err(error) => match error_of("the runner's store", &error) {
                        error if error.kind.retry().is_none() => StoreEvent::Broken(error),
                        _ => StoreEvent::InboxRows { rows: Vec::new(), more: true },
                    },
                },
                _ => StoreEvent::OutboxRows { rows: store.outbox().map_err(cause_of) },
            };
            if !send(event) {
                return;
            }
        }
    }
    // What was accepted is on disk. A file without a log opens faster.
    if !broken && store.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);").is_ok() {
        drop_copies(store.place.path(), SCHEMAS.len());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::ids::MessageRef;
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
            for (kind, rows) in store.commit(&[(0, vec![row(kind, 900)])]).expect("commits") {
                *dropped.entry(kind).or_insert(0) += rows;
            }
        }
        assert!(store.bytes <= 10_000);
        let left = kinds(&store);
        assert_eq!(
            left.iter().filter(|kind| *kind == "message").count(),
            7,
            "no reply is dropped while there is a mirror: {left:?}"
        );
        assert_eq!(dropped.get("session-message"), Some(&7));
        assert_eq!(store.rows as usize, left.len());
    }

    #[test]
    fn order_holds_and_poisoned_rows_are_passed_by() {
        let mut store = Store::in_memory().expect("memory");
        store
            .commit(&[(0, vec![row("a", 1), row("b", 1)]), (1, vec![row("c", 1)])])
            .expect("commits");
        assert_eq!(kinds(&store), ["a", "b", "c"]);
        store
            .commit(&[(
                2,
                vec![
                    StoreOp::OutboxPoison { seq: 1, reason: "no".into() },
                    StoreOp::OutboxDelete(vec![2]),
                ],
            )])
            .expect("commits");
        assert_eq!(kinds(&store), ["c"]);
        assert_eq!((store.rows, store.poisoned), (1, 1));
        let snapshot = store.snapshot().expect("reads");
        assert_eq!((snapshot.outbox_pending, snapshot.outbox_poisoned), (1, 1));
    }

    #[test]
    fn a_failed_commit_changes_nothing() {
        let mut store = Store::in_memory().expect("memory");
        store.commit(&[(0, vec![row("a", 1)])]).expect("commits");
        store.db.execute_batch("PRAGMA max_page_count = 1").expect("sets");
        let before = store.rows().expect("reads");
        assert!(store.commit(&[(1, vec![row("b", 900_000)])]).is_err());
        assert_eq!((store.rows().expect("reads"), store.rows), (before, 1));
        store.db.execute_batch("PRAGMA max_page_count = 100000").expect("sets");
        store.commit(&[(1, vec![row("b", 900_000)])]).expect("commits again");
        assert_eq!(store.rows, 2);
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
        store.commit(&[(0, vec![put(1, 3), put(1, 1), put(1, 2), put(1, 2)])]).expect("commits");
        let (rows, more) = store.inbox(&Choice::InOrder).expect("reads");
        assert_eq!(
            (rows.iter().map(|row| row.at).collect::<Vec<_>>(), more),
            (vec![at(1, 1), at(1, 2), at(1, 3)], false)
        );
        let ended = Some(TaskEnd { task: TaskId(9), status: "done".into() });
        let settle = StoreOp::InboxSettle { at: at(1, 3), read: false, ended: ended.clone() };
        let ops = vec![mark(1, InboxState::Delivering), mark(2, InboxState::Confirmed), settle];
        store.commit(&[(1, ops)]).expect("commits");
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
            (
                0,
                vec![Settled { at: at(1, 3), read: false, ended: ended.clone(), from: "x".into() }]
            )
        );
        // A settled message does not come back by a repeated put, and how its task ended is not
        // forgotten when it is read.
        let read = StoreOp::InboxSettle { at: at(1, 3), read: true, ended: None };
        store
            .commit(&[(2, vec![put(1, 3), StoreOp::InboxForget { at: at(1, 1) }, read])])
            .expect("commits");
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
            .commit(&[(0, vec![known(1, "old"), put(1, 7), put(1, 8), known(2, "new"), put(2, 7)])])
            .expect("commits");
        store
            .commit(&[(1, vec![StoreOp::InboxSettle { at: at(1, 7), read: true, ended: None }])])
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
        let done = [(1, 7), (1, 8)]
            .map(|(generation, id)| StoreOp::InboxForget { at: at(generation, id) });
        store.commit(&[(2, [&done[..], &[known(3, "newest")]].concat())]).expect("commits");
        let left: Vec<u32> =
            store.snapshot().expect("reads").generations.iter().map(|g| g.number).collect();
        assert_eq!(left, [2, 3]);
    }

    #[test]
    fn rows_of_an_older_file_belong_to_the_relay_that_was_noted() {
        let dir =
            std::env::temp_dir().join(format!("agent-relay-runner-store-{}", std::process::id()));
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
}
